"""Chains one by one: any module, the memory of one chain and its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.engine import Halt, Point, put_back
from slt_callbacks.sampling.posterior import LocalPosterior


class SequentialEngine:
    """One chain at a time on the fork's flat vector: any module, the memory of one chain and its gradient."""

    def __init__(self, objective: Objective, dynamics: Dynamics, posterior: LocalPosterior) -> None:
        self.objective = objective
        self.dynamics = dynamics
        self._posterior = posterior

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """Every chain alone."""
        return [[chain] for chain in chains]

    def advance(self, group: list[Chain], steps: Iterable[object], keep: bool) -> Iterator[Halt]:
        """As in `Engine`."""
        (chain,) = group
        fork = self.objective.fork
        fork.reset(chain.displacement)
        if keep:
            chain.displacement = None  # another one at the end: no need for both at once
        if chain.state is None:
            chain.state = self.dynamics.init(fork.position)
        noise = torch.empty(
            max(piece.stop - piece.start for piece in fork.pieces), dtype=fork.dtype, device=fork.device
        )
        anchors, held = fork.anchor_pieces(), fork.held_pieces()
        batches = self.objective.minibatches(chain.minibatches)
        for _ in steps:
            places = next(batches)
            losses, gradients = self.objective.losses_and_gradient(places)
            yield Halt([Point(chain.index, places, losses)], _losses_here, lambda: [fork.position.clone()])
            self._update(chain, chain.state, gradients, anchors, held, noise)
            del gradients  # or the next backward pass would come on top of it
        if keep:
            chain.displacement = fork.displacement()

    @torch.no_grad()
    def _update(
        self,
        chain: Chain,
        state: State,
        gradients: list[torch.Tensor],
        anchors: list[torch.Tensor],
        held: list[torch.Tensor | None],
        noise: torch.Tensor,
    ) -> None:
        fork = self.objective.fork
        for piece, anchor, still in zip(fork.pieces, anchors, held, strict=True):
            self.dynamics.step(
                position=piece.of(fork.position),
                gradient=piece.gather(gradients),
                noise=noise[: piece.stop - piece.start].normal_(generator=chain.noise),
                anchor=anchor,
                posterior=self._posterior,
                state={name: piece.of(value) for name, value in state.items()},
                sgld_step=chain.sgld_step,
            )
            if still is not None:
                put_back(piece.of(fork.position), anchor, still)
        chain.sgld_step += 1


def _losses_here(objective: Objective) -> list[torch.Tensor]:
    """The fork stands where the only chain does."""
    return [objective.sample_losses()]
