"""A number against another, with the level that it is looked at."""

from __future__ import annotations

import math
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from slt_callbacks.figures.canvas import empty_figure
from slt_callbacks.observables.media import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOUR, _MARK = "#0072B2", "#D55E00"


def curve_figure(curve: Curve) -> Figure:
    """A line through the points, a line across at the level, and where the two meet.

    Args:
        curve: Its points from left to right.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> points = torch.tensor([[1.0, 3.0], [2.0, 0.5]])
        >>> figure = curve_figure(Curve(points, "a loss", ("bits", "loss"), level=1.0, crossing=1.8))
        >>> float(figure.axes[0].lines[-1].get_xdata()[0])
        1.8
    """
    figure = empty_figure("curve_figure", 6.6, 4.2)
    axes = figure.subplots()
    points = curve.points.double().numpy()
    axes.axhline(curve.level, color="0.6", linewidth=1, linestyle="--", zorder=1)
    line = points
    if math.isfinite(curve.crossing):  # found on straight lines, which this scale bends: drawn through what was found
        line = np.insert(points, np.searchsorted(points[:, 0], curve.crossing), (curve.crossing, curve.level), axis=0)
    axes.plot(line[:, 0], line[:, 1], color=_COLOUR, zorder=2)
    axes.plot(points[:, 0], points[:, 1], "o", color=_COLOUR, markersize=4, zorder=2)
    if math.isfinite(curve.crossing):
        axes.plot([curve.crossing], [curve.level], color=_MARK, marker="D", markersize=7, zorder=3)
        axes.annotate(
            f"{curve.crossing:.2f}", (curve.crossing, curve.level), (6, 6), textcoords="offset points", color=_MARK
        )
    axes.set_yscale("symlog", linthresh=curve.level / 10)
    axes.set_xlabel(curve.axis_labels[0])
    axes.set_ylabel(curve.axis_labels[1])
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(fill(curve.caption, 80), x=0.01, ha="left", size=10)
    return figure
