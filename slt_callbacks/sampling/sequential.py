"""Chains one by one: any module, the memory of one chain and its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.engine import Point
from slt_callbacks.sampling.posterior import LocalPosterior


class SequentialEngine:
    """One chain at a time on the fork's flat vector: any module, the memory of one chain and its gradient."""

    def __init__(self, objective: Objective, dynamics: Dynamics, posterior: LocalPosterior) -> None:
        self.objective = objective
        self._dynamics = dynamics
        self._posterior = posterior

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """Every chain alone."""
        return [[chain] for chain in chains]

    def advance(self, group: list[Chain], num_steps: int, keep: bool) -> Iterator[list[Point]]:
        """As in `Engine`."""
        (chain,) = group
        fork = self.objective.fork
        fork.reset(chain.displacement)
        if keep:
            chain.displacement = None  # another one at the end: no need for both at once
        if chain.state is None:
            chain.state = self._dynamics.init(fork.position)
        noise = torch.empty(
            max(piece.stop - piece.start for piece in fork.pieces), dtype=fork.dtype, device=fork.device
        )
        anchors = fork.anchor_pieces()
        batches = self.objective.minibatches(chain.minibatches)
        for _ in range(num_steps):
            places = next(batches)
            losses, gradients = self.objective.losses_and_gradient(places)
            yield [Point(chain.index, places, losses)]
            self._update(chain, chain.state, gradients, anchors, noise)
            del gradients  # or the next backward pass would come on top of it
        if keep:
            chain.displacement = fork.displacement()

    def probe(self, objective: Objective) -> list[torch.Tensor]:
        """As in `Engine`."""
        return [objective.sample_losses()]

    @torch.no_grad()
    def _update(
        self,
        chain: Chain,
        state: State,
        gradients: list[torch.Tensor],
        anchors: list[torch.Tensor],
        noise: torch.Tensor,
    ) -> None:
        fork = self.objective.fork
        for piece, anchor in zip(fork.pieces, anchors, strict=True):
            self._dynamics.step(
                position=piece.of(fork.position),
                gradient=piece.gather(gradients),
                noise=noise[: piece.stop - piece.start].normal_(generator=chain.noise),
                anchor=anchor,
                posterior=self._posterior,
                state={name: piece.of(value) for name, value in state.items()},
                sgld_step=chain.sgld_step,
            )
        chain.sgld_step += 1
