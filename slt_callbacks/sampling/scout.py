"""Looks where a chain stands: how stiff the loss is there, and how noisy its minibatches are."""

from __future__ import annotations

import math

import torch

from slt_callbacks.basics.rng import generator
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.acceptance import acceptance_at
from slt_callbacks.sampling.curvature import Stiffness, stiffness_at
from slt_callbacks.sampling.engine import Halt
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.stride import Stride

_SCOUT_STREAM, _ACCEPTANCE_STREAM = 205, 207  # apart from the streams of the chains, which start at 0
# Minibatches whose curvature counts where chains go on them: that of one is larger, and that of all samples would cost
# as much as the chains do.
_CURVATURE_BATCHES = 4


def curvature_places(objective: Objective) -> torch.Tensor | None:
    """Samples whose curvature limits a step, spread evenly over the reference set; None where a step takes all."""
    if objective.batch_size is None:
        return None
    wanted = min(_CURVATURE_BATCHES * objective.batch_size, len(objective))
    return torch.linspace(0, len(objective) - 1, wanted, device="cpu").round().long()


class Scout:
    """Finds what limits the step at the chains' positions in one measurement.

    Args:
        stride: Decides what follows.
        objective: The losses.
        posterior: The target.
        seed: Of the run.
        step: Training step of the fork.
        known: k_max at w*.
        acceptance: Whether to find `acceptances`.

    Attributes:
        stride: As given.
        acceptances: By chain, the probability with which a Metropolis test would accept a step where it was last seen.
    """

    def __init__(
        self,
        stride: Stride,
        objective: Objective,
        posterior: LocalPosterior,
        seed: int,
        step: int,
        known: float,
        acceptance: bool = False,
    ) -> None:
        self.stride = stride
        self.acceptances: dict[int, float] = {}
        self._wants_acceptance = acceptance
        self._objective = objective
        self._posterior = posterior
        self._key = (seed, step)
        self._known = known
        self._places = curvature_places(objective)
        self._looks: dict[int, int] = {}  # by chain

    def look(self, halt: Halt) -> list[Stiffness]:
        """What limits the step where each chain of a group stands; the fork is as it was."""
        positions = halt.positions()
        with torch.no_grad(), self._objective.fork.put_back(positions[0]):
            return [self.stiffness(point.chain, at) for point, at in zip(halt.points, positions, strict=True)]

    def test(self, halt: Halt) -> None:
        """Find `acceptances` where a group of chains stands, if they are wanted; the fork is as it was."""
        if not self._wants_acceptance:
            return
        positions = halt.positions()
        with torch.no_grad(), self._objective.fork.put_back(positions[0]):
            for point, position in zip(halt.points, positions, strict=True):
                self.acceptances[point.chain] = self._acceptance(point.chain, position)

    def stiffness(self, chain: int, position: torch.Tensor) -> Stiffness:
        """What limits the step at a position ``(P,)`` of this chain; the fork is left wherever."""
        looks = self._looks[chain] = self._looks.get(chain, 0) + 1
        minibatches = generator(torch.device("cpu"), *self._key, chain, looks, _SCOUT_STREAM)
        known = self._known if math.isfinite(self._known) else self._posterior.localization
        return stiffness_at(self._objective, self._posterior, position, minibatches, self._places, known)

    def _acceptance(self, chain: int, position: torch.Tensor) -> float:
        numbers = self._objective.fork.generator(*self._key, chain, _ACCEPTANCE_STREAM)
        noise = torch.empty_like(position).normal_(generator=numbers)
        return acceptance_at(self._objective, self._posterior, position, float(self.stride.step_size), noise)
