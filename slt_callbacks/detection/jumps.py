"""Fast alerts: the level of a series jumps within one to three measurements.

A detector of level shifts reads every ramp as a staircase. Here the last two points must both leave the line through
the points before them, and leave its last level as well; and the whole is measured against how well that line has
forecast the series so far, so that a curve that never follows a line (a ramp, correlated noise) raises the bar itself.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slt_callbacks.detection.noise import sorted_median
from slt_callbacks.detection.series import Series

_Array = npt.NDArray[np.float64]

# Standard deviations by which both points must have left. Chosen for the false alarms per 100 points, and known to
# users by those alone: they depend on the noise of real series, which no normal quantile describes.
_THRESHOLDS = {"sensitive": 3.7, "default": 4.2, "strict": 5.0}
_MIN_POINTS = 7  # five for a noise scale and the two that jump
_MIN_BEFORE = 4  # points that carry the line; after an alert the new level must first have as many
_WINDOW = 20  # points that carry the line at most: stages bend within a few tens of measurements
_DECAY = 0.94  # weight lost per point of age: the line follows slow bends
_SLOPE = 0.1  # prior slope, noise sd per point: without it two points of a jump in progress become a steep trend
_SPIKE = 3.5  # sd from the line beyond which a point is left out of it
_ASTRAY = 100.0  # sd of the points about a line that a few of them have drawn away: where values repeat, sd is rounding
_WIDTH = 3  # points a jump may take
_REARM = 4  # quiet forecasts (below 2.5 sd) after which a direction may alert again
_QUIET = 2.5
_RETURN = 0.5  # of the threshold: where the series was before is known, so that going back there needs less evidence
_EARLY = 8.0  # points' worth of doubt about the noise scale: it is widened by 1 + 8 / n


@dataclass(frozen=True)
class JumpEvent:
    """The level of the series has jumped.

    Attributes:
        step: training step of the measurement that gave the alert.
        index: its place in the series; missing points count.
        direction: +1 up, -1 down.
        delta: mean of the last two values minus the level before, in the unit of the series. A jump that is still
            under way grows further.
        z: the smaller of the last two values' distances from the forecast, in standard deviations.
        onset_step: training step of the first point of the jump.
        onset_index: its place in the series.
        preset: sensitivity of the detector.
        key: logged key of the series, such as ``slt/llc/mean``; empty where the detector is used alone.
        returns: whether it takes the jump before it back, after at most five measurements: the two are one spike.

    Example:
        >>> JumpEvent(step=100, index=10, direction=1, delta=2.5, z=8.0, onset_step=90, onset_index=9).preset
        'default'
    """

    step: int
    index: int
    direction: int
    delta: float
    z: float
    onset_step: int
    onset_index: int
    preset: str = "default"
    key: str = ""
    returns: bool = False


class JumpDetector:
    """Online alerts for jumps of a scalar, usually one measurement after the first point of the jump.

    A spike of two measurements or more gives two, up and down; one of a single measurement gives none. A count that was
    constant for long and then changes is told at the second measurement; a change by 1 is not.

    Args:
        sensitivity: "sensitive", "default" or "strict": about 0.05, 0.03 and 0.02 false alarms per 100 points on
            simulated series with correlated noise, spikes, ramps and failed chains.
        min_jump: smallest jump worth an alert, as a fraction of the level before it. On a curve with hardly any noise
            the least change stands out. At a level near 0 a fraction says nothing, and every jump is large.

    Raises:
        ValueError: for an unknown sensitivity or a negative `min_jump`.

    Source: ours; the line whose points lose weight with age is the discounted least squares of Brown 1963, "Smoothing,
    Forecasting and Prediction of Discrete Time Series".

    Example:
        >>> jumps = JumpDetector()
        >>> series = [1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.1, 0.9, 1.0, 1.2, 5.0, 5.1, 4.9]
        >>> events = [jumps.update(step, value, stderr=0.1) for step, value in enumerate(series)]
        >>> [(event.step, event.onset_step, event.direction) for event in events if event]
        [(11, 10, 1)]
    """

    def __init__(self, sensitivity: str = "default", min_jump: float = 0.01) -> None:
        if sensitivity not in _THRESHOLDS:
            raise ValueError(f"Expected `sensitivity` to be one of {list(_THRESHOLDS)}, but got {sensitivity!r}.")
        if not (math.isfinite(min_jump) and min_jump >= 0):
            raise ValueError(f"Expected `min_jump` to be a non-negative number, but got {min_jump!r}.")
        self.sensitivity = sensitivity
        self.min_jump = float(min_jump)
        self._series = Series()
        self._reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sensitivity={self.sensitivity!r}, min_jump={self.min_jump!r})"

    def _reset(self) -> None:
        self._start = 0  # place in the valid points where the present level begins
        self._errors: list[float] = []  # sizes of the one-step forecast errors over `scales`, sorted
        self._blocked = {1: 0, -1: 0}  # quiet forecasts that each direction still needs
        self._jumped: tuple[float, float] | None = None  # level and size of the last jump that has not been taken back

    @property
    def phi(self) -> float:
        """Calibration of the standard errors in force, dimensionless; NaN before it is known.

        Example:
            >>> JumpDetector().phi
            nan
        """
        return self._series.noise.phi

    def update(
        self,
        step: int,
        value: float,
        stderr: float | None = None,
        num_chains: int | None = None,
        per_chain: Sequence[float] | None = None,
    ) -> JumpEvent | None:
        """Take in one measurement.

        Args:
            step: training step, larger than the last one.
            value: the scalar; NaN is a missing point.
            stderr: its standard error, same unit; None, NaN or not above 0 where unknown.
            num_chains: chains behind it.
            per_chain: the chains' own estimates, shape (C,). Not used: a standard error from the chains' differences to
                the measurement before, which has none of their persistent offsets, is no better in the place of
                `stderr`. Jump F1 .930, .921, .923 against .914, .925, .917, on 3 times 240 simulated runs.

        Returns:
            The jump that this measurement confirms, or None.

        Raises:
            ValueError: where `step` is not larger than the last one.

        Example:
            >>> JumpDetector().update(0, 1.0) is None
            True
        """
        series, noise = self._series, self._series.noise
        series.add(step, value, stderr, num_chains)
        if series.ends_missing:
            return None
        if math.isnan(noise.phi):
            if len(noise.valid) > _MIN_BEFORE:  # all values are 0, and so was each forecast
                self._errors.append(0.0)
            return None
        place, y, scale = series.points(max(self._start, len(noise.valid) - _WINDOW - _WIDTH))
        # Correlated noise wanders away for longer than it scatters: a scale halfway between the two
        phi = math.sqrt(noise.phi * noise.phi_lr) * (1 + _EARLY / len(noise.valid))
        sd = phi * scale
        if len(place) > _MIN_BEFORE:
            self._add_error(place, y, sd, phi)
        if len(noise.valid) < _MIN_POINTS:
            return None
        misfit = self._misfit(y, sd, phi)
        if len(place) - 2 < _MIN_BEFORE:
            return self._return(place, y, sd * misfit)
        for onset in range(len(place) - 2, max(len(place) - 2 - _WIDTH, _MIN_BEFORE - 1), -1):
            event = self._test(place, y, sd * misfit, misfit, onset)
            if event is not None:
                return event
        return None

    def mark_break(self) -> None:
        """Say that settings changed: what follows is a new series, and the change itself gives no event.

        Example:
            >>> jumps = JumpDetector()
            >>> for step in range(10):
            ...     _ = jumps.update(step, step % 2)
            >>> jumps.mark_break()
            >>> [jumps.update(step, 50.0 + step % 2) for step in range(10, 14)]
            [None, None, None, None]
        """
        self._series.restart()
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as builtins that survive JSON and ``torch.load(weights_only=True)``.

        Example:
            >>> JumpDetector("strict").state_dict()["sensitivity"]
            'strict'
        """
        return {
            "sensitivity": self.sensitivity,
            "min_jump": self.min_jump,
            **self._series.state_dict(),
            "start": self._start,
            "errors": list(self._errors),
            "blocked": [self._blocked[1], self._blocked[-1]],
            "jumped": None if self._jumped is None else list(self._jumped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, sensitivity and `min_jump` included.

        Example:
            >>> jumps = JumpDetector()
            >>> jumps.load_state_dict(JumpDetector("strict").state_dict())
            >>> jumps.sensitivity
            'strict'
        """
        self.sensitivity, self.min_jump = state["sensitivity"], state["min_jump"]
        self._series.load_state_dict(state)
        self._start = state["start"]
        self._errors = list(state["errors"])
        self._blocked = dict(zip((1, -1), state["blocked"], strict=True))
        jumped = state.get("jumped")  # older checkpoints have none
        self._jumped = None if jumped is None else (jumped[0], jumped[1])

    def _add_error(self, place: npt.NDArray[np.int_], y: _Array, sd: _Array, phi: float) -> None:
        """Record the newest point's forecast error."""
        mean, variance, *_ = _forecast(place[:-1], y[:-1], sd[:-1], place[-1:])
        z = float((y[-1] - mean[0]) / math.sqrt(variance[0] + sd[-1] ** 2))
        for side, wait in self._blocked.items():
            if wait:
                self._blocked[side] = wait - 1 if side * z < _QUIET else _REARM
        bisect.insort(self._errors, abs(z) * phi)

    def _misfit(self, y: _Array, sd: _Array, phi: float) -> float:
        """By how much forecast errors exceed the noise; while they are few, by how much the steps between points do."""
        if len(self._errors) <= 5:  # a curve without noise would leave its first line at once
            steps = np.abs(np.diff(y)) / np.hypot(sd[1:], sd[:-1])
            return max(1.0, 1.4826 * float(np.median(steps))) if len(steps) else 1.0
        return max(1.0, 1.4826 * sorted_median(self._errors) / phi)

    def _test(self, place: npt.NDArray[np.int_], y: _Array, sd: _Array, misfit: float, onset: int) -> JumpEvent | None:
        """Test a jump that begins at position `onset` of the window."""
        mean, variance, level, scatter = _forecast(place[:onset], y[:onset], sd[:onset] / misfit, place[onset:])
        if scatter > _ASTRAY * misfit:  # then its own points are the scale
            sd, misfit = sd * scatter / misfit, scatter
        side = 1 if y[-1] > mean[-1] else -1
        left = side * (y[onset:] - mean) / np.sqrt(misfit**2 * variance + sd[onset:] ** 2)
        moved = side * (y[-2:] - level) / sd[-2:]
        threshold = _THRESHOLDS[self.sensitivity]
        delta = float(y[-2:].mean()) - level
        small = abs(delta) < self.min_jump * abs(level)
        if min(left[-2:].min(), moved.min()) <= threshold or self._blocked[side] or small:
            return None
        begin = onset + int(np.argmax(left > threshold / 2))  # the points before it only seemed to belong to the jump
        self._start = len(self._series.noise.valid)
        self._blocked[side] = _REARM
        self._jumped = float(y[-2:].mean()), delta
        return self._event(place[begin:], delta, float(left[-2:].min()))

    def _return(self, place: npt.NDArray[np.int_], y: _Array, sd: _Array) -> JumpEvent | None:
        """Test whether a level that is still too young to be tested has been left again, back to where it came from."""
        if self._jumped is None or len(place) < 2:
            return None
        level, size = self._jumped
        side = -1 if size > 0 else 1
        moved = side * (y[-2:] - level)
        left = moved / (sd[-2:] * math.sqrt(1.5))  # the level is a mean of two such points
        if left.min() <= _RETURN * _THRESHOLDS[self.sensitivity] or moved.min() <= abs(size) / 2:
            return None
        self._start = len(self._series.noise.valid) - 2
        self._jumped = None
        self._blocked[-side] = 0  # the next spike is another one
        spike = bool(moved.max() < 1.5 * abs(size))  # farther, it is a jump of its own
        return self._event(place[-2:], float(y[-2:].mean()) - level, float(left.min()), returns=spike)

    def _event(self, place: npt.NDArray[np.int_], delta: float, z: float, returns: bool = False) -> JumpEvent:
        """A jump from the first to the last of these places."""
        now, first = int(place[-1]), int(place[0])
        return JumpEvent(
            step=self._series.step(now),
            index=self._series.index(now),
            direction=1 if delta > 0 else -1,
            delta=delta,
            z=z,
            onset_step=self._series.step(first),
            onset_index=self._series.index(first),
            preset=self.sensitivity,
            returns=returns,
        )


def _forecast(
    place: npt.NDArray[np.int_], y: _Array, sd: _Array, ahead: npt.NDArray[np.int_]
) -> tuple[_Array, _Array, float, float]:
    """Weighted line through (place, y), without its outliers.

    Returns:
        Means and variances at `ahead`, the last level, and the scatter of the points about the line in sd, 1 at least.
    """
    weight = _DECAY ** (ahead[0] - 1 - place) / sd**2
    ridge = 1 / (_SLOPE * float(sd[-1])) ** 2
    for attempt in range(2):
        total = weight.sum()
        centre, height = (weight @ place) / total, (weight @ y) / total
        offset = place - centre
        precision = weight @ offset**2 + ridge
        slope = (weight @ (offset * (y - height))) / precision
        residual = np.abs(y - height - slope * offset) / sd
        scatter = max(1.0, 1.4826 * sorted_median(sorted(residual.tolist())))
        outlier = residual > _SPIKE * scatter
        if attempt or not outlier.any():
            break
        # None at all, however far away it is; more than half of the points remain, for the limit is five medians
        weight = np.where(outlier, 0.0, weight)
    away = ahead - centre
    level = float(height + slope * (ahead[0] - 1 - centre))
    return height + slope * away, 1 / total + away**2 / precision, level, scatter
