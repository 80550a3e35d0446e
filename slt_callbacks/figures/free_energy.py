"""The picture of a trade-off: the loss against the LLC over a run, on lines of equal free energy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.canvas import empty_figure
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.steps import GREY, Array, disagree, log_spaced
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.llc import free_energy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

Flags = np.ndarray[Any, np.dtype[np.bool_]]

_LINES = 8  # of equal free energy, about: they have to be counted
_MARGIN = 0.08  # beside the points, as a share of their range
_BEST = "#D55E00"


def free_energy_figure(
    history: Sequence[Measurement],
    stages: Sequence[Stage] = (),
    path: str | Path | None = None,
    num_train_samples: int | None = None,
    *,
    key: str = "llc",
    title: str | None = None,
) -> Figure:
    """Draw the way of a run through loss and LLC, coloured by training step, on lines of equal free energy.

    A line joins what ``num_train_samples * loss + llc * ln(num_train_samples)`` takes for equally good; the numbers on
    the lines are nats above the measurement with the lowest one, which has a ring. Where the path runs along a line,
    loss is traded for complexity at an even rate; a structure that comes and goes lies beyond a line that is crossed
    twice. Letters stand where a stage began. Bars are two standard errors of the LLC; points whose chains disagree
    (R-hat above 1.2) are hollow, and leave the picture where they lie beyond all others.

    Args:
        history: Measurements in order, as in ``monitor.history``.
        stages: As in ``monitor.stages``.
        path: Where to write it, the suffix says in which format; None to only return it.
        num_train_samples: n, as of `LLC`; None for that of the measurements.
        key: The observable to draw, by its key in the measurements.
        title: Above it all.

    Returns:
        The figure, to add to: its first axes are loss against LLC.

    Raises:
        ValueError: If n is not known or no measurement has a loss and an LLC under `key`.
        ModuleNotFoundError: If matplotlib is not installed.

    Source: Carroll et al. (arXiv 2501.17745), on transient structure as a trade-off of loss and complexity.

    Example:
        >>> history = [
        ...     Measurement(step, {"llc": {"mean": llc, "stderr": 0.1, "reference_loss": loss}})
        ...     for step, llc, loss in ((1, 2.0, 0.9), (10, 5.0, 0.5), (100, 9.0, 0.4))
        ... ]
        >>> axes = free_energy_figure(history, num_train_samples=100).axes[0]
        >>> axes.get_xlabel(), axes.get_ylabel()
        ('local learning coefficient', 'loss')
    """
    n = _known_size(history, key) if num_train_samples is None else num_train_samples
    points = [_point(measurement, key) for measurement in history]
    known = np.array([point for point in points if all(map(math.isfinite, point[:3]))], dtype=float)
    if n is None or not len(known):
        raise ValueError(
            f"Expected `history` to hold losses and LLCs of {key!r}, and `num_train_samples` there or beside it, but "
            f"got {len(known)} of {len(history)} with num_train_samples={n}: measure LLC(num_train_samples=...)."
        )
    steps, llc, loss, stderr, rhat = known.T
    hollow = np.array([disagree(value) for value in rhat])
    figure = empty_figure("free_energy_figure", 7.6, 5.6)
    axes = figure.subplots()
    axes.set_xlim(*_limits(llc, hollow))
    axes.set_ylim(*_limits(loss, hollow))
    free = np.array([free_energy(n, *point) for point in zip(loss, llc, strict=True)])
    best = int(np.where(hollow & ~hollow.all(), np.inf, free).argmin())
    _draw_lines(axes, n, float(free[best]))
    _draw_path(axes, steps, llc, loss, stderr, hollow)
    _draw_ring(axes, steps[best], llc[best], loss[best])
    _draw_stages(axes, stages, steps, llc, loss)
    axes.set_xlabel("local learning coefficient")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    told = f"Lines of equal free energy at n = {n:,}: n loss + LLC ln n, in nats; down and left is better"
    axes.set_title(title or told, size=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def free_energy_report(report: Report) -> Figure | None:
    """The figure of a whole run; None without a free energy, or without matplotlib.

    Example:
        >>> free_energy_report(Report([])) is None
        True
    """
    key = report.weighed
    if key is None:
        return None
    try:
        return free_energy_figure(report.history, report.stages, key=key)
    except (ModuleNotFoundError, ValueError) as error:  # one failed measurement is nothing to draw
        _log.info("No figure of the free energy: %s", error)
        return None


def _known_size(history: Sequence[Measurement], key: str) -> int | None:
    """The last n that was said."""
    found = (one.results.get(key, {}).get("num_train_samples") for one in reversed(history))
    return next((int(n) for n in found if n is not None), None)


def _point(measurement: Measurement, key: str) -> tuple[float, float, float, float, float]:
    """Step, LLC, loss, standard error, R-hat."""
    result: Mapping[str, Any] = measurement.results.get(key, {})
    mean, loss, stderr = (float(result.get(name, math.nan)) for name in ("mean", "reference_loss", "stderr"))
    return measurement.step, mean, loss, stderr, float(measurement.results.get("health", {}).get("rhat", math.nan))


def _limits(values: Array, hollow: Flags) -> tuple[float, float]:
    """Of an axis: all points whose chains agree, with room; one that has gone astray would flatten the rest."""
    inner = values[~hollow] if (~hollow).sum() > 1 else values
    low, high = float(inner.min()), float(inner.max())
    margin = _MARGIN * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def _draw_lines(axes: Axes, n: int, lowest: float) -> None:
    """Straight ones, between which the free energy grows by a round number of nats from the lowest measured on."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (foot, top) = axes.get_xlim(), axes.get_ylim()
    corners = [free_energy(n, loss, llc) - lowest for loss in (foot, top) for llc in (left, right)]
    for above in map(float, MaxNLocator(_LINES).tick_values(min(corners), max(corners))):
        at = [(lowest + above - free_energy(n, 0.0, llc)) / n for llc in (left, right)]
        axes.plot([left, right], at, color="0.75", linewidth=0.8, zorder=1, label=f"_{above:+g}")
        place: dict[str, Any] = {"x": left, "y": at[0], "va": "bottom"}
        if at[0] > top:  # it comes from above
            place = {"x": left + (right - left) * (at[0] - top) / (at[0] - at[1]), "y": top, "va": "top"}
        label = axes.text(s=f" {above:+,g}", size=8, color=GREY, clip_on=True, **place)
        label.set_in_layout(False)


def _draw_path(axes: Axes, steps: Array, llc: Array, loss: Array, stderr: Array, hollow: Flags) -> None:
    error = 2 * np.nan_to_num(stderr)
    axes.errorbar(llc, loss, xerr=error, color="0.35", linewidth=1, elinewidth=0.6, ecolor="0.7", zorder=2)
    norm = _scale(steps)
    sound = axes.scatter(llc[~hollow], loss[~hollow], c=steps[~hollow], norm=norm, cmap="viridis", s=30, zorder=3)
    if hollow.any():
        colours: Any = sound.to_rgba(steps[hollow])
        label = "chains disagree (R-hat > 1.2)"
        axes.scatter(llc[hollow], loss[hollow], c="white", edgecolors=colours, s=30, zorder=3, label=label)
    bar = axes.figure.colorbar(sound, ax=axes, pad=0.02)
    bar.set_label("training step")
    bar.ax.yaxis.set_major_formatter("{x:,g}")


def _draw_ring(axes: Axes, step: float, llc: float, loss: float) -> None:
    axes.plot(
        llc,
        loss,
        marker="o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor=_BEST,
        markeredgewidth=2,
        linestyle="none",
        zorder=5,
        label=f"lowest free energy: step {step:,.0f}",
    )


def _scale(steps: Array) -> Normalize:
    """Of the colours, as of the axis of steps: logarithmic where measurements are."""
    from matplotlib.colors import LogNorm, Normalize, SymLogNorm

    first, last = float(steps[0]), float(max(steps[-1], steps[0] + 1))
    if not log_spaced(steps):
        return Normalize(first, last)
    return LogNorm(first, last) if first > 0 else SymLogNorm(1.0, 0.3, first, last)


def _draw_stages(axes: Axes, stages: Sequence[Stage], steps: Array, llc: Array, loss: Array) -> None:
    """The type of each stage at its first point that is drawn."""
    for stage in stages:
        place = int(np.searchsorted(steps, stage.start_step))
        if place < len(steps) and steps[place] <= stage.end_step:
            at = (float(llc[place]), float(loss[place]))
            axes.annotate(
                stage.type, at, (6, 6), textcoords="offset points", weight="bold", zorder=6, annotation_clip=True
            )
