"""Whether two numbers rise and fall together over a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FEWEST = 4  # pairs: of three, one order in three is perfect by chance


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two series.

    Attributes:
        of_levels: Of the numbers themselves. Two series that both go one way over a run have one near 1 or -1, whatever
            joins them.
        of_changes: Of their changes from each point to the next, which no such trend makes large. Noise of either
            brings it near 0.
        count: Points at which both are known.

    Example:
        >>> Agreement(1.0, 0.5, 20).count
        20
    """

    of_levels: float
    of_changes: float
    count: int


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Spearman's rank correlation of two series, and of their changes.

    The series are successive points of one run, so that neither has a p-value that could be read from a table.

    Args:
        first: One number a point, NaN where there is none.
        second: Likewise.

    Returns:
        NaN where fewer than 4 pairs are known, or one of the two does not change.

    Raises:
        ValueError: If they are not of one length.

    Example:
        >>> found = rank_agreement([1.0, 2.0, 3.0, float("nan"), 4.0, 5.0], [1.0, 4.0, 9.0, 0.0, 15.0, 9.5])
        >>> round(found.of_levels, 3), found.count
        (0.9, 5)
    """
    if len(first) != len(second):
        raise ValueError(f"Expected series of one length, but got {len(first)} and {len(second)} numbers.")
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    return Agreement(_spearman(pairs), _spearman(np.diff(pairs, axis=1)), pairs.shape[1])


def _spearman(pairs: np.ndarray) -> float:
    if pairs.shape[1] < _FEWEST or (pairs == pairs[:, :1]).all(axis=1).any():
        return math.nan
    from scipy.stats import spearmanr  # half a second to import

    return float(spearmanr(pairs[0], pairs[1]).statistic)
