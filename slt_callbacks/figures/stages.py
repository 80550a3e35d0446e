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
from slt_callbacks.measuring.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Curves of one panel by their label: training steps and values."""

# Okabe and Ito: told apart by colour-blind readers, and by their shade in print.
_LOSS, _LLC, _GREY = "#0072B2", "#D55E00", "0.45"
_CURVES = ("#000000", "#009E73", "#CC79A7", "#E69F00")
_STAGES = {
    "A": ("#E69F00", "A: LLC up, loss down"),
    "B": ("#56B4E9", "B: LLC down, loss down"),
    "C": ("#CC79A7", "C: LLC up, loss not down"),
    "D": ("#009E73", "D: LLC down, loss not down"),
    "plateau": ("0.55", "plateau: LLC steady"),
}
_RHAT = 1.2  # above it the chains disagree by more than a fifth of their own spread
_LOG_GROWTH = 8.0  # of the gaps between measurements, first quarter to last; on a linear schedule they are equal
_ROOM = 0.11  # width of a stage, as a share of the axis, that has room for the word "plateau"


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

    Stages are shaded by type from their first point to that of the next one; a bar at the foot of a boundary shows
    where it was announced. Points whose chains disagree (R-hat above 1.2) are hollow, failed measurements are gaps.

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
    _scale(rows[-1], steps, _log_spaced(steps) if log_steps is None else log_steps)
    for axes, (label, curves) in zip(rows, extra.items(), strict=False):
        _draw_curves(axes, label, curves)
    loss = [measurement[key].get("reference_loss", math.nan) for measurement in shown]
    rows[-2].plot(steps, loss, color=_LOSS, marker="o", markersize=3)
    rows[-2].set_ylabel("loss")
    _draw_llc(rows[-1], steps, [measurement[key] for measurement in shown], _hollow(shown))
    _draw_jumps(rows[-1], [event for event in events if _is_jump(event, key)], shown, key)
    _draw_stages(rows, stages)
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


def _log_spaced(steps: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    gaps = np.diff(steps)
    quarter = max(1, len(gaps) // 4)
    return len(gaps) > 1 and bool(np.median(gaps[-quarter:]) > _LOG_GROWTH * np.median(gaps[:quarter]))


def _scale(axes: Axes, steps: np.ndarray[Any, np.dtype[np.float64]], logarithmic: bool) -> None:
    first, last = float(steps[0]), float(steps[-1])
    if logarithmic and first <= 0:
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.3)
        axes.set_xlim(-0.1, 1.08 * max(last, 1.0))
    elif logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(0.93 * first, 1.08 * last)
    else:
        margin = 0.015 * (last - first) or 1.0
        axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("training step")


def _draw_curves(axes: Axes, label: str, curves: Curves) -> None:
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axes.plot(steps, values, color=_CURVES[number % len(_CURVES)], label=name, marker="o", markersize=3)
    axes.set_ylabel(label)
    if len(curves) > 1:
        axes.legend(frameon=False)


def _hollow(shown: Sequence[Measurement]) -> list[bool]:
    """Whether R-hat says that the chains disagree; it says nothing where it is unknown."""
    return [measurement.results.get("health", {}).get("rhat", math.nan) > _RHAT for measurement in shown]


def _draw_llc(
    axes: Axes,
    steps: np.ndarray[Any, np.dtype[np.float64]],
    results: Sequence[Mapping[str, Any]],
    hollow: Sequence[bool],
) -> None:
    mean = np.array([result["mean"] for result in results], dtype=float)
    error = 2 * np.nan_to_num(np.array([result.get("stderr", math.nan) for result in results], dtype=float))
    if np.nanmin(mean, initial=0.0) < 0:
        axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.fill_between(
        steps, mean - error, mean + error, color=_LLC, alpha=0.3, linewidth=0, label="± 2 standard errors"
    )
    axes.plot(steps, mean, color=_LLC)
    for wanted, fill, label in ((False, _LLC, "LLC"), (True, "white", "chains disagree (R-hat > 1.2)")):
        at = np.array(hollow) == wanted
        if at.any():
            axes.scatter(steps[at], mean[at], s=18, c=fill, edgecolors=_LLC, zorder=3, label=label)
    axes.set_ylabel("local learning coefficient")


def _is_jump(event: Any, key: str) -> bool:
    """Whether it is a jump of this observable's LLC; one of a detector used alone has no key."""
    return isinstance(event, JumpEvent) and event.key in ("", key_of(key, "mean"))


def _draw_jumps(axes: Axes, jumps: Sequence[JumpEvent], shown: Sequence[Measurement], key: str) -> None:
    """A triangle at the first point of each jump, on the side that the LLC came from."""
    at = {measurement.step: measurement[key]["mean"] for measurement in shown}
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


def _draw_stages(rows: Sequence[Axes], stages: Sequence[Stage]) -> None:
    bottom, top = rows[-1], rows[0]
    for number, stage in enumerate(stages):
        colour, label = _STAGES.get(stage.type, ("0.8", stage.type))
        end = stages[number + 1].start_step if number + 1 < len(stages) else stage.end_step
        for axes in rows:
            first = axes is bottom and stage.type not in [before.type for before in stages[:number]]
            axes.axvspan(stage.start_step, end, color=colour, alpha=0.2, linewidth=0, label=label if first else None)
            if number:
                axes.axvline(stage.start_step, color=_GREY, linewidth=0.8)
        left, right = (
            top.transAxes.inverted().transform(top.transData.transform((x, 0)))[0] for x in (stage.start_step, end)
        )
        if len(stage.type) == 1 or right - left > _ROOM:
            top.text((left + right) / 2, 1.02, stage.type, transform=top.transAxes, ha="center", weight="bold")


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
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
