"""Where a measurement runs: what every place has to do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.weights.snapshot import Snapshot


@runtime_checkable
class Executor(Protocol):
    """Takes snapshots, and gives measurements back in the order of their forks, now or later.

    A measurement sets the global generators of its process aside, so in the training process it has to be over before
    training goes on: whatever runs beside it runs in another process.

    Example:
        When training has ended, so that it never waits; a copy of the weights is kept for every measurement:

        >>> class AtTheEnd:
        ...     def open(self, estimator):
        ...         self.estimator, self.kept = estimator, []
        ...     def submit(self, snapshot):
        ...         self.kept.append(snapshot.captured())
        ...     def poll(self):
        ...         return []
        ...     def drain(self, timeout=None):
        ...         kept, self.kept = self.kept, []
        ...         return [self.estimator.attempt(one.module, one.step) for one in kept]
        ...     def close(self):
        ...         self.kept = []
        >>> isinstance(AtTheEnd(), Executor)
        True
    """

    def open(self, estimator: Estimator) -> None:
        """Begin a run.

        Args:
            estimator: What measures; from here on it is this place's own, but for its state in checkpoints.
        """

    def submit(self, snapshot: Snapshot) -> None:
        """Measure a fork, at once or later; after the return training goes on with the live weights."""

    def poll(self) -> list[Measurement]:
        """What has been finished since the last call, in the order of the forks; does not wait."""

    def drain(self, timeout: float | None = None) -> list[Measurement]:
        """The rest, waited for.

        Args:
            timeout: Most seconds to wait; None for as long as it takes.
        """

    def close(self) -> None:
        """End the run; called once, also after an exception."""
