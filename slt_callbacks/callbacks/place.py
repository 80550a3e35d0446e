"""Where the measurements of a run are made, asked so that whatever happens there costs no more than measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info

from slt_callbacks.callbacks.information import shown_by_lightning
from slt_callbacks.callbacks.progress import measurement_progress
from slt_callbacks.executors.base import Executor
from slt_callbacks.executors.inline import InlineExecutor
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.recording.guard import Guard
from slt_callbacks.weights.snapshot import Snapshot

_GLANCE = 0.5  # seconds between two looks at what is still being measured


class Place:
    """An executor under guard.

    Args:
        executor: The user's; None for the training process.
        guard: How it is called.

    Attributes:
        why_lost: What became of a measurement that was not given back.
    """

    why_lost = "it was never given back"

    def __init__(self, executor: Executor | None, guard: Guard) -> None:
        self._asked = executor
        self._guard = guard
        self._executor: Executor | None = None

    @property
    def is_open(self) -> bool:
        """Whether it takes forks."""
        return self._executor is not None

    @property
    def stands_alone(self) -> bool:
        """Whether each measurement does, because several workers take the forks in turn."""
        return self.num_workers > 1

    @property
    def num_workers(self) -> int:
        """That measure while training goes on; 0 where it waits, or where nobody knows."""
        return getattr(self._asked, "num_workers", 0)

    def rehearsed(self, estimator: Estimator, pl_module: pl.LightningModule) -> Any:
        """The module as it will be measured there; None where that is the live one.

        Raises:
            TypeError: If it cannot be measured there.
        """
        rehearse = getattr(self._asked, "rehearse", None)
        return None if rehearse is None else rehearse(estimator, pl_module)

    def open(self, trainer: pl.Trainer, estimator: Estimator) -> None:
        """A fit begins."""
        inline = InlineExecutor(lambda _, total: measurement_progress(trainer, total))
        executor = inline if self._asked is None else self._asked
        if self.stands_alone:
            estimator = Apart(estimator)
            rank_zero_info(
                f"SLTMonitor: {type(executor).__name__} has several workers, so each measurement stands alone: its "
                "chains begin at the weights, and what is compared with the measurement before is NaN."
            )
        self._executor = executor if self._guard(executor, "open", estimator) else None

    def takes(self, waits: bool) -> bool:
        """Whether a fork can be submitted.

        Args:
            waits: Whether training may wait until it can.
        """
        return self._executor is not None and (waits or not getattr(self._executor, "full", False))

    def submit(self, snapshot: Snapshot) -> bool:
        """Hand a fork over; returns whether it was taken."""
        with shown_by_lightning():
            return self._executor is not None and self._guard(self._executor, "submit", snapshot)

    def poll(self) -> list[Measurement]:
        """What has been finished since."""
        return [] if self._executor is None else self._asked_for(self._executor.poll)

    def rest(self, trainer: pl.Trainer) -> Iterator[list[Measurement]]:
        """What is not finished when training has ended, waited for as long as the executor says."""
        executor = self._executor
        if executor is None:
            return
        if not hasattr(executor, "pending"):
            yield self._asked_for(executor.drain)
            return
        limit = getattr(executor, "end_timeout", None)
        end = None if limit is None else time.monotonic() + limit
        with measurement_progress(trainer, executor.pending, "Measuring the rest") as advance:
            while executor.pending:
                left = _GLANCE if end is None else min(_GLANCE, end - time.monotonic())
                if left <= 0:
                    self.why_lost = f"it was not finished {limit:.0f} s after training had ended (`end_timeout`)"
                    break
                nothing: list[Measurement] | None = None
                found = self._guard.ask(partial(executor.drain, left), nothing, f"{type(executor).__name__}.drain")
                if found is None:  # it has raised, and would again
                    break
                advance(len(found))
                yield found
        yield self._asked_for(executor.poll)

    def state_dict(self, estimator: Estimator, chains: bool) -> dict[str, Any]:
        """The state of the estimator that measures, as it was after what was given back last.

        Raises:
            Exception: If the one who has it cannot say.
        """
        ask = getattr(self._executor, "state_dict", estimator.state_dict)
        state: dict[str, Any] = ask(chains)
        return state

    def outlook(self, estimator: Estimator) -> tuple[int, int]:
        """Gradient steps of the next measurement, and memory of the chains that wait for it."""
        known = getattr(self._executor, "outlook", None) or estimator
        return known.expected_steps, known.stored_bytes

    def close(self) -> None:
        """The fit has ended."""
        executor, self._executor = self._executor, None
        if executor is not None:
            self._guard(executor, "close")

    def _asked_for(self, question: Callable[[], list[Measurement]]) -> list[Measurement]:
        nothing: list[Measurement] = []
        return self._guard.ask(question, nothing)
