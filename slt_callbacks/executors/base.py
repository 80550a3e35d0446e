"""Where a measurement runs: what every place has to do."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from slt_callbacks.basics.plain import shown
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.weights.snapshot import Snapshot


@runtime_checkable
class Executor(Protocol):
    """Takes snapshots, and gives measurements back in the order of their forks, now or later.

    A measurement sets the global generators of its process aside, so in the training process it has to be over before
    training goes on: whatever runs beside it runs in another process.

    One that measures elsewhere may have more: `rehearse` (the module as it will be measured there, to try the loss on),
    `full` (whether `submit` would have to wait), `pending` (how many are not finished; then `drain` may be asked
    several times), `state_dict` (of the estimator, after what was given back last), `outlook` (of the next
    measurement), `num_workers` and `end_timeout`; see `Elsewhere`.

    Example:
        When training has ended, so that it never waits; a copy of the weights is kept for every measurement:

        >>> class AtTheEnd:
        ...     def open(self, estimator):
        ...         self.estimator, self.kept = estimator, []
        ...     def submit(self, snapshot):  # live weights change as soon as this returns
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


def check_executor(executor: Any) -> None:
    """See to it that it can measure elsewhere; None is the training process.

    Raises:
        TypeError: If it lacks a method or is a class.

    Example:
        >>> check_executor(3)
        Traceback (most recent call last):
        TypeError: Expected `executor` to be an object with `open`, `submit`, `poll`, `drain` and `close`, or None for
        the training process, but got 3.
    """
    if executor is not None and (not isinstance(executor, Executor) or isinstance(executor, type)):
        raise TypeError(
            "Expected `executor` to be an object with `open`, `submit`, `poll`, `drain` and `close`, or None for the "
            f"training process, but got {shown(executor)}."
        )
