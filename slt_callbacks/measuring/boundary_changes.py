"""Which refinements changed most from one stage to the next."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from slt_callbacks.detection.records import Stage
from slt_callbacks.measuring.measurement import Measurement

_WINDOW = 5  # measurements of a refinement on either side of a boundary
_TOLD = 3  # changes a boundary

Point = tuple[float, float]
"""A refined LLC and its standard error."""


@dataclass(frozen=True)
class Change:
    r"""How far the mean of a refined LLC moved across a boundary.

    .. math:: z = (\bar\lambda_{after} - \bar\lambda_{before}) / \sqrt{se_{after}^2 + se_{before}^2}

    where the squared error of a mean of n measurements is the mean of their squared standard errors over n. These come
    from the spread between chains, which is not the noise of the curve over training: z ranks changes, and tests none.

    Attributes:
        name: Of the refinement.
        delta: Mean after the boundary less that before it.
        z: See above; NaN where no standard error is known.
    """

    name: str
    delta: float
    z: float

    def __str__(self) -> str:
        size = f"{self.delta:+.0f}" if abs(self.delta) >= 10 else f"{self.delta:+.2g}"
        return f"{self.name} {size}" + ("" if math.isnan(self.z) else f" (z {abs(self.z):.1f})")


def changes_between(history: Sequence[Measurement], before: Stage, after: Stage, key: str = "llc") -> list[Change]:
    """The change of every refinement from one stage to the next, those with the largest abs(z) first.

    The last five measurements of each before the boundary are compared with the first five after it, or fewer where
    these stages have no more; failed ones do not count. Where z is unknown the larger changes come first, at the end.

    Args:
        history: Measurements in order, as in ``monitor.history``.
        before: The earlier stage.
        after: The next one.
        key: The observable, by its key in the refinements' records.

    Example:
        >>> from slt_callbacks import StageDetector
        >>> detector, history = StageDetector(), []
        >>> for step in range(60):  # flat, and from step 30 on a ramp
        ...     heads = {"h0": {"llc": {"mean": 4.0 * (step > 30), "stderr": 1.0}}, "h1": {"llc": {"mean": 1.0}}}
        ...     history.append(Measurement(step, {}, refinements=heads))
        ...     _ = detector.update(step, max(0, step - 30) + step % 2, 0.5, loss=-step)
        >>> [str(change) for change in changes_between(history, *detector.finish())]
        ['h0 +4 (z 6.3)', 'h1 +0']
    """
    first, middle, last = (
        bisect_left(history, before.start_step, key=_step),
        bisect_left(history, after.start_step, key=_step),
        bisect_right(history, after.end_step, key=_step),
    )
    left = _nearest(reversed(history[first:middle]), key)
    right = _nearest(history[middle:last], key)
    found = [_change(name, left[name], points) for name, points in right.items() if name in left]
    return sorted(found, key=lambda one: (math.isnan(one.z), -abs(one.delta if math.isnan(one.z) else one.z)))


def changed_most(history: Sequence[Measurement], stages: Sequence[Stage], key: str = "llc") -> list[str]:
    """What changed most where each stage began, in words; nothing for the first one.

    Args:
        history: As in `changes_between`.
        stages: In order.
        key: As there.

    Example:
        >>> changed_most([], []), str(Change("head0.1", 2.2, 5.1))
        ([], 'head0.1 +2.2 (z 5.1)')
    """
    told = [", ".join(map(str, changes_between(history, *pair, key)[:_TOLD])) for pair in pairwise(stages)]
    return [""] * bool(stages) + told


def _step(measurement: Measurement) -> int:
    return measurement.step


def _nearest(measurements: Iterable[Measurement], key: str) -> dict[str, list[Point]]:
    """Of each refinement the measurements nearest to a boundary, seen from there."""
    found: dict[str, list[Point]] = {}
    for measurement in measurements:
        for name, record in measurement.refinements.items():
            mean = record.get(key, {}).get("mean", math.nan)
            points = found.setdefault(name, [])
            if math.isfinite(mean) and len(points) < _WINDOW:
                points.append((mean, record[key].get("stderr", math.nan)))
        if found and min(map(len, found.values())) == _WINDOW:
            break  # a run may have thousands, and every event asks
    return {name: points for name, points in found.items() if points}


def _change(name: str, before: Sequence[Point], after: Sequence[Point]) -> Change:
    delta = _mean([mean for mean, _ in after]) - _mean([mean for mean, _ in before])
    error = math.sqrt(_squared_error(before) + _squared_error(after))
    return Change(name, delta, delta / error if error > 0 else math.nan)


def _squared_error(points: Sequence[Point]) -> float:
    """Of the mean; NaN where no standard error is known."""
    known = [stderr**2 for _, stderr in points if math.isfinite(stderr)]
    return _mean(known) / len(points) if known else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
