"""A path in a plane: its steps as colour, and marks beside it."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from slt_callbacks.figures.canvas import empty_figure, short
from slt_callbacks.observables.media import Track

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_MARK = "#D55E00"  # apart from the colours of the steps
_SHAPES = ("*", "P", "X", "D", "^", "s")
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
    figure.colorbar(shown, ax=axes, fraction=0.05, label="training step")
    for place in dict.fromkeys((0, len(points) - 1)):
        axes.annotate(f"step {int(steps[place])}", points[place], (5, 5), textcoords="offset points", fontsize=9)
    for number, (name, point) in enumerate(track.marks.items()):
        axes.scatter(*point, s=110, c=_MARK, marker=_SHAPES[number % len(_SHAPES)], linewidths=0, zorder=3)
        axes.annotate(short(name), point, (7, -12), textcoords="offset points", color=_MARK, weight="bold")
    if track.box is not None:
        axes.set(xlim=track.box[:2], ylim=track.box[2:])
    # within the box of the figure, so that neither the limits nor the scale of one axis against the other move
    axes.set_aspect("equal", adjustable="box" if track.box is not None else "datalim")
    axes.set_xlabel(track.axis_labels[0])
    axes.set_ylabel(track.axis_labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(fill(track.caption, 80), x=0.01, ha="left", size=10)
    return figure


def _scale(steps: np.ndarray) -> Normalize:
    """Of the colours: measurements are often spaced by the logarithm of the step."""
    from matplotlib.colors import FuncNorm, Normalize

    low, high = float(steps.min()), float(steps.max())
    if np.median(steps) - low < (high - low) / _UNEVEN:
        return FuncNorm((np.log1p, np.expm1), vmin=low, vmax=high)
    return Normalize(low, max(high, low + 1))
