"""Batches of any structure: walk over their tensors, take rows, glue them together."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Batch = Any
"""Tensors in tuples, lists, dicts, named tuples or dataclasses, nested as the user likes."""


def map_leaves(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """A new batch of the same structure with `function` applied to every leaf.

    Containers are always new, so that a loss function that pops a key changes its own copy only. A list of strings
    (what the default collate makes of one string a sample) is a leaf.

    Example:
        >>> map_leaves(lambda leaf: leaf + 1, {"x": (1, [2])})
        {'x': (2, [3])}
    """
    if _is_strings(batch):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_leaves(function, item) for item in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)([map_leaves(function, item) for item in batch])
    if isinstance(batch, Mapping):
        items = {key: map_leaves(function, value) for key, value in batch.items()}
        try:
            return type(batch)(items)  # type: ignore[call-arg]  # dict, OrderedDict and UserDict take a dict
        except TypeError:
            return items
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        new = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(new, field.name, map_leaves(function, getattr(batch, field.name)))
        return new
    return function(batch)


def leaves(batch: Batch) -> Iterator[Any]:
    """Every leaf, in the order of the structure.

    Example:
        >>> list(leaves({"x": (1, [2, 3])}))
        [1, 2, 3]
    """
    found: list[Any] = []
    map_leaves(found.append, batch)
    yield from found


def num_rows(batch: Batch) -> int:
    """Number of samples of a batch: the first dimension of its first tensor.

    Raises:
        ValueError: If the batch holds no tensor with a first dimension.

    Example:
        >>> num_rows((torch.zeros(3, 2), torch.zeros(3)))
        3
    """
    for leaf in leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.ndim > 0:
            return leaf.shape[0]
    raise ValueError(
        f"Expected every batch of `reference` to hold a tensor whose first dimension counts samples, but got "
        f"{describe(batch)}: collate the samples into tensors."
    )


def take_rows(batch: Batch, rows: torch.Tensor, size: int) -> Batch:
    """The samples `rows` of a batch of `size` samples; leaves without that first dimension are kept whole.

    Args:
        batch: A collated batch.
        rows: Indices, int64, shape ``(B,)``, on the CPU: from a GPU the host would have to wait for them.
        size: Number of samples in `batch`.

    Example:
        >>> take_rows({"x": torch.tensor([5, 6, 7]), "name": ["a", "b", "c"]}, torch.tensor([2, 0]), size=3)
        {'x': tensor([7, 5]), 'name': ['c', 'a']}
    """
    moved: dict[torch.device, torch.Tensor] = {}

    def take(leaf: Any) -> Any:
        if not has_rows(leaf, size):
            return leaf
        if not isinstance(leaf, torch.Tensor):
            return [leaf[row] for row in rows.tolist()]
        if leaf.device not in moved:
            moved[leaf.device] = rows.to(leaf.device, non_blocking=True)
        return leaf.index_select(0, moved[leaf.device])

    return map_leaves(take, batch)


def has_rows(leaf: Any, size: int) -> bool:
    """Whether a leaf of a batch of `size` samples holds something for each of them.

    Example:
        >>> has_rows(torch.zeros(3, 2), 3), has_rows(["a", "b", "c"], 3), has_rows(torch.zeros(5), 3), has_rows(3, 3)
        (True, True, False, False)
    """
    if isinstance(leaf, torch.Tensor):
        return leaf.ndim > 0 and leaf.shape[0] == size
    return _is_strings(leaf) and len(leaf) == size


def as_lists(batch: Batch) -> Batch:
    """The same with a list for every plain tuple: `default_collate` makes lists where a user writes tuples.

    Example:
        >>> as_lists((1, {"x": (2, [3])}))
        [1, {'x': [2, [3]]}]
    """
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return [as_lists(item) for item in batch]
    if isinstance(batch, dict):
        return {key: as_lists(value) for key, value in batch.items()}
    return batch


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch out of several of one `signature`, samples in the order given.

    Example:
        >>> concatenate([[torch.tensor([1])], [torch.tensor([2, 3])]])
        [tensor([1, 2, 3])]
    """
    size = num_rows(batches[0])

    def join(column: tuple[Any, ...]) -> Any:
        first = column[0]
        if isinstance(first, torch.Tensor) and first.ndim > 0 and first.shape[0] == size:
            return torch.cat(column)
        if _is_strings(first):
            return [item for part in column for item in part]
        return first

    joined = iter([join(column) for column in zip(*map(leaves, batches), strict=True)])
    return map_leaves(lambda _: next(joined), batches[0])


def signature(batch: Batch) -> str:
    """A string that two batches share when their samples can be glued together.

    Example:
        >>> signature([torch.zeros(3, 2)]) == signature([torch.zeros(5, 2)]) != signature([torch.zeros(3, 4)])
        True
    """
    size = num_rows(batch)

    def describe_leaf(leaf: Any) -> str:
        if isinstance(leaf, torch.Tensor):
            rows = leaf.ndim > 0 and leaf.shape[0] == size
            return f"{leaf.dtype}{'N' if rows else ''}{list(leaf.shape[1:] if rows else leaf.shape)}"
        return "strings" if _is_strings(leaf) else repr(leaf)

    return repr(map_leaves(describe_leaf, batch))


def describe(batch: Batch) -> str:
    """A short description for error messages.

    Example:
        >>> describe((torch.zeros(2, 3), "label"))
        "('Tensor[2, 3]', 'str')"
    """
    return repr(
        map_leaves(
            lambda leaf: f"Tensor{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else type(leaf).__name__, batch
        )
    )


def _is_strings(leaf: Any) -> bool:
    return isinstance(leaf, (list, tuple)) and all(isinstance(item, str) for item in leaf)
