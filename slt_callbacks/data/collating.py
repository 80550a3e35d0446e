"""Samples of a data set as one group of the reference set, collated as their loader would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from slt_callbacks.data.batches import (
    Batch,
    concatenate,
    describe,
    has_rows,
    in_columns,
    leaves,
    map_leaves,
    paths,
    signature,
    take_rows,
)
from slt_callbacks.data.containers import Arrays, Columns, holds_data
from slt_callbacks.data.reference import Group, Recollate
from slt_callbacks.data.samples import length, private

Collate = Callable[[list[Any]], Batch]

_TRIED = 4  # samples that are collated twice over, to see what becomes of them


def collated(samples: list[Any], collate: Collate, keep: bool = True) -> Group:
    """Samples as a group.

    Two ways to take some of them: from one batch, whose leaves hold an entry a sample or go with all of them, or, where
    a leaf holds the samples otherwise (a batch of graphs, tensors that go by time, boxes of all images in one tensor),
    by collating anew whatever is asked for.

    Args:
        samples: As the data set gives them.
        collate: As a loader's `collate_fn`.
        keep: Whether samples may be kept to be collated anew.

    Raises:
        TypeError: If they cannot be collated.
        ValueError: If the batch has nothing to tell one sample from another.

    Example:
        >>> group = collated([torch.tensor([1.0]), torch.tensor([2.0])], torch.stack)
        >>> group.take(torch.tensor([1]))
        tensor([[2.]])
        >>> by_time = collated([torch.tensor([1.0]), torch.tensor([2.0])], lambda parts: torch.stack(parts, dim=1))
        >>> by_time.take(torch.tensor([1])).shape
        torch.Size([1, 1])
    """
    size = len(samples)
    try:
        batch = in_columns(collate(samples), size)
    except (TypeError, RuntimeError) as error:
        check_dense(samples)
        raise type(error)(
            f"The samples of `reference` could not be collated into one batch ({error}). Give a DataLoader with a "
            "`collate_fn` that pads them, or a list of batches."
        ) from error
    check_dense(batch)
    which = _which(samples, batch, collate)
    if (which is None and keep) or any(which or ()):
        again = None if which is not None else Recollate([map_leaves(private, one) for one in samples], collate)
        return Group(map_leaves(private, batch), torch.arange(size, device="cpu"), which, again)
    raise ValueError(
        f"Expected `collate_fn` to stack {size} samples along the first dimension, but got {describe(batch)}: give "
        "`reference` as a list of batches of one sample each, or as padded tensors."
    )


def grouped(batches: Sequence[Batch], sizes: Sequence[int], chosen: torch.Tensor) -> list[Group]:
    """Samples of several batches, those that can be glued together in one group.

    Args:
        batches: Collated.
        sizes: Samples in each.
        chosen: Which of all of them, ascending, int64 ``(N,)`` on the CPU.

    Raises:
        ValueError: If a leaf cannot be divided among the samples of its batch.

    Example:
        >>> batches = [torch.tensor([1, 2]), torch.tensor([3.0]), torch.tensor([4])]
        >>> [group.batch for group in grouped(batches, [2, 1, 1], torch.tensor([0, 2, 3]))]
        [tensor([1, 4]), tensor([3.])]
    """
    batches = _all_in_columns(batches, sizes)
    by_kind = _which_of_each(batches, sizes)
    columns: dict[str, list[tuple[Batch, torch.Tensor, list[bool]]]] = {}
    start = 0
    for batch, size in zip(batches, sizes, strict=True):
        inside = ((chosen >= start) & (chosen < start + size)).nonzero().flatten()
        if len(inside):
            which = by_kind[_kind_of(batch)]
            part = take_rows(batch, chosen[inside] - start, size, which)
            columns.setdefault(signature(part, which), []).append((part, inside, which))
        start += size
    groups = []
    for column in columns.values():
        parts, places, (which, *_) = zip(*column, strict=True)
        groups.append(Group(map_leaves(private, concatenate(parts, which)), torch.cat(places), which))
    return groups


def _all_in_columns(batches: Sequence[Batch], sizes: Sequence[int]) -> list[Batch]:
    """As `in_columns`, where three images of three channels stack by chance, and four do not."""
    tried = [in_columns(batch, size) for batch, size in zip(batches, sizes, strict=True)]
    also = {path for batch in tried for path, leaf in paths(batch) if isinstance(leaf, Columns)}
    return [in_columns(batch, size, also) for batch, size in zip(batches, sizes, strict=True)] if also else tried


def _which_of_each(batches: Sequence[Batch], sizes: Sequence[int]) -> dict[str, list[bool]]:
    """For each kind of batches, which leaves hold an entry a sample: those that do in all of them."""
    found: dict[str, list[bool]] = {}
    for batch, size in zip(batches, sizes, strict=True):
        own = [has_rows(leaf, size) for leaf in leaves(batch)]
        known = found.setdefault(_kind_of(batch), own)
        found[_kind_of(batch)] = [both and here for both, here in zip(known, own, strict=True)]
        for (path, leaf), here in zip(paths(batch), own, strict=True):
            if size > 1 and not here and _is_object(leaf):
                raise ValueError(
                    f"Expected every leaf of a batch in `reference` to hold one entry a sample or to go with all of "
                    f"them, but {path} is a {type(leaf).__name__}, which cannot be divided among {size} samples: give "
                    "batches of one sample each, or the data set in a DataLoader, which can collate them anew."
                )
    return found


def check_dense(batch: Batch) -> None:
    """Refuse tensors that have no rows to take.

    Raises:
        TypeError: If a tensor is sparse or nested.
    """
    for leaf in leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided:
            how = "torch.nested.to_padded_tensor(tensor, 0.0)" if leaf.is_nested else "tensor.to_dense()"
            raise TypeError(
                f"Expected `reference` to hold dense tensors, but got one of layout {leaf.layout}: write {how}."
            )


def _which(samples: list[Any], batch: Batch, collate: Collate) -> list[bool] | None:
    """Which leaves hold an entry a sample; None where one holds the samples in another way.

    A few samples, and the same twice over, tell: what holds an entry a sample has twice the length and is else alike,
    and what goes with all samples has not changed.
    """
    few = samples[:_TRIED]
    try:
        once, twice = (in_columns(collate(part), len(part)) for part in (few, few * 2))
    except Exception:  # noqa: BLE001  # a loader that cannot take so few, or one twice
        return _which_by_length(batch, len(samples))
    found = [list(paths(tried)) for tried in (batch, once, twice)]
    names = [[path for path, _ in tried] for tried in found]
    if not names[0] == names[1] == names[2]:
        return []
    which, counted, cut = [], False, True
    for (_, leaf), (_, one), (_, two) in zip(*found, strict=True):
        sizes = zip((leaf, one, two), (len(samples), len(few), 2 * len(few)), strict=True)
        own = all(has_rows(part, size) for part, size in sizes)
        which.append(own)
        counted |= own or _counts_inside(one, two, len(few))
        cut &= (own and _entry(one) == _entry(two)) or _unchanged(one, two)
    return which if cut or not counted else None


def _kind_of(batch: Batch) -> str:
    return repr([(path, type(leaf).__name__) for path, leaf in paths(batch)])


def _is_object(leaf: Any) -> bool:
    """Whether a leaf is an object with data, such as a graph."""
    return length(leaf) is None and not isinstance(leaf, torch.Tensor) and holds_data(leaf)


def _which_by_length(batch: Batch, size: int) -> list[bool] | None:
    found = list(leaves(batch))
    if any(map(_is_object, found)):
        return None
    return [has_rows(leaf, size) for leaf in found]


def _entry(leaf: Any) -> Any:
    """The shape of an entry."""
    return tuple(leaf.shape[1:]) if isinstance(leaf, Arrays) else None


def _counts_inside(one: Any, two: Any, size: int) -> bool:
    """Whether a leaf holds `size` samples, and twice as many, in another way than one entry a sample."""
    if isinstance(one, Arrays):
        return any((first, second) == (size, 2 * size) for first, second in zip(one.shape, two.shape, strict=False))
    return length(one) is None and holds_data(one)


def _unchanged(one: Any, two: Any) -> bool:
    """Whether a leaf knows nothing of the number of samples."""
    if isinstance(one, Arrays):
        return bool(one.shape == two.shape)
    if length(one) is not None:
        return length(one) == length(two)
    if isinstance(one, int) and not isinstance(one, bool):
        return bool(one == two)
    return not holds_data(one)
