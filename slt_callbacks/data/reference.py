"""The fixed samples that every measurement of a run looks at."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from slt_callbacks.basics.rng import isolated_rng
from slt_callbacks.data.batches import (
    Batch,
    has_rows,
    leaves,
    map_leaves,
    take_rows,
)
from slt_callbacks.data.checksums import fingerprint_of, sample_digests
from slt_callbacks.data.samples import handed_out, move, private


@dataclass(frozen=True)
class Group:
    """Samples of one shape, and their places in the reference set.

    Attributes:
        batch: All of them, collated.
        places: Of each, ``(size,)``, on the CPU.
        which: Which leaves of `batch` hold something for each sample; None: those of that length.
        again: Where the samples cannot be taken from `batch`, as from a batch of graphs: collates some of them anew.
    """

    batch: Batch
    places: torch.Tensor
    which: Sequence[bool] | None = None
    again: Recollate | None = None

    @property
    def size(self) -> int:
        """How many."""
        return len(self.places)

    def rows(self) -> list[bool]:
        """Which leaves of `batch` hold something for each sample."""
        known = (has_rows(leaf, self.size) for leaf in leaves(self.batch)) if self.which is None else self.which
        return list(known)

    def take(self, rows: torch.Tensor) -> Batch:
        """The samples `rows`, int64 ``(B,)`` on the CPU, as a batch."""
        if self.again is not None:
            return self.again(rows)
        return map_leaves(handed_out, take_rows(self.batch, rows, self.size, self.which))

    def to(self, device: torch.device, dtype: torch.dtype) -> Group:
        """The same samples on `device`, floating-point tensors as `dtype`."""
        again = None if self.again is None else replace(self.again, device=device, dtype=dtype)
        return replace(self, batch=map_leaves(lambda leaf: move(leaf, device, dtype), self.batch), again=again)


@dataclass(frozen=True)
class Recollate:
    """Collates samples as their loader would.

    Attributes:
        samples: As the data set gives them.
        collate: The loader's `collate_fn`.
        device: Where the tensors go; None leaves them as they come.
        dtype: What floating-point tensors become there.
    """

    samples: Sequence[Any]
    collate: Callable[[list[Any]], Batch]
    device: torch.device | None = None
    dtype: torch.dtype = torch.float32

    def __call__(self, rows: torch.Tensor) -> Batch:
        """The samples `rows`, int64 ``(B,)`` on the CPU, as a batch."""
        with isolated_rng(0):
            batch = self.collate([map_leaves(private, self.samples[row]) for row in rows.tolist()])
        if self.device is None:
            return batch
        return map_leaves(partial(move, device=self.device, dtype=self.dtype), batch)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which needs the function itself."""
        try:
            pickle.dumps(self.collate)
        except Exception as error:
            raise TypeError(
                "Expected the `collate_fn` of `reference` to be a function that another process can import, for its "
                f"samples have to be collated there, but {type(error).__name__}: {error}: define it at the top of a "
                "module."
            ) from error
        return vars(self)


class ReferenceSet:
    """Samples drawn once and kept: the same ones, in the same order, for every measurement.

    Made by `draw_reference`. Samples whose tensors have one shape are held as one batch; others stay in groups, and a
    request that spans groups is answered with one batch for each.

    Attributes:
        indices: Row of every sample in the user's data, ascending, int64 ``(N,)``.
        source_size: Samples in the whole of the user's data; None for an IterableDataset, which does not say.
    """

    def __init__(self, groups: Sequence[Group], indices: torch.Tensor, source_size: int | None = None) -> None:
        self.indices = indices
        self.source_size = source_size
        self._groups = list(groups)
        self._group_of = torch.zeros(len(indices), dtype=torch.int64, device="cpu")
        self._row_of = torch.zeros(len(indices), dtype=torch.int64, device="cpu")
        for number, group in enumerate(self._groups):
            self._group_of[group.places] = number
            self._row_of[group.places] = torch.arange(group.size, device="cpu")

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def to(self, device: torch.device, dtype: torch.dtype) -> ReferenceSet:
        """The same samples on `device`, floating-point tensors as `dtype`."""
        return ReferenceSet([group.to(device, dtype) for group in self._groups], self.indices, self.source_size)

    @cached_property
    def fingerprint(self) -> str:
        """Tells other samples from these: a checksum of their tensors and strings, and of their rows in the data."""
        return fingerprint_of([group.batch for group in self._groups], self.source_size, self.indices.tolist())

    def subset(self, places: torch.Tensor) -> ReferenceSet:
        """The samples at `places`, int64 ``(B,)`` on the CPU, in that order."""
        groups = []
        for number, group in enumerate(self._groups):
            where, rows = self._inside(number, places)
            if len(where):
                again = group.again and replace(
                    group.again, samples=[group.again.samples[row] for row in rows.tolist()]
                )
                groups.append(Group(group.take(rows), where, group.which, again))
        return ReferenceSet(groups, self.indices[places], self.source_size)

    def find(self, samples: ReferenceSet) -> torch.Tensor:
        """Where each of `samples` stands in this set, int64 ``(B,)``; -1 where it is not in it.

        Samples are the same where all their tensors and strings are, to the last bit; labels too, if they are among
        these.

        Example:
            >>> from slt_callbacks.data.drawing import draw_reference
            >>> draw_reference([torch.tensor([5, 7])]).find(draw_reference([torch.tensor([7, 6])])).tolist()
            [1, -1]
        """
        own = {digest: place for place, digest in self._digests()}
        found = torch.full((len(samples),), -1, device="cpu")
        for place, digest in samples._digests():
            found[place] = own.get(digest, -1)
        return found

    def _digests(self) -> Iterator[tuple[int, bytes]]:
        """Place of every sample, and what tells it from others; nothing for objects that may be equal or not."""
        for group in self._groups:
            if group.again is None:
                yield from zip(
                    group.places.tolist(), sample_digests(group.batch, group.rows(), group.size), strict=False
                )

    def few_of_each(self, limit: int) -> torch.Tensor:
        """Places of the first `limit` samples of every shape, int64, on the CPU."""
        return torch.cat([group.places[:limit] for group in self._groups])

    def batches(self, places: torch.Tensor | None = None, limit: int | None = None) -> list[tuple[Batch, torch.Tensor]]:
        """The samples at `places` as batches that a module can take.

        Args:
            places: Which samples, int64 ``(B,)`` on the CPU, counted within the reference set; None for all in order.
            limit: Largest number of samples in one batch; None for no limit.

        Returns:
            Pairs of a batch and where its samples stand in `places`, int64 ``(b,)`` on the CPU.
        """
        found: list[tuple[Batch, torch.Tensor]] = []
        for number, group in enumerate(self._groups):
            where, rows = (group.places, None) if places is None else self._inside(number, places)
            found.extend((_rows(group, rows, part), where[part]) for part in _parts(len(where), limit))
        return found

    def _inside(self, number: int, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of `places` are in a group, and their rows there."""
        where = (self._group_of[places] == number).nonzero().flatten()
        return where, self._row_of[places[where]]


def _rows(group: Group, rows: torch.Tensor | None, part: slice) -> Batch:
    if rows is None and part.stop - part.start == group.size:
        return map_leaves(handed_out, group.batch)  # a new container around the same tensors
    return group.take((torch.arange(group.size, device="cpu") if rows is None else rows)[part])


def _parts(size: int, limit: int | None) -> list[slice]:
    step = limit or max(size, 1)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
