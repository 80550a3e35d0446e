"""Is a statistic's sign more than noise, when thousands are asked at once and there are only a few chains?"""

from __future__ import annotations

import math

import torch
from scipy.special import ndtri, stdtrit

# With fewer statistics the spread of their variances says too little about how alike these are.
_FEWEST_TO_POOL = 10
# False signs expected among all statistics of a measurement where there is nothing but noise.
_FALSE_SIGNS = 0.1
_LARGEST_LEVEL = 0.05


def moderated_variance(variance: torch.Tensor, degrees: int) -> tuple[torch.Tensor, float]:
    r"""Variances of many alike statistics, each estimated from few chains, drawn towards their common value.

    .. math:: \tilde s^2 = \frac{d_0 s_0^2 + d s^2}{d_0 + d}

    Four chains leave three degrees of freedom, whose t-interval is so wide in the tails that a test of thousands would
    find nothing; one common variance would call every statistic noisier than the average a discovery. The spread of
    the variances themselves says how far to go: ``d_0`` is infinite where they differ no more than three degrees of
    freedom make them, and small where they truly differ.

    Args:
        variance: ``(K,)``, between chains (ddof 1), in the statistic's unit squared.
        degrees: Degrees of freedom d of each: chains minus 1.

    Returns:
        The variances ``(K,)`` and their degrees of freedom ``d_0 + d``, possibly infinite.

    Source: Smyth 2004 (Statistical Applications in Genetics and Molecular Biology 3, article 3), section 6.2.

    Example:
        >>> chi_square = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).square().mean(0)
        >>> moderated, degrees = moderated_variance(chi_square, 3)
        >>> degrees > 100 and bool((moderated - 1).abs().max() < 0.2)  # one common variance, and it is found
        True
    """
    positive = variance[variance > 0]
    if degrees < 1 or len(positive) < _FEWEST_TO_POOL:
        return variance, float(degrees)
    logs = positive.double().log()
    excess = float(logs.var()) - _polygamma(1, degrees / 2)
    centre = float(logs.mean()) - _polygamma(0, degrees / 2) + math.log(degrees / 2)
    if excess <= 0:
        return torch.full_like(variance, math.exp(centre)), math.inf
    prior = 2 * _inverse_trigamma(excess)
    common = math.exp(centre + _polygamma(0, prior / 2) - math.log(prior / 2))
    return (prior * common + degrees * variance) / (prior + degrees), prior + degrees


def sign_quantile(num_statistics: int, degrees: float) -> float:
    """How many standard errors from zero make a sign, so that 0.1 false ones are expected in all.

    The level is Bonferroni's, ``0.1 / num_statistics`` for both sides together, and never above 5 %.

    Args:
        num_statistics: How many signs are asked at once.
        degrees: Degrees of freedom of the standard errors.

    Example:
        >>> round(sign_quantile(1, math.inf), 2), round(sign_quantile(65536, math.inf), 2)
        (1.96, 4.81)
    """
    side = min(_LARGEST_LEVEL, _FALSE_SIGNS / num_statistics) / 2
    return -float(ndtri(side) if math.isinf(degrees) else stdtrit(degrees, side))


def _polygamma(order: int, x: float) -> float:
    at = torch.tensor(x, dtype=torch.float64, device="cpu")
    return float(torch.special.polygamma(order, at) if order else torch.special.digamma(at))


def _inverse_trigamma(y: float) -> float:
    """Newton's method on 1 / trigamma, convex and nearly linear (Smyth 2004, appendix)."""
    if y > 1e7:
        return 1 / math.sqrt(y)
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        trigamma = _polygamma(1, x)
        step = trigamma * (1 - trigamma / y) / _polygamma(2, x)
        x += step
        if -step / x < 1e-8:
            break
    return x
