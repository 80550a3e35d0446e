"""The picture of a run: loss and LLC against the training step, its stages shaded and its jumps marked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_callbacks.basics.keys import key_of
from slt_callbacks.detection.jumps import JumpEvent
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.canvas import empty_figure
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.steps import disagree, draw_llc, keep_in_sight, name_stages, set_steps, shade_stages
from slt_callbacks.measuring.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Curves of one panel by their label: training steps and values."""

# Okabe and Ito, as the stages.
_LOSS = "#0072B2"
_CURVES = ("#000000", "#009E73", "#CC79A7", "#E69F00")


def stage_figure(
    history: Sequence[Measurement],
    stages: Sequence[Stage] = (),
    events: Sequence[Any] = (),
    path: str | Path | None = None,
    log_steps: bool | None = None,
    *,
    key: str = "llc",
    panels: Mapping[str, Curves] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a run: the loss above, the LLC with its error band below, with stages and jumps.

    Stages are shaded by type from their first point to that of the next one, unless a plateau is all there is; a bar at
    the foot shows where a boundary was announced. Failed measurements are gaps. Points whose chains disagree (R-hat
    above 1.2) are hollow; where they lie so far away that the rest would be a flat line, they are marks at the edge.

    Args:
        history: Measurements in order, as in ``monitor.history``.
        stages: As in ``monitor.stages``.
        events: As in ``monitor.events``; jumps of this observable are marked, other events are shown by the stages.
        path: Where to write it, the suffix says in which format; None to only return it.
        log_steps: Whether the step axis is logarithmic; None: where measurements are eight times
            farther apart in the end than in the beginning. Step 0 keeps a place on it.
        key: The observable to draw, by its key in the measurements.
        panels: Further panels above, by the label of their axis: ``{"accuracy": {"test": (steps, values)}}``.
        title: Above it all.

    Returns:
        The figure, to add to: ``figure.axes`` are the further panels, the loss and the LLC. It belongs to no pyplot.

    Raises:
        ValueError: If `history` is empty or no measurement has an observable `key`.
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> history = [
        ...     Measurement(step, {"llc": {"mean": 5.0, "stderr": 0.5, "reference_loss": 1 / step}})
        ...     for step in (1, 10, 100, 1000)
        ... ]
        >>> figure = stage_figure(history)
        >>> [axes.get_ylabel() for axes in figure.axes], figure.axes[0].get_xscale()
        (['loss', 'local learning coefficient'], 'log')
    """
    shown = [measurement for measurement in history if key in measurement.results]
    if not shown:
        raise ValueError(f"Expected `history` to hold measurements of {key!r}, but got {len(history)} without it.")
    extra = panels or {}
    figure = empty_figure("stage_figure", 9, 5.4 + 1.9 * len(extra))
    rows = figure.subplots(2 + len(extra), 1, sharex=True, squeeze=False)[:, 0].tolist()
    steps = np.array([measurement.step for measurement in shown], dtype=float)
    set_steps(rows[-1], steps, log_steps)
    for axes, (label, curves) in zip(rows, extra.items(), strict=False):
        _draw_curves(axes, label, curves)
    loss, mean, stderr = (
        np.array([measurement[key].get(name, math.nan) for measurement in shown], dtype=float)
        for name in ("reference_loss", "mean", "stderr")
    )
    rows[-2].plot(steps, loss, color=_LOSS, marker="o", markersize=3)
    rows[-2].set_ylabel("loss")
    rhat = [measurement.results.get("health", {}).get("rhat", math.nan) for measurement in shown]
    draw_llc(rows[-1], steps, mean, stderr, [disagree(value) for value in rhat])
    keep_in_sight(rows[-1], steps, mean, stderr, rhat)
    rows[-1].set_ylabel("local learning coefficient")
    _draw_jumps(rows[-1], [event for event in events if _is_jump(event, key)], shown, key)
    for axes in rows:
        shade_stages(axes, stages, labelled=axes is rows[-1])
    name_stages(rows[0], stages)
    _draw_announcements(rows[-1], stages)
    _finish(figure, rows, title)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def report_figure(report: Report) -> Figure | None:
    """The figure of a whole run, of the LLC that is watched, or else of the first; None without, or without matplotlib.

    Example:
        >>> report_figure(Report([])) is None
        True
    """
    means = [key for one in report.history for key, result in one.results.items() if "mean" in result]
    key = report.observable if report.observable in means else next(iter(means), None)
    if key is None:
        return None
    try:
        return stage_figure(report.history, report.stages, report.events, key=key)
    except ModuleNotFoundError as error:
        _log.info("No figure of the stages: %s", error)
        return None


def _draw_curves(axes: Axes, label: str, curves: Curves) -> None:
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axes.plot(steps, values, color=_CURVES[number % len(_CURVES)], label=name, marker="o", markersize=3)
    axes.set_ylabel(label)
    if len(curves) > 1:
        axes.legend(frameon=False)


def _is_jump(event: Any, key: str) -> bool:
    """Whether it is a jump of this observable's LLC; one of a detector used alone has no key."""
    return isinstance(event, JumpEvent) and event.key in ("", key_of(key, "mean"))


def _draw_jumps(axes: Axes, jumps: Sequence[JumpEvent], shown: Sequence[Measurement], key: str) -> None:
    """A triangle at the first point of each jump, on the side that the LLC came from."""
    low, high = axes.get_ylim()
    at = {measurement.step: min(max(measurement[key]["mean"], low), high) for measurement in shown}
    for direction, marker, label in ((1, "^", "jump up"), (-1, "v", "jump down")):
        found = [jump for jump in jumps if jump.direction == direction and jump.onset_step in at]
        for number, jump in enumerate(found):
            axes.plot(
                jump.onset_step,
                at[jump.onset_step],
                marker=marker,
                markersize=11,
                color="black",
                markerfacecolor="#F0E442",
                linestyle="none",
                zorder=5,
                label="_" * bool(number) + label,  # one line of the legend for all of a kind
            )


def _draw_announcements(axes: Axes, stages: Sequence[Stage]) -> None:
    told = [stage.announced_at_step for stage in stages if stage.announced_at_step is not None]
    if told:
        axes.plot(
            told,
            [0.05] * len(told),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="|",
            markersize=13,
            markeredgewidth=2.5,
            color="black",
            zorder=4,
            label="boundary announced",
        )


def _finish(figure: Figure, rows: Sequence[Axes], title: str | None) -> None:
    for axes in rows:
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if title is not None:
        figure.suptitle(title, size=13)
    handles, labels = rows[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
