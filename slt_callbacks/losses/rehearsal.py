"""Everything that a measurement asks of a loss function, tried on a few samples before any training."""

from __future__ import annotations

import torch

from slt_callbacks.data.batches import Batch
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.functions import LossFn, as_losses, check_loss, losses_of
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.singles import go_at_once
from slt_callbacks.losses.tokens import TokenObjective
from slt_callbacks.weights.fork import Fork

_LOOKED_AT = 64  # samples among which two of one shape are looked for


class Rehearsal:
    """Tries a loss function at w*.

    Args:
        fork: At w*; the caller resets its buffers afterwards.
        loss_fn: From `resolve_loss`.
        reference: The reference set.

    Example:
        >>> from torch import nn
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> reference = draw_reference([torch.ones(5, 2)])
        >>> Rehearsal(Fork(nn.Linear(2, 1)), lambda module, x: module(x).square()[:, 0], reference).samples()
        True
    """

    def __init__(self, fork: Fork, loss_fn: LossFn, reference: ReferenceSet) -> None:
        self._fork = fork
        self._loss_fn = loss_fn
        self._reference = reference.to(fork.device, fork.dtype)
        _, places = max(
            self._reference.batches(torch.arange(min(_LOOKED_AT, len(reference)), device="cpu")),
            key=lambda found: len(found[1]),
        )
        self._places = places[:2]  # of two samples that one batch can hold, where there are any

    def samples(self) -> bool:
        """Whether losses come one a sample.

        Raises:
            Exception: As `check_loss`; and ValueError if the losses of one sample are as many as those of two.
        """
        fork = self._fork
        batch, size = self._batch(self._places)
        per_sample = check_loss(self._loss_fn, fork.module, fork.parameters, batch, size)
        if per_sample and size > 1:
            self._check_single(size)
        return per_sample

    @torch.no_grad()
    def _check_single(self, size: int) -> None:
        """Two losses are one a class, and not one a sample, if a single sample has two as well."""
        batch, _ = self._batch(self._places[:1])
        try:
            losses = self._loss_fn(self._fork.module, batch)
        except Exception:  # noqa: BLE001  # a loss that compares samples may need two, and will always have them
            return
        if losses.ndim > 0 and len(losses) == size:
            as_losses(losses, 1)

    @torch.no_grad()
    def queries(self, key: str, queries: ReferenceSet) -> None:
        """Try a query of the observable with the key `key`.

        Raises:
            ValueError: If the loss function does not take it.
        """
        batch, _ = queries.to(self._fork.device, self._fork.dtype).batches(torch.arange(1, device="cpu"))[0]
        try:
            losses_of(self._loss_fn, self._fork.module, batch, 1)
        except Exception as error:
            raise ValueError(
                f"Expected `loss_fn` to take the queries of `observables[{key!r}]` as it takes the reference samples, "
                f"but it raised {type(error).__name__}: {error}. Give queries of the same structure and shape."
            ) from error

    def tokens(self) -> int:
        """Tokens of the whole reference set, from one sample or two of every shape.

        Raises:
            ValueError: As `TokenObjective`.
        """
        objective: Objective = TokenObjective(self._fork, self._loss_fn, self._reference)
        few = self._reference.few_of_each(2)
        return len(objective.sample_losses(few)) // len(few) * len(self._reference)

    def singles_at_once(self) -> bool:
        """Whether a loss function that gives a mean can be asked about all samples at once; see `go_at_once`."""
        return go_at_once(self._loss_fn, self._fork.module, *self._batch(self._places))

    def _batch(self, places: torch.Tensor) -> tuple[Batch, int]:
        return self._reference.batches(places)[0][0], len(places)
