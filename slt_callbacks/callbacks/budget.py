"""What measuring costs, as a share of training, and whether another measurement fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

# A first measurement that takes longer would look like a run that hangs.
LONG_SECONDS = 60.0


class Budget:
    """Keeps measuring below a share of the training time, both measured on the wall clock of this fit.

    A measurement is expected to take what its gradient steps took the last time, those of every posterior for
    themselves: a step over the last layer may cost half of one over all, and a part with queries twice as much.

    Args:
        max_overhead: Most seconds of measuring for a second of training; None for no limit.
        clock: Seconds, for tests.

    Attributes:
        max_overhead: The limit.
        first_pace: Seconds of a gradient step, as it was timed before the first measurement; 0 where it was not.
        skipped: Due measurements left out so far.

    Raises:
        ValueError: If `max_overhead` is not a positive number or None.

    Example:
        >>> now = iter([0.0, 100.0, 101.0, 110.0])
        >>> budget = Budget(max_overhead=0.1, clock=lambda: next(now))
        >>> budget.start()  # at 0 s
        >>> budget.allows()  # at 100 s, the first always fits
        True
        >>> budget.add(8.0)
        >>> budget.learn({"": 8.0}, steps={"": 1})
        >>> round(budget.overhead, 3)  # at 101 s: 8 s of measuring, 93 s of training
        0.087
        >>> budget.allows()  # at 110 s: two of them would be 16 s of 102 s
        False
    """

    def __init__(self, max_overhead: float | None = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        number = isinstance(max_overhead, (int, float)) and not isinstance(max_overhead, bool)
        if max_overhead is not None and not (number and math.isfinite(max_overhead) and max_overhead > 0):
            raise ValueError(f"Expected `max_overhead` to be a positive share or None, but got {max_overhead!r}.")
        self.max_overhead = max_overhead
        self._clock = clock
        self.first_pace = 0.0
        self._started: float | None = None
        self._spent = 0.0
        self._forget_paces()
        self.skipped = 0

    def start(self) -> None:
        """Training begins now."""
        self._started, self._spent = self._clock(), 0.0
        self._forget_paces()

    @property
    def overhead(self) -> float:
        """Seconds of measuring for a second of training, so far; infinite before any training."""
        training = self.training_seconds
        return self._spent / training if training > 0 else math.inf

    def is_long(self, steps: int) -> bool:
        """Whether the first measurement, of so many gradient steps, is one that training has to pay for beforehand."""
        return not self._pace and steps * self.first_pace > LONG_SECONDS

    def allowance(self, run_seconds: float = 0.0) -> float:
        """Seconds that a first measurement may take.

        Args:
            run_seconds: Duration of the whole fit without measuring, where it is known: it pays for the first as a
                whole.
        """
        share = math.inf if self.max_overhead is None else self.max_overhead
        return max(LONG_SECONDS, share * max(self.training_seconds, run_seconds) - self._spent)

    def allows(self, steps: Mapping[str, int] | None = None, run_seconds: float = 0.0) -> bool:
        """Whether a measurement expected to take so many gradient steps would, as the last went, keep the limit.

        Args:
            steps: How many, by posterior, "" for the main one; None where nothing is known but the last measurement.
            run_seconds: As `allowance` takes it.
        """
        if self.max_overhead is None:
            return True
        counts = {"": 1} if steps is None else steps
        total = sum(counts.values())
        if self.is_long(total):
            return total * self.first_pace <= self.allowance(run_seconds)
        return self._spent == 0 or self._spent + self._seconds(counts) <= self.max_overhead * self.training_seconds

    def add(self, seconds: float) -> None:
        """Training has waited so long, for whatever reason."""
        self._spent += seconds

    def learn(self, seconds: Mapping[str, float], steps: Mapping[str, int]) -> None:
        """A measurement, whose time has been added as it passed, has taken so long.

        Args:
            seconds: How long, by posterior; without those that failed and say nothing of others.
            steps: Gradient steps that it was expected to take, so that chains which drift, and go on burning in, make
                the next one look dear as well.
        """
        known = [name for name in seconds if steps.get(name)]
        if known:
            self._paces |= {name: seconds[name] / steps[name] for name in known}
            self._pace = sum(seconds[name] for name in known) / sum(steps[name] for name in known)

    @property
    def training_seconds(self) -> float:
        """Seconds of this fit that were not spent on measuring."""
        return 0.0 if self._started is None else self._clock() - self._started - self._spent

    def _forget_paces(self) -> None:
        self._paces: dict[str, float] = {}  # seconds of a gradient step, by posterior
        self._pace = 0.0  # of the last measurement as a whole, for a posterior whose first turn it is

    def _seconds(self, steps: Mapping[str, int]) -> float:
        return sum(count * self._paces.get(name, self._pace) for name, count in steps.items())
