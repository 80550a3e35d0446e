"""The stiffest direction of the local posterior, from a few gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.weights.fork import Fork

# From a random direction, eight iterations single out an isolated top eigenvalue among a million; from the direction
# of the last measurement, which training has turned a little, three bring it back.
COLD_ITERATIONS, WARM_ITERATIONS = 8, 3


@torch.no_grad()
def largest_curvature(
    objective: Objective, posterior: LocalPosterior, generator: torch.Generator, start: torch.Tensor | None = None
) -> tuple[float, torch.Tensor]:
    r"""Largest curvature :math:`k_{max} = nbeta\,h_{max} + localization` of the posterior around the fork.

    Power iteration on central differences of the loss gradient,
    :math:`H v \approx (\nabla L(w^* + \delta v) - \nabla L(w^* - \delta v)) / 2\delta`, with :math:`\delta` half a
    posterior standard deviation along the present direction: the curvature that a chain meets, which for a singular
    loss is not the Hessian at w* (that of :math:`w^4` is 0). It needs no second derivatives, so any module will do, and
    holds one gradient beside the fork. With minibatches it looks at one minibatch, whose curvature is the larger. It is
    an estimate from below: an isolated top direction is found within percents, a crowded spectrum within some tens.

    Args:
        objective: The losses; its fork is left at w*.
        posterior: `nbeta` and `localization`.
        generator: Of the first direction, on the device of the fork.
        start: A direction to begin with instead, such as the one returned for the last fork, shape ``(P,)``.

    Returns:
        k_max, in inverse squared units of the weights, NaN where the gradient is not finite; its direction ``(P,)``.

    Source: LeCun, Simard & Pearlmutter 1993, "Automatic learning rate maximization by on-line estimation of the
    Hessian's eigenvectors": power iteration on differences of gradients. The distance and the central difference are
    ours.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> class Weights(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(2))
        >>> def loss_fn(module, batch):  # curvatures 1 and 3
        ...     return (0.5 * module.w[0] ** 2 + 1.5 * module.w[1] ** 2).expand(len(batch))
        >>> objective = Objective(Fork(Weights()), loss_fn, draw_reference([torch.zeros(4, 1)]))
        >>> posterior = LocalPosterior(nbeta=10.0, localization=5.0)
        >>> found, direction = largest_curvature(objective, posterior, torch.Generator().manual_seed(0))
        >>> round(found, 2)  # 10 * 3 + 5
        35.0
    """
    fork = objective.fork
    places = next(objective.minibatches(torch.Generator().manual_seed(0)))
    warm = start is not None
    if start is None:
        start = torch.empty_like(fork.position).normal_(generator=generator)
    fork.reset()  # the buffers too
    curvature = torch.zeros((), dtype=fork.dtype, device=fork.device)
    parts = torch.split(start, [p.numel() for p in fork.parameters])
    distance = _place(fork, posterior, curvature, fork.moving(parts))
    del start, parts  # one gradient beside the fork, whatever comes next
    for _ in range(WARM_ITERATIONS if warm else COLD_ITERATIONS):
        with torch.enable_grad():
            objective.backward(places)
            _reflect(fork)
            objective.backward(places, sign=-1.0)
        along = fork.moving(objective.take_gradients())
        curvature = _norm(along) / (2 * distance)
        distance = _place(fork, posterior, curvature, along, distance)
        del along
    direction = fork.displacement()
    fork.reset()
    return float(posterior.nbeta * curvature + posterior.localization), direction


def _place(
    fork: Fork,
    posterior: LocalPosterior,
    curvature: torch.Tensor,
    along: Sequence[torch.Tensor],
    last: torch.Tensor | None = None,
) -> torch.Tensor:
    """Put the fork half a posterior standard deviation from w* along a direction; returns that distance, ``()``.

    After the first time it goes half the way there on the log scale: where the curvature grows with the distance, as in
    w^4, a full step would jump to and fro for ever.
    """
    stiffness = posterior.nbeta * curvature + posterior.localization
    distance = 0.5 / torch.where(stiffness > 0, stiffness, 1.0).sqrt()
    if last is not None:
        distance = (distance * last).sqrt()
    norm = _norm(along)
    scale = distance / torch.where(norm > 0, norm, 1.0)  # a loss that is flat has no direction
    for piece in fork.pieces:
        torch.add(piece.gather(fork.anchor), piece.gather(along) * scale, out=piece.of(fork.position))
    return distance


def _reflect(fork: Fork) -> None:
    """From w* + v to w* - v."""
    with torch.no_grad():
        for piece in fork.pieces:
            torch.sub(2 * piece.gather(fork.anchor), piece.of(fork.position), out=piece.of(fork.position))


def _norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    norms: torch.Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return norms
