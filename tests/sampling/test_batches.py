"""Batches of any structure."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from slt_callbacks.data.batches import concatenate, leaves, map_leaves, num_rows, signature, take_rows

Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    names: list[str]


X, Y = torch.arange(6.0).view(3, 2), torch.arange(3)
BATCHES = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"x": X, "y": Y},
    "ordered dict": OrderedDict(x=X, y=Y),
    "user dict": UserDict(x=X, y=Y),
    "namedtuple": Pair(X, Y),
    "dataclass": Record(X, ["a", "b", "c"]),
    "strings": {"x": X, "names": ["a", "b", "c"]},
    "tuple of strings": (X, ("a", "b", "c")),
    "nested": {"x": (X, [Y, {"deep": X}])},
    "shared": {"x": X, "mask": torch.ones(5), "size": 7, "scale": torch.tensor(2.0)},
}


@pytest.mark.parametrize("name", BATCHES)
def test_rows_are_taken_and_glued_in_any_structure(name: str) -> None:
    batch = BATCHES[name]
    assert num_rows(batch) == 3
    first, last = (take_rows(batch, torch.tensor(rows), 3) for rows in ([0, 1], [2]))
    assert type(first) is type(batch)
    assert signature(first) == signature(last)
    glued = concatenate([first, last])
    assert type(glued) is type(batch)
    for one, other in zip(leaves(glued), leaves(batch), strict=True):
        same = (
            torch.equal(one, other)
            if isinstance(one, torch.Tensor)
            else list(one) == list(other)
            if isinstance(one, (list, tuple))
            else one == other
        )
        assert same
    swapped = next(leaf for leaf in leaves(take_rows(batch, torch.tensor([2, 0]), 3)) if isinstance(leaf, torch.Tensor))
    assert torch.equal(swapped, X[[2, 0]])


@pytest.mark.parametrize("name", BATCHES)
def test_containers_are_new_but_untouched_tensors_are_not_copied(name: str) -> None:
    batch = BATCHES[name]
    mapped = map_leaves(lambda leaf: leaf, batch)
    assert mapped is not batch or isinstance(batch, torch.Tensor)
    assert all(one is other for one, other in zip(leaves(mapped), leaves(batch), strict=True))


def test_signature_separates_what_cannot_be_glued() -> None:
    batches: list[Any] = [
        X,
        X.double(),
        torch.zeros(3, 4),
        (X,),
        {"x": X},
        {"x": X, "size": 1},
        {"x": X, "size": 2},
        {"x": X, "mask": torch.ones(5)},
    ]
    assert len({signature(batch) for batch in batches}) == len(batches)


@pytest.mark.parametrize("batch", ["text", 3, {"x": torch.tensor(1.0)}, []])
def test_a_batch_without_samples_is_refused(batch: Any) -> None:
    with pytest.raises(ValueError, match="Expected every batch of `reference` to hold a tensor whose first dimension"):
        num_rows(batch)
