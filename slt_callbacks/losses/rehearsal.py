"""Everything that a measurement asks of a loss function, tried on a few samples before any training."""

from __future__ import annotations

from typing import Any

import torch

from slt_callbacks.data.batches import Batch, map_leaves
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.common_numbers import CommonNumbers
from slt_callbacks.losses.functions import LossFn, as_losses, check_loss, losses_of
from slt_callbacks.losses.measured import TOGETHER, MeasuredLoss
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.singles import go_at_once
from slt_callbacks.losses.togetherness import Structure, is_noisy_sum, structure
from slt_callbacks.losses.tokens import TokenObjective
from slt_callbacks.weights.fork import Fork

_LOOKED_AT = 64  # samples among which two of one shape are looked for
_CLOSE = 5e-3  # beyond rounding, also in TF32 and with a GPU's atomics
_PAIRS = ((0, 1), (1, 2), (0, 2))
_SEEDS = 8  # of a loss that draws numbers: enough to tell it from twice as much


class Rehearsal:
    """Tries a loss function at w*.

    Args:
        fork: At w*; the caller resets its buffers afterwards.
        loss_fn: From `resolve_loss`, or a `MeasuredLoss`, which is told in what manner it answers.
        reference: The reference set.

    Attributes:
        loss: The loss, with its manner as far as it has been found.
        remarks: What the user should be told, in sentences.

    Example:
        >>> from torch import nn
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> reference = draw_reference([torch.ones(5, 2)])
        >>> Rehearsal(Fork(nn.Linear(2, 1)), lambda module, x: module(x).square()[:, 0], reference).samples()
        True
    """

    def __init__(self, fork: Fork, loss_fn: LossFn, reference: ReferenceSet) -> None:
        self.loss = loss_fn if isinstance(loss_fn, MeasuredLoss) else MeasuredLoss(loss_fn, fork.module, fork)
        self.remarks: list[str] = []
        self._fork = fork
        self._reference = reference.to(fork.device, fork.dtype)
        _, places = max(
            self._reference.batches(torch.arange(min(_LOOKED_AT, len(reference)), device="cpu")),
            key=lambda found: len(found[1]),
        )
        self._few = places[:6]  # that one batch can hold; two of them, where there are any, say most of it
        self._places = places[:2]

    def samples(self) -> bool:
        """Whether losses come one a sample; the rest of their manner is found on the way.

        Raises:
            Exception: As `check_loss`; and ValueError if the losses of one sample are as many as those of two.
        """
        fork, loss = self._fork, self.loss
        batch, size = self._batch(self._places)
        with loss.numbers.undisturbed():
            self._try_transfers(batch)
            with loss.numbers.watch():
                per_sample, by_token = check_loss(loss.in_place(), fork.module, fork.touches, batch, size)
            loss.manner.per_sample, loss.manner.by_token = per_sample, by_token
            if per_sample and size > 1:
                self._check_single(size)
            if self._is_repeated() and size > 1:
                self._look_at_pairs()
        return per_sample

    @torch.no_grad()
    def _try_transfers(self, batch: Batch) -> None:
        loss = self.loss
        names = ", ".join(f"`{name}`" for name in loss.transfers.names)
        if not names or loss.manner.transferred:
            return
        before = CommonNumbers(loss.loss_fn, self._fork.module)
        try:
            with before.watch():
                loss.transfers(self._fork.module, map_leaves(_clone, batch))
        except Exception as error:  # noqa: BLE001  # it is the user's own
            loss.manner.untransferable = True
            self.remarks.append(
                f"{names} cannot be applied to the reference samples ({type(error).__name__}: {error}), and the loss "
                "is taken without: give samples as `training_step` gets them."
            )
            return
        if before.active:
            self.remarks.append(
                f"{names}, which the reference samples go through as training batches do, draw random numbers: each "
                "sample meets the same ones at every call."
            )

    def _is_repeated(self) -> bool:
        """Whether the loss is the same when asked again; without gradient it may be another all the same."""
        first, again = self._ask(self._places), self._ask(self._places)
        if not torch.allclose(first, again, rtol=_CLOSE, atol=_CLOSE, equal_nan=True):
            self.remarks.append(
                f"The loss of the same samples is {float(first.mean()):.4g} and then {float(again.mean()):.4g}, though "
                "the random numbers were the same: it keeps something from call to call, or draws from a generator "
                "that is out of sight, and what comes on top of the loss at w* is no property of the weights. Pass a "
                "`loss_fn` that depends on the module and the batch alone."
            )
            return False
        try:
            with torch.no_grad():
                without = self._ask(self._places)
        except Exception:  # noqa: BLE001  # a loss that takes gradients itself, as of a penalty or of forces
            self.loss.manner.with_gradient = True
        else:
            self.loss.manner.with_gradient = not torch.allclose(without, first, rtol=1e-4, atol=1e-7, equal_nan=True)
        return True

    def _look_at_pairs(self) -> None:
        """Is the loss of several samples their mean, their sum, or neither."""
        loss = self.loss
        try:
            told = self._of_samples() if loss.manner.per_sample else self._of_scalars()
        except Exception:  # noqa: BLE001  # a loss that takes some numbers of samples and not others
            return
        if told == "sum":
            loss.manner.summed = True
            self.remarks.append(
                "The loss of two samples at once is the sum of their losses alone: it is divided by the number of "
                "samples, for the LLC is that of the mean loss. Where it is a sum divided by a number of your own, "
                "pass a `loss_fn` that returns the mean, or one loss a sample."
            )
        if told == "compares":
            loss.manner.coupled = True
            otherwise = f"{TOGETHER}: set one of them to the size of a training batch"
            if loss.together is not None:
                otherwise = f"{loss.together}, the size of a training batch"
            self.remarks.append(
                "The loss compares the samples of a batch with each other: of two at once it is not what it is of each "
                f"alone. It is taken in batches of `block_size` or `batch_size` samples, or else of {otherwise}. A "
                "loss kernel and influences, which are about single samples, say little of such a loss."
            )

    def _of_samples(self) -> Structure:
        few = self._few
        one, two = few[:1], few[:2]
        if self.loss.numbers.active:  # the numbers of a batch: of one size, with another neighbour
            if len(few) < 3:
                return "mean"
            alone, beside = self._ask(two)[:1], self._ask(few[[0, 2]])[:1]
        else:
            try:
                alone, beside = self._ask(one), self._ask(two)[:1]
            except Exception:  # noqa: BLE001  # it may need two
                alone, beside = self._ask(two), self._ask(few[:4])[:2]
        return "mean" if torch.allclose(alone, beside, rtol=_CLOSE, atol=1e-6, equal_nan=True) else "compares"

    def _of_scalars(self) -> Structure:
        few = self._few
        if self.loss.numbers.active:
            pair = self._average(few[:2])
            return "sum" if is_noisy_sum([self._average(few[:1]), self._average(few[1:2])], pair) else "mean"
        try:
            self._ask(few[:1])
            units = [few[i : i + 1] for i in range(min(len(few), 3))]
        except Exception:  # noqa: BLE001  # it may need two
            units = [few[i : i + 2] for i in range(0, len(few) - 1, 2)]
            if len(units) < 2:
                return "compares"
        alone = [float(self._ask(unit)) for unit in units]
        pairs = {(i, j): float(self._ask(torch.cat([units[i], units[j]]))) for i, j in _PAIRS if j < len(units)}
        return structure(alone, pairs)

    def _average(self, places: torch.Tensor) -> float:
        return sum(float(self._ask(places, seed).mean()) for seed in range(_SEEDS)) / _SEEDS

    def _ask(self, places: torch.Tensor, seed: int = 0) -> torch.Tensor:
        batch, size = self._batch(places)
        self.loss.numbers.start(seed)
        return losses_of(self.loss, self._fork.module, batch, size).detach()

    @torch.no_grad()
    def _check_single(self, size: int) -> None:
        """Two losses are one a class, and not one a sample, if a single sample has two as well."""
        batch, _ = self._batch(self._places[:1])
        try:
            losses = self.loss(self._fork.module, batch)
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
            losses_of(self.loss.of_raw(), self._fork.module, batch, 1)
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
        objective: Objective = TokenObjective(self._fork, self.loss, self._reference)
        few = self._reference.few_of_each(2)
        return len(objective.sample_losses(few)) // len(few) * len(self._reference)

    def singles_at_once(self) -> bool:
        """Whether a loss function that gives a mean can be asked about all samples at once; see `go_at_once`.

        Raises:
            ValueError: If it cannot be asked about one sample.
        """
        one, _ = self._batch(self._places[:1])
        try:
            losses_of(self.loss, self._fork.module, one, 1)
        except Exception as error:
            raise ValueError(
                "Expected the loss to take a batch of one, as a loss kernel and influences need where it gives a mean, "
                f"but it raised {type(error).__name__}: {error}. Pass a `loss_fn` that returns one loss a sample."
            ) from error
        return not self.loss.numbers.active and go_at_once(self.loss, self._fork.module, *self._batch(self._places))

    def _batch(self, places: torch.Tensor) -> tuple[Batch, int]:
        return self._reference.batches(places)[0][0], len(places)


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
