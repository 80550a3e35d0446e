"""What the observables of pairs of samples share: chain moments, and a last good measurement to compare with."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.stats.moments import ChainMoments, ChainSummary, Moments

Snapshot = dict[str, torch.Tensor]
"""What a measurement leaves for the next to be compared with."""

# A matrix of this many float64 takes 128 MiB. What a measurement takes at its peak, from the third on, is counted in
# resident memory at 2048 x 2048: 15 matrices for a kernel (1.9 GiB at the limit), 31 for an influence (3.9 GiB).
MOST_ENTRIES = 4096**2


@dataclass
class _Computed:
    """The result of a version of the moments, and the snapshot that goes with it."""

    version: int
    result: dict[str, Any]
    snapshot: Snapshot | None = field(default=None)


class SnapshotObservable(ABC):
    """An observable of pairs of samples that compares each measurement with the last good one.

    A measurement becomes the one to compare with when the next begins, if it was computed to its end, had a draw and is
    finite: so `compute` changes nothing, and a measurement that failed, however far it came, leaves no mark.
    """

    _point: ReferencePoint
    _moments: ChainMoments
    _computed: _Computed | None = None
    _last: Snapshot | None = None

    def reset(self, reference: ReferencePoint) -> None:
        """Start a measurement; the last one, if it was good, is what the new one will be compared with."""
        self._last = self._last_good()
        self._point = reference
        self._moments = ChainMoments(reference.num_draws, self._statistic())
        self._computed = None

    def begin(self) -> None:
        """A run begins: there is nothing to compare with."""
        self._last = self._computed = None

    def discard(self, chain: int) -> None:
        """Take back the draws of a chain that failed."""
        self._moments.discard(chain)

    def compute(self) -> dict[str, Any]:
        """The matrices and their summaries; see the class."""
        if self._computed is None or self._computed.version != self._moments.version:
            summary = self._moments.summary()
            if summary is None:
                self._computed = _Computed(self._moments.version, self._empty())
            else:
                result, snapshot = self._summarize(summary, self._fitting(self._last, summary.pooled))
                good = bool(snapshot["correlation"].isfinite().all())
                self._computed = _Computed(self._moments.version, result, snapshot if good else None)
        return dict(self._computed.result)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to compare with, and to show rows in the same order: tensors on the CPU."""
        last = self._last_good()
        return {"last": None if last is None else {name: value.cpu() for name, value in last.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._last = None if state["last"] is None else dict(state["last"])
        self._computed = None

    def _last_good(self) -> Snapshot | None:
        computed = self._computed
        if computed is None or computed.snapshot is None or computed.version != self._moments.version:
            return self._last
        return computed.snapshot

    def _fitting(self, last: Snapshot | None, pooled: Moments) -> Snapshot | None:
        if last is None:
            return None
        if last["correlation"].shape != pooled.comoment.shape:
            warnings.warn(
                f"The last measurement was of {tuple(last['correlation'].shape)} samples and this one is of "
                f"{tuple(pooled.comoment.shape)}: they are not compared.",
                stacklevel=3,
            )
            return None
        return {name: value.to(pooled.comoment.device) for name, value in last.items()}

    def _statistic(self) -> Any:
        """As `ChainMoments` takes it."""
        return None

    @abstractmethod
    def _summarize(self, summary: ChainSummary, last: Snapshot | None) -> tuple[dict[str, Any], Snapshot]:
        """The result, and what to compare the next one with."""

    @abstractmethod
    def _empty(self) -> dict[str, Any]:
        """The result without a draw: NaN everywhere."""


def matrix_of(result: Mapping[str, Any], name: str) -> torch.Tensor:
    """A matrix of a result.

    Raises:
        ValueError: If it is not there any more.
    """
    if name not in result:
        raise ValueError(
            f"Expected `result` to hold the matrix {name!r}, but got only {sorted(result)}: `monitor.history` keeps "
            "the matrices of the newest measurements alone; give a MemorySink in `sinks` to keep them all."
        )
    matrix: torch.Tensor = result[name]
    return matrix


def check_entries(rows: int, columns: int, what: str, remedy: str) -> None:
    """Refuse a matrix beyond the memory limit.

    Raises:
        ValueError: If so.
    """
    if rows * columns > MOST_ENTRIES:
        raise ValueError(
            f"Expected {what} of at most {MOST_ENTRIES} entries, such as 4096 x 4096 (128 MiB a matrix, and a "
            f"measurement takes up to 31 of them), but got {rows} x {columns}: {remedy}."
        )
