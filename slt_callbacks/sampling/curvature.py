"""The stiffest direction of the local posterior, from a few gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.pieces import Piece

# From a random direction, eight iterations single out an isolated top eigenvalue among a million; from the direction
# of the last measurement, which training has turned a little, three bring it back.
COLD_ITERATIONS, WARM_ITERATIONS = 8, 3
# Pairs of minibatches that the noise is found from: where a few samples have most of it, one pair is mostly without.
NOISE_PAIRS = 4


@torch.no_grad()
def largest_curvature(
    objective: Objective,
    posterior: LocalPosterior,
    generator: torch.Generator,
    start: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
) -> tuple[float, torch.Tensor]:
    r"""Largest curvature :math:`k_{max} = nbeta\,h_{max} + localization` of the posterior around the fork.

    Power iteration on central differences of the loss gradient,
    :math:`H v \approx (\nabla L(w^* + \delta v) - \nabla L(w^* - \delta v)) / 2\delta`, with :math:`\delta` half a
    posterior standard deviation along the present direction: the curvature that a chain meets, which for a singular
    loss is not the Hessian at w* (that of :math:`w^4` is 0). It needs no second derivatives, so any module will do, and
    holds one gradient beside the fork. It is an estimate from below: an isolated top direction is found within
    percents, a crowded spectrum within some tens.

    Args:
        objective: The losses; its fork is left at w*.
        posterior: `nbeta` and `localization`.
        generator: Of the first direction, on the device of the fork.
        start: A direction to begin with instead, such as the one returned for the last fork, shape ``(P,)``.
        places: The samples to look at; None for one minibatch, whose curvature is the larger, or the whole set.

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
    places = next(objective.minibatches(torch.Generator().manual_seed(0))) if places is None else places
    warm = start is not None
    if start is None:
        start = torch.empty_like(fork.position).normal_(generator=generator)
    fork.reset()  # the buffers too
    search = _Search(objective, posterior, places)
    search.place(fork.moving(fork.split(start)))
    del start  # one gradient beside the fork, whatever comes next
    for _ in range(WARM_ITERATIONS if warm else COLD_ITERATIONS):
        search.iterate()
    direction = fork.displacement()
    fork.reset()
    return float(posterior.nbeta * search.curvature + posterior.localization), direction


@dataclass(frozen=True)
class Stiffness:
    """What limits a step where a chain stands.

    Attributes:
        curvature: k_max there; NaN where the gradient is not finite.
        noise: Variance of nbeta times the gradient of a minibatch, drawn without replacement, summed over all
            directions; 0 for the whole set.
        along_noise: Curvature k along it: along the difference of two minibatches.

    Example:
        >>> stiffness = Stiffness(curvature=100.0, noise=40.0, along_noise=50.0)
        >>> stiffness.excess_llc(step_size=0.04, localization=10.0)  # 0.8 * 0.04 * 40 / 8 / (1 - 0.5)
        0.32
    """

    curvature: float
    noise: float
    along_noise: float

    def excess_llc(self, step_size: float, localization: float) -> float:
        r"""What the noise of minibatches adds to the LLC.

        Along a direction of curvature k and noise V it adds :math:`\epsilon V / (4k (1 - \epsilon k / 4))` to the
        variance of a chain, of which the LLC counts :math:`(k - localization) / 2`; here with one k for all of V.
        Minibatches of an epoch are no independent draws, so that this is rather too much. Infinite where a step that
        long has no stationary variance.
        """
        room = 1 - step_size * self.along_noise / 4
        if self.noise == 0:
            return 0.0
        return self._per_step(localization) * step_size / room if room > 0 else math.inf

    def step_size_for(self, excess_llc: float, localization: float) -> float:
        """The longest step whose noise adds so much to the LLC; infinite without noise."""
        needed = self._per_step(localization) + excess_llc * self.along_noise / 4
        return excess_llc / needed if self.noise > 0 and needed > 0 else math.inf

    @property
    def is_finite(self) -> bool:
        """Whether it says anything: where a chain has diverged it does not."""
        return math.isfinite(self.curvature) and math.isfinite(self.noise)

    def _per_step(self, localization: float) -> float:
        if self.along_noise <= localization:  # the loss does not curve upwards along it
            return 0.0
        return (1 - localization / self.along_noise) * self.noise / 8


@torch.no_grad()
def stiffness_at(
    objective: Objective,
    posterior: LocalPosterior,
    position: torch.Tensor,
    minibatches: torch.Generator,
    places: torch.Tensor | None,
    known: float,
) -> Stiffness:
    """Curvature and noise of minibatches where a chain stands.

    The difference of the gradients of two minibatches has twice the noise's variance, here the mean of `NOISE_PAIRS`.
    From the last one, or without noise from the gradient, both of which lie in stiff directions for most losses,
    `WARM_ITERATIONS` find the stiffest.

    Args:
        objective: The losses; its fork is left wherever.
        posterior: `nbeta` and `localization`.
        position: The chain's weights ``(P,)``.
        minibatches: Generator of the minibatches, on the CPU.
        places: The samples whose curvature counts; None for all.
        known: k_max at w*, which says how far to look.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> class Weights(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(1))
        >>> def loss_fn(module, tilt):  # curvature 3, and a slope of one for half of the samples, minus one for others
        ...     return 1.5 * module.w.square().sum() + tilt * module.w.sum()
        >>> reference = draw_reference([torch.tensor([1.0, -1.0])])
        >>> objective = Objective(Fork(Weights()), loss_fn, reference, batch_size=1)
        >>> at = torch.ones(1)
        >>> found = stiffness_at(objective, LocalPosterior(10.0, 5.0), at, torch.Generator().manual_seed(0), None, 35.0)
        >>> round(found.curvature, 2), round(found.noise, 2), round(found.along_noise, 2)
        (35.0, 100.0, 35.0)
    """
    fork = objective.fork
    fork.reset()
    fork.position.copy_(position)
    batches = objective.minibatches(minibatches)
    noises = []
    for _ in range(1 if objective.batch_size is None else NOISE_PAIRS):
        with torch.enable_grad():
            objective.backward(next(batches))
            if objective.batch_size is not None:
                objective.backward(next(batches), sign=-1.0)
        along = fork.moving(objective.take_gradients())
        noises.append(float(fork.norm(along)) ** 2 / 2)
    # Two batches of one epoch differ by more than chance: they share no sample.
    share = 0.0 if objective.batch_size is None else 1 - objective.batch_size / len(objective)
    noise = share * posterior.nbeta**2 * sum(noises) / len(noises) if share else 0.0
    search = _Search(objective, posterior, places, center=position)
    guess = max(known - posterior.localization, 0.0) / (posterior.nbeta or 1.0)
    search.place(along, torch.full_like(search.curvature, guess))
    del along
    search.iterate()
    along_noise = search.along
    for _ in range(WARM_ITERATIONS - 1):
        search.iterate()
    k_max, k_noise = (float(posterior.nbeta * h + posterior.localization) for h in (search.curvature, along_noise))
    return Stiffness(k_max, noise, max(k_noise, posterior.localization))


class _Search:
    """Power iteration around a center; the present direction is where the fork stands, seen from there."""

    def __init__(
        self,
        objective: Objective,
        posterior: LocalPosterior,
        places: torch.Tensor | None,
        center: torch.Tensor | None = None,
    ) -> None:
        fork = objective.fork
        self._objective, self._posterior, self._places, self._center = objective, posterior, places, center
        self._distance = torch.zeros((), dtype=fork.dtype, device=fork.device)
        self.curvature = torch.zeros((), dtype=fork.dtype, device=fork.device)
        self.along = self.curvature  # v' H v of the direction before the last iteration

    def iterate(self) -> None:
        """Take the direction of the gradients' difference for the next one."""
        objective, fork = self._objective, self._objective.fork
        with torch.enable_grad():
            objective.backward(self._places)
            self._reflect(fork)
            objective.backward(self._places, sign=-1.0)
        found = fork.moving(objective.take_gradients())
        self.along = self._product(fork, found) / (2 * self._distance**2)
        self.curvature = fork.norm(found) / (2 * self._distance)
        self.place(found, self.curvature, self._distance)

    def place(
        self, along: Sequence[torch.Tensor], curvature: torch.Tensor | None = None, last: torch.Tensor | None = None
    ) -> None:
        """Put the fork half a posterior standard deviation from the center along a direction.

        After the first time it goes half the way there on the log scale: where the curvature grows with the distance,
        as in w^4, a full step would jump to and fro for ever.
        """
        fork = self._objective.fork
        curvature = self.curvature if curvature is None else curvature
        stiffness = self._posterior.nbeta * curvature + self._posterior.localization
        distance = 0.5 / torch.where(stiffness > 0, stiffness, 1.0).sqrt()
        if last is not None:
            distance = (distance * last).sqrt()
        norm = fork.norm(along)
        scale = distance / torch.where(norm > 0, norm, 1.0)  # a loss that is flat has no direction
        for piece in fork.pieces:
            torch.mul(piece.gather(along), scale, out=piece.of(fork.position)).add_(self._center_of(piece))
        self._distance = distance

    def _reflect(self, fork: Fork) -> None:
        """From center + v to center - v."""
        with torch.no_grad():
            for piece in fork.pieces:
                piece.of(fork.position).neg_().add_(self._center_of(piece), alpha=2)

    def _product(self, fork: Fork, found: Sequence[torch.Tensor]) -> torch.Tensor:
        """Of the direction, which the fork stands in the opposite of, and what was found along it.

        The fork is left at that direction itself, as if it were a place: whoever asks puts it somewhere else.
        """
        parts = [
            torch.dot(piece.of(fork.position).neg_().add_(self._center_of(piece)), piece.gather(found))
            for piece in fork.pieces
        ]
        return fork.total(torch.stack(parts).sum())

    def _center_of(self, piece: Piece) -> torch.Tensor:
        return piece.gather(self._objective.fork.anchor) if self._center is None else piece.of(self._center)
