"""Whether two logged numbers of a run rise and fall together."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
