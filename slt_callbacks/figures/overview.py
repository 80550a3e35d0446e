"""The charts of a whole run in a report: loss and LLC with their stages, and the refined LLCs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from slt_callbacks.figures.charts import Axis, Chart, Curve, chart, compact, percent
from slt_callbacks.figures.kinds import FREE_ENERGY
from slt_callbacks.figures.refined import most_varying, refined_curves, refined_groups
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.sections import plotted, rows_of
from slt_callbacks.figures.steps import Array, stage_spans
from slt_callbacks.figures.telling import StageTold, is_jump
from slt_callbacks.figures.watched import llc_key
from slt_callbacks.measuring.measurement import Measurement

_MOST_PANELS = 24  # refinements; that can still be read side by side
_LLC, _LOSS = 0, 1  # numbers of their colours


def overview(report: Report, stages: Sequence[StageTold], axis: Axis) -> dict[str, Any]:
    """What a template draws of the whole run, by the names that it has there.

    Args:
        report: The story; at least one measurement.
        stages: In words.
        axis: Of the training steps.

    Example:
        >>> history = [Measurement(step, {"llc": {"mean": 2.0, "reference_loss": 0.5}}) for step in (10, 20)]
        >>> [one.title for one in overview(Report(history), [], Axis(10, 20))["main"]]
        ['Loss on the reference set', 'Local learning coefficient, with two standard errors']
    """
    history, key = report.history, llc_key(report)
    main = _main(history, key, axis)
    return {
        "shades": [_shade(axis, stage.start, stage.end, stage.type) for stage in stages],
        "kinds_of_stages": list(dict.fromkeys(label for *_, label in stage_spans(report.stages))),
        "told_at": [percent(_place(axis, one.announced_at_step)) for one in report.stages if one.announced_at_step],
        "main": main,
        "hollow": any(dot.hollow for one in main for line in one.lines for dot in line.dots),
        "jump_marks": _jump_marks(report, key, axis),
        "refined": _refined(report, axis),
        "free_energy": plotted(rows_of(history, key or ""), [FREE_ENERGY], axis),
    }


def _main(history: Sequence[Measurement], key: str | None, axis: Axis) -> list[Chart]:
    """The loss and the LLC, one above the other."""
    shown = [one for one in history if key in one.results]
    if not shown or key is None:
        return []
    steps = np.array([one.step for one in shown], dtype=float)

    def column(observable: str, name: str) -> Array:
        return np.array([one.results.get(observable, {}).get(name, math.nan) for one in shown], dtype=float)

    curve = Curve("loss", steps, column(key, "reference_loss"))
    loss = chart("Loss on the reference set", [curve], axis, first_colour=_LOSS)
    curve = Curve("LLC", steps, column(key, "mean"), column(key, "stderr"), column("health", "rhat"))
    llc = chart("Local learning coefficient, with two standard errors", [curve], axis, first_colour=_LLC)
    return [one for one in (loss, llc) if one is not None]


def _jump_marks(report: Report, key: str | None, axis: Axis) -> list[dict[str, Any]]:
    """Where each jump began, and whether it went up."""
    return [
        {"at": percent(_place(axis, row["onset_step"])), "up": row["direction"] > 0, "step": row["onset_step"]}
        for row in report.rows
        if is_jump(row, key)
    ]


def _refined(report: Report, axis: Axis) -> list[dict[str, Any]]:
    """Small multiples on one scale, the parts of the network and what moves all of it apart."""
    if report.refined is None:
        return []
    found = []
    for group in refined_groups(refined_curves(report.history, report.refined)):
        curves = [Curve(one.name, one.steps, one.mean, one.stderr, one.rhat) for one in group.curves]
        shown = most_varying(group.curves, _MOST_PANELS)
        names = {one.name for one in shown}
        charts = [chart(curve.name, [curve], axis, limits=group.limits) for curve in curves if curve.name in names]
        cut = "" if len(shown) == len(curves) else f"The {len(shown)} of {len(curves)} that vary most."
        charts = [one for one in charts if one is not None]
        found.append({"title": group.title, "told": _highest(curves), "charts": charts, "note": cut})
    return found


def _highest(curves: Sequence[Curve]) -> str:
    """Which of several stands out in the end, in a sentence; nothing where none does by more than two errors."""
    ends = []
    for curve in curves:
        known = np.flatnonzero(np.isfinite(curve.values))
        error = math.nan if curve.stderr is None or not len(known) else float(curve.stderr[known[-1]])
        if len(known) and math.isfinite(error):
            ends.append((float(curve.values[known[-1]]), error, curve.name))
    ends.sort(reverse=True)
    if len(ends) < 2 or ends[0][0] - ends[1][0] <= 2 * math.hypot(ends[0][1], ends[1][1]):
        return ""
    first, others = ends[0], [value for value, *_ in ends[1:]]
    beside = f"{compact(others[-1])} to {compact(others[0])} of the others" if len(others) > 1 else compact(others[0])
    return f"{first[2]} ends highest, at {compact(first[0])}, beside {beside}."


def _shade(axis: Axis, start: float, end: float, kind: str) -> dict[str, Any]:
    left, right = (min(max(_place(axis, step), 0.0), 1.0) for step in (start, end))
    return {"left": left, "width": right - left, "kind": kind if kind in "ABCD" else "plateau", "name": kind}


def _place(axis: Axis, step: float) -> float:
    return float(axis.place(np.array([step]))[0])
