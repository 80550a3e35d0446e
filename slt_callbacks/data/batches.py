"""Batches of any structure: walk over their tensors, count their samples, take some, glue them together."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from slt_callbacks.data.containers import Column, Columns, TupleColumn, holds_data, put_together, taken_apart
from slt_callbacks.data.samples import content, join, length, pick

Batch = Any
"""Tensors in tuples, lists, dicts, named tuples or dataclasses, nested as the user likes."""

_MOST_ITEMS, _MOST_LETTERS = 4, 200  # of a container, and in all, that an error message shows


def map_leaves(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """A new batch of the same structure with `function` applied to every leaf.

    Containers are always new, so that a loss function that pops a key changes its own copy only. A list without
    tensors, such as one of strings or numbers, is a leaf; so is an object, such as a graph.

    Example:
        >>> map_leaves(lambda leaf: leaf * 2, {"x": (torch.tensor(1), [2])})
        {'x': (tensor(2), [2, 2])}
    """
    items = taken_apart(batch)
    if items is None:
        return function(batch)
    return put_together(batch, [map_leaves(function, item) for _, item in items])


def leaves(batch: Batch) -> Iterator[Any]:
    """Every leaf, in the order of the structure.

    Example:
        >>> list(leaves({"x": (torch.tensor(1), [2, 3])}))
        [tensor(1), [2, 3]]
    """
    return (leaf for _, leaf in paths(batch))


def paths(batch: Batch, path: str = "batch") -> Iterator[tuple[str, Any]]:
    """Every leaf with how it is written, in the order of the structure.

    Example:
        >>> list(paths({"x": (torch.tensor(1), [2, 3])}))
        [('batch["x"][0]', tensor(1)), ('batch["x"][1]', [2, 3])]
    """
    items = taken_apart(batch)
    if items is None:
        yield path, batch
    for name, item in items or ():
        yield from paths(item, path + name)


def num_rows(batch: Batch) -> int:
    """Number of samples of a batch: the first dimension of its first tensor.

    Where lists hold a tensor or a container for every sample, and these do not stack, it is their length. Without a
    tensor it is the length of its lists, and 1 for an object such as a graph.

    Raises:
        ValueError: If the batch holds no tensor with a first dimension, or that may not be the one that counts samples.

    Example:
        >>> num_rows((torch.zeros(3, 2), torch.zeros(3))), num_rows([torch.zeros(3, 8), torch.zeros(3)])
        (3, 3)
        >>> images, targets = [torch.zeros(3, 8, 9), torch.zeros(3, 7, 5)], [{"box": torch.ones(1)}] * 2
        >>> num_rows((images, targets))
        2
    """
    entries = _entries(batch)
    if entries is not None:
        return entries
    found = list(paths(batch))
    for kinds in (torch.Tensor, (np.ndarray, PackedSequence, *Columns)):
        data = [(path, leaf) for path, leaf in found if isinstance(leaf, kinds) and length(leaf) is not None]
        if data:
            _check_first_counts(data)
            return length(data[0][1]) or 0
    if any(holds_data(leaf) for _, leaf in found if length(leaf) is None and not isinstance(leaf, torch.Tensor)):
        return 1
    lengths = {length(leaf) for _, leaf in found} - {None, 0}
    if len(lengths) == 1:
        return lengths.pop() or 0
    raise ValueError(
        f"Expected every batch of `reference` to hold a tensor whose first dimension counts samples, but got "
        f"{describe(batch)}: collate the samples into tensors."
    )


def in_columns(batch: Batch, size: int, also: Container[str] = ()) -> Batch:
    """A batch of `size` samples in which lists with an entry a sample, that do not stack, are columns and so leaves.

    Args:
        batch: The batch.
        size: Number of its samples.
        also: Paths of lists that are columns in other batches of the kind, and here may look as if they stacked.

    Example:
        >>> list(leaves(in_columns({"x": [torch.zeros(2), torch.zeros(3)], "y": torch.arange(2)}, size=2)))
        [[tensor([0., 0.]), tensor([0., 0., 0.])], tensor([0, 1])]
    """
    own_rows = [has_rows(leaf, size) for leaf in leaves(batch)]
    if _is_list(batch) and len(batch) == size and (not any(own_rows) or (_is_uncollated(batch) and not all(own_rows))):
        return _column(batch)

    def marked(value: Any, path: str) -> Any:
        items = taken_apart(value)
        if items is None:
            return value
        if _is_list(value) and path != "batch":
            stacks = path not in also and all(has_rows(leaf, size) for leaf in leaves(value))
            return value if stacks or len(value) != size else _column(value)
        return put_together(value, [marked(item, path + name) for name, item in items])

    return marked(batch, "batch")


def take_rows(batch: Batch, rows: torch.Tensor, size: int, which: Sequence[bool] | None = None) -> Batch:
    """The samples `rows` of a batch of `size` samples; leaves without that first dimension are kept whole.

    Args:
        batch: A collated batch.
        rows: Indices, int64, shape ``(B,)``, on the CPU: from a GPU the host would have to wait for them.
        size: Number of samples in `batch`.
        which: Which of its leaves hold something for each sample, where that is known; None: see `has_rows`.

    Example:
        >>> take_rows({"x": torch.tensor([5, 6, 7]), "name": ["a", "b", "c"]}, torch.tensor([2, 0]), size=3)
        {'x': tensor([7, 5]), 'name': ['c', 'a']}
    """
    moved: dict[torch.device, torch.Tensor] = {}
    known = None if which is None else iter(which)

    def take(leaf: Any) -> Any:
        own = has_rows(leaf, size) if known is None else next(known)
        return pick(leaf, rows, moved) if own else leaf

    return map_leaves(take, batch)


def has_rows(leaf: Any, size: int) -> bool:
    """Whether a leaf of a batch of `size` samples holds something for each of them.

    Example:
        >>> has_rows(torch.zeros(3, 2), 3), has_rows([7, 8, 9], 3), has_rows(torch.zeros(5), 3), has_rows(3, 3)
        (True, True, False, False)
    """
    return length(leaf) == size


def as_lists(batch: Batch) -> Batch:
    """The same with a list for every plain tuple: `default_collate` makes lists where a user writes tuples.

    Example:
        >>> as_lists((1, {"x": (2, [3])}))
        [1, {'x': [2, [3]]}]
    """
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields") and not isinstance(batch, Columns):
        return [as_lists(item) for item in batch]
    if isinstance(batch, dict):
        return {key: as_lists(value) for key, value in batch.items()}
    return batch


def concatenate(batches: Sequence[Batch], which: Sequence[bool] | None = None) -> Batch:
    """One batch out of several of one `signature`, samples in the order given.

    Args:
        batches: The batches.
        which: As in `take_rows`.

    Example:
        >>> concatenate([[torch.tensor([1])], [torch.tensor([2, 3])]])
        [tensor([1, 2, 3])]
    """
    size = num_rows(batches[0]) if which is None else 0
    columns = list(zip(*map(leaves, batches), strict=True))
    known = [has_rows(column[0], size) for column in columns] if which is None else which
    joined = iter([join(column) if own else column[0] for column, own in zip(columns, known, strict=True)])
    return map_leaves(lambda _: next(joined), batches[0])


def signature(batch: Batch, which: Sequence[bool] | None = None) -> str:
    """A string that two batches share when their samples can be glued together.

    Args:
        batch: A batch.
        which: As in `take_rows`.

    Example:
        >>> signature([torch.zeros(3, 2)]) == signature([torch.zeros(5, 2)]) != signature([torch.zeros(3, 4)])
        True
    """
    size = num_rows(batch) if which is None else 0
    found = list(paths(batch))
    known = [has_rows(leaf, size) for _, leaf in found] if which is None else which
    parts = [(path, _glued(leaf) if own else _shared(leaf)) for (path, leaf), own in zip(found, known, strict=True)]
    return repr((_skeleton(batch), parts))


def describe(batch: Batch) -> str:
    """A short description for error messages.

    Example:
        >>> describe((torch.zeros(2, 3), "label")), describe([torch.zeros(3)] * 256)
        ("('Tensor[2, 3]', 'str')", "['Tensor[3]', 'Tensor[3]', 'Tensor[3]', ... 256 in all]")
    """
    told = _described(batch)
    return told if len(told) <= _MOST_LETTERS else f"{told[:_MOST_LETTERS]}..."


def _entries(batch: Batch) -> int | None:
    """How many samples there are where lists hold an entry a sample; None where tensors count them.

    A list of tensors with one first dimension is what `default_collate` makes of samples that are tuples.
    """
    found = list(leaves(batch))
    if _is_uncollated(batch) and (len(_first_dimensions(found)) > 1 or any(length(leaf) is None for leaf in found)):
        if all(_is_batch(item) for item in batch):
            raise ValueError(
                f"Expected every batch of `reference` to count its samples, but {describe(batch)} may be samples of "
                "several lengths, or a batch of each of several loaders: give a DataLoader of the samples."
            )
        return len(batch)
    fields = list(_fields(batch, top=True))
    lists = [field for field in fields if _is_list(field) and taken_apart(field)]
    if not lists:
        return None
    inside = [_first_dimensions(list(leaves(field))) for field in lists]
    if len(lists) > 1 and all(len(sizes) == 1 and sizes != {1} for sizes in inside) and len(set().union(*inside)) > 1:
        return None  # a batch of each of several loaders: the first of them counts
    lengths = {len(field) for field in lists} | ({length(field) for field in fields if not _is_list(field)} - {None})
    if len(_first_dimensions(found)) < 2:
        if len(lists) == len(fields) and len(lengths) == 1 and any(map(_is_ragged, lists)):
            raise ValueError(
                f"Expected every batch of `reference` to count its samples, but {describe(batch)} may hold as many as "
                "its lists are long, or as its tensors have rows: give a DataLoader, which says what its samples are."
            )
        return None
    return lengths.pop() if len(lengths) == 1 else None


def _is_uncollated(batch: Batch) -> bool:
    """Whether a batch is a list of samples: containers that are all built alike."""
    several = _is_list(batch) and len(batch) > 1 and taken_apart(batch[0]) is not None
    return several and len({repr(_skeleton(item)) for item in batch}) == 1


def _is_batch(item: Batch) -> bool:
    """Whether an entry may itself be a batch: several tensors that share a first dimension."""
    found = list(leaves(item))
    return len(found) > 1 and len(_first_dimensions(found)) == 1 and all((length(leaf) or 0) > 1 for leaf in found)


def _is_ragged(tensors: Sequence[Any]) -> bool:
    """Whether a list holds tensors of one kind that differ in all but the first dimension."""
    shapes = {leaf.shape for leaf in tensors if isinstance(leaf, torch.Tensor)}
    return len(shapes) > 1 and len({len(shape) for shape in shapes}) == 1


def _first_dimensions(found: Sequence[Any]) -> set[int]:
    return {leaf.shape[0] for leaf in found if isinstance(leaf, torch.Tensor) and leaf.ndim}


def _fields(value: Any, top: bool = False) -> Iterator[Any]:
    """Leaves and lists of a batch, without going into the lists."""
    items = taken_apart(value)
    if items is None or (_is_list(value) and not top):
        yield value
    else:
        for _, item in items:
            yield from _fields(item)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields") and not isinstance(value, Columns)


def _column(value: Any) -> Any:
    return (TupleColumn if isinstance(value, tuple) else Column)(value)


def _check_first_counts(data: list[tuple[str, Any]]) -> None:
    """Refuse a batch whose tensors go by time, and all others by what the first one has in its second dimension."""
    (path, first), *others = data
    if not isinstance(first, torch.Tensor) or first.ndim < 2:
        return
    told = [(name, leaf) for name, leaf in others if leaf.ndim == 1 or leaf.shape[0] != leaf.shape[1]]
    size, second = first.shape[:2]
    if told and 1 != second != size and all(leaf.shape[0] == second for _, leaf in told):
        name, other = told[0]
        raise ValueError(
            f"Expected every batch of `reference` to count its samples in the first dimension, but {path} has the "
            f"shape {list(first.shape)} and {name} {list(other.shape)}, so that it may be the second: put the samples "
            "first, or give a DataLoader, which says what its samples are."
        )


def _glued(leaf: Any) -> str:
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return f"{leaf.dtype}N{list(leaf.shape[1:])}"
    if isinstance(leaf, PackedSequence):
        return f"packed {leaf.data.dtype}{list(leaf.data.shape[1:])}"
    return "strings" if isinstance(leaf, (list, tuple)) else type(leaf).__name__


def _shared(leaf: Any) -> str:
    """A leaf that goes with all samples: the same one goes with those of another batch, or they are not of one kind."""
    known = content(leaf)
    if known is None:
        return f"{type(leaf).__name__} at {id(leaf)}"
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return f"{leaf.dtype}{list(leaf.shape)}{blake2b(known).hexdigest()}"
    return repr(leaf)


def _skeleton(batch: Batch) -> Any:
    """The containers, by their kinds."""
    items = taken_apart(batch)
    return "" if items is None else (type(batch).__name__, [(name, _skeleton(item)) for name, item in items])


def _described(value: Any) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"'{'Tensor' if isinstance(value, torch.Tensor) else 'array'}{list(value.shape)}'"
    if isinstance(value, Mapping):
        told = [f"{str(key)[:40]!r}: {_described(item)}" for key, item in _first_items(value.items())]
        return f"{'' if type(value) is dict else type(value).__name__}{{{_listed(told, len(value.keys()))}}}"
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence):
        listed = _listed([_described(item) for item in _first_items(value)], len(value))
        return f"({listed})" if isinstance(value, tuple) else f"[{listed}]"
    return repr(type(value).__name__)


def _first_items(items: Any) -> list[Any]:
    return [item for item, _ in zip(items, range(_MOST_ITEMS), strict=False)]


def _listed(told: list[str], size: int) -> str:
    return ", ".join(told) if size <= _MOST_ITEMS else f"{', '.join(told[:-1])}, ... {size} in all"
