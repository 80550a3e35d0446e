"""Whether two logged numbers of a run rise and fall together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slt_callbacks.figures.watched import name_of_llc
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.stats.agreement import Agreement, rank_agreement


def rank_correlation(history: Sequence[Measurement], first: str, second: str = "llc/mean") -> Agreement:
    """Spearman's rank correlation of two numbers over the measurements of a run, and of their changes.

    Measurements that have failed, or lack one of the two, are passed over.

    Args:
        history: In order, as ``monitor.history`` or a report has them.
        first: Of a number, its key without ``slt/``, such as "compressibility/critical_bits".
        second: Likewise.

    Example:
        >>> values = [(1.0, 4.0), (2.0, 4.5), (4.0, 5.0), (3.0, 4.7), (5.0, 6.0)]
        >>> history = [
        ...     Measurement(step, {"llc": {"mean": llc}, "compressibility": {"critical_bits": bits}})
        ...     for step, (llc, bits) in enumerate(values)
        ... ]
        >>> round(rank_correlation(history, "compressibility/critical_bits").of_levels, 6)
        1.0
    """
    numbers = [one.scalars() for one in history if not one.failed]
    columns = [[known.get(key, math.nan) for known in numbers] for key in (first, second)]
    return rank_agreement(*columns)


def beside_the_llc(history: Sequence[Measurement], key: str, names: Sequence[str], llc: str = "llc") -> str:
    """How far numbers of an observable go together with the LLC, in a sentence; nothing where that cannot be told.

    Args:
        history: In order.
        key: Of the observable.
        names: Of its numbers.
        llc: Key of the LLC; where a run has several, the sentence names it.

    Example:
        >>> values = [(1.0, 4.0), (2.0, 4.5), (4.0, 5.0), (3.0, 4.7), (5.0, 6.0)]
        >>> history = [
        ...     Measurement(step, {"llc": {"mean": llc, "reference_loss": 0.1}, "own": {"critical_bits": bits}})
        ...     for step, (llc, bits) in enumerate(values)
        ... ]
        >>> beside_the_llc(history, "own", ["critical_bits"])[:96]
        'Rank correlation with the LLC over the run: critical bits 1.00, and of their changes 0.83. Two l'
    """
    told = []
    for name in names:
        found = rank_correlation(history, f"{key}/{name}", f"{llc}/mean")
        if math.isfinite(found.of_levels):
            of_changes = f", and of their changes {found.of_changes:.2f}" if math.isfinite(found.of_changes) else ""
            told.append(f"{name.replace('_', ' ')} {found.of_levels:.2f}{of_changes}")
    if not told:
        return ""
    trend = "Two levels that both go one way agree whatever joins them; their changes need not."
    return f"Rank correlation with {name_of_llc(history, llc)} over the run: {'; '.join(told)}. {trend}"
