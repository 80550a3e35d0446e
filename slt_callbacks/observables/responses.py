"""How the losses of samples answer to one part of the network: the covariances of a column, chain by chain."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.needs import Needs
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.moments import Moments, RunningMoments, merge


@dataclass(frozen=True)
class Column:
    r"""What the chains of one part say of N samples.

    Attributes:
        per_chain: Minus the covariance of the mean loss with every loss less that mean, about the means over all
            chains, ``(C, N)`` float64 on the CPU, in the loss's unit squared: their mean is that of all draws.
        mean_losses: Mean losses less their mean, ``(N,)``.
        excess: Mean of the mean loss over the draws, less that at w*.
    """

    per_chain: torch.Tensor
    mean_losses: torch.Tensor
    excess: float


class Response:
    """Reads the draws of chains that move one part of the network, for a column of a `Susceptibility`.

    Args:
        needs: Which losses are asked at every draw.

    Example:
        >>> response, losses = Response(Needs(reference_losses=True)), torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> rows = torch.arange(2)
        >>> response.reset(ReferencePoint(0, 1.0, losses[0], rows, 1.0, 0.0, num_chains=1, num_draws=2))
        >>> for index, drawn in enumerate(losses):
        ...     response.update(Draw(0, index, None, drawn, drawn.mean(), drawn.mean(), reference_losses=drawn))
        >>> response.column().per_chain.tolist()  # the first sample moves with the mean, and more than it
        [[-0.5, 0.5]]
    """

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self.clear()

    def clear(self) -> None:
        """Forget every draw: the next measurement may not take this part."""
        self._chains: dict[int, RunningMoments] = {}
        self._at_fork = torch.nan

    def reset(self, reference: ReferencePoint) -> None:
        """Start a measurement."""
        self.clear()
        self._key = reference.key
        self._at_fork = reference.asked_at_fork.get(reference.key, reference.loss)

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        losses = asked_losses(draw, self.needs, self._key)
        self._chains.setdefault(draw.chain, RunningMoments()).update(losses, losses.double().mean()[None])

    def discard(self, chain: int) -> None:
        """Take back the draws of a chain that failed."""
        self._chains.pop(chain, None)

    def compute(self) -> dict[str, float]:
        """Nothing by itself: the column stands in the result of the Susceptibility."""
        return {}

    def column(self) -> Column | None:
        """The column; None without draws enough for a covariance."""
        chains = [running.value() for running in self._chains.values()]
        if sum(moments.count for moments in chains) < 2:
            return None
        total = chains[0]
        for moments in chains[1:]:
            total = merge(total, moments)
        per_chain = torch.stack([_about(total, moments) for moments in chains])
        mean = total.mean_x - total.mean_x.mean()
        return Column(
            -(per_chain - per_chain.mean(1, keepdim=True)).cpu(), mean.cpu(), float(total.mean_y) - self._at_fork
        )


def asked_losses(draw: Draw, needs: Needs, key: str) -> torch.Tensor:
    """The losses that are asked at a draw, ``(N,)``.

    Raises:
        ValueError: If it does not carry them.
    """
    losses = draw.reference_losses if needs.reference_losses else draw.query_losses.get(key)
    if losses is None:
        raise ValueError("Expected the draw to carry the losses that are asked for, but it has none: use a Panel.")
    return losses


def _about(total: Moments, chain: Moments) -> torch.Tensor:
    """Covariances of one chain's losses with their mean, about the means of all draws, ``(N,)``.

    They are scaled so that their mean over chains of one length is the unbiased covariance of all draws.
    """
    between = chain.count * (chain.mean_x - total.mean_x) * (chain.mean_y - total.mean_y)
    return (chain.comoment[:, 0] + between) / chain.count * (total.count / (total.count - 1))


def standardize(matrix: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Columns on one scale, and what is common to all of them taken away.

    Args:
        matrix: ``(N, K)``; a column of NaN stays so, and a column that is 0 throughout stays 0.

    Returns:
        Every column less its mean over its standard deviation (ddof 0), and then, where there are several, every row
        less its mean over columns; and the share of the squares that this mean had.

    Example:
        >>> standardize(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))  # both columns say the same
        (tensor([[0., 0.],
                [0., 0.]]), 1.0)
    """
    centred = matrix - matrix.mean(0)
    scale = centred.square().mean(0).sqrt()
    scaled = torch.where(scale > 0, centred / scale, centred)
    there = ~matrix.isnan().any(0)
    if int(there.sum()) < 2:
        return scaled, torch.nan
    common = scaled[:, there].mean(1, keepdim=True)
    total = float(scaled[:, there].square().sum())
    share = float(common.square().sum()) * int(there.sum()) / total if total > 0 else torch.nan
    return scaled - common, share


def components(standardized: torch.Tensor, count: int) -> tuple[torch.Tensor, list[float]]:
    """Principal components of the columns that are there.

    Args:
        standardized: ``(N, K)``; columns of NaN are left out.
        count: How many.

    Returns:
        Coordinates of the rows ``(N, count)``, and the share of the squares that each component has, NaN for one that
        there is not.

    Example:
        >>> coordinates, shares = components(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), 2)
        >>> [round(share, 6) for share in shares]
        [1.0, 0.0]
    """
    known = standardized[:, ~standardized.isnan().any(0)]
    coordinates = torch.full((len(standardized), count), torch.nan, dtype=standardized.dtype, device="cpu")
    if not known.numel():
        return coordinates, [torch.nan] * count
    left, singular, _ = torch.linalg.svd(known, full_matrices=False)
    found = min(count, len(singular))
    sign = torch.where(left.gather(0, left.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)  # or it would flip at will
    coordinates[:, :found] = (left * sign * singular)[:, :found]
    total = float(singular.square().sum())
    shares = [float(s) ** 2 / total if total > 0 else torch.nan for s in singular[:found]]
    return coordinates, shares + [torch.nan] * (count - found)
