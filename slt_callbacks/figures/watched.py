"""Which LLC a report is about, and what it is called where a run has several."""

from __future__ import annotations

from collections.abc import Sequence

from slt_callbacks.figures.report import Report
from slt_callbacks.measuring.measurement import Measurement


def llc_key(report: Report) -> str | None:
    """The observable whose LLC is shown, by its key: the one that is watched, or else the first; None without any.

    Example:
        >>> llc_key(Report([Measurement(3, {"chi": {}, "own": {"mean": 1.5}})], observable="llc"))
        'own'
    """
    means = [key for one in report.history for key, result in one.results.items() if "mean" in result]
    return report.observable if report.observable in means else next(iter(means), None)


def name_of_llc(history: Sequence[Measurement], key: str) -> str:
    """What a sentence calls an LLC: by its key only where the run has others beside it.

    Args:
        history: In order.
        key: Of the observable.

    Example:
        >>> history = [Measurement(3, {"llc": {"mean": 1.0}, "finer": {"mean": 2.0}})]
        >>> name_of_llc(history, "finer"), name_of_llc([Measurement(3, {"finer": {"mean": 2.0}})], "finer")
        ('the LLC “finer”', 'the LLC')
    """
    llcs = {name for one in history for name, found in one.results.items() if "mean" in found}
    return f"the LLC \u201c{key}\u201d" if len(llcs | {key}) > 1 else "the LLC"
