"""When to measure: predicates on the training step, and the trigger that asks them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from slt_callbacks.basics.plain import shown
from slt_callbacks.basics.rng import seed_from
from slt_callbacks.recording.guard import Guard

_SCHEDULE_STREAM = 302  # apart from the streams of the estimator

Schedule = Callable[[int], bool]
"""``training step -> whether to measure there``."""


@dataclass(frozen=True)
class StepSet:
    """A schedule that is a set of training steps."""

    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        """Whether `step` is in the set."""
        return step in self.steps


def log_linear_steps(max_steps: int, num_log: int, every: int | None = None) -> StepSet:
    """Log-spaced steps for the fast beginning of a run, and evenly spaced ones for the rest.

    Args:
        max_steps: Last training step; it is always in the schedule, and so is 1.
        num_log: Log-spaced steps between 1 and `max_steps`; fewer where neighbours round to the same step.
        every: Also every so many steps; None for the log-spaced ones alone.

    Raises:
        ValueError: If a number is not a positive integer.

    Source: the checkpoints of Hoogland et al. (arXiv 2402.02364), appendix, are such a union.

    Example:
        >>> sorted(log_linear_steps(100, num_log=5, every=50).steps)
        [1, 3, 10, 32, 50, 100]
    """
    for name, value in (("max_steps", max_steps), ("num_log", num_log), ("every", 1 if every is None else every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"Expected `{name}` to be a positive integer, but got {value!r}.")
    logarithmic = np.geomspace(1, max_steps, num_log).round().astype(int).tolist()
    linear = range(every, max_steps + 1, every) if every else ()
    return StepSet(frozenset([1, max_steps, *logarithmic, *linear]))


@dataclass(frozen=True)
class Guarded:
    """A user's schedule; where it raises, that is reported once, and nothing is due.

    Args:
        schedule: The user's.
        guard: Reports it.
        seed: Of the random numbers that it may draw.
    """

    schedule: Schedule
    guard: Guard
    seed: int

    def __call__(self, step: int) -> bool:
        """What it says of `step`."""
        seed = seed_from(self.seed, step, _SCHEDULE_STREAM)
        return self.guard.ask(lambda: bool(self.schedule(step)), False, "`schedule`", seed)


@dataclass(frozen=True)
class When:
    """A monitor's arguments that say when to measure, of which one is given: see `Trigger`."""

    every_n_train_steps: int | None = None
    every_n_epochs: int | None = None
    train_time_interval: timedelta | None = None
    schedule: Schedule | None = None

    def trigger(self, guard: Guard, seed: int) -> Trigger:
        """What decides in a run; a schedule is the user's, and called under guard.

        Args:
            guard: Reports a schedule that raises.
            seed: Of the run.
        """
        asks = Guarded(self.schedule, guard, seed) if callable(self.schedule) else self.schedule
        return Trigger(self.every_n_train_steps, self.every_n_epochs, self.train_time_interval, asks)


class Trigger:
    """Decides at which optimizer steps and epochs a measurement is due; exactly one of its arguments is given.

    Steps are crossed, not hit: accumulation shows one step several times, and manual optimization with two optimizers
    counts 2, 4, 6. A step that was asked about is never due again, nor after a resume.

    Args:
        every_n_train_steps: Due when a multiple of it is crossed.
        every_n_epochs: Due at the end of every so many epochs.
        train_time_interval: Due at the first step after so much time since the last due one.
        schedule: Due when it is true for a step since the last one asked about, 0 (before training) included.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If none is given, or two, or a number is not positive.

    Example:
        >>> trigger = Trigger(every_n_train_steps=5)
        >>> [step for step in (2, 4, 6, 6, 8, 10) if trigger.at_step(step)]
        [6, 10]

        A schedule is any function of the step:

        >>> def early_and_late(step):
        ...     return step in (1, 10) or (step >= 100 and step % 50 == 0)
        >>> trigger = Trigger(schedule=early_and_late)
        >>> [step for step in range(1, 201) if trigger.at_step(step)]
        [1, 10, 100, 150, 200]
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        given = {
            "every_n_train_steps": every_n_train_steps,
            "every_n_epochs": every_n_epochs,
            "train_time_interval": train_time_interval,
            "schedule": schedule,
        }
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise ValueError(
                f"Expected exactly one of {', '.join(f'`{name}`' for name in given)}, but got {_list(named)}."
            )
        for name in ("every_n_train_steps", "every_n_epochs"):
            value: Any = given[name]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"Expected `{name}` to be a positive integer, but got {value!r}.")
        if train_time_interval is not None and not isinstance(train_time_interval, timedelta):
            raise TypeError(
                f"Expected `train_time_interval` to be a datetime.timedelta, but got {train_time_interval!r}."
            )
        if train_time_interval is not None and train_time_interval <= timedelta(0):
            raise ValueError(f"Expected `train_time_interval` to be positive, but got {train_time_interval}.")
        if schedule is not None and not callable(schedule):
            raise TypeError(f"Expected `schedule` to be a function step -> bool, but got {shown(schedule)}.")
        self._every_n_train_steps = every_n_train_steps
        self._every_n_epochs = every_n_epochs
        self._interval = train_time_interval
        self._schedule = schedule
        self.last_step = -1
        self._last_time = time.monotonic()

    @property
    def by_time(self) -> bool:
        """Whether the clock decides, which differs between processes."""
        return self._interval is not None

    def steps_between(self, steps_done: int, epoch: int, seconds_per_step: float) -> float | None:
        """Training steps from one due measurement to the next, seen from inside `epoch`; None where that varies.

        Args:
            steps_done: Optimizer steps so far.
            epoch: Counted from 0.
            seconds_per_step: Duration of a training step.
        """
        if self._every_n_train_steps is not None:
            return self._every_n_train_steps
        if self._every_n_epochs is not None:
            return self._every_n_epochs * steps_done / (epoch + 1)
        if self._interval is not None and seconds_per_step > 0:
            return self._interval.total_seconds() / seconds_per_step
        return None

    def at_start(self, step: int = 0) -> bool:
        """Whether a measurement is due before the first optimizer step; also starts the clock.

        Args:
            step: Optimizer steps done: a run may be some way on when it is given a monitor, and owes it nothing.
        """
        self._last_time = time.monotonic()
        if step > 0:
            self.last_step = step if self.last_step < 0 else self.last_step
            return False
        return self._schedule is not None and self.last_step < 0 and self._crossed(0)

    def at_step(self, step: int) -> bool:
        """Whether one is due now that `step` optimizer steps are done."""
        if step <= max(self.last_step, 0):
            return False
        due = self._crossed(step)
        self.last_step = step
        return due

    def at_epoch_end(self, epoch: int) -> bool:
        """Whether one is due at the end of `epoch`, counted from 0."""
        return self._every_n_epochs is not None and (epoch + 1) % self._every_n_epochs == 0

    def _crossed(self, step: int) -> bool:
        last = max(self.last_step, 0)
        if self._every_n_train_steps is not None:
            return step // self._every_n_train_steps > last // self._every_n_train_steps
        if self._schedule is not None:
            return any(self._schedule(passed) for passed in (range(last + 1, step + 1) if step else [0]))
        if self._interval is not None and time.monotonic() - self._last_time >= self._interval.total_seconds():
            self._last_time = time.monotonic()
            return True
        return False


def _list(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names) if names else "none"
