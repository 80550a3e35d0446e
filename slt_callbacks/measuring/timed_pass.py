"""One gradient pass before the first measurement: what it shows of the loss, and how long a measurement will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from slt_callbacks.data.batches import describe
from slt_callbacks.losses.objective import Objective

# A measurement that seems to take longer is looked at again: the first pass on a device loads kernels and tunes them,
# and chains that go all at once may take a fraction of the time.
_QUICK = 10.0
# Seconds that a look at all chains at once may be expected to take: one step to warm up and one that is timed.
_MOST_AT_ONCE = 5.0
_FORWARD = 1 / 3  # of a gradient pass: the way back takes about twice as long


@dataclass(frozen=True)
class TimedPass:
    """One gradient pass.

    Attributes:
        loss: Mean loss of its samples at w*.
        per_sample: Whether the loss gives one a sample.
        batches: What the loss was asked about, in words.
        size: Samples in the pass: those of a gradient step.
        seconds: What a gradient step of one chain takes, on average over all posteriors.
        more_passes: What the first measurement takes beside the steps of its chains, in gradient passes.
        pass_seconds: What the pass took, by itself.

    Example:
        >>> timed = TimedPass(2.3, True, "[Tensor[256, 8]]", size=256, seconds=0.01, more_passes=20.0)
        >>> timed.seconds_for(980)
        10.0
    """

    loss: float
    per_sample: bool
    batches: str
    size: int
    seconds: float
    more_passes: float
    pass_seconds: float = 0.0

    def seconds_for(self, steps: int) -> float:
        """What a measurement of so many gradient steps will take."""
        return (steps + self.more_passes) * self.seconds

    def beside(self, steps: int, others: Sequence[tuple[int, TimedPass]]) -> TimedPass:
        """The same of a measurement of several posteriors, the main one's pass being this.

        Chains of the others are taken to gain as much as the main one's by going all at once.

        Args:
            steps: Gradient steps of the main posterior.
            others: Those of each other one, and a pass of its own.

        Example:
            >>> main = TimedPass(2.3, True, "[Tensor[256, 8]]", 256, seconds=1.0, more_passes=20.0, pass_seconds=2.0)
            >>> half = TimedPass(2.3, True, "[Tensor[256, 8]]", 256, seconds=0.8, more_passes=20.0, pass_seconds=0.8)
            >>> both = main.beside(100, [(100, half)])
            >>> both.seconds, both.seconds_for(200)  # 120 + 48
            (0.7, 168.0)
        """
        gain = self.seconds / self.pass_seconds if self.pass_seconds > 0 else 1.0
        parts = [(steps, self.more_passes, self.seconds)]
        parts += [(count, other.more_passes, gain * other.seconds) for count, other in others]
        total = sum(count for count, _, _ in parts)
        if not total:
            return self
        mean = sum(count * seconds for count, _, seconds in parts) / total
        more = sum(passes * seconds for _, passes, seconds in parts) / mean if mean > 0 else self.more_passes
        return replace(self, seconds=mean, more_passes=more)


def time_pass(
    objective: Objective,
    num_steps: int,
    num_chains: int,
    more_gradients: int,
    forwards: int,
    at_once: Callable[[], float],
    share: Callable[[tuple[float, float]], tuple[float, float]] | None = None,
) -> TimedPass:
    """Take a gradient pass at w*, and another one where a measurement would take long.

    Args:
        objective: Its fork at w*.
        num_steps: Gradient steps of the first measurement, of all posteriors.
        num_chains: Chains that take them.
        more_gradients: Samples whose gradients this posterior takes beside its chains.
        forwards: Samples whose losses alone it asks for.
        at_once: Seconds for a step of all chains at once; infinite where they go one by one.
        share: From the loss and the seconds of a pass to those that every process goes by; None where each goes by its
            own.

    Raises:
        Exception: Whatever the loss raises.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> from slt_callbacks.weights.fork import Fork
        >>> reference = draw_reference([torch.ones(6, 2)])
        >>> objective = Objective(Fork(torch.nn.Linear(2, 1)), lambda m, x: m(x).square()[:, 0], reference)
        >>> timed = time_pass(objective, 100, 2, more_gradients=96, forwards=18, at_once=lambda: 1.0)
        >>> timed.batches, timed.size, timed.more_passes  # 96 / 6, and 18 / 6 / 3
        ('Tensor[6, 2]', 6, 17.0)
    """
    places = next(objective.minibatches(torch.Generator().manual_seed(0)))
    size = len(objective) if places is None else len(places)
    more_passes = (more_gradients + _FORWARD * forwards) / size
    timed = _timed(objective, places)
    loss, seconds = timed if share is None else share(timed)
    if (num_steps + more_passes) * seconds > _QUICK:
        seconds = min(seconds, _timed(objective, places)[1])
    pass_seconds = seconds
    if (num_steps + more_passes) * seconds > _QUICK and num_chains > 1 and num_chains * seconds < _MOST_AT_ONCE / 2:
        seconds = min(seconds, at_once() / num_chains)
    described = _described(objective, places)
    return TimedPass(loss, objective.per_sample, described, size, seconds, more_passes, pass_seconds)


def _timed(objective: Objective, places: torch.Tensor | None) -> tuple[float, float]:
    start = time.perf_counter()
    losses = objective.backward(places)
    objective.take_gradients()
    loss = float(losses.mean())  # waits for the device, which takes what it is given in turn
    return loss, time.perf_counter() - start


def _described(objective: Objective, places: torch.Tensor | None) -> str:
    batches = sorted(objective.batches(places), key=lambda found: -len(found[1]))
    shapes = list(dict.fromkeys(describe(batch).replace("'", "") for batch, _ in batches))
    more = len(shapes) - 1
    return shapes[0] + (f" and {more} other{'s' if more > 1 else ''}" if more else "")
