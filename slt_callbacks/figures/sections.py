"""What a report shows of each observable: charts of its numbers, and its pictures over the training steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from slt_callbacks.figures.agreement import beside_the_llc
from slt_callbacks.figures.charts import Axis, Chart, Curve, chart, compact, series
from slt_callbacks.figures.kinds import COMPRESSIBILITY, KINDS, LLC, Kind, Plot, kind_of
from slt_callbacks.figures.recorded import Frame
from slt_callbacks.measuring.measurement import Measurement

_NO_OBSERVABLES = ("health", "cost", "detection")
_MOST_LINES = 8  # in one chart
_MOST_CHARTS = 12  # of an observable of one's own
_MANY_TIMES = 2  # above it a share of the training time is no share

Rows = Sequence[tuple[int, Mapping[str, float]]]
"""The numbers of one observable, by name, with their training steps."""


@dataclass(frozen=True)
class Section:
    """One section of a report.

    Attributes:
        key: Of the observable.
        title: Above it.
        reads: How it is read.
        charts: Of its numbers.
        pictures: Frames by name of the picture, in step order.
        note: What was left out, or goes without a chart.
    """

    key: str
    title: str
    reads: str
    charts: Sequence[Chart]
    pictures: Mapping[str, Sequence[Frame]] = field(default_factory=dict)
    note: str = ""


def observed(
    history: Sequence[Measurement],
    frames: Sequence[Frame],
    axis: Axis,
    without: Sequence[str] = (),
    llc: str | None = None,
) -> list[Section]:
    """A section each for all observables: known kinds first, those of the user's own last.

    Args:
        history: Measurements in order.
        frames: Pictures, by observable and name.
        axis: Of the training steps.
        without: Keys of observables that are shown elsewhere, but for their pictures.
        llc: Key of the LLC that others are told beside; None for none.

    Example:
        >>> history = [Measurement(step, {"own": {"size": float(step)}}) for step in (1, 2)]
        >>> [section.title for section in observed(history, [], Axis(1, 2))]
        ['own']
    """
    numbers = [key for one in history for key in one.results if key not in (*_NO_OBSERVABLES, *without)]
    keys = dict.fromkeys([*numbers, *(frame.key.partition("/")[0] for frame in frames)])
    kinds = {key: kind_of({name for _, row in rows_of(history, key) for name in row}) for key in keys}
    ranked = sorted(keys, key=lambda key: len(KINDS) if (kind := kinds[key]) is None else KINDS.index(kind))
    found = []
    for key in ranked:
        several = kinds[key] is LLC or list(kinds.values()).count(kinds[key]) > 1
        section = _section(key, kinds[key], [] if key in without else rows_of(history, key), frames, axis, several)
        if kinds[key] is COMPRESSIBILITY and llc is not None:
            section = replace(section, note=beside_the_llc(history, key, ("critical_bits", "critical_rank"), llc))
        found.append(section)
    return found


def plotted(rows: Rows, plots: Sequence[Plot], axis: Axis, zeros: bool = True) -> list[Chart]:
    """The charts of these plots for which there are numbers.

    Args:
        rows: Of one observable.
        plots: What to show.
        axis: Of the training steps.
        zeros: Whether to draw what is 0 throughout, as chains that were dropped should be.

    Example:
        >>> rows = [(1, {"speed": 1.0}), (2, {"speed": 2.0})]
        >>> [one.title for one in plotted(rows, [Plot("Speed", ["speed"])], Axis(1, 2))]
        ['Speed']
    """
    names = list(
        dict.fromkeys(name for _, row in rows for name in row if zeros or any(_known(one.get(name)) for _, one in rows))
    )
    drawn = []
    for plot in plots:
        found = plot.matches(names)
        drawn += _drawn_apart(rows, plot, found, axis) if plot.apart else [_drawn(rows, plot, found, axis)]
    return [one for one in drawn if one is not None]


def rows_of(history: Sequence[Measurement], key: str) -> Rows:
    """The single numbers of one observable.

    Example:
        >>> rows_of([Measurement(3, {"llc": {"mean": 1.5, "engine": "x"}})], "llc")
        [(3, {'mean': 1.5})]
    """
    return [
        (one.step, {name: value for name, value in one.results[key].items() if isinstance(value, (int, float))})
        for one in history
        if key in one.results
    ]


def cost_in_words(history: Sequence[Measurement]) -> str:
    """What all of it took.

    Example:
        >>> cost_in_words([Measurement(3, {"cost": {"seconds": 90.0, "sgld_steps": 1200, "overhead": 0.08}})])
        '1 measurement took 90 s and 1,200 gradient steps, 8 % of the training time; none was left out.'
    """
    rows = [one.results.get("cost", {}) for one in history]
    seconds, steps = (sum(_known(row.get(name)) for row in rows) for name in ("seconds", "sgld_steps"))
    last = rows[-1] if rows else {}
    overhead = last.get("overhead", math.nan)
    share = f", {_share(overhead)} the training time" if math.isfinite(overhead) else ""
    skipped = int(_known(last.get("skipped")))
    left = "none was left out"
    if skipped:
        left = f"{skipped:,} {'was' if skipped == 1 else 'were'} left out for the budget"
    many = f"{len(rows):,} measurement{'s' * (len(rows) != 1)}"
    return f"{many} took {compact(seconds)} s and {int(steps):,} gradient steps{share}; {left}."


def _section(key: str, kind: Kind | None, rows: Rows, frames: Sequence[Frame], axis: Axis, named: bool) -> Section:
    pictures: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: not frame.key.endswith("/map")):  # the map is what it is about
        observable, _, name = frame.key.partition("/")
        if observable == key:
            pictures.setdefault(name, []).append(frame)
    if kind is not None:
        title = f"{kind.title}: {key}" if named else kind.title
        return Section(key, title, kind.reads, plotted(rows, kind.plots, axis), pictures)
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    charts = plotted(rows, [Plot(name, [_literal(name)]) for name in names[:_MOST_CHARTS]], axis)
    cut = len(names) - _MOST_CHARTS
    note = f"{cut} more numbers are in measurements.jsonl." if cut > 0 else ""
    return Section(key, key, "", charts, pictures, note)


def _share(overhead: float) -> str:
    return f"{100 * overhead:.3g} % of" if overhead < _MANY_TIMES else f"{compact(overhead)} times"


def _literal(name: str) -> str:
    """A name as a pattern of itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _drawn(rows: Rows, plot: Plot, names: Sequence[str], axis: Axis) -> Chart | None:
    shown = names if len(names) <= _MOST_LINES else _most_varying(rows, names)
    note = "" if len(shown) == len(names) else f"the {len(shown)} of {len(names)} that vary most"
    return chart(
        plot.title, [Curve(plot.label(name), *series(rows, name)) for name in shown], axis, note, rule=plot.rule
    )


def _drawn_apart(rows: Rows, plot: Plot, names: Sequence[str], axis: Axis) -> list[Chart | None]:
    """A chart for each first of two things, its lines joined over what was not measured."""
    firsts = list(dict.fromkeys(name.partition("_to_")[0] for name in names))
    known = [(step, {name: value for name, value in row.items() if math.isfinite(value)}) for step, row in rows]
    found = []
    for first in firsts[:_MOST_CHARTS]:
        own = [name for name in names if name.partition("_to_")[0] == first]
        one = Plot(f"{plot.title} {first}", own, words={name: name.partition("_to_")[2] for name in own})
        found.append(_drawn(known, one, own, axis))
    return found


def _most_varying(rows: Rows, names: Sequence[str]) -> list[str]:
    def spread(name: str) -> float:
        known = series(rows, name)[1]
        known = known[np.isfinite(known)]
        return float(known.std()) if len(known) > 1 else -math.inf

    chosen = set(sorted(names, key=lambda name: -spread(name))[:_MOST_LINES])
    return [name for name in names if name in chosen]


def _known(value: float | None) -> float:
    return 0.0 if value is None or math.isnan(value) else float(value)
