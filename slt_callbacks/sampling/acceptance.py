"""How often a Metropolis test would let a step of SGLD pass: whether the step is short enough where a chain stands."""

from __future__ import annotations

import math

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.posterior import LocalPosterior


@torch.no_grad()
def acceptance_at(
    objective: Objective,
    posterior: LocalPosterior,
    position: torch.Tensor,
    step_size: float,
    noise: torch.Tensor,
) -> float:
    r"""Probability with which the Metropolis-adjusted Langevin algorithm (MALA) would accept one step.

    .. math:: w' = w - \tfrac{\epsilon}{2} \nabla U(w) + \sqrt{\epsilon}\, \xi, \qquad
        \min\left(1, \exp\left(U(w) - U(w')\right) \frac{q(w | w')}{q(w' | w)}\right)

    U is minus the log density, :math:`nbeta L + \tfrac{localization}{2} |w - w^*|^2` with L over the whole reference
    set, and q the density of the step, a Gaussian of variance :math:`\epsilon`. The logarithm is taken as
    :math:`U(w) - U(w') + \tfrac12 (w' - w) \cdot (g + g') - \tfrac{\epsilon}{8} (g' - g) \cdot (g' + g)` with the
    gradients g of U at w and g' at w': the same, without the difference of two large squares. On a quadratic the first
    three terms cancel. It takes two gradients of the whole set, and holds four vectors of the size of the weights.

    Args:
        objective: The losses; its fork is left wherever.
        posterior: `nbeta` and `localization`.
        position: The chain's weights w, shape ``(P,)``.
        step_size: :math:`\epsilon`, in squared units of the weights.
        noise: :math:`\xi`, shape ``(P,)``; used up, and 0 afterwards where weights do not move.

    Returns:
        In [0, 1]; NaN where the loss or its gradient is not finite at w or w'.

    Source: Roberts & Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete
    approximations".

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> from slt_callbacks.weights.fork import Fork
        >>> class Weights(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(1))
        >>> def loss_fn(module, batch):  # curvature 1
        ...     return (module.w.square().sum() / 2).expand(len(batch))
        >>> objective = Objective(Fork(Weights()), loss_fn, draw_reference([torch.zeros(4, 1)]))
        >>> found = acceptance_at(objective, LocalPosterior(1.0, 0.0), torch.ones(1), 1.0, torch.tensor([1.5]))
        >>> round(found, 4), round(math.exp(-(2.0**2 - 1.0**2) / 8), 4)  # from 1 to 1 - 0.5 + 1.5
        (0.6873, 0.6873)
    """
    fork = objective.fork
    fork.reset()
    fork.position.copy_(position)
    losses, gradient = _losses_and_gradient(objective, posterior)
    displacement = fork.displacement()
    move = _moving(objective, noise).mul_(math.sqrt(step_size)).sub_(gradient, alpha=step_size / 2)
    fork.position.add_(move)
    losses_there, gradient_there = _losses_and_gradient(objective, posterior)
    both, further = gradient + gradient_there, gradient_there.sub_(gradient)
    # Of the localization: |d + move|^2 - |d|^2 = 2 move . (d + move / 2).
    of_localization = posterior.localization * fork.total(torch.dot(move, displacement.add_(move, alpha=0.5)))
    rise = posterior.nbeta * (losses_there - losses).mean() + of_localization
    along, apart = fork.total(torch.dot(move, both)), fork.total(torch.dot(further, both))
    log_ratio = along / 2 - rise - step_size / 8 * apart
    return float(log_ratio.clamp(max=0.0).exp())


def _losses_and_gradient(objective: Objective, posterior: LocalPosterior) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the whole set where the fork stands, and the gradient ``(P,)`` of U, 0 where weights do not move."""
    with torch.enable_grad():
        losses = objective.backward()
    gradient = torch.cat(objective.fork.moving(objective.take_gradients())).mul_(posterior.nbeta)
    return losses, gradient.add_(objective.fork.displacement(), alpha=posterior.localization)


def _moving(objective: Objective, vector: torch.Tensor) -> torch.Tensor:
    """`vector` ``(P,)``, set to 0 where weights do not move."""
    parts = objective.fork.moving(objective.fork.split(vector))
    return vector.copy_(torch.cat(parts))
