"""The loss that chains see: over the reference set or a minibatch of it, at the fork's present position."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from slt_callbacks.data.batches import Batch
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.functions import LossFn, losses_of
from slt_callbacks.losses.measured import TOGETHER, MeasuredLoss
from slt_callbacks.losses.singles import Singles
from slt_callbacks.weights.fork import Fork


class Objective:
    """Losses and gradients of a fork on its reference set.

    Args:
        fork: Where the losses are taken; the caller moves it.
        loss_fn: From `resolve_loss`, or a `MeasuredLoss`: such a one may draw random numbers, or compare samples.
        reference: The reference set.
        per_sample: Whether `loss_fn` gives one loss a sample, as `check_loss` found.
        batch_size: Samples in a minibatch; None for the whole set.
        block_size: Most samples in one forward pass; None for no limit.
        singles_at_once: Without `per_sample`: as `Singles` takes it.

    Attributes:
        at_fork: Losses at w*, filled by `measure_fork`: one a sample ``(N,)``; for scalar losses one a minibatch
            ``(N / batch_size,)``.

    Raises:
        ValueError: If `batch_size` is larger than the reference set, or, with scalar losses, does not divide it.
    """

    def __init__(
        self,
        fork: Fork,
        loss_fn: LossFn,
        reference: ReferenceSet,
        per_sample: bool = True,
        batch_size: int | None = None,
        block_size: int | None = None,
        singles_at_once: bool = False,
    ) -> None:
        size = len(reference)
        check_batch_size(batch_size, size)
        if batch_size is not None and not per_sample and size % batch_size:
            raise ValueError(
                f"Expected `num_samples` to be a multiple of `batch_size` where `loss_fn` returns a scalar, but got "
                f"{size} and {batch_size}: change one of them, or return one loss a sample."
            )
        self.fork = fork
        self.per_sample = per_sample
        self.batch_size = batch_size if batch_size is not None and batch_size < size else None
        self.at_fork = torch.empty(0, device="cpu")
        self.loss_fn = loss_fn
        self._reference = reference.to(fork.device, fork.dtype)
        self._measured = loss_fn if isinstance(loss_fn, MeasuredLoss) else None
        self._block_size = self._block(block_size)
        self._singles = Singles(loss_fn, fork.module, singles_at_once)

    def __len__(self) -> int:
        """Number of reference samples N."""
        return len(self._reference)

    def batches(self, places: torch.Tensor | None = None) -> list[tuple[Batch, torch.Tensor]]:
        """The samples at `places` in blocks of at most `block_size`; see `ReferenceSet.batches`."""
        return self._reference.batches(places, self._block_size)

    def batches_of(self, samples: ReferenceSet) -> list[tuple[Batch, torch.Tensor]]:
        """Other samples, where the fork is, in blocks of the same size; see `ReferenceSet.batches`."""
        return samples.to(self.fork.device, self.fork.dtype).batches(limit=self._block_size)

    @torch.no_grad()
    def measure_fork(self) -> torch.Tensor:
        """Put the fork at w*, fill `at_fork`, and return the mean loss there, shape ``()``."""
        self.fork.reset()
        if self._measured is None:
            self.at_fork = self._losses_at_fork()
        else:
            before = len(self._measured.numbers.sources)
            with self._measured.numbers.watch():
                self.at_fork = self._losses_at_fork()
            if len(self._measured.numbers.sources) > before:  # it has drawn what it should have in common with draws
                self.at_fork = self._losses_at_fork()
        return self.at_fork.mean()

    @property
    def draws_numbers(self) -> bool:
        """Whether the loss draws random numbers, as `measure_fork` has found."""
        return self._measured is not None and self._measured.numbers.active

    @torch.no_grad()
    def losses(self, places: torch.Tensor | None = None) -> torch.Tensor:
        """Losses at the present position without gradient: ``(B,)`` in the order of `places`, or ``()``."""
        return self._joined([(losses.detach(), where) for losses, where in self._forward(places)], places)

    @torch.no_grad()
    def sample_losses(self, places: torch.Tensor | None = None) -> torch.Tensor:
        """One loss a sample, ``(B,)``; a loss function that gives a mean only is asked about batches of one."""
        if self.per_sample:
            return self.losses(places)
        parts = []
        for batch, where in self.batches(places):
            own = where if places is None else places[where]
            parts.append((self._singles(batch, len(where), own if self.draws_numbers else None), where))
        return self._in_order(parts)

    def losses_and_gradient(self, places: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Losses at the present position and the gradient of their mean.

        Args:
            places: Which reference samples, int64 ``(B,)`` on the CPU; None for all.

        Returns:
            The losses, detached, ``(B,)`` in the order of `places` or ``()``; and one flat gradient a parameter.
        """
        return self.backward(places), self.take_gradients()

    def backward(self, places: torch.Tensor | None = None, sign: float = 1.0) -> torch.Tensor:
        """Add ``sign`` times the gradient of the mean loss to what `take_gradients` will return.

        Returns:
            The losses, detached, as in `losses_and_gradient`.
        """
        total = len(self) if places is None else len(places)
        parts = []
        for losses, where in self._forward(places):
            weight = sign * len(where) / total
            mean = losses.mean() if weight == 1 else losses.mean() * weight
            self.fork.backward(mean)
            parts.append((losses.detach(), where))
        return self._joined(parts, places)

    def take_gradients(self) -> list[torch.Tensor]:
        """One flat gradient a trainable parameter: what `backward` has added up, which is then forgotten."""
        return self.fork.take_gradients()

    def excess(self, losses: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
        """Mean loss minus the mean loss at w* of the same samples, shape ``()`` (methods: pairing)."""
        if places is None:
            return (losses - self.at_fork).mean()
        if self.per_sample and (self.draws_numbers or self._is_coupled):
            return (losses - self._again_at_fork(places)).mean()
        if self.per_sample:
            return (losses - self.at_fork[places.to(losses.device, non_blocking=True)]).mean()
        return losses - self.at_fork[int(places[0]) // len(places)]

    def minibatches(self, generator: torch.Generator) -> Iterator[torch.Tensor | None]:
        """Endless minibatches: None for the whole set, else places ``(B,)``, reshuffled when none is left."""
        while self.batch_size is None:
            yield None
        num_batches = len(self) // self.batch_size
        while True:
            if self.per_sample:
                order = torch.randperm(len(self), generator=generator, device="cpu")[: num_batches * self.batch_size]
            else:  # the loss at w* is known for fixed minibatches only: shuffle those
                blocks = torch.arange(len(self), device="cpu").view(num_batches, self.batch_size)
                order = blocks[torch.randperm(num_batches, generator=generator, device="cpu")].flatten()
            yield from order.view(num_batches, self.batch_size)

    def set_numbers(self, where: torch.Tensor, places: torch.Tensor | None = None) -> None:
        """Let a loss that draws random numbers draw those of the samples that stand at `where` among `places`."""
        if self._measured is not None and self._measured.numbers.active:
            self._measured.numbers.set_for(where if places is None else places[where])

    def _losses_at_fork(self) -> torch.Tensor:
        if self.per_sample or self.batch_size is None:
            return self.losses().reshape(-1)
        blocks = torch.arange(len(self), device="cpu").view(-1, self.batch_size)
        return torch.stack([self.losses(block) for block in blocks])

    @property
    def _is_coupled(self) -> bool:
        return self._measured is not None and self._measured.manner.coupled

    def _block(self, most: int | None) -> int | None:
        """Samples in a forward pass; where their loss depends on how many they are, that is what is trained."""
        if self._measured is None or not self._measured.manner.coupled:
            return most
        together = min(most or self.batch_size or self._measured.together or TOGETHER, len(self))
        num_blocks = -(-len(self) // together)
        return -(-len(self) // num_blocks)  # of one size as nearly as can be: a remainder of one has no others

    @torch.no_grad()
    def _again_at_fork(self, places: torch.Tensor) -> torch.Tensor:
        """Losses at w* of the very batch that a chain has seen, whose numbers, or other samples, are its own.

        It costs a forward pass a draw, and a copy of the position while it lasts.
        """
        position = self.fork.position
        here = position.clone()
        for piece, anchor in zip(self.fork.pieces, self.fork.anchor_pieces(), strict=True):
            piece.of(position).copy_(anchor)
        losses = self.losses(places)
        position.copy_(here)
        return losses

    def _forward(self, places: torch.Tensor | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch, where in self.batches(places):
            self.set_numbers(where, places)
            yield losses_of(self.loss_fn, self.fork.module, batch, len(where)), where

    def _joined(self, parts: list[tuple[torch.Tensor, torch.Tensor]], places: torch.Tensor | None) -> torch.Tensor:
        total = len(self) if places is None else len(places)
        if not self.per_sample:
            return torch.stack([losses.mean() * (len(where) / total) for losses, where in parts]).sum()
        return self._in_order(parts)

    def _in_order(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Losses of several batches as one tensor, in the order of their samples."""
        if len(parts) == 1:
            return parts[0][0]
        order = torch.cat([where for _, where in parts]).argsort()
        return torch.cat([losses for losses, _ in parts])[order.to(self.fork.device, non_blocking=True)]


def check_batch_size(batch_size: int | None, num_samples: int) -> None:
    """Refuse minibatches larger than the reference set.

    Raises:
        ValueError: If so.
    """
    if batch_size is not None and batch_size > num_samples:
        raise ValueError(
            f"Expected `batch_size` to be at most the {num_samples} reference samples, but got {batch_size}."
        )
