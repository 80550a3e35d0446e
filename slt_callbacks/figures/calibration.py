"""The picture of a calibration: LLC against step size, one panel a localization, one line an nbeta."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_callbacks.figures.canvas import empty_figure
from slt_callbacks.measuring.calibrate import Calibration, CalibrationPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
_STAR: dict[str, Any] = {"marker": "*", "color": "#F0E442", "edgecolors": "black"}
_MARKERS = {"sound": "o", "biased": "x", "noisy": "P", "drifts": "v", "chains disagree": "s", "diverges": "X"}


def calibration_figure(calibration: Calibration, path: str | Path | None = None) -> Figure:
    """Draw the LLC over the grid. A setting to trust lies on a plateau: full dots, level with their left neighbours.

    Args:
        calibration: From `calibrate`.
        path: Where to write it; None to only return it.

    Returns:
        The figure; a panel has as its label the localization.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> from slt_callbacks import CalibrationPoint, SamplerConfig
        >>> point = CalibrationPoint(1e-4, 50.0, 100.0, 7.0, 0.2, 1.0, 0.5, 0.01, 0, "sound")
        >>> figure = calibration_figure(Calibration((point,), None, SamplerConfig()))
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['localization 100']
    """
    points, best = calibration.points, calibration.recommended
    localizations = sorted({point.localization for point in points})
    nbetas = sorted({point.nbeta for point in points})
    figure = empty_figure("calibration_figure", 4.2 * len(localizations) + 0.8, 4.6)
    panels = figure.subplots(1, len(localizations), sharey=True, squeeze=False)[0]
    for axes, localization in zip(panels, localizations, strict=True):
        for nbeta, colour in zip(nbetas, _COLOURS * len(nbetas), strict=False):
            here = [p for p in points if (p.localization, p.nbeta) == (localization, nbeta) and np.isfinite(p.llc)]
            _draw_line(axes, here, colour, f"nbeta {nbeta:.3g}")
            if best is not None and (best.localization, best.nbeta) == (localization, nbeta):
                (chosen,) = [p for p in here if p.step_size == best.dynamics.step_size]
                axes.scatter(chosen.step_size, chosen.llc, s=330, zorder=2, **_STAR)
        _finish(axes, f"localization {localization:g}")
    _limit(panels[0], points)
    panels[0].set_ylabel("local learning coefficient, ± 2 standard errors")
    _legend(figure, panels[0])
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_line(axes: Axes, points: Sequence[CalibrationPoint], colour: str, label: str) -> None:
    """One line with its error bars, and over each point the marker of its verdict."""
    steps, llcs = [p.step_size for p in points], [p.llc for p in points]
    axes.errorbar(steps, llcs, [2 * np.nan_to_num(p.stderr) for p in points], color=colour, label=label)
    for point in points:
        axes.scatter(point.step_size, point.llc, s=42, zorder=3, **_marker(point.verdict, colour))


def _marker(verdict: str, colour: str) -> dict[str, Any]:
    """Full where the point is sound, else hollow; a cross has no inside."""
    if _MARKERS[verdict] == "x":
        return {"marker": "x", "color": colour}
    face = colour if verdict == "sound" else "none"
    return {"marker": _MARKERS[verdict], "facecolors": face, "edgecolors": colour}


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xscale("log")
    axes.set_xlabel("step size")
    axes.grid(color="0.92", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _limit(axes: Axes, points: Sequence[CalibrationPoint]) -> None:
    """Show the sound points, or all where none is: what diverges may leave the picture."""
    finite = [p.llc for p in points if p.verdict == "sound"] or [p.llc for p in points if np.isfinite(p.llc)]
    if finite:
        low, high = min(finite), max(finite)
        margin = 0.5 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _legend(figure: Figure, axes: Axes) -> None:
    lines, labels = axes.get_legend_handles_labels()
    # Drawn nowhere: a scatter without points gives its marker to the legend.
    keys = [axes.scatter([], [], **_marker(verdict, "0.3")) for verdict in _MARKERS]
    star = axes.scatter([], [], s=160, **_STAR)
    figure.legend(
        [*lines, *keys, star],
        [*labels, *_MARKERS, "recommended"],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
