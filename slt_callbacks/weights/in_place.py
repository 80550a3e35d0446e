"""Chains on the shards of a live module (FSDP2): its weights are lent to them, and put back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn

from slt_callbacks.basics.gate import Gate
from slt_callbacks.basics.rng import generator
from slt_callbacks.weights.copies import without_watchers
from slt_callbacks.weights.fork import Fork, trainable_of
from slt_callbacks.weights.pieces import pieces_of
from slt_callbacks.weights.remembered import Remembered
from slt_callbacks.weights.selection import EVERYTHING, Selection
from slt_callbacks.weights.shards import check_in_place, gated, local, reset_passes, reshard

_SHARD_STREAM = 210  # apart from the streams of the chains and of those who look at them


class Lent:
    """A live module whose shards chains may move, while `lent` lasts.

    Args:
        module: The live module.
        gate: Where its processes are in step.
        rank: Of this process.

    Attributes:
        module: As given; in eval mode.
        gate: As given.
        rank: As given.
        anchors: By the `id` of a trainable parameter, this process's shard of w*.
    """

    def __init__(self, module: nn.Module, gate: Gate, rank: int) -> None:
        self.module = module
        self.gate = gate
        self.rank = rank
        live = trainable_of(module)
        self.anchors = {id(parameter): local(parameter).clone() for parameter in live}
        self._live = live
        self._gradients = [parameter.grad for parameter in live]
        self._buffers = [(part._buffers, dict(part._buffers)) for part in module.modules()]
        self._modes = [(part, part.training) for part in module.modules()]
        self._remembered = Remembered(module)

    def begin(self) -> None:
        """The module as a measurement finds it."""
        self.forget_gradients()
        self.module.eval()

    def forget_gradients(self) -> None:
        """No gradient is left anywhere."""
        for parameter in self._live:
            parameter.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Everything as it was, bit for bit, weights first; nothing in it waits for another process."""
        try:
            for parameter, gradient in zip(self._live, self._gradients, strict=True):
                local(parameter).copy_(self.anchors[id(parameter)])
                parameter.grad = gradient
        finally:
            self.restore_attributes()
            for part, training in self._modes:
                part.training = training
            reset_passes(self.module)

    def restore_attributes(self) -> None:
        """Buffers, and what the module's attributes hold."""
        for buffers, before in self._buffers:
            buffers.update(before)
        self._remembered.put_back()

    def fork(self, selection: Selection = EVERYTHING) -> ShardedFork:
        """The live module at w*, for a chain to move; see `ShardedFork`."""
        reset_passes(self.module)  # or parameters may be those that a forward pass has gathered
        self.restore_attributes()
        return ShardedFork(self, selection)


@contextmanager
def lent(module: nn.Module, gate: Gate, rank: int) -> Iterator[Lent]:
    """Lend a module's shards to chains, and put back weights, gradients, buffers, modes and attributes.

    Args:
        module: The live module.
        gate: Where its processes are in step.
        rank: Of this process.

    Raises:
        TypeError: If chains cannot run on its shards.
        KeyboardInterrupt: After everything is back, where somebody has asked to stop.
    """
    reshard(module)
    check_in_place(module)
    reset_passes(module)
    with ExitStack() as stack:
        stack.enter_context(gate.patient())
        borrowed = Lent(module, gate, rank)
        stack.callback(borrowed.restore)
        stack.enter_context(without_watchers(module))
        stack.enter_context(gated(module, gate))
        borrowed.begin()
        yield borrowed


class ShardedFork(Fork):
    """The live module itself: `position` is written into its shards before a loss is taken, all processes in step.

    What chains and dynamics see is this process's part of the weights, as vectors ``(p,)`` in memory of their own, so
    that elementwise steps are those of any fork. Sums over all weights are exchanged, and every process draws its own
    noise. The loss is asked of the live module, in eval mode, and every process asks about the same samples: the mean
    of their gradients, which FSDP2 takes, is the gradient.

    Args:
        owner: Has the module, and w*.
        selection: Which trainable parameters move.

    Attributes:
        module: The live module.
        position: This process's part of the chain's weights, float32 or float64, shape ``(p,)``.
        parameters: The live parameters that move.
        own: The same by their `id`.
        anchor: This process's part of w*, flat, in the same order.
        pieces: As in `Fork`.

    Raises:
        ValueError: If slices are selected.
    """

    in_place = True

    def __init__(self, owner: Lent, selection: Selection = EVERYTHING) -> None:
        if selection.slices:
            raise ValueError(
                'Expected whole parameters where chains run on shards, but got `slices`: pass sharded="gathered" if a '
                "whole copy of the weights fits a device, or leave `slices` out."
            )
        chosen = selection.masks(owner.module)
        live = [parameter for parameter in owner.module.parameters() if id(parameter) in chosen]
        self._owner = owner
        self._masks = [None] * len(live)
        self._shards = [local(parameter) for parameter in live]
        self.dtype, self.device = self._shards[0].dtype, self._shards[0].device
        self.anchor = [owner.anchors[id(parameter)].flatten() for parameter in live]
        self.position = torch.empty(sum(map(len, self.anchor)), dtype=self.dtype, device=self.device)
        self.parameters = list(live)
        self.pieces = pieces_of([len(part) for part in self.anchor], self.device.type)
        self.own = {id(parameter): parameter for parameter in live}
        self._frozen = []
        self._rest = [
            (local(p), owner.anchors[id(p)])
            for p in owner.module.parameters()
            if p.requires_grad and id(p) not in chosen
        ]
        self.module = owner.module
        self._remembered = Remembered(self.module)
        self._buffers = [
            (part, name, buffer.clone())
            for part in self.module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self.reset()

    @property
    def num_moving(self) -> int:
        """Weights that a chain moves, those of all processes."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def num_here(self) -> int:
        """Those of this process."""
        return len(self.position)

    @torch.no_grad()
    def arrive(self) -> None:
        """Write the position into the shards; another pass begins."""
        reset_passes(self.module)
        self._owner.gate.begin()
        for shard, part in zip(self._shards, self.split(self.position), strict=True):
            shard.copy_(part.view(shard.shape))
        for shard, anchor in self._rest:  # where another fork has left it
            shard.copy_(anchor)

    def split(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One part ``(n,)`` a parameter of a vector ``(p,)``."""
        return torch.split(vector, [len(part) for part in self.anchor])

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes of what each has found on its shards."""
        self._owner.gate("sum")
        summed = value.clone()
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(summed)
        return summed

    def norm(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Euclidean norm over all weights of all processes, shape ``()``."""
        return self.total(super().norm(tensors).square()).sqrt()

    def generator(self, *key: int) -> torch.Generator:
        """A private generator of this process's noise."""
        return generator(self.device, *key, self._owner.rank, _SHARD_STREAM)

    def touches(self, loss: torch.Tensor) -> bool:
        """Whether the gradient of a loss reaches a weight that moves."""
        self.backward(loss)
        reached = any(parameter.grad is not None for parameter in self.parameters)
        self._owner.forget_gradients()
        return reached

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss to what `take_gradients` will return, and leave none in any other leaf."""
        others = [leaf for leaf in _leaves(loss) if id(leaf) not in self._owner.anchors]
        before = [leaf.grad for leaf in others]
        for leaf in others:
            leaf.grad = None
        try:
            torch.autograd.backward(loss)
        finally:
            for leaf, gradient in zip(others, before, strict=True):
                leaf.grad = gradient

    def take_gradients(self) -> list[torch.Tensor]:
        """One flat gradient a parameter, this process's part, which is then forgotten."""
        gradients = []
        for parameter, part in zip(self.parameters, self.anchor, strict=True):
            found = parameter.grad
            gradients.append(torch.zeros_like(part) if found is None else local(found).detach().flatten())
        self._owner.forget_gradients()
        return gradients

    def keep_attributes(self) -> None:
        """As in `Fork`; the precision is the module's own."""
        self._remembered = Remembered(self.module)


def _leaves(loss: torch.Tensor) -> list[Any]:
    """Everything that would get a gradient."""
    found: dict[int, Any] = {}
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        waiting.extend(further for further, _ in node.next_functions)
    return list(found.values())
