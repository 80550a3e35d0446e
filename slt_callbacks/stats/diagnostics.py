"""How far a set of chains can be trusted: split R-hat, effective sample size, drift."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# arviz-stats needs four draws in each half of a split chain before its autocovariance means anything.
_FEWEST_DRAWS = 8


def split_rhat(trace: torch.Tensor) -> float:
    """Split R-hat: every chain cut in two, variance between the halves against variance within them.

    Values near 1 say that the chains agree with each other and with themselves; above 1.05 they do not yet.

    Args:
        trace: One number a draw, shape ``(chain, draw)``; any unit.

    Returns:
        R-hat, or NaN with fewer than 8 draws a chain or where no chain moves. One that stands still among others that
        move counts as what it is, a chain without variance that disagrees with them.

    Source: Vehtari et al. 2021 (arXiv 1903.08008), equation 4; computed by arviz-stats.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> same = torch.randn(4, 200, generator=generator)
        >>> shifted = same + torch.arange(4.0)[:, None]
        >>> split_rhat(same) < 1.02 < 1.5 < split_rhat(shifted)
        True
    """
    values = _checked(trace)
    if values is None:
        return math.nan
    return float(_array_stats().rhat(values, chain_axis=0, draw_axis=1, method="split"))


def effective_sample_size(trace: torch.Tensor) -> float:
    """How many independent draws would give the mean of `trace` the same standard error.

    Args:
        trace: One number a draw, shape ``(chain, draw)``; any unit.

    Returns:
        The effective number of draws over all chains, or NaN with fewer than 8 draws a chain or where no chain moves.

    Source: Vehtari et al. 2021 (arXiv 1903.08008), equation 11; computed by arviz-stats.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> independent = torch.randn(4, 250, generator=generator)
        >>> 800 < effective_sample_size(independent) < 1300
        True
        >>> 800 < effective_sample_size(independent.repeat_interleave(10, dim=1)) < 1300  # nothing was learned
        True
    """
    values = _checked(trace)
    if values is None:
        return math.nan
    return float(_array_stats().ess(values, chain_axis=0, draw_axis=1, method="mean"))


def drift(trace: torch.Tensor) -> float:
    r"""Is the trace still moving? Second half against first half, in standard errors.

    .. math:: z = \frac{m_2 - m_1}{\sqrt{\max(v_1 / ESS_1 + v_2 / ESS_2, \; s^2 / C)}}

    with the mean :math:`m`, the within-chain variance :math:`v` and the effective sample size of each half over all
    chains, so that autocorrelation is paid for; and, with several chains, the variance :math:`s^2` of the chains' own
    differences, because a short autocorrelated half overstates its effective size (measured: 4 chains of 64 draws with
    autocorrelation 0.97 leave 3 standard errors in 21 % of stationary traces by the first term alone, in 4 % by both).
    A stationary trace stays within about 2; chains that are still climbing go far above.

    Args:
        trace: One number a draw, shape ``(chain, draw)``; any unit.

    Returns:
        The signed z-score, or NaN with fewer than 16 draws a chain or where no chain moves within either half.

    Source: Geweke 1992, with ESS in place of the spectral density.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> stationary = torch.randn(4, 100, generator=generator)
        >>> abs(drift(stationary)) < 3
        True
        >>> drift(stationary + torch.linspace(0, 2, 100)) > 5
        True
    """
    half = trace.shape[1] // 2
    halves = first, second = trace[:, :half], trace[:, trace.shape[1] - half :]
    if half < _FEWEST_DRAWS or trace.isnan().any() or not any(map(_moves, halves)):
        return math.nan
    # A chain's own offset is no drift: every chain is compared with itself, hence the variance within chains.
    variance = sum(float(part.double().var(dim=1).mean()) / _size_within(part) for part in halves if _moves(part))
    difference = second.double().mean(dim=1) - first.double().mean(dim=1)
    if len(difference) > 1:
        variance = max(variance, float(difference.var()) / len(difference))
    return float(difference.mean()) / math.sqrt(variance)


def _size_within(trace: torch.Tensor) -> float:
    """Sum of the effective sizes of single chains: chains far apart are still informative about their own drift.

    A chain that stands still has no autocorrelation to pay for, and as little noise: it counts with all its draws.
    """
    moving = trace.amax(dim=1) > trace.amin(dim=1)
    values = trace[moving].detach().cpu().double().numpy()
    # In one call, which takes half as long for 64 short chains as one of each.
    single = _array_stats().ess(values[:, None], chain_axis=1, draw_axis=2, method="mean").tolist()
    single += [math.nan] * (len(trace) - len(values))
    return sum(size if not math.isnan(size) else trace.shape[1] for size in single)


def _moves(trace: torch.Tensor) -> bool:
    """Whether one chain at least varies; NaN does not."""
    return len(trace) > 0 and bool((trace.amax(dim=1) > trace.amin(dim=1)).any())


def _checked(trace: torch.Tensor) -> Array | None:
    if trace.ndim != 2:
        raise ValueError(f"Expected `trace` to have shape (chain, draw), but got {tuple(trace.shape)}.")
    if trace.shape[1] < _FEWEST_DRAWS or trace.isnan().any() or not _moves(trace):
        return None  # where nothing moves there is no variance to compare with
    return cast("Array", trace.detach().cpu().double().numpy())


def _array_stats() -> Any:
    """Imported at first use: arviz-stats takes seconds to import, and `import slt_callbacks` should not."""
    return import_module("arviz_stats.base").array_stats
