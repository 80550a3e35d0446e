"""The target of the chains: a posterior tempered by `nbeta` and tied to the fork by `localization`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LocalPosterior:
    r"""The local posterior around the fork :math:`w^*` (the weights at the moment of the measurement).

    .. math:: p(w) \propto \exp\left(-nbeta \, L(w) - \tfrac{localization}{2} |w - w^*|^2\right)

    Args:
        nbeta: Inverse temperature times the number of samples, dimensionless; 0 leaves the localization alone.
        localization: Strength :math:`\gamma` of the tie to the fork, in inverse squared units of the weights.

    Source: Lau et al. (arXiv 2308.12108), equation 9, with :math:`n\beta^*` named `nbeta`.

    Example:
        >>> posterior = LocalPosterior(nbeta=10.0, localization=2.0)
        >>> weights, anchor = torch.tensor([1.0]), torch.tensor([0.5])
        >>> posterior.gradient(torch.tensor([3.0]), weights, anchor)
        tensor([31.])
    """

    nbeta: float
    localization: float

    def gradient(self, loss_gradient: torch.Tensor, position: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        """Gradient of minus the log density: ``nbeta * loss_gradient + localization * (position - anchor)``.

        Args:
            loss_gradient: Gradient of the mean loss at `position`, shape ``(..., P)``.
            position: Weights of the chain, shape ``(..., P)``.
            anchor: Weights of the fork, shape ``(P,)``.

        Returns:
            A new tensor of the shape of `position`.
        """
        return torch.sub(position, anchor).mul_(self.localization).add_(loss_gradient, alpha=self.nbeta)


def default_nbeta(num_samples: int) -> float:
    """``n / ln n``, Watanabe's inverse temperature 1 / ln n times the size n of the reference set.

    Raises:
        ValueError: If there are fewer than 2 samples: 1 has no n / ln n.

    Source: Watanabe 2013, "A widely applicable Bayesian information criterion", section 3.

    Example:
        >>> round(default_nbeta(256), 3)
        46.166
    """
    if num_samples < 2:
        raise ValueError(
            f"Expected at least 2 reference samples for the default `nbeta` = n / ln n, but got {num_samples}: "
            "give more samples or set `nbeta` in SamplerConfig."
        )
    return num_samples / math.log(num_samples)
