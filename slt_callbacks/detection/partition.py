"""Optimal partitioning of a series into straight lines, one row of the dynamic programme per point.

``F(j) = min_a F(a) + RSS(a, j) / sigma^2 + 16``, with RSS(a, j) the weighted residual sum of squares of one line on
the points a ... j - 1 (Jackson et al. 2005, arXiv math/0309285, with lines for constants). Lines need not meet: a jump
is a break between two of them. Coordinates are point indices, not training steps: log schedules weigh alike.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float64]

_PENALTY = 16.0  # chi-square units for a line (two coefficients and a break); 14 to 18 score alike on simulated series
_SHORT = 5  # a piece below this many points is a transition between two stages, or a few bad points, not a stage
_TREND = 5.0  # standard errors of a slope beyond which a line is a trend
_NET = 0.05  # and the least change over it, as a fraction of the largest change of any line
_TAIL = 0.25  # the flat end of a curve keeps the trend's sign while its slope is above this fraction of the trend's
_JUMP = 4.0  # standard errors between two plateaus that make a boundary


class Line(NamedTuple):
    """Weighted least-squares line: ``level + slope (x - centre)``; `total` weight, `spread` = sum w (x - centre)^2."""

    level: float
    slope: float
    centre: float
    total: float
    spread: float
    rss: float

    def at(self, x: float) -> float:
        """Value of the line at x.

        Example:
            >>> Line(1.0, 2.0, 0.0, 1.0, 1.0, 0.0).at(3.0)
            7.0
        """
        return self.level + self.slope * (x - self.centre)

    def variance(self, x: float) -> float:
        """Variance of the line at x, in units of the noise variance of a point of weight 1.

        Example:
            >>> Line(1.0, 2.0, 0.0, 4.0, 1.0, 0.0).variance(0.0)
            0.25
        """
        if self.total <= 0:
            return math.inf
        return 1 / self.total + ((x - self.centre) ** 2 / self.spread if self.spread > 0 else 0.0)


class Lines:
    """Prefix sums of a series, from which the line on any stretch [a, b) costs the same.

    Args:
        x: increasing coordinates, shape (n,).
        y: values, shape (n,).
        weight: inverse variances, 0 to leave a point out, shape (n,).

    Example:
        >>> lines = Lines(np.arange(4.0), np.array([1.0, 3.0, 5.0, 7.0]), np.ones(4))
        >>> lines.line(0, 4).slope
        2.0
        >>> lines.costs(4).round(6).tolist()  # residual sums of squares of the lines on [0, 4), [1, 4), ...
        [0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, x: _Array, y: _Array, weight: _Array) -> None:
        self.x = x
        middle = len(y) // 2
        self._shift = float(np.partition(y, middle)[middle]) if len(y) else 0.0  # a large common level costs digits
        y = y - self._shift
        wx, wy = weight * x, weight * y
        self._sums = np.zeros((6, len(x) + 1))
        np.cumsum([weight, wx, wy, wx * x, wx * y, wy * y], axis=1, out=self._sums[:, 1:])

    def __len__(self) -> int:
        return len(self.x)

    def costs(self, end: int) -> _Array:
        """Residual sums of squares of the lines on [a, end) for every a < end, shape (end,).

        Example:
            >>> Lines(np.arange(3.0), np.array([0.0, 0.0, 3.0]), np.ones(3)).costs(3).round(3).tolist()
            [1.5, 0.0, 0.0]
        """
        w, x, y, xx, xy, yy = self._sums[:, end : end + 1] - self._sums[:, :end]
        w = np.maximum(w, 1e-300)  # a stretch without weight costs nothing
        sxx = xx - x * x / w
        steep = sxx > 1e-9 * xx  # below that, one point or rounding
        explained = np.where(steep, (xy - x * y / w) ** 2 / np.where(steep, sxx, 1.0), 0.0)
        rss: _Array = np.maximum(yy - y * y / w - explained, 0.0)
        return rss

    def line(self, start: int, end: int) -> Line:
        """The line on [start, end).

        Example:
            >>> Lines(np.arange(2.0), np.array([5.0, 5.0]), np.ones(2)).line(0, 2).level
            5.0
        """
        w, x, y, xx, xy, yy = (self._sums[:, end] - self._sums[:, start]).tolist()
        if w <= 0:
            return Line(self._shift, 0.0, float(self.x[start]), 0.0, 0.0, 0.0)
        sxx, sxy, syy = xx - x * x / w, xy - x * y / w, yy - y * y / w
        if sxx <= 1e-9 * xx:
            return Line(y / w + self._shift, 0.0, x / w, w, 0.0, max(syy, 0.0))
        return Line(y / w + self._shift, sxy / sxx, x / w, w, sxx, max(syy - sxy * sxy / sxx, 0.0))


class Partition:
    """The dynamic programme: best last break before every point. A row is never undone by a later noise scale.

    Residual sums and numbers of lines are kept apart, so every comparison is made at the noise scale of its moment.

    Example:
        >>> partition = Partition()
        >>> lines = Lines(np.arange(8.0), np.array([0.0, 0, 0, 0, 9, 9, 9, 9]), np.ones(8))
        >>> partition.extend(lines, variance=0.01)
        >>> partition.breaks()
        [0, 4, 8]
    """

    def __init__(self) -> None:
        self.rss = [0.0]
        self.count = [0]
        self.back = [0]

    def extend(self, lines: Lines, variance: float) -> None:
        """Add the rows up to the newest point.

        Example:
            >>> partition = Partition()
            >>> partition.extend(Lines(np.arange(3.0), np.zeros(3), np.ones(3)), variance=1.0)
            >>> partition.count
            [0, 1, 1, 1]
        """
        for end in range(len(self.rss), len(lines) + 1):
            costs = lines.costs(end)
            total = (np.array(self.rss) + costs) / variance + _PENALTY * np.array(self.count)
            best = int(np.argmin(total))
            self.rss.append(self.rss[best] + float(costs[best]))
            self.count.append(self.count[best] + 1)
            self.back.append(best)

    def breaks(self) -> list[int]:
        """Ends of the lines, from 0 to the number of points.

        Example:
            >>> Partition().breaks()
            [0]
        """
        out = [len(self.back) - 1]
        while out[-1] > 0:
            out.append(self.back[out[-1]])
        return out[::-1]


class Part(NamedTuple):
    """One line of a piece and the points [start, end) that it was fitted to."""

    start: int
    end: int
    line: Line


@dataclass
class Piece:
    """A stretch [start, end) of one direction: +1, -1 or 0, made of one line or more.

    `evidence` is that of the boundary at `start`: what one line instead of the two beside it would cost, in chi-square
    units; 0 for the first piece.
    """

    start: int
    end: int
    direction: int
    parts: list[Part]
    evidence: float = 0.0


def pieces(lines: Lines, breaks: list[int], sigma: float) -> list[Piece]:
    """Label the lines of a partition, merge neighbours of one direction, and set the boundaries between the rest.

    Args:
        lines: the series.
        breaks: ends of its lines, from 0 to n.
        sigma: noise sd of a point of weight 1.

    Returns:
        The pieces in order; together they cover [0, n).

    Example:
        >>> y = np.concatenate([np.zeros(10), np.arange(10.0)])  # point 11 is the first to leave 0
        >>> [(p.start, p.direction) for p in pieces(Lines(np.arange(20.0), y, np.ones(20)), [0, 10, 20], 0.1)]
        [(0, 0), (11, 1)]
    """
    raw = _without_short(lines, breaks)
    _label(lines, raw, sigma)
    merged = raw[:1]
    for piece in raw[1:]:
        last = merged[-1]
        alike = last.direction == piece.direction
        if alike and (piece.direction or abs(_gap(lines, last, piece, sigma)) <= _JUMP):
            last.end = piece.end
            last.parts += piece.parts
        else:
            merged.append(piece)
    for before, after in itertools.pairwise(merged):
        left, right = before.parts[-1], after.parts[0]
        alone = left.line.rss + right.line.rss
        after.evidence = (lines.line(left.start, right.end).rss - alone) / sigma**2
        if before.direction != after.direction:
            before.end = after.start = _crossing(lines, before, after)
    return merged


def _without_short(lines: Lines, breaks: list[int]) -> list[Piece]:
    """One piece per line; a short one goes to the piece after it, whose line does not see it."""
    out: list[Piece] = []
    start = 0
    for a, b in itertools.pairwise(breaks):
        if b - a < _SHORT and b < len(lines):
            continue
        if b - a < _SHORT and out:  # the newest points: a piece of their own, unless they are all there is
            start = min(start, a)
        out.append(Piece(start, b, 0, [Part(a, b, lines.line(a, b))]))
        start = b
    return out


def _label(lines: Lines, found: list[Piece], sigma: float) -> None:
    """Set the directions: a trend has a significant slope and a net change that matters."""
    slopes = [piece.parts[0].line.slope for piece in found]
    changes = [abs(p.parts[0].line.slope) * (lines.x[p.parts[0].end - 1] - lines.x[p.parts[0].start]) for p in found]
    for piece, slope, change in zip(found, slopes, changes, strict=True):
        significant = abs(slope) * math.sqrt(piece.parts[0].line.spread) > _TREND * sigma
        if significant and change >= _NET * max(changes):
            piece.direction = 1 if slope > 0 else -1
    labels = [piece.direction for piece in found]
    for k, piece in enumerate(found):  # a curve that merely slows down is no plateau
        beside = [abs(slopes[q]) for q in (k - 1, k + 1) if 0 <= q < len(found) and labels[q] * slopes[k] > 0]
        if not piece.direction and beside and abs(slopes[k]) > _TAIL * max(beside):
            piece.direction = 1 if slopes[k] > 0 else -1


def _gap(lines: Lines, before: Piece, after: Piece, sigma: float) -> float:
    """Step between two neighbouring lines, in standard errors."""
    left, right = before.parts[-1], after.parts[0]
    middle = float(lines.x[left.end - 1] + lines.x[right.start]) / 2
    error = sigma * math.sqrt(left.line.variance(middle) + right.line.variance(middle))
    return (right.line.at(middle) - left.line.at(middle)) / error


def _crossing(lines: Lines, before: Piece, after: Piece) -> int:
    """Where the two lines at a boundary cross, if near: a bend is better placed by its lines than by a break."""
    left, right = before.parts[-1], after.parts[0]
    bend = right.line.slope - left.line.slope
    if bend == 0:
        return after.start
    x = (left.line.at(0.0) - right.line.at(0.0)) / bend
    # Farther off than a quarter of the shorter line, the lines do not meet: a jump
    reach = max(2.0, 0.25 * min(left.end - left.start, right.end - right.start))
    if abs(x - float(lines.x[after.start])) > reach:
        return after.start
    place = int(np.searchsorted(lines.x, x + 0.5))
    return min(max(place, before.start + 1), after.end - 1)
