"""Noise of a measured curve, calibrated on the curve itself.

The standard error over chains is not the scatter of the curve from one measurement to the next. Persistent chains keep
their offsets (the error is then far too large), and what the chains share, the minibatches and the weights, does not
show in it at all (too small). So it serves as a relative weight, and second differences of the series set the scale.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_WINDOW = 25  # measurements over which the usual size of the standard error is taken
_PRIOR = 6.0  # degrees of freedom lent to that usual size: with 4 chains the error's own estimate has only 3
_MISSING = 1.5  # a point without a standard error counts as this many usual ones
_NORMAL = 1.4826  # median absolute deviation of a normal variable -> its standard deviation
_BLOCK = 3  # points in the means whose second differences show correlation; longer blocks see the curve's bends
_LARGEST = float(np.finfo(np.float32).max)  # beyond it nothing was measured, and squares overflow
_CHANCE = 0.05  # share of differences that may be rounding by chance, and then count as others do
_RECENT = 20  # measurements over which a series that repeats its values is told from one that varies
_MOSTLY = 0.75  # share of them, in a straight line to rounding, beyond which the others are events and not noise
_NEWEST = 3  # measurements that may be a jump, and are left out of what it is compared with
_AROUND = 7  # points whose median is the level in their middle, unless four of them have left it
_RESOLUTION = 1e-6  # float32 keeps about 7 digits: a smaller scatter, relative to the value, is rounding


class NoiseModel:
    r"""Relative weights and absolute noise scale of one series, point by point.

    ``scale_i^2 = ((C - 1) stderr_i^2 + 6 m^2) / (C + 5)`` with C chains and m the running median of the last 25
    standard errors; the noise of point i is ``phi * scale_i``, with
    ``phi = 1.4826 median_i |y_i - interpolation of its neighbours| / (its standard deviation under scale)``.
    Multiplying every standard error by a constant changes nothing but `phi`.

    Of values that repeat one another exactly, such as counts, most differences are 0 and say nothing of the noise: they
    are left out of the median. Where the latest ones repeat, the noise is the larger of their rounding and of the root
    mean square of their departures from a running median.

    Attributes:
        values: the series, in its own unit; NaN where a measurement is missing.
        scales: relative noise of each point, same length and unit.

    Example:
        >>> noise = NoiseModel()
        >>> for value in [1.0, 3.0, 1.0, 3.0, 1.0, 3.0]:
        ...     noise.add(value, stderr=1.0)
        >>> round(noise.phi, 3)  # |second difference| / sd = 2 / sqrt(1.5), times 1.4826
        2.421
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.scales: list[float] = []
        self.valid: list[int] = []
        self._errors: list[float] = []
        self._differences: dict[int, list[float]] = {1: [], _BLOCK: []}  # kept sorted, for their medians
        self._phi: float | None = None

    def add(self, value: float, stderr: float | None = None, num_chains: int | None = None) -> None:
        """Append one measurement.

        Args:
            value: the estimate; one that is not finite, in single precision, is a missing point, which keeps its place.
            stderr: its standard error over chains, same unit; unknown where None, not above 0, or not finite as above.
            num_chains: chains behind it; 4 where unknown.
        """
        error = float(stderr) if stderr is not None and 0 < stderr <= _LARGEST else math.nan
        known = abs(value) <= _LARGEST
        self._phi = None
        scale = self._scale(error, 4 if num_chains is None else max(int(num_chains), 2))
        self.scales.append(scale)
        self.values.append(float(value) if known else math.nan)
        if known:
            self.valid.append(len(self.values) - 1)
            for size, found in self._differences.items():
                if len(self.valid) >= 3 * size:
                    bisect.insort(found, self._difference(size))

    @property
    def phi(self) -> float:
        """Noise of the curve from point to point, over `scales`; NaN below 5 points or where all values are 0.

        Example:
            >>> NoiseModel().phi
            nan
        """
        if self._phi is None:  # asked for several times a measurement
            self._phi = self._calibrated()
        return self._phi

    @property
    def phi_lr(self) -> float:
        """Long-run noise over `scales`: what a mean of many correlated points scatters by, times sqrt(points).

        ``phi_lr = 1.25 phi max(1, phi_3 / phi)^max(0, 0.85 - 32 / n)``, phi_3 the same from means of 3 points: a
        regression of the true long-run scale on both, over simulated AR(1) plus white series. At small n a bend of the
        curve looks like correlation, hence the exponent; correlation longer than 3 points is never seen, hence 1.25.

        Example:
            >>> NoiseModel().phi_lr
            nan
        """
        phi, blocks = self.phi, self._differences[_BLOCK]
        if math.isnan(phi) or not blocks:
            return 1.25 * phi
        ratio = _NORMAL * sorted_median(blocks) / phi
        return 1.25 * phi * float(max(1.0, ratio) ** max(0.0, 0.85 - 32 / len(self.valid)))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as lists of builtins.

        Example:
            >>> NoiseModel().state_dict()["values"]
            []
        """
        return {
            "values": list(self.values),
            "scales": list(self.scales),
            "valid": list(self.valid),
            "errors": list(self._errors),
            "differences": [list(found) for found in self._differences.values()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Example:
            >>> first, second = NoiseModel(), NoiseModel()
            >>> first.add(1.0)
            >>> second.load_state_dict(first.state_dict())
            >>> second.values
            [1.0]
        """
        self._phi = None
        self.values, self.scales = list(state["values"]), list(state["scales"])
        self.valid, self._errors = list(state["valid"]), list(state["errors"])
        self._differences = {size: list(found) for size, found in zip((1, _BLOCK), state["differences"], strict=True)}

    def _scale(self, error: float, chains: int) -> float:
        if math.isfinite(error):
            if not self._errors:  # the points before the first known error counted as 1 each: give them a unit
                self.scales = [_MISSING * error] * len(self.scales)
                for found in self._differences.values():
                    found[:] = [d / (_MISSING * error) for d in found]
            self._errors = [*self._errors, error][-_WINDOW:]
        if not self._errors:
            return 1.0
        usual = statistics.median(self._errors)
        if math.isnan(error):
            return _MISSING * usual
        return math.sqrt(((chains - 1) * error**2 + _PRIOR * usual**2) / (chains - 1 + _PRIOR))

    def _calibrated(self) -> float:
        if len(self.valid) < 5:  # three differences: no scale yet, and none is guessed from the size of stderr
            return math.nan
        differences = self._differences[1]
        exact = bisect.bisect_right(differences, 0.0)
        mostly = 2 * exact > len(differences)  # their median would be 0
        if exact == len(differences) or (mostly and self._repeats()):
            return max(self._resolution(), self._departures())
        by_chance = exact <= _CHANCE * len(differences)
        return _NORMAL * sorted_median(differences if by_chance else differences[exact:])

    def _repeats(self) -> bool:
        """Whether the latest values repeat one another, up to the points that may be a jump."""
        y = np.array([self.values[i] for i in self.valid[-_RECENT:-_NEWEST]])
        if len(y) < 3:
            return True
        bends, size = np.abs(y[1:-1] - (y[:-2] + y[2:]) / 2), np.abs(y)
        exact = bends <= _RESOLUTION * np.maximum(size[1:-1], np.maximum(size[:-2], size[2:]))
        return float(exact.mean()) > _MOSTLY

    def _resolution(self) -> float:
        """Noise of rounding over `scales`: to integers, or to single precision; NaN where all values are 0."""
        sizes = [abs(self.values[i]) for i in self.valid if self.values[i]]
        if not sizes:
            return math.nan
        rounding = 12**-0.5 if all(size.is_integer() for size in sizes) else _RESOLUTION * min(sizes)
        return rounding / statistics.median(self.scales[i] for i in self.valid)

    def _departures(self) -> float:
        """Root mean square distance of the points from the medians around them, over `scales`.

        The median follows a level that jumps, and not a few points that leave it. The largest distance counts as the
        second: one senseless value hides nothing.
        """
        known = self.valid[:-_NEWEST]
        if len(known) < _AROUND:
            return 0.0
        y, scale = (np.array([column[i] for i in known]) for column in (self.values, self.scales))
        half = _AROUND // 2
        usual = np.partition(np.lib.stride_tricks.sliding_window_view(y, _AROUND), half, axis=1)[:, half]
        away = np.sort(np.abs(y[half:-half] - usual) / scale[half:-half])
        away[-1] = away[-2] if len(away) > 1 else 0.0
        return float(np.sqrt(np.mean(away**2)))

    def _difference(self, size: int) -> float:
        """|Middle of the last three blocks - interpolation of the outer two| in units of its scale."""
        rows = [self.valid[k - size : k or None] for k in (-2 * size, -size, 0)]
        time = [sum(row) / size for row in rows]
        value = [sum(self.values[i] for i in row) / size for row in rows]
        variance = [sum(self.scales[i] ** 2 for i in row) / size**2 for row in rows]
        share = (time[1] - time[0]) / (time[2] - time[0])
        bend = abs(value[1] - (1 - share) * value[0] - share * value[2])
        rounding = _RESOLUTION * max(abs(v) for v in value)
        total = variance[1] + (1 - share) ** 2 * variance[0] + share**2 * variance[2]
        return bend / math.sqrt(total) if bend > rounding else 0.0


def sorted_median(values: Sequence[float]) -> float:
    """Median of a sorted, non-empty list, in constant time.

    Example:
        >>> sorted_median([1.0, 2.0, 4.0, 9.0])
        3.0
    """
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def isolated_spikes(
    values: npt.NDArray[np.float64], noise: npt.NDArray[np.float64], threshold: float = 4.5
) -> npt.NDArray[np.bool_]:
    """Single points that stand out while their two neighbours agree: a bad measurement, not a change of the curve.

    Args:
        values: consecutive measurements without gaps, shape (n,).
        noise: their standard deviations, same unit, shape (n,).
        threshold: in standard deviations; 1-2 % of the points of published curves lie beyond 4.

    Returns:
        True at the spikes, shape (n,). The first and last point never are: their neighbours are not both known.

    Example:
        >>> isolated_spikes(np.array([0.0, 0.1, 9.0, 0.0, 0.1, 0.0]), np.full(6, 0.1)).tolist()
        [False, False, True, False, False, False]
    """
    found = np.zeros(len(values), dtype=bool)
    if len(values) < 5:
        return found
    away = np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2)
    spread = np.sqrt(noise[1:-1] ** 2 + (noise[:-2] ** 2 + noise[2:] ** 2) / 4)
    # 0.6: in the middle of a ramp or at a step the neighbours differ by twice the deviation
    lone = (away > threshold * spread) & (np.abs(values[2:] - values[:-2]) < 0.6 * away)
    padded = np.concatenate([[0.0], away, [0.0]])
    found[1:-1] = lone & (away >= padded[:-2]) & (away >= padded[2:])
    return found
