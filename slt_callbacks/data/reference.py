"""The fixed samples that every measurement of a run looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from slt_callbacks.data.batches import (
    Batch,
    map_leaves,
    take_rows,
)
from slt_callbacks.data.checksums import fingerprint_of, sample_digests


@dataclass(frozen=True)
class Group:
    """Samples of one shape, and their places in the reference set."""

    batch: Batch
    places: torch.Tensor  # (size,), on the CPU

    @property
    def size(self) -> int:
        """How many."""
        return len(self.places)


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
        self._group_of = torch.zeros(len(indices), dtype=torch.int64)
        self._row_of = torch.zeros(len(indices), dtype=torch.int64)
        for number, group in enumerate(self._groups):
            self._group_of[group.places] = number
            self._row_of[group.places] = torch.arange(group.size)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def to(self, device: torch.device, dtype: torch.dtype) -> ReferenceSet:
        """The same samples on `device`, floating-point tensors as `dtype`."""

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype)

        return ReferenceSet(
            [Group(map_leaves(move, group.batch), group.places) for group in self._groups],
            self.indices,
            self.source_size,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Tells other samples from these: a checksum of their tensors and strings, and of their rows in the data."""
        return fingerprint_of([group.batch for group in self._groups], self.source_size, self.indices.tolist())

    def subset(self, places: torch.Tensor) -> ReferenceSet:
        """The samples at `places`, int64 ``(B,)`` on the CPU, in that order."""
        groups = [Group(batch, where) for batch, where in self.batches(places)]
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
        found = torch.full((len(samples),), -1)
        for place, digest in samples._digests():
            found[place] = own.get(digest, -1)
        return found

    def _digests(self) -> Iterator[tuple[int, bytes]]:
        """Place of every sample, and what tells it from others."""
        for group in self._groups:
            yield from zip(group.places.tolist(), sample_digests(group.batch, group.size), strict=False)

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
            if places is None:
                where, rows = group.places, None
            else:
                where = (self._group_of[places] == number).nonzero().flatten()
                rows = self._row_of[places[where]]
            found.extend((self._rows(group, rows, part), where[part]) for part in _parts(len(where), limit))
        return found

    def _rows(self, group: Group, rows: torch.Tensor | None, part: slice) -> Batch:
        if rows is None and part.stop - part.start == group.size:
            return map_leaves(lambda leaf: leaf, group.batch)  # a new container around the same tensors
        wanted = (torch.arange(group.size) if rows is None else rows)[part]
        return take_rows(group.batch, wanted, group.size)


def _parts(size: int, limit: int | None) -> list[slice]:
    step = limit or max(size, 1)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]
