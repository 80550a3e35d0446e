"""What every panel over training steps shares: its axis, its shaded stages, and which points are sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from slt_callbacks.detection.records import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[np.float64]]

# Okabe and Ito: told apart by colour-blind readers, and by their shade in print.
GREY = "0.45"
_LLC = "#D55E00"
RHAT = 1.2  # above it the chains disagree by more than a fifth of their own spread
_STAGES = {
    "A": ("#E69F00", "A: LLC up, loss down"),
    "B": ("#56B4E9", "B: LLC down, loss down"),
    "C": ("#CC79A7", "C: LLC up, loss not down"),
    "D": ("#009E73", "D: LLC down, loss not down"),
    "plateau": ("0.55", "plateau: no clear trend of the LLC"),
}
_FOOT = 0.13  # height of marks for what lies below the picture: above the bars of what was announced
_LOG_GROWTH = 8.0  # of the gaps between measurements, first quarter to last; on a linear schedule they are equal
_ROOM = 0.11  # width of a stage, as a share of an axis as wide as a page, that has room for the word "plateau"
_ROOM_FOR_ALL = 2.6  # times as wide, and there is room for what a letter means


def disagree(rhat: float) -> bool:
    """Whether R-hat says that the chains disagree; it says nothing where it is unknown.

    Example:
        >>> disagree(1.3), disagree(1.2), disagree(np.nan)
        (True, False, False)
    """
    return rhat > RHAT


def set_steps(axes: Axes, steps: Array, log_steps: bool | None) -> None:
    """Make the x axis one of training steps.

    Args:
        axes: Theirs.
        steps: Of the measurements, in order, ``(T,)``.
        log_steps: Whether it is logarithmic; None: where measurements are eight times farther apart in the end than in
            the beginning. Step 0 keeps a place on it.
    """
    logarithmic = log_spaced(steps) if log_steps is None else log_steps
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


def stage_spans(stages: Sequence[Stage]) -> list[tuple[float, float, str, str]]:
    """From which step to which each stage is shaded, its colour, and what the legend says of it.

    A stage reaches up to the first point of the next one.
    """
    ends = [*(stage.start_step for stage in stages[1:]), *(stage.end_step for stage in stages[-1:])]
    return [
        (stage.start_step, end, *_STAGES.get(stage.type, ("0.8", stage.type)))
        for stage, end in zip(stages, ends, strict=True)
    ]


def worth_showing(stages: Sequence[Stage]) -> Sequence[Stage]:
    """The stages, or none where a plateau is all there is: a run too short or too noisy to be divided is one as well.

    Example:
        >>> worth_showing([])
        []
    """
    return [] if len(stages) == 1 and stages[0].type == "plateau" else stages


def shade_stages(axes: Axes, stages: Sequence[Stage], *, labelled: bool = False) -> None:
    """Shade every stage by its type, with a line at each boundary.

    Args:
        axes: Over training steps.
        stages: In order.
        labelled: Whether the legend is to name the types, each once.
    """
    named: set[str] = set()
    for number, (start, end, colour, label) in enumerate(stage_spans(worth_showing(stages))):
        first = labelled and label not in named
        axes.axvspan(start, end, color=colour, alpha=0.2, linewidth=0, label=label if first else None)
        if number:
            axes.axvline(start, color=GREY, linewidth=0.8)
        named.add(label)


def name_stages(axes: Axes, stages: Sequence[Stage], at: float = 1.02, room: float = _ROOM) -> None:
    """Write the type of each stage above the axes, where there is room for it; and what its letter means, likewise.

    Args:
        axes: Over training steps, the limits already set.
        stages: In order.
        at: Height of the foot of the letters, as a share of that of the axes.
        room: Share of their width that the word "plateau" takes.
    """
    shown = worth_showing(stages)
    for stage, (start, end, _, label) in zip(shown, stage_spans(shown), strict=True):
        places = (axes.transAxes.inverted().transform(axes.transData.transform((x, 0)))[0] for x in (start, end))
        left, right = (min(max(place, 0.0), 1.0) for place in places)  # measurements may begin later
        if right - left > room or (len(stage.type) == 1 and right > left):
            text = label if len(stage.type) == 1 and right - left > _ROOM_FOR_ALL * room else stage.type
            axes.text((left + right) / 2, at, text, transform=axes.transAxes, ha="center", weight="bold")


def draw_llc(
    axes: Axes, steps: Array, mean: Array, stderr: Array, hollow: Sequence[bool], size: float = 18, width: float = 1.5
) -> None:
    """Draw an LLC with its error band; points whose chains disagree are hollow, and NaN is a gap.

    Args:
        axes: Over training steps.
        steps: Of the measurements, ``(T,)``.
        mean: The LLC, ``(T,)``.
        stderr: Its standard error, ``(T,)``; NaN is drawn as none.
        hollow: Whether the chains disagree, of every measurement.
        size: Of a point, in square points.
        width: Of the line, in points.
    """
    error = 2 * np.nan_to_num(stderr)
    if np.nanmin(mean, initial=0.0) < 0:
        axes.axhline(0, color=GREY, linewidth=0.8)
    axes.fill_between(
        steps, mean - error, mean + error, color=_LLC, alpha=0.3, linewidth=0, label="± 2 standard errors"
    )
    axes.plot(steps, mean, color=_LLC, linewidth=width)
    for wanted, fill, label in ((False, _LLC, "LLC"), (True, "white", "chains disagree (R-hat > 1.2)")):
        at = np.array(hollow, dtype=bool) == wanted
        if at.any():
            axes.scatter(steps[at], mean[at], s=size, c=fill, edgecolors=_LLC, zorder=3, label=label)


def keep_in_sight(axes: Axes, steps: Array, mean: Array, stderr: Array, rhat: Sequence[float]) -> None:
    """Limit the scale to `common_limits` where they leave points out, and mark those at the edge that they left by.

    Args:
        axes: With the LLC drawn.
        steps: Of the measurements, ``(T,)``.
        mean: The LLC, ``(T,)``.
        stderr: Its standard error, ``(T,)``; NaN for none.
        rhat: R-hat of the chains, ``(T,)``; NaN where it is unknown.
    """
    low, high = common_limits(mean, stderr, np.array(rhat, dtype=float))
    below, above = mean < low, mean > high
    if not (below | above).any():
        return
    margin = 0.05 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    for beyond, place, marker in ((below, _FOOT, "v"), (above, 1 - _FOOT, "^")):
        if beyond.any():
            axes.plot(
                steps[beyond],
                [place] * int(beyond.sum()),
                transform=axes.get_xaxis_transform(),
                linestyle="none",
                marker=marker,
                markersize=5,
                color=_LLC,
                markerfacecolor="white",
                label=f"far {'below' if marker == 'v' else 'above'} the picture, chains disagree",
            )


def log_spaced(steps: Array) -> bool:
    """Whether measurements are eight times farther apart in the end than in the beginning.

    Args:
        steps: Theirs, in order, ``(T,)``.

    Example:
        >>> log_spaced(np.array([1, 10, 100, 1000])), log_spaced(np.array([1, 2, 3, 4]))
        (True, False)
    """
    gaps = np.diff(steps)
    quarter = max(1, len(gaps) // 4)
    return len(gaps) > 1 and bool(np.median(gaps[-quarter:]) > _LOG_GROWTH * np.median(gaps[:quarter]))


def common_limits(mean: Array, stderr: Array, rhat: Array) -> tuple[float, float]:
    """Of a common scale: all values with their bands, unless one that has gone astray would flatten the rest.

    What lies more than the whole range beyond the values on which the chains agree leaves the picture.

    Args:
        mean: The values of all curves, ``(T,)``.
        stderr: Their standard errors, ``(T,)``; NaN for none.
        rhat: R-hat of their chains, ``(T,)``; NaN where it is unknown.

    Example:
        >>> nothing = np.full(3, np.nan)
        >>> common_limits(np.array([1.0, 2.0, 90.0]), nothing, np.array([1.0, 1.0, 3.0]))
        (1.0, 3.0)
    """
    known = np.isfinite(mean)
    if not known.any():
        return 0.0, 1.0
    error = 2 * np.nan_to_num(stderr)
    agreed = mean[known & ~np.array([disagree(value) for value in rhat])]
    inner = agreed if len(agreed) > 1 and np.ptp(agreed) > 0 else mean[known]
    span = float(np.ptp(inner)) or 1.0
    low = max(float((mean - error)[known].min()), float(inner.min()) - span)
    high = min(float((mean + error)[known].max()), float(inner.max()) + span)
    return (low, high) if low < high else (low - 0.5, high + 0.5)
