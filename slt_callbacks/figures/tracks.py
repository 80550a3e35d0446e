"""A path in a plane: its steps as colour, and marks beside it."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_callbacks.figures.canvas import empty_figure, short
from slt_callbacks.figures.steps import Array
from slt_callbacks.observables.media import Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_MARK = "#D55E00"  # apart from the colours of the steps
_SHAPES = ("*", "P", "X", "D", "^", "s")
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # of a point, where a name may stand
_LETTERS = 55  # of the size of a name, that the plane has room for
_UNEVEN = 4  # where half of the measurements lie within this part of the run, colours go by the logarithm


def track_figure(track: Track) -> Figure:
    """A path, from its first point to its last, a colour a step.

    Args:
        track: With the box of its axes.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> points, steps = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 5])
        >>> marks = {"ridge": (0.5, 0.0)}
        >>> figure = track_figure(Track(points, "two steps", ("1st", "2nd"), steps=steps, marks=marks))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['step 0', 'step 5', 'ridge']
    """
    figure = empty_figure("track_figure", 6.6, 5.2)
    axes = figure.subplots()
    points, steps = track.points.double().numpy(), track.steps.double().numpy()
    axes.plot(points[:, 0], points[:, 1], color="0.75", linewidth=1, zorder=1)
    shown = axes.scatter(points[:, 0], points[:, 1], s=22, c=steps, cmap="viridis", norm=_scale(steps), zorder=2)
    figure.colorbar(shown, ax=axes, fraction=0.05, label="training step", ticks=_ticks(steps))
    for number, point in enumerate(track.marks.values()):
        axes.scatter(*point, s=110, c=_MARK, marker=_SHAPES[number % len(_SHAPES)], linewidths=0, zorder=3)
    if track.box is not None:
        axes.set(xlim=track.box[:2], ylim=track.box[2:])
    # within the box of the figure, so that neither the limits nor the scale of one axis against the other move
    axes.set_aspect("equal", adjustable="box" if track.box is not None else "datalim")
    axes.set_xlabel(track.axis_labels[0])
    axes.set_ylabel(track.axis_labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(fill(track.caption, 80), x=0.01, ha="left", size=10)
    _name(axes, track, points, steps)
    return figure


def _name(axes: Axes, track: Track, points: Array, steps: Array) -> None:
    """The ends of the path, and the marks: each name on that side of its point where least else lies."""
    ends = dict.fromkeys((0, len(points) - 1))
    named: list[tuple[str, Array, dict[str, Any]]]
    named = [(f"step {int(steps[place])}", points[place], {"fontsize": 9}) for place in ends]
    look = {"color": _MARK, "weight": "bold"}
    named += [(short(name), np.array(point), look) for name, point in track.marks.items()]
    corner, other = np.array([axes.get_xlim(), axes.get_ylim()]).T
    size = float((other - corner).max()) / _LETTERS  # of a letter, about, in the unit of the plane
    taken = np.concatenate([points, np.array([point for _, point, _ in named])])
    for text, point, style in named:
        sides = {side: _middle(text, point, side, size) for side in _SIDES}
        outside = {side: ((one < corner) | (one > other)).any(1).sum() for side, one in sides.items()}
        side = max(_SIDES, key=lambda side: _room(sides[side], taken, size) - outside[side])
        across, up = side
        place: dict[str, Any] = {"ha": "left" if across > 0 else "right", "va": "bottom" if up > 0 else "top"}
        axes.annotate(text, (point[0], point[1]), (6 * across, 4 * up), textcoords="offset points", **place, **style)
        taken = np.concatenate([taken, sides[side]])


def _middle(text: str, point: Array, side: tuple[int, int], size: float) -> Array:
    """Where the letters of a name are, ``(letters, 2)``."""
    along = (np.arange(len(text)) + 1.5) * side[0] * size
    return np.stack([point[0] + along, np.full(len(text), point[1] + 1.5 * side[1] * size)], axis=1)


def _room(letters: Array, taken: Array, size: float) -> float:
    """How few points lie under the letters, or near them."""
    apart = np.abs(letters[:, None] - taken).max(2) / size
    return -float(np.exp(-apart).sum())


def _ticks(steps: Array) -> list[float]:
    """Of the bar: a few, for on its logarithmic scale the even ones run into one another."""
    low, high = float(steps.min()), float(steps.max())
    if not _uneven(steps):
        return sorted({float(round(tick)) for tick in np.linspace(low, max(high, low + 1), 5)})
    powers = [10.0**power for power in range(0, 9) if low < 10.0**power < 0.6 * high]
    return [low, *powers, high]


def _scale(steps: Array) -> Normalize:
    """Of the colours: measurements are often spaced by the logarithm of the step."""
    from matplotlib.colors import FuncNorm, Normalize

    low, high = float(steps.min()), float(steps.max())
    if _uneven(steps):
        return FuncNorm((np.log1p, np.expm1), vmin=low, vmax=high)
    return Normalize(low, max(high, low + 1))


def _uneven(steps: Array) -> bool:
    low, high = float(steps.min()), float(steps.max())
    return bool(np.median(steps) - low < (high - low) / _UNEVEN)
