"""What a benchmark prints, and how times are compared: interleaved in one run, medians of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: The figure; None where it could not be measured here.
        unit: Of the figure.
        bound: What the issue asks for, as text; empty for a figure that stands beside.
        met: Whether the bound is kept; None without a bound.
        note: Absolute figures, or why there is none.
    """

    name: str
    value: float | None
    unit: str
    bound: str = ""
    met: bool | None = None
    note: str = ""


def at_most(name: str, value: float, bound: float, unit: str, note: str = "") -> Row:
    return Row(name, value, unit, f"<= {bound:g}", value <= bound, note)


def interleaved(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of two functions called in turn, and the median ratio of the second to the first.

    Neighbours in time share the machine's mood, so their ratio is steadier than either time.
    """
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    return statistics.median(seconds(function) for _ in range(repeats))


def seconds(function: Callable[[], object]) -> float:
    """Until it is done: what a GPU was given to do counts as well, and what it still had to do before does not."""
    _wait_for_gpu()
    start = time.perf_counter()
    function()
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
