"""The picture of refined LLCs: a map with a row a refinement, and a panel each on one scale."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.canvas import empty_figure, short
from slt_callbacks.figures.images import diverging
from slt_callbacks.figures.refined import RefinedCurve, RefinedGroup, most_varying, refined_curves, refined_groups
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.steps import (
    GREY,
    Array,
    disagree,
    draw_llc,
    name_stages,
    set_steps,
    shade_stages,
    stage_spans,
)
from slt_callbacks.measuring.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_log = logging.getLogger(__name__)

_MOST_PANELS = 24  # that can still be read side by side
_WIDTH = 8.0  # in inches: names can still be read where a panel of W&B shows it 500 pixels wide
_ROW, _LOWEST, _HIGHEST = 0.26, 3.0, 13.0  # height of a row of the map, and of the whole map, in inches
_PANEL, _MOST_COLUMNS = 1.15, 4
_NEGATIVE = 0.1  # share of the scale below 0 for which half of the colours are not too many
_MISSING = "0.63"  # as in the maps of pixels


def refinement_figure(
    history: Sequence[Measurement],
    stages: Sequence[Stage] = (),
    path: str | Path | None = None,
    key: str = "llc",
    log_steps: bool | None = None,
    *,
    title: str | None = None,
) -> Figure:
    """Draw the refined LLCs of a run: above as a map, below as curves with their error bands.

    A row of the map is a refinement, with the number of its weights beside its name, and a column is a measurement. All
    panels have one scale, stages are shaded as in `stage_figure`, and points whose chains disagree (R-hat above 1.2)
    are hollow. Of refinements that are taken in turn, the lines join what was measured, and the map shows the last
    measurement; grey is what has failed or was not measured yet. Its colours run from blue over white at 0 to red where
    an LLC is negative by more than two standard errors and a tenth of the scale, and else from dark to light. Of more
    than 24 refinements, those that vary most have a panel.

    Refinements that move all the weights, and so differ in data or loss, are drawn below the parts of the network, on
    scales of their own: the LLC of a part and that of other data are no quantities to be compared. Of one refinement
    alone there is no map, which would be its curve once more.

    Args:
        history: Measurements in order, as in ``monitor.history``.
        stages: As in ``monitor.stages``.
        path: Where to write it, the suffix says in which format; None to only return it.
        key: The observable to draw, by its key in the refinements' records.
        log_steps: As in `stage_figure`.
        title: Above it all.

    Returns:
        The figure, to add to. The label of the map's axes is ``map``, that of a panel the refinement's name.

    Raises:
        ValueError: If no measurement has a refinement with an observable `key`.
        ModuleNotFoundError: If matplotlib is not installed.

    Example:
        >>> history = [
        ...     Measurement(step, {}, refinements={
        ...         name: {"llc": {"mean": step * slope, "stderr": 0.5}, "num_parameters": 8}
        ...         for name, slope in (("head0", 1.0), ("head1", 0.1))})
        ...     for step in (1, 2, 3)]
        >>> [axes.get_label() for axes in refinement_figure(history).axes]
        ['map', '<colorbar>', 'head0', 'head1']
    """
    curves = refined_curves(history, key)
    if not curves:
        raise ValueError(
            f"Expected `history` to hold measurements of refinements with {key!r}, but got {len(history)} without it."
        )
    groups = refined_groups(curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    heights = [_whole_height(group) for group in groups]
    figure = empty_figure("refinement_figure", _WIDTH, sum(heights) + 0.6)
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, group in zip(parts, groups, strict=True):
        (_draw_group if len(group.curves) > 1 else _draw_alone)(part, group, steps, stages, log_steps)
    if title is not None:
        figure.suptitle(title, size=13)
    _legend(figure)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def refinement_report(report: Report) -> Figure | None:
    """The figure of a whole run; None without refinements, or without matplotlib.

    Example:
        >>> refinement_report(Report([])) is None
        True
    """
    if report.refined is None:
        return None
    try:
        return refinement_figure(report.history, report.stages, key=report.refined)
    except ModuleNotFoundError as error:
        _log.info("No figure of the refinements: %s", error)
        return None


def _height(group: RefinedGroup) -> float:
    """Of the map, in inches."""
    return min(max(_LOWEST, _ROW * len(group.curves) + 1.6), _HIGHEST)


def _panels_height(group: RefinedGroup) -> float:
    """Of the curves, in inches."""
    shown = min(len(group.curves), _MOST_PANELS)
    return _PANEL * -(-shown // _columns(shown)) + 0.9


def _whole_height(group: RefinedGroup) -> float:
    """Of map and curves, in inches; one refinement has a curve alone, as high as a map."""
    return _height(group) + (_panels_height(group) if len(group.curves) > 1 else 0.0)


def _columns(shown: int) -> int:
    return next(number for number in range(1, _MOST_COLUMNS + 1) if number**2 >= shown or number == _MOST_COLUMNS)


def _draw_group(
    part: SubFigure, group: RefinedGroup, steps: Array, stages: Sequence[Stage], log_steps: bool | None
) -> None:
    above, below = part.subfigures(2, 1, height_ratios=[_height(group), _panels_height(group)], squeeze=False)[:, 0]
    axes = above.subplots()
    set_steps(axes, steps, log_steps)
    _draw_map(axes, group, steps)
    _mark_stages(axes, stages, 1 / (_height(group) - 1.6))
    above.suptitle(group.title, size=11, weight="bold")
    shown = most_varying(group.curves, _MOST_PANELS)
    columns = _columns(len(shown))
    panels = below.subplots(-(-len(shown) // columns), columns, sharex=True, sharey=True, squeeze=False).flatten()
    set_steps(panels[0], steps, log_steps)
    panels[0].set_ylim(*group.limits)
    for panel, curve in zip(panels, shown, strict=False):
        _draw_panel(panel, curve, stages, min(max(500 / len(steps), 4), 14))
    for number, panel in enumerate(panels[len(shown) :], len(shown)):
        panels[number - columns].tick_params(labelbottom=True)  # nothing stands below it
        panel.remove()
    cut = "" if len(shown) == len(group.curves) else f" (the {len(shown)} of {len(group.curves)} that vary most)"
    below.suptitle(f"the same as curves, on one scale{cut}", size=11)
    below.supxlabel("training step", size=10)


def _draw_alone(
    part: SubFigure, group: RefinedGroup, steps: Array, stages: Sequence[Stage], log_steps: bool | None
) -> None:
    """The curve of the only refinement of a group, as wide as the figure."""
    (curve,), (low, high) = group.curves, group.limits
    axes = part.subplots()
    set_steps(axes, steps, log_steps)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))  # the lowest and highest point are to be whole
    _draw_panel(axes, curve, stages, 18)
    axes.set_title("", loc="left")  # it is in the label
    axes.set(xlabel="training step", ylabel=f"LLC of {short(curve.name)}")
    axes.tick_params(labelsize=10)
    name_stages(axes, stages)
    moved = "" if math.isnan(curve.num_parameters) else f" ({curve.num_parameters:,.0f} weights)"
    part.suptitle(f"{group.title}{moved}", size=11)


def _draw_map(axes: Axes, group: RefinedGroup, steps: Array) -> None:
    curves, (low, high) = group.curves, group.limits
    values = np.stack([curve.at(steps) for curve in curves])
    size = max(abs(low), abs(high))
    if any(curve.below_zero for curve in curves) and np.nanmin(values) < -_NEGATIVE * size:
        colours: dict[str, Any] = {"cmap": diverging(), "vmin": -size, "vmax": size}
    else:
        colours = {"cmap": "viridis", "vmin": max(low, 0.0), "vmax": high}
    edges = _edges(axes, steps)
    mesh = axes.pcolormesh(edges, np.arange(len(curves) + 1) - 0.5, values, **colours)
    axes.set_label("map")
    axes.set_facecolor(_MISSING)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(len(curves) - 0.5, -0.5)
    inch = 1 / (_height(group) - 1.6)
    size = min(9.0, 60 / inch / len(curves))
    axes.set_yticks(range(len(curves)), [_name(curve) for curve in curves])
    axes.tick_params(axis="y", length=0, labelsize=size)
    if any(math.isfinite(curve.num_parameters) for curve in curves):
        axes.text(-0.01, 1 + 0.06 * inch, "weights", transform=axes.transAxes, ha="right", size=8, color=GREY)
    axes.minorticks_off()
    beyond = (bool((values < low).any()), bool((values > high).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(beyond, "both")
    place: dict[str, Any] = {"location": "bottom", "fraction": 0.12 * inch, "pad": 0.05 * inch, "aspect": 40}
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend, **place)
    bar.set_label("refined LLC" + (", grey: no value" if np.isnan(values).any() else ""))


def _mark_stages(axes: Axes, stages: Sequence[Stage], inch: float) -> None:
    """A strip of their colours above the map, and lines at the boundaries: shading would change the map's colours."""
    first, last = axes.get_xlim()
    for number, (start, end, colour, _) in enumerate(stage_spans(stages)):
        shown = max(start, first), min(end, last)  # there may have been none yet in the first stages
        if shown[0] < shown[1]:
            axes.axvspan(*shown, 1 + 0.03 * inch, 1 + 0.12 * inch, color=colour, linewidth=0, clip_on=False)
        if number and first < start < last:
            axes.axvline(start, color="white", linewidth=1.2)
    name_stages(axes, stages, at=1 + 0.17 * inch, room=0.2)


def _draw_panel(axes: Axes, curve: RefinedCurve, stages: Sequence[Stage], size: float) -> None:
    axes.set_label(curve.name)
    axes.set_title(short(curve.name), loc="left", size=9, pad=3)
    shade_stages(axes, stages, labelled=True)
    hollow = [disagree(rhat) for rhat in curve.rhat]
    draw_llc(axes, curve.steps, curve.mean, curve.stderr, hollow, size=size, width=1.2)
    axes.set_xlabel("")
    axes.tick_params(labelsize=8)
    axes.minorticks_off()  # a tick is a line of its own, and their thousands would take seconds
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure) -> None:
    """Of all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=max(len(found), 1), frameon=False, fontsize=9
    )


def _edges(axes: Axes, steps: Array) -> Array:
    """Edges of the columns, half-way between the steps as the axis shows them, ``(T + 1,)``."""
    transform = axes.xaxis.get_transform()
    places = transform.transform(steps)
    middles = (places[1:] + places[:-1]) / 2
    first, last = (places[1] - places[0], places[-1] - places[-2]) if len(steps) > 1 else (1.0, 1.0)
    outer = [places[0] - first / 2], [places[-1] + last / 2]
    found: Array = transform.inverted().transform(np.concatenate([outer[0], middles, outer[1]]))
    return found


def _name(curve: RefinedCurve) -> str:
    name = short(curve.name)
    return name if math.isnan(curve.num_parameters) else f"{name}  {curve.num_parameters:,.0f}"
