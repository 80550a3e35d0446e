"""What changed at a boundary: two stretches of a number compared, in units of the number's own noise."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slt_callbacks.basics.keys import PREFIX

WINDOW = 5  # measurements on either side of a boundary whose means are compared
NOISE_WINDOW = 25  # measurements on either side that show the noise
_EARLY = 3.0  # differences' worth of doubt about the noise, which is widened by 1 + 3 / n
_ENOUGH = 3  # measurements that show the noise of one side
_FEW = 12  # differences below which the median of their sizes is no better than chance
_NORMAL = 1.4826  # median absolute deviation of a normal variable -> its standard deviation
_RESOLUTION = 1e-6  # float32 keeps about 7 digits: values that are closer, relative to the largest, are the same
_NOISE = 2.0  # abs(z) below which a change is not worth a word
_TOLD = 3  # changes in a sentence
_MOST_DIGITS = 6  # after the point
_REPEATED = ("free_energy", "variance_llc")  # functions of the LLC and the loss beside them: rows, but no news
# Likewise what is of all measurements so far: early in a run their number moves it, as it moves a random walk's.
_SO_FAR = re.compile(r"explained_\d+")

Point = tuple[float, float]
"""A value and its standard error, NaN where that is unknown."""


@dataclass(frozen=True)
class Change:
    r"""How far a number moved across a boundary.

    .. math:: z = (after - before) / \sqrt{\sigma^2 (1 / n_{before} + 1 / n_{after}) + drift^2}

    with the noise of one measurement and the way that the number would have gone on; see `change_of`.

    Attributes:
        name: in words, such as "head0.1".
        key: logged key, such as ``slt/llc/head0.1/mean``, or the name of a metric of the trainer.
        before: mean of the last `n_before` measurements before the boundary.
        after: mean of the first `n_after` after it.
        end: mean of as many at the end of the new stage, so far.
        z: see above; NaN where no noise is known.
        n_before: measurements compared, at most 5.
        n_after: likewise.

    Example:
        >>> str(Change("LLC", "slt/llc/mean", 3.0, 12.1, 12.4, z=14.2))
        'LLC up 9.1 (z 14)'
        >>> str(Change("accuracy", "slt/behavior/accuracy", 0.52, 0.93, 0.93, z=8.0))
        'accuracy 0.52 -> 0.93 (z 8.0)'
    """

    name: str
    key: str
    before: float
    after: float
    end: float
    z: float = math.nan
    n_before: int = 1
    n_after: int = 1

    @property
    def delta(self) -> float:
        """`after` less `before`."""
        return self.after - self.before

    def __str__(self) -> str:
        size = "" if math.isnan(self.z) else f" (z {abs(self.z):.{0 if abs(self.z) >= 9.95 else 1}f})"
        digits = _digits(self.delta)
        if self.key.startswith(f"{PREFIX}/") and self.key.endswith("/mean"):
            return f"{self.name} {'up' if self.delta > 0 else 'down'} {_shown(abs(self.delta), digits)}{size}"
        return f"{self.name} {_shown(self.before, digits)} -> {_shown(self.after, digits)}{size}"

    def row(self) -> dict[str, Any]:
        """As builtins, for a table."""
        return asdict(self) | {"delta": self.delta}


@dataclass(frozen=True)
class BoundaryChanges:
    """What changed where a stage began.

    Attributes:
        stage: number of the stage.
        step: training step of its first point.
        previous_step: that of the last point of the stage before it.
        changes: those with the largest abs(z) first.

    Example:
        >>> found = BoundaryChanges(1, 950, 900, (Change("h", "slt/llc/h/mean", 1.0, 3.2, 3.3, z=5.0),))
        >>> str(found), found.rows()[0]["step"]
        ('h up 2.2 (z 5.0)', 950)
    """

    stage: int
    step: int
    previous_step: int
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return told(self.changes)

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """The first of them as builtins, one row each.

        Args:
            most: how many; None for all.
        """
        place = {"stage": self.stage, "step": self.step}
        return [place | change.row() for change in self.changes[:most]]


def change_of(
    name: str, key: str, before: Sequence[Point], after: Sequence[Point], end: Sequence[Point]
) -> Change | None:
    """Compare a number before and after a boundary.

    The means of 5 measurements on either side are compared, or of fewer where there are no more. The noise of one
    measurement is half the mean square of differences ``x[t + 5] - x[t]`` within one side, less their mean, over up to
    25 measurements a side; the median of their sizes stands for the mean square where there are 12 or more. Differences
    over so long a way count most of the correlation between neighbours. What the number would have gone on to do as it
    did before the boundary adds to the error of `delta`: a loss that falls as it fell has an abs(z) of 1.

    Where nothing changes, abs(z) is above 3 for 1 number of 100 at most, and with a correlation of 0.6 between
    neighbours (persistent chains) for 1 of 25: of a hundred numbers the largest is no proof of a change.

    Of values that repeat one another the noise is at least that of rounding to the smallest step between them. Where a
    side has too few measurements to show any, the standard errors stand in: they are not the noise of a curve over
    training, and count for nothing where that is known.

    Args:
        name: as of `Change`.
        key: likewise.
        before: values and standard errors before the boundary, the nearest first; those that are not finite are none.
        after: likewise, of the new stage.
        end: the newest of the new stage, likewise.

    Returns:
        None where either side has no value, or nothing has changed.

    Example:
        >>> nan = float("nan")
        >>> change = change_of("h", "k", [(0.0, 0.5), (0.0, 0.5)], [(3.0, 0.5), (3.0, 0.5)], [(3.0, 0.5)])
        >>> change.delta, change.z  # 3 / sqrt(0.25 / 2 + 0.25 / 2)
        (3.0, 6.0)
        >>> change_of("h", "k", [(1.0, nan)] * 5, [(1.0, nan)] * 5, []) is None
        True
    """
    sides = [_finite(side, NOISE_WINDOW) for side in (before, after)]
    if not all(map(len, sides)):
        return None
    near = [side[:WINDOW] for side in sides]
    (first, second), (n_before, n_after) = [float(side[:, 0].mean()) for side in near], map(len, near)
    values = [side[:, 0] for side in sides]
    largest = max(float(np.abs(side).max()) for side in values)
    if abs(second - first) <= _RESOLUTION * largest:
        return None
    sigma = _noise(values)
    if math.isnan(sigma):
        error = math.sqrt(sum(_squared_error(side) for side in near))
    else:
        way = _drift(values[0][::-1], sigma) * (n_before + n_after) / 2
        error = math.hypot(max(sigma, _rounding(values, largest)) * math.sqrt(1 / n_before + 1 / n_after), way)
    newest = _finite(end, WINDOW)
    last = float(newest[:, 0].mean()) if len(newest) else second
    z = (second - first) / error if error > 0 else math.nan
    return Change(name, key, first, second, last, z, n_before, n_after)


def ranked(changes: Iterable[Change]) -> list[Change]:
    """The largest abs(z) first; where it is unknown, in the end, the relatively larger ones.

    Example:
        >>> told = [Change("a", "a", 1, 2, 2, z=-3.0), Change("b", "b", 1, 2, 2, z=9.0), Change("c", "c", 1, 9, 9)]
        >>> [change.name for change in ranked(told)]
        ['b', 'a', 'c']
    """

    def place(one: Change) -> tuple[bool, float, str]:
        unknown = math.isnan(one.z)
        size = one.delta / max(abs(one.before), abs(one.after)) if unknown else one.z
        return unknown, -abs(size), one.key

    return sorted(changes, key=place)


def told(changes: Sequence[Change]) -> str:
    """The first three of them in a sentence, without those that are within their noise.

    Example:
        >>> told([Change("h", "slt/llc/h/mean", 1.0, 3.2, 3.3, z=5.0), Change("loss", "l", 1.0, 0.9, 0.8, z=-1.0)])
        'h up 2.2 (z 5.0)'
    """
    news = [one for one in changes if not abs(one.z) < _NOISE and _is_news(one.key.rpartition("/")[2])]
    return "; ".join(map(str, news[:_TOLD]))


def _is_news(name: str) -> bool:
    return name not in _REPEATED and _SO_FAR.fullmatch(name) is None


def _digits(delta: float) -> int:
    """After the point, for two figures of a difference."""
    return max(0, 1 - math.floor(math.log10(abs(delta)) + 0.0022)) if delta else 0  # 9.95 becomes 10


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if digits <= _MOST_DIGITS else f"{value:.2e}"


def _finite(points: Sequence[Point], most: int) -> npt.NDArray[np.float64]:
    """The first that are, ``(n, 2)``."""
    found = [point for point in points if math.isfinite(point[0])][:most]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _noise(sides: Sequence[npt.NDArray[np.float64]]) -> float:
    """Standard deviation of one measurement, from differences within each side; NaN where there are too few."""
    found = [_differences(side) for side in sides if len(side) >= _ENOUGH]
    centred = [one - (one.mean() if len(one) < _FEW else np.median(one)) for one in found]
    count = sum(len(one) - 1 for one in found)
    if not count:
        return math.nan
    sizes = np.abs(np.concatenate(centred))
    median = _NORMAL * float(np.median(sizes)) if count >= _FEW else 0.0
    spread = median or math.sqrt(float((sizes**2).sum()) / count)  # where most are 0, the others are all there is
    return spread / math.sqrt(2) * (1 + _EARLY / count)


def _drift(side: npt.NDArray[np.float64], sigma: float) -> float:
    """How far a number went from one measurement to the next before the boundary, less what noise alone gives."""
    if len(side) < _ENOUGH:
        return 0.0
    found = _differences(side)
    lag = len(side) - len(found)
    mean = float(found.mean() if len(found) < _FEW else np.median(found))
    return math.sqrt(max(0.0, mean**2 - 2 * lag * (sigma / len(found)) ** 2)) / lag


def _differences(side: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of points five apart, or less in a short series."""
    lag = min(WINDOW, len(side) // 3)
    return side[lag:] - side[:-lag]


def _rounding(sides: Sequence[npt.NDArray[np.float64]], largest: float) -> float:
    """Noise of rounding to the smallest step between the values that there are."""
    steps = np.diff(np.unique(np.concatenate(sides)))
    steps = steps[steps > _RESOLUTION * largest]
    return float(steps.min()) / math.sqrt(12) if len(steps) else 0.0


def _squared_error(points: npt.NDArray[np.float64]) -> float:
    """Of the mean, from the standard errors; NaN where none is known."""
    known = points[np.isfinite(points[:, 1]), 1]
    return float((known**2).mean()) / len(points) if len(known) else math.nan
