"""Chains: one SGLD run as a generator of draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.objective import Objective
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.probes import Probe
from slt_callbacks.sampling.rng import generator
from slt_callbacks.stats import drift

_NOISE_STREAM, _MINIBATCH_STREAM = 0, 1
# A warm burn-in goes in rounds of a fifth of the cold one, and never of fewer steps than the drift test can read.
_WARM_ROUNDS, _SHORTEST_ROUND = 5, 16
# Drift beyond three standard errors says that the chains are still moving; one stationary round in twenty does by
# chance, which costs another round and nothing else.
_DRIFTING = 3.0


@dataclass(frozen=True)
class Draw:
    """What one chain saw at one draw: numbers only, never weights.

    Attributes:
        chain: Index of the chain, from 0.
        index: Index of the draw within its chain, from 0.
        samples: Places of the minibatch in the reference set, int64 ``(B,)`` on the CPU; None for the whole set.
        losses: Losses of those samples before the update, ``(B,)``; ``()`` where the loss function gives a mean only.
        loss: Their mean, ``()``.
        excess: Their mean minus the mean loss at w* of the same samples, ``()``.
        reference_losses: Losses of the whole reference set at the same weights, ``(N,)``, where an observable asks.
        query_losses: Losses of the observables' own queries at the same weights, ``(Q,)``, by the observable's key.
    """

    chain: int
    index: int
    samples: torch.Tensor | None
    losses: torch.Tensor
    loss: torch.Tensor
    excess: torch.Tensor
    reference_losses: torch.Tensor | None = None
    query_losses: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Draw:
        """The same draw with its losses on another device."""
        return replace(
            self,
            losses=self.losses.to(device),
            loss=self.loss.to(device),
            excess=self.excess.to(device),
            reference_losses=None if self.reference_losses is None else self.reference_losses.to(device),
            query_losses={key: losses.to(device) for key, losses in self.query_losses.items()},
        )


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass
class Chain:
    """One chain between two calls of an engine.

    Attributes:
        index: From 0.
        noise: Generator of the noise, on the device of the fork.
        minibatches: Generator of the minibatches, on the CPU.
        displacement: ``w - w*``, shape ``(P,)``; None at the fork itself.
        state: State of the dynamics; None before the first step.
        sgld_step: Steps that `state` has seen.
    """

    index: int
    noise: torch.Generator
    minibatches: torch.Generator
    displacement: torch.Tensor | None = None
    state: State | None = None
    sgld_step: int = 0


@dataclass(frozen=True)
class Point:
    """One chain at one SGLD step, before the update."""

    chain: int
    samples: torch.Tensor | None
    losses: torch.Tensor


class Engine(Protocol):
    """Moves chains. "sequential" takes them one by one; another may take a whole group in one program."""

    objective: Objective

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """Which chains go together through `advance`."""

    def advance(self, group: list[Chain], num_steps: int, keep: bool) -> Iterator[list[Point]]:
        """Take `num_steps` steps with a group, yielding its points before each; then keep the positions if asked."""

    def probe(self, objective: Objective) -> list[torch.Tensor]:
        """Losses ``(N,)`` of another set of samples where each chain of the group stands while `advance` yields."""


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


@dataclass
class Sampler:
    """One SGLD run: burn-in, then draws. `draws` may be used once.

    Args:
        engine: What moves the chains.
        config: Settings; its dynamics has a number for its step size.
        chains: Cold ones (no displacement) burn in for ``num_burnin_steps``; warm ones as long as they drift.
        keep: Whether chains keep their final position (memory: chains x parameters).
        reference_losses: Whether draws carry the losses of the whole reference set.
        probes: Further samples whose losses draws carry, by key.
        on_steps: Told how many gradient steps were just taken, for a progress bar.
        gather: Values of every process that runs some of the chains: warm ones are judged together.

    Attributes:
        num_burnin_steps: Burn-in steps of the chain that took the most, so far.
        sgld_steps: Gradient steps of all chains, so far.
    """

    engine: Engine
    config: SamplerConfig
    chains: Sequence[Chain]
    keep: bool = False
    reference_losses: bool = False
    probes: Mapping[str, Probe] = field(default_factory=dict)
    on_steps: Callable[[int], None] | None = None
    gather: Callable[[Any], list[Any]] = _alone
    num_burnin_steps: int = field(default=0, init=False)
    sgld_steps: int = field(default=0, init=False)

    def draws(self) -> Iterator[tuple[list[int], Iterator[Draw]]]:
        """Groups of chains one after the other: their indices, and their draws, to be used up before the next group.

        Yields:
            The indices of the chains that sample together, and a generator of their draws.
        """
        warm = [chain for chain in self.chains if chain.displacement is not None]
        if self.config.num_burnin_steps and any(self.gather(bool(warm))):
            self._burn_in_warm(warm)
        for group in self.engine.groups(self.chains):
            cold = any(chain.displacement is None for chain in group)
            yield (
                [chain.index for chain in group],
                self._group_draws(group, self.config.num_burnin_steps if cold else 0),
            )

    def _group_draws(self, group: list[Chain], num_burnin_steps: int) -> Iterator[Draw]:
        objective = self.engine.objective
        self.num_burnin_steps = max(self.num_burnin_steps, num_burnin_steps)
        num_steps = num_burnin_steps + self.config.num_draw_steps
        for step, points in enumerate(self.engine.advance(group, num_steps, self.keep)):
            self._count(len(points))
            index, between = divmod(step - num_burnin_steps, self.config.num_steps_bw_draws)
            if index < 0 or between:
                continue
            reference = self._reference_losses(points)
            probed = {key: probe.losses(self.engine.probe, reference) for key, probe in self.probes.items()}
            for place, point in enumerate(points):
                yield Draw(
                    chain=point.chain,
                    index=index,
                    samples=point.samples,
                    losses=point.losses,
                    loss=point.losses.mean(),
                    excess=objective.excess(point.losses, point.samples),
                    reference_losses=reference[place] if reference else None,
                    query_losses={key: losses[place] for key, losses in probed.items()},
                )

    def _reference_losses(self, points: list[Point]) -> list[torch.Tensor]:
        """Those of every point, where an observable asks for them."""
        if not self.reference_losses:
            return []
        if self.engine.objective.per_sample and points[0].samples is None:
            return [point.losses for point in points]  # the SGLD step has just computed them
        return self.engine.probe(self.engine.objective)

    def _burn_in_warm(self, warm: list[Chain]) -> None:
        """Rounds until the chains, taken together, no longer drift; at most as long as a cold burn-in."""
        most, length = self.config.num_burnin_steps, warm_round(self.config)
        spent = 0
        while spent < most:
            length = min(length, most - spent)  # a last round too short for the test (NaN) ends it as well
            own = [column.cpu() for group in self.engine.groups(warm) for column in self._round(group, length)]
            spent += length
            trace = torch.stack([column for part in self.gather(own) for column in part])
            trace = trace[trace.isfinite().all(dim=1)]  # a chain that failed is dropped by whoever reads the draws
            if not len(trace) or not abs(drift(trace)) > _DRIFTING:  # NaN: nothing moves
                break
        self.num_burnin_steps = max(self.num_burnin_steps, spent)

    def _round(self, group: list[Chain], num_steps: int) -> list[torch.Tensor]:
        objective = self.engine.objective
        rows = []
        for points in self.engine.advance(group, num_steps, keep=True):
            self._count(len(points))
            rows.append([objective.excess(point.losses, point.samples) for point in points])
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _count(self, num_steps: int) -> None:
        self.sgld_steps += num_steps
        if self.on_steps is not None:
            self.on_steps(num_steps)


def warm_round(config: SamplerConfig) -> int:
    """Steps of one round of burn-in for chains that start where the last measurement ended."""
    most = config.num_burnin_steps
    return min(most, max(most // _WARM_ROUNDS, _SHORTEST_ROUND))


def make_chains(
    config: SamplerConfig, device: torch.device, seed: int, step: int, past: Mapping[int, int] | None = None
) -> list[Chain]:
    """Cold chains with generators of their own, seeded from (seed, training step of the fork, chain).

    Args:
        config: Says how many.
        device: Of the fork.
        seed: Of the run.
        step: Training step of the fork.
        past: By chain, SGLD steps of those that will go on. It is part of their seed: the noise that has brought a
            chain where it is would, given once more at the same training step, carry it away.
    """
    keys = [
        (seed, step, index, *((past[index],) if past and index in past else ())) for index in range(config.num_chains)
    ]
    return [
        Chain(index, generator(device, *key, _NOISE_STREAM), generator(torch.device("cpu"), *key, _MINIBATCH_STREAM))
        for index, key in enumerate(keys)
    ]
