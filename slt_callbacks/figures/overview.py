"""The charts of a whole run in a report: loss and LLC with their stages, and the refined LLCs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from slt_callbacks.figures.charts import Axis, Chart, Curve, chart, percent
from slt_callbacks.figures.kinds import FREE_ENERGY
from slt_callbacks.figures.refined import most_varying, refined_curves, refined_groups
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.sections import plotted, rows_of
from slt_callbacks.figures.steps import Array
from slt_callbacks.figures.telling import StageTold, is_jump
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
    return {
        "shades": [_shade(axis, stage.start, stage.end, stage.type) for stage in stages],
        "told_at": [percent(_place(axis, one.announced_at_step)) for one in report.stages if one.announced_at_step],
        "main": _main(history, key, axis),
        "jump_marks": _jump_marks(report, key, axis),
        "refined": _refined(report, axis),
        "free_energy": plotted(rows_of(history, key or ""), [FREE_ENERGY], axis),
    }


def llc_key(report: Report) -> str | None:
    """The observable whose LLC is shown, by its key: the one that is watched, or else the first; None without any.

    Example:
        >>> llc_key(Report([Measurement(3, {"chi": {}, "own": {"mean": 1.5}})], observable="llc"))
        'own'
    """
    means = [key for one in report.history for key, result in one.results.items() if "mean" in result]
    return report.observable if report.observable in means else next(iter(means), None)


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
        found.append({"title": group.title, "charts": [one for one in charts if one is not None], "note": cut})
    return found


def _shade(axis: Axis, start: float, end: float, kind: str) -> dict[str, Any]:
    left, right = (min(max(_place(axis, step), 0.0), 1.0) for step in (start, end))
    return {"left": left, "width": right - left, "kind": kind if kind in "ABCD" else "plateau", "name": kind}


def _place(axis: Axis, step: float) -> float:
    return float(axis.place(np.array([step]))[0])
