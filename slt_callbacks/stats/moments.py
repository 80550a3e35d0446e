"""Running means and covariances in float64, a block of draws at a time, that merge as if they had been one.

These are plain classes and no torchmetrics Metric: a chain that failed is taken back, chains are both pooled and kept
apart, and nothing is reduced across ranks behind a collective, so a Metric would bring 0.1 ms of wrapping to every draw
and no service. The merge is the pairwise one that its PearsonCorrCoef uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_BLOCK = 64  # draws: a matrix product this deep runs at full speed; most chains need one or two


@dataclass(frozen=True)
class Moments:
    r"""Second moments of two sets of rows over draws, about their means.

    .. math:: comoment_{ij} = \sum_t (x_{ti} - \bar x_i)(y_{tj} - \bar y_j)

    Attributes:
        count: Number of draws n.
        num_means: How many means were taken out: 1, or the number of chains where each was centred by itself.
        mean_x: ``(N,)`` float64, in the unit of x; of all draws, whatever `num_means`.
        mean_y: ``(Q,)``.
        square_x: Sum of squares about the mean, ``(N,)``.
        square_y: ``(Q,)``.
        comoment: ``(N, Q)``.
    """

    count: int
    num_means: int
    mean_x: torch.Tensor
    mean_y: torch.Tensor
    square_x: torch.Tensor
    square_y: torch.Tensor
    comoment: torch.Tensor

    def covariance(self) -> torch.Tensor:
        """``comoment / (count - num_means)``, ``(N, Q)``; NaN without a degree of freedom left."""
        degrees = self.count - self.num_means
        return self.comoment / degrees if degrees > 0 else torch.full_like(self.comoment, torch.nan)

    def correlation(self) -> torch.Tensor:
        """``comoment / sqrt(square_x square_y)``, ``(N, Q)``, within [-1, 1]; 0 where a row never varied; NaN stays."""
        scale = self.square_x.sqrt()[:, None] * self.square_y.sqrt()[None, :]
        return torch.where(scale == 0, 0.0, self.comoment / scale).clamp_(-1.0, 1.0)


def moments_of(x: torch.Tensor, y: torch.Tensor | None = None) -> Moments:
    """Moments of one block of draws.

    Rows are shifted by their first draw, so that one that never changes has a variance of exactly 0.

    Args:
        x: ``(draw, N)`` float64.
        y: ``(draw, Q)`` float64; None for `x` itself.

    Example:
        >>> moments = moments_of(torch.tensor([[1.0, 5], [3, 5], [1, 5], [3, 5], [2, 5]]).double())
        >>> moments.covariance().tolist(), moments.correlation().tolist()
        ([[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    """
    mean_x, centred_x = _centred(x)
    if y is None:
        comoment = centred_x.mT @ centred_x
        square = comoment.diagonal().clone()
        return Moments(len(x), 1, mean_x, mean_x, square, square, comoment)
    mean_y, centred_y = _centred(y)
    squares = centred_x.square().sum(0), centred_y.square().sum(0)
    return Moments(len(x), 1, mean_x, mean_y, *squares, centred_x.mT @ centred_y)


def merge(a: Moments, b: Moments) -> Moments:
    r"""Moments of the draws of both about their common mean.

    .. math:: M = M_a + M_b + \frac{n_a n_b}{n_a + n_b} (\bar x_b - \bar x_a)(\bar y_b - \bar y_a)^T

    Source: Chan, Golub and LeVeque 1983, equation 1.5b.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
        >>> merge(moments_of(x[:1]), moments_of(x[1:])).covariance()
        tensor([[7.]], dtype=torch.float64)
    """
    count = a.count + b.count
    weight = a.count * b.count / count
    delta_x, delta_y = b.mean_x - a.mean_x, b.mean_y - a.mean_y
    return Moments(
        count,
        1,
        a.mean_x + delta_x * (b.count / count),
        a.mean_y + delta_y * (b.count / count),
        a.square_x + b.square_x + weight * delta_x.square(),
        a.square_y + b.square_y + weight * delta_y.square(),
        (a.comoment + b.comoment).addr_(delta_x, delta_y, alpha=weight),
    )


def pool_within(a: Moments, b: Moments) -> Moments:
    """Moments of the draws of both, each about its own mean: what is between them is left out.

    Example:
        >>> x = torch.tensor([[1.0], [3.0], [11.0], [13.0]], dtype=torch.float64)
        >>> pool_within(moments_of(x[:2]), moments_of(x[2:])).covariance()
        tensor([[2.]], dtype=torch.float64)
    """
    weight = b.count / (a.count + b.count)
    return Moments(
        a.count + b.count,
        a.num_means + b.num_means,
        a.mean_x.lerp(b.mean_x, weight),
        a.mean_y.lerp(b.mean_y, weight),
        a.square_x + b.square_x,
        a.square_y + b.square_y,
        a.comoment + b.comoment,
    )


class RunningMoments:
    """Moments of draws that come one by one; a block of them is held, never the whole trace.

    Accumulation is float64 on the device of the draws (on the CPU where the device has no float64), and an update waits
    for nothing.

    Attributes:
        count: Draws so far.

    Example:
        >>> running = RunningMoments()
        >>> for x in (1.0, 2.0, 6.0):
        ...     running.update(torch.tensor([x]))
        >>> running.value().covariance()
        tensor([[7.]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.count = 0
        self._total: Moments | None = None
        self._x = self._y = torch.empty(0, device="cpu")
        self._two_sided = False

    def update(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Take one draw.

        Args:
            x: ``(N,)``.
            y: ``(Q,)``; None for `x` itself, at every draw.
        """
        place = self.count % _BLOCK
        if self.count == 0:
            self._two_sided = y is not None
            self._x = _block_like(x)
            self._y = self._x if y is None else _block_like(y)
        elif place == 0:
            self._total = self.value()
        self._x[place] = x.detach()
        if y is not None:
            self._y[place] = y.detach()
        self.count += 1

    def value(self) -> Moments:
        """The moments so far; changes nothing.

        Raises:
            ValueError: Before the first draw.
        """
        if not self.count:
            raise ValueError("Expected at least one draw before `value`, but got none.")
        held = (self.count - 1) % _BLOCK + 1
        block = moments_of(self._x[:held], self._y[:held] if self._two_sided else None)
        return block if self._total is None else merge(self._total, block)


@dataclass(frozen=True)
class Spread:
    """Mean and variance over chains of a statistic that each chain has.

    Attributes:
        count: Number of chains.
        mean: ``(K,)`` float64, in the statistic's unit.
        square: Sum of squares about the mean, ``(K,)``.
    """

    count: int
    mean: torch.Tensor
    square: torch.Tensor

    def plus(self, value: torch.Tensor) -> Spread:
        """With one more chain."""
        delta = value - self.mean
        mean = self.mean + delta / (self.count + 1)
        return Spread(self.count + 1, mean, self.square + delta * (value - mean))

    def variance(self) -> torch.Tensor:
        """Between chains (ddof 1), ``(K,)``; NaN with one chain."""
        return self.square / (self.count - 1) if self.count > 1 else torch.full_like(self.square, torch.nan)


@dataclass(frozen=True)
class ChainSummary:
    """What `ChainMoments` has found.

    Attributes:
        pooled: About one mean over all draws of all chains.
        within: Every chain about its own mean.
        spread: Of the statistic, over chains; None without one, or where no chain has three draws.
    """

    pooled: Moments
    within: Moments
    spread: Spread | None


class ChainMoments:
    """Moments of several chains, pooled and within chains, from which a chain can be taken back.

    Chains may come one after the other or interleaved. A chain that has all its draws is folded into the totals as soon
    as another chain begins, so that chains one after the other need the memory of one; interleaved ones need it each.

    Args:
        num_draws: Draws T of every chain.
        statistic: From the moments of one chain to a tensor ``(K,)`` whose spread over chains is kept.

    Attributes:
        version: Changes whenever the content does.

    Example:
        >>> chains = ChainMoments(num_draws=2)
        >>> for chain, value in [(0, 1.0), (0, 3.0), (1, torch.nan), (1, 0.0)]:
        ...     chains.update(chain, torch.tensor([value]))
        >>> chains.discard(1)
        >>> chains.summary().pooled.covariance()
        tensor([[2.]], dtype=torch.float64)
    """

    def __init__(self, num_draws: int, statistic: Callable[[Moments], torch.Tensor] | None = None) -> None:
        self.version = 0
        self._num_draws = num_draws
        self._statistic = statistic
        self._open: dict[int, RunningMoments] = {}
        self._folded: set[int] = set()
        self._total: ChainSummary | None = None

    def update(self, chain: int, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Take one draw of a chain: ``(N,)``, and ``(Q,)`` or None for `x` itself."""
        if chain not in self._open:
            self._fold_ended()
            self._open[chain] = RunningMoments()
        self._open[chain].update(x, y)
        self.version += 1

    def discard(self, chain: int) -> None:
        """Take back every draw of a chain.

        Raises:
            RuntimeError: If chains of a later group have begun since it ended.
        """
        if chain in self._folded:
            raise RuntimeError(f"Chain {chain} can no longer be taken back: discard it before the next chains start.")
        if self._open.pop(chain, None) is not None:
            self.version += 1

    def summary(self) -> ChainSummary | None:
        """All chains so far, or None without a draw; changes nothing."""
        total = self._total
        for chain in self._open.values():
            total = self._with(total, chain.value())
        return total

    def _fold_ended(self) -> None:
        # Interleaved chains of one draw each end before the next of their group begins: they stay open, a row each.
        ended = [c for c, running in self._open.items() if running.count >= self._num_draws > 1]
        for chain in ended:
            self._total = self._with(self._total, self._open.pop(chain).value())
            self._folded.add(chain)

    def _with(self, total: ChainSummary | None, chain: Moments) -> ChainSummary:
        spread = total.spread if total else None
        if self._statistic is not None and chain.count > 2:  # two draws always correlate perfectly
            value = self._statistic(chain)
            spread = spread.plus(value) if spread else Spread(1, value, torch.zeros_like(value))
        if total is None:
            return ChainSummary(chain, chain, spread)
        return ChainSummary(merge(total.pooled, chain), pool_within(total.within, chain), spread)


def _centred(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shifted = x - x[0]
    mean = shifted.mean(0)
    return x[0] + mean, shifted - mean


def _block_like(x: torch.Tensor) -> torch.Tensor:
    device = torch.device("cpu") if x.device.type == "mps" else x.device  # Apple's GPUs have no float64
    return torch.empty(_BLOCK, len(x), dtype=torch.float64, device=device)
