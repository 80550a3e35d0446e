"""Line charts as numbers for a template: a square of 1000 by 1000, drawn as wide as the reader's screen is.

Only lines are stretched with the square. Letters, points and line widths are not: a template places the letters in
percent, and strokes do not scale. So one chart serves a phone and a wide screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slt_callbacks.figures.steps import RHAT, Array, common_limits, log_spaced

_SIDE = 1000
_MOST_POINTS = 800  # of one line: more than a screen has room for
_COLOURS = 8
_INSET = 0.012
_FEWEST_TICKS = 3  # by which a value can be read
_MOST_LETTERS = 7  # of a label
_ROOM = 12.0  # percent of an axis that a label needs to itself


@dataclass(frozen=True)
class Curve:
    """One series over training steps.

    Attributes:
        name: In the legend.
        steps: Sorted, ``(T,)``.
        values: ``(T,)``; NaN is a gap.
        stderr: Standard errors ``(T,)``, drawn as a band of two on either side; None for none.
        rhat: R-hat ``(T,)``; points whose chains disagree are hollow, and do not decide the scale. None: no points.

    Example:
        >>> Curve("loss", np.array([1.0]), np.array([2.0])).stderr is None
        True
    """

    name: str
    steps: Array
    values: Array
    stderr: Array | None = None
    rhat: Array | None = None


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: Value at its beginning.
        high: Value at its end.
        logarithmic: Whether it is one of ln(1 + value), on which 0 has a place.
        inset: Room at either end, as a share of its length, so that the outermost points are whole.

    Example:
        >>> Axis(0, 20).place(np.array([5.0])).tolist(), [tick.label for tick in Axis(0, 20).ticks(4)]
        ([0.25], ['0', '5', '10', '15', '20'])
    """

    low: float
    high: float
    logarithmic: bool = False
    inset: float = 0.0

    def place(self, values: Array) -> Array:
        """Between 0 and 1, or outside where a value is."""
        low, high = self._on_scale(np.array([self.low, self.high], dtype=float))
        found: Array = (self._on_scale(np.asarray(values, dtype=float)) - low) / (high - low)
        return self.inset + (1 - 2 * self.inset) * found

    def ticks(self, most: int) -> list[Tick]:
        """Round values, about as many as asked for at most, with their places in percent."""
        values, digits = self._powers() if self.logarithmic else self._round(most)
        places = 100 * self.place(np.array(values, dtype=float))
        if self.logarithmic and 100 * (1 - self.inset) - places[-1] > _ROOM:  # or its end would go without a number
            values, places = [*values, self.high], np.append(places, 100 * (1 - self.inset))
        return [
            Tick(round(float(place), 2), _label(value, digits))
            for value, place in zip(values, places, strict=True)
            if 0 <= place <= 100
        ]

    def _on_scale(self, values: Array) -> Array:
        return np.log1p(np.maximum(values, 0.0)) if self.logarithmic else values

    def _powers(self) -> tuple[list[float], int]:
        top = math.floor(math.log10(max(self.high, 1.0)))
        apart = -(-(top + 1) // 5)
        return [0.0] * (self.low <= 0) + [10.0**power for power in range(0, top + 1, apart)], 0

    def _round(self, most: int) -> tuple[list[float], int]:
        rough = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(rough))
        gap = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / gap - 1e-9), math.floor(self.high / gap + 1e-9)
        return [number * gap for number in range(first, last + 1)], max(0, -math.floor(math.log10(gap) + 1e-9))


@dataclass(frozen=True)
class Tick:
    """A label at a place, in percent of the axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A measured point in the square, with what it says when it is pointed at."""

    x: int
    y: int
    hollow: bool
    told: str


@dataclass(frozen=True)
class Line:
    """A curve in the square: SVG path data of the line and of its band."""

    name: str
    colour: int
    path: str
    band: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class Chart:
    """What a template draws.

    Attributes:
        title: Above it.
        note: Below it.
        lines: In order.
        left: Ticks of the values.
        below: Ticks of the training steps.
        zero: Height of 0 in the square; None where it is not in the picture.
        rule: Height of a line that values are read against; None for none.
        alt: The same in words.
    """

    title: str
    note: str
    lines: Sequence[Line]
    left: Sequence[Tick]
    below: Sequence[Tick]
    zero: int | None
    rule: int | None
    alt: str


def step_axis(steps: Array) -> Axis:
    """The axis of all charts: logarithmic where measurements are much farther apart in the end than in the beginning.

    Args:
        steps: Of the measurements, in order, ``(T,)``, at least one.

    Example:
        >>> step_axis(np.array([0.0, 10.0, 20.0])).logarithmic, step_axis(np.array([7.0])).high
        (False, 8.0)
    """
    first, last = float(steps[0]), float(steps[-1])
    return Axis(first, last, log_spaced(steps), _INSET) if last > first else Axis(first - 1.0, first + 1.0)


def chart(
    title: str,
    curves: Sequence[Curve],
    axis: Axis,
    note: str = "",
    *,
    limits: tuple[float, float] | None = None,
    rule: float | None = None,
    first_colour: int = 0,
) -> Chart | None:
    """Draw curves over training steps; None where no value is known.

    Args:
        title: Above it.
        curves: Not more than 8, or colours repeat.
        axis: Of the steps.
        note: Below it.
        limits: Lowest and highest value in the picture; None for those of the values, unless chains that disagree
            would flatten the rest.
        rule: A value that others are read against; drawn where it lies in the picture.
        first_colour: Number of the first curve's colour.

    Example:
        >>> steps = np.array([0.0, 10.0, 20.0])
        >>> drawn = chart("loss", [Curve("loss", steps, np.array([2.0, np.nan, 1.0]))], step_axis(steps))
        >>> drawn.lines[0].path
        'M12 50M988 950'
        >>> drawn.alt
        'loss over training steps 0 to 20: from 2 to 1.'
    """
    known = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not known:
        return None
    low, high = scale(known) if limits is None else limits
    values = Axis(low, high, inset=0.05)
    lines = [_line(curve, axis, values, (number + first_colour) % _COLOURS) for number, curve in enumerate(known)]
    return Chart(
        title,
        note,
        lines,
        _readable(values, 5),
        _readable(axis, 4),
        _height(values, 0.0) if low <= 0 <= high else None,
        None if rule is None or not low <= rule <= high else _height(values, rule),
        _told(title, known),
    )


def scale(curves: Sequence[Curve]) -> tuple[float, float]:
    """Lowest and highest value of a picture of these curves; see `common_limits`.

    Example:
        >>> scale([Curve("flat", np.array([1.0, 2.0]), np.array([3.0, 3.0]))])
        (1.5, 4.5)
    """
    columns = [
        (curve.values, _or_nan(curve.stderr, curve.values), _or_nan(curve.rhat, curve.values)) for curve in curves
    ]
    low, high = common_limits(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    known = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in curves])
    if not len(known) or np.ptp(known) or high - low > 1 + 1e-9:  # a band, which has limits
        return low, high
    value = float(known[0])  # one line across: in the middle, or on the ground where it is one of nothing
    return (value - abs(value) / 2, value + abs(value) / 2) if value else (0.0, 1.0)


def compact(value: float) -> str:
    """A number as a person reads it.

    Example:
        >>> compact(1234.5), compact(-0.01234), compact(12.34), compact(2.0)
        ('1,234', '\u22120.0123', '12.3', '2')
    """
    if not math.isfinite(value):
        return "unknown"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def between(first: float, second: float) -> tuple[str, str]:
    """Two numbers of one kind with as many decimals, by which they can be compared.

    Example:
        >>> between(1.0979, 0.94235), between(2.0, 18.0), between(-1.374, 18.85)
        (('1.098', '0.942'), ('2', '18'), ('\u22121.4', '18.9'))
    """
    apart = abs(second - first)
    if not 0 < apart < math.inf:
        return compact(first), compact(second)
    digits = max(0, 2 - math.floor(math.log10(apart)))
    texts = [f"{value:,.{digits}f}" for value in (first, second)]
    while digits and all(text.endswith("0") for text in texts):
        digits -= 1
        texts = [text[:-1].removesuffix(".") for text in texts]
    return texts[0].replace("-", "\u2212"), texts[1].replace("-", "\u2212")


def percent(place: float) -> str:
    """A place on an axis for a style sheet.

    Example:
        >>> percent(0.12345)
        '12.35%'
    """
    return f"{100 * min(max(place, 0.0), 1.0):.2f}%"


def _line(curve: Curve, axis: Axis, values: Axis, colour: int) -> Line:
    kept = np.arange(0, len(curve.steps), -(-len(curve.steps) // _MOST_POINTS))
    steps, mean = curve.steps[kept], curve.values[kept]
    x, y = _across(axis, steps), _down(values, mean)
    error = 2 * np.nan_to_num(_or_nan(curve.stderr, curve.values)[kept])
    band = "" if curve.stderr is None else _band(x, _down(values, mean + error), _down(values, mean - error))
    dots = []
    if curve.rhat is not None:
        hollow = _or_nan(curve.rhat, curve.values)[kept] > RHAT
        for place in np.flatnonzero(np.isfinite(mean)):
            spread = f" \u00b1 {compact(error[place] / 2)}" if error[place] > 0 else ""
            told = f"step {steps[place]:,.0f}: {compact(mean[place])}{spread}"
            dots.append(Dot(int(x[place]), int(y[place]), bool(hollow[place]), told))
    return Line(curve.name, colour, _path(x, y), band, dots)


def _across(axis: Axis, steps: Array) -> Array:
    return np.rint(_SIDE * axis.place(steps))


def _down(axis: Axis, values: Array) -> Array:
    """SVG counts from the top; what leaves the picture leaves it by no more than its height."""
    return np.rint(_SIDE * (1 - np.clip(axis.place(values), -1, 2)))


def _height(axis: Axis, value: float) -> int:
    return int(_down(axis, np.array([value]))[0])


def _label(value: float, digits: int) -> str:
    """Of a tick: of very small and very large ones the power of ten, for which alone there is room."""
    text = f"{value:,.{digits}f}"
    if len(text.lstrip("-")) > _MOST_LETTERS:
        figures, power = f"{value:.1e}".split("e")
        text = f"{figures.removesuffix('.0')}e{int(power)}" if value else "0"
    return text.replace("-", "\u2212")


def _readable(axis: Axis, most: int) -> list[Tick]:
    ticks = axis.ticks(most)
    return ticks if len(ticks) >= _FEWEST_TICKS else axis.ticks(2 * most)


def _path(x: Array, y: Array) -> str:
    """A line that is broken where values are missing."""
    parts, joined = [], False
    for across, down in zip(x, y, strict=True):
        if math.isfinite(down):
            parts.append(f"{'L' if joined else 'M'}{across:.0f} {down:.0f}")
        joined = math.isfinite(down)
    return "".join(parts)


def _band(x: Array, upper: Array, lower: Array) -> str:
    """A closed area for each stretch without a gap."""
    known = np.flatnonzero(np.isfinite(upper))
    pieces = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    areas = []
    for piece in pieces:
        if len(piece) > 1:
            corners = [*zip(x[piece], upper[piece], strict=True), *zip(x[piece][::-1], lower[piece][::-1], strict=True)]
            areas.append("M" + "L".join(f"{across:.0f} {down:.0f}" for across, down in corners) + "Z")
    return "".join(areas)


def _or_nan(values: Array | None, like: Array) -> Array:
    return np.full(len(like), math.nan) if values is None else values


def _told(title: str, curves: Sequence[Curve]) -> str:
    steps = np.concatenate([curve.steps for curve in curves])
    ends = []
    for curve in curves:
        known = curve.values[np.isfinite(curve.values)]
        name = f"{curve.name} " if len(curves) > 1 else ""
        ends.append(f"{name}from {compact(float(known[0]))} to {compact(float(known[-1]))}")
    return f"{title} over training steps {steps.min():,.0f} to {steps.max():,.0f}: {', '.join(ends)}."


def series(rows: Sequence[tuple[int, Mapping[str, float]]], name: str) -> tuple[Array, Array]:
    """Steps and values of one number, of the measurements that have it.

    Example:
        >>> [array.tolist() for array in series([(1, {"mean": 2.0}), (2, {})], "mean")]
        [[1.0], [2.0]]
    """
    there = [(step, numbers[name]) for step, numbers in rows if name in numbers]
    return np.array([step for step, _ in there], dtype=float), np.array([value for _, value in there], dtype=float)
