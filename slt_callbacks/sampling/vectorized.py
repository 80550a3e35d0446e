"""All chains at once: one batched program through `torch.func`, with the draws of one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from slt_callbacks.data.batches import Batch, map_leaves
from slt_callbacks.losses.functions import losses_of
from slt_callbacks.losses.measured import twin_for
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.engine import Halt, Point, put_back
from slt_callbacks.sampling.posterior import LocalPosterior

Program = Callable[["LossesAt", torch.Tensor, Batch, int | None, float, int], tuple[torch.Tensor, torch.Tensor]]
"""What `chain_gradients` is, as it stands or compiled."""


class VectorizedEngine:
    """Steps all chains of a group in one program: faster where one step is too small to keep the device busy.

    It takes the memory of all chains at once (positions, gradients, activations), and modules and loss functions that
    `torch.vmap` can batch: no control flow that depends on data, no random numbers, tensors only in the batches. Same
    seed, same draws as `SequentialEngine`, to float tolerance: every chain keeps its own generators.

    Args:
        objective: The losses; its fork lends its structure, buffers and anchor.
        dynamics: How the chains move, with a number for its step size.
        posterior: The target.
        program: `chain_gradients`, or what `torch.compile` made of it: it takes the module as an argument, so one
            program serves the forks of a whole run.

    Raises:
        RuntimeError: From `try_step`, where the module cannot be batched.

    Example:
        >>> from slt_callbacks import SGLD
        >>> from slt_callbacks.weights.fork import Fork
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> reference = draw_reference([torch.ones(3, 2)])
        >>> objective = Objective(Fork(nn.Linear(2, 1)), lambda m, x: m(x).square()[:, 0], reference)
        >>> VectorizedEngine(objective, SGLD(1e-3), LocalPosterior(nbeta=1.0, localization=1.0)).try_step()
    """

    def __init__(
        self,
        objective: Objective,
        dynamics: Dynamics,
        posterior: LocalPosterior,
        program: Program | None = None,
    ) -> None:
        self.objective = objective
        self.dynamics = dynamics
        self._posterior = posterior
        self._program = chain_gradients if program is None else program
        self._losses_at = LossesAt(objective)
        self._positions = torch.empty(0, device="cpu")

    def try_step(self, num_chains: int = 2) -> None:
        """Take the gradient of a few chains at w*, to learn whether the module can be batched, or compiled, at all."""
        fork = self.objective.fork
        fork.reset()
        self._positions = fork.position.expand(num_chains, -1).clone()
        batches = self.objective.minibatches(torch.Generator().manual_seed(0))
        self._losses_and_gradients([next(batches) for _ in range(num_chains)])

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """Chains with the same past together: those that start afresh apart from those that go on."""
        by_past: dict[tuple[bool, int], list[Chain]] = {}
        for chain in chains:
            by_past.setdefault((chain.displacement is None, chain.sgld_step), []).append(chain)
        return list(by_past.values())

    def advance(self, group: list[Chain], steps: Iterable[object], keep: bool) -> Iterator[Halt]:
        """As in `Engine`."""
        fork = self.objective.fork
        self._positions, state = self._start(group)
        if keep:
            for chain in group:
                chain.displacement = None  # another one at the end: no need for both at once
        longest = max(piece.stop - piece.start for piece in fork.pieces)
        noise = torch.empty(len(group), longest, dtype=fork.dtype, device=fork.device)
        anchors, held = fork.anchor_pieces(), fork.held_pieces()
        minibatches = [self.objective.minibatches(chain.minibatches) for chain in group]
        for _ in steps:
            places = [next(batches) for batches in minibatches]
            losses, gradients = self._losses_and_gradients(places)
            points = [Point(chain.index, p, own) for chain, p, own in zip(group, places, losses, strict=True)]
            yield Halt(points, self._losses_here, lambda: [*self._positions.clone()])
            self._update(group, state, gradients, anchors, held, noise)
            del gradients  # or the next backward pass would come on top of it
        for row, chain in enumerate(group):
            chain.state = {name: value[row] for name, value in state.items()}
            if keep:
                fork.position.copy_(self._positions[row])
                chain.displacement = fork.displacement()

    @torch.no_grad()
    def _losses_here(self, objective: Objective) -> list[torch.Tensor]:
        rows = []
        for position in self._positions:  # forwards alone, on many samples: they fill the device one chain at a time
            objective.fork.position.copy_(position)
            rows.append(objective.sample_losses())
        return rows

    @torch.no_grad()
    def _start(self, group: list[Chain]) -> tuple[torch.Tensor, State]:
        fork = self.objective.fork
        positions = torch.empty(len(group), len(fork), dtype=fork.dtype, device=fork.device)
        for row, chain in zip(positions, group, strict=True):
            fork.reset(chain.displacement)
            row.copy_(fork.position)
        states = [chain.state for chain in group if chain.state is not None]
        if len(states) < len(group):
            return positions, self.dynamics.init(positions)
        return positions, {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def _losses_and_gradients(self, places: list[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses ``(C, B)``, or ``(C,)`` where they come as a mean, and gradients of their means ``(C, P)``."""
        if self.objective.draws_numbers:
            raise RuntimeError("the loss draws random numbers, which are those of a batch, and chains have their own")
        total = len(self.objective) if places[0] is None else len(places[0])
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        gradients: torch.Tensor | None = None
        for batch, where, axis in self._batches(places):
            share = len(where) / total
            with warnings.catch_warnings():
                # An operation without a batching rule is slow, which the race between the engines has seen.
                warnings.filterwarnings("ignore", message="There is a performance drop")
                gradient, losses = self._program(self._losses_at, self._positions, batch, axis, share, len(where))
            gradients = gradient.detach() if gradients is None else gradients.add_(gradient.detach())
            parts.append((losses.detach(), where))
        assert gradients is not None  # there is a batch at least
        return self._joined(parts, total), gradients

    def _joined(self, parts: list[tuple[torch.Tensor, torch.Tensor]], total: int) -> torch.Tensor:
        if not self.objective.per_sample:
            shares = [losses.flatten(1).mean(1) if losses.ndim > 1 else losses for losses, _ in parts]
            return torch.stack([s * (len(w) / total) for s, (_, w) in zip(shares, parts, strict=True)]).sum(0)
        if len(parts) == 1:
            return parts[0][0]
        order = torch.cat([where for _, where in parts]).argsort().to(self._positions.device, non_blocking=True)
        return torch.cat([losses for losses, _ in parts], dim=1)[:, order]

    def _batches(self, places: list[torch.Tensor | None]) -> Iterator[tuple[Batch, torch.Tensor, int | None]]:
        """Batches, where their samples stand, and their chain dimension: None where the chains share a batch."""
        own = [minibatch for minibatch in places if minibatch is not None]
        if not own:
            for batch, where in self.objective.batches():
                yield batch, where, None
            return
        found = self.objective.batches(torch.cat(own))
        if len(found) > 1:
            raise RuntimeError("minibatches of samples of several shapes, or in blocks, cannot be batched over chains")
        num_chains, size = len(own), len(own[0])

        def by_chain(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            if leaf.ndim and leaf.shape[0] == num_chains * size:
                return leaf.view(num_chains, size, *leaf.shape[1:])
            return leaf.expand(num_chains, *leaf.shape)

        yield map_leaves(by_chain, found[0][0]), torch.arange(size, device="cpu"), 0

    @torch.no_grad()
    def _update(
        self,
        group: list[Chain],
        state: State,
        gradients: torch.Tensor,
        anchors: list[torch.Tensor],
        held: list[torch.Tensor | None],
        noise: torch.Tensor,
    ) -> None:
        for piece, anchor, still in zip(self.objective.fork.pieces, anchors, held, strict=True):
            here = noise[:, : piece.stop - piece.start]
            for row, chain in zip(here, group, strict=True):
                row.normal_(generator=chain.noise)
            self.dynamics.step(
                position=piece.of(self._positions),
                gradient=piece.of(gradients),
                noise=here,
                anchor=anchor,
                posterior=self._posterior,
                state={name: piece.of(value) for name, value in state.items()},
                sgld_step=group[0].sgld_step,
            )
            if still is not None:
                put_back(piece.of(self._positions), anchor, still)
        for chain in group:
            chain.sgld_step += 1


def chain_gradients(
    losses_at: LossesAt, positions: torch.Tensor, batch: Batch, chain_axis: int | None, share: float, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients and losses of all chains in one program.

    Args:
        losses_at: The losses as a function of one position.
        positions: ``(C, P)``.
        batch: The samples.
        chain_axis: Dimension of the batch's tensors that goes over chains; None where the chains share the batch.
        share: Weight of the batch's mean loss.
        size: Samples of a chain in the batch, B.

    Returns:
        Gradients of ``share`` times the mean loss, ``(C, P)``, and the losses, ``(C, B)``, ``(C, B, T)`` or ``(C,)``.
    """

    def weighted_mean(position: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses = losses_at(position, batch, size)
        return losses.mean() * share, losses.detach()

    found: tuple[torch.Tensor, torch.Tensor] = vmap(grad(weighted_mean, has_aux=True), in_dims=(0, chain_axis))(
        positions, batch
    )
    return found


class LossesAt:
    """The losses of a fork as a function of its flat position, which is what `torch.func` differentiates."""

    def __init__(self, objective: Objective) -> None:
        self._holder = _Holder(objective)
        trainable = [(name, p) for name, p in self._holder.module.named_parameters() if p.requires_grad]
        self._names = [f"module.{name}" for name, _ in trainable]
        self._shapes = [parameter.shape for _, parameter in trainable]

    def __call__(self, position: torch.Tensor, batch: Batch, size: int) -> torch.Tensor:
        """Losses of the `size` samples of `batch` at `position` ``(P,)``, as `losses_of` gives them."""
        parts = torch.split(position, [shape.numel() for shape in self._shapes])
        parameters = {n: part.view(s) for n, part, s in zip(self._names, parts, self._shapes, strict=True)}
        losses: torch.Tensor = functional_call(self._holder, parameters, (batch, size))
        return losses


class _Holder(nn.Module):
    """Makes the user's loss function the forward of a module, whose parameters `functional_call` can then exchange."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.module = twin_for(objective.loss_fn, objective.fork.module)
        self._loss_fn = objective.loss_fn

    def forward(self, batch: Batch, size: int) -> torch.Tensor:
        return losses_of(self._loss_fn, self.module, map_leaves(lambda leaf: leaf, batch), size)
