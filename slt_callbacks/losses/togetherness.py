"""What a loss of several samples at once is of their losses alone: a mean, a sum, or something that compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Structure = Literal["mean", "sum", "compares"]

_CLOSE = 5e-3  # of the largest number involved: beyond rounding in TF32, and far below what samples differ by


def structure(alone: Sequence[float], pairs: Mapping[tuple[int, int], float]) -> Structure:
    """What the losses of two samples at once are of their losses alone.

    A mean with weights of their own, such as that over all tokens of a batch, counts as a mean: it lies between the
    two, and the weights that three pairs imply agree, w_0 / w_1 times w_1 / w_2 being w_0 / w_2.

    Args:
        alone: Loss of each of two or three samples.
        pairs: Loss of two of them at once, by their places: (0, 1), and (1, 2) and (0, 2) where there are three.

    Example:
        >>> structure([1.0, 3.0], {(0, 1): 2.0}), structure([1.0, 3.0], {(0, 1): 4.0})
        ('mean', 'sum')
        >>> structure([1.0, 3.0], {(0, 1): 3.5}), structure([0.0, 0.0], {(0, 1): 0.7})
        ('compares', 'compares')
        >>> structure([1.0, math.inf], {(0, 1): math.inf})
        'mean'
        >>> structure([1.0, 3.0, 2.0], {(0, 1): 1.5, (1, 2): 2.25, (0, 2): 1.1})  # 3 to 1, 1 to 3, 9 to 1
        'compares'
        >>> structure([1.0, 3.0, 2.0], {(0, 1): 1.5, (1, 2): 2.25, (0, 2): 1.5})  # 3 to 1, 1 to 3, 1 to 1
        'mean'
    """
    if not all(map(math.isfinite, (*alone, *pairs.values()))):
        return "mean"  # for all that can be seen
    scale = max(map(abs, (*alone, *pairs.values())))
    if sum(abs(value) > _CLOSE * scale for value in alone) == 1:
        return "mean"  # a sum, and a mean over what counts, agree where one sample alone has a loss

    def close(first: float, second: float) -> bool:
        return abs(first - second) <= _CLOSE * scale

    if all(close(pair, (alone[i] + alone[j]) / 2) for (i, j), pair in pairs.items()):
        return "mean"
    if all(close(pair, alone[i] + alone[j]) for (i, j), pair in pairs.items()):
        return "sum"
    return "mean" if _is_weighted_mean(alone, pairs, _CLOSE * scale) else "compares"


def is_noisy_sum(alone: Sequence[float], together: float) -> bool:
    """Whether a loss with noise looks like a sum and not like a mean, which is half as large, or less.

    Example:
        >>> is_noisy_sum([1.0, 3.2], together=4.0), is_noisy_sum([1.0, 3.2], together=2.2)
        (True, False)
    """
    if not (all(value > 0 for value in alone) or all(value < 0 for value in alone)):
        return False  # what cancels leaves noise alone
    return abs(together / sum(alone) - 1) < 0.2


def _is_weighted_mean(alone: Sequence[float], pairs: Mapping[tuple[int, int], float], close: float) -> bool:
    ratios = {}
    for (i, j), pair in pairs.items():
        if not min(alone[i], alone[j]) - close <= pair <= max(alone[i], alone[j]) + close:
            return False
        if abs(pair - alone[j]) > 4 * close and abs(alone[i] - pair) > 4 * close:
            ratios[i, j] = (pair - alone[j]) / (alone[i] - pair)
    if len(ratios) < 3:
        return True  # nothing speaks against it
    return math.isclose(ratios[0, 1] * ratios[1, 2], ratios[0, 2], rel_tol=0.05)
