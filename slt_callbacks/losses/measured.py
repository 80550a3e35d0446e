"""The loss as measurements ask for it: on copies of a batch, as training sees it, with numbers common to all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from slt_callbacks.data.batches import Batch, map_leaves
from slt_callbacks.losses.behavioral import Behavioral
from slt_callbacks.losses.common_numbers import CommonNumbers
from slt_callbacks.losses.functions import LossFn, muted
from slt_callbacks.losses.stand_in import stand_in_for
from slt_callbacks.losses.transfers import Transfers
from slt_callbacks.weights.copies import private_copy, twin_of
from slt_callbacks.weights.fork import Fork

TOGETHER = 32  # samples in a batch of a loss that compares them, where nobody has said how many are trained together
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)


@dataclass
class Manner:
    """How a loss answers, as a `Rehearsal` finds it before training.

    Attributes:
        per_sample: Whether it gives one loss a sample, else one for all.
        by_token: Whether it gives one a token, of which a sample has several.
        summed: Whether that one is a sum over the samples: it is divided by their number.
        coupled: Whether the loss of a sample depends on which others it is asked about with.
        with_gradient: Whether it is another without gradient: then it is always taken with.
        transferred: Whether the reference samples have been through the transfer hooks.
        untransferable: Whether they cannot go through them.
    """

    per_sample: bool = True
    by_token: bool = False
    summed: bool = False
    coupled: bool = False
    with_gradient: bool = False
    transferred: bool = False
    untransferable: bool = False


class MeasuredLoss:
    """A loss function for one measurement, called as any other.

    Args:
        loss_fn: From `resolve_loss`.
        live: The module that is measured; only looked at.
        fork: At its weights.
        manner: What is known of the loss; None before it has been tried.
        together: Samples in a batch where the loss compares them, and neither minibatches nor blocks say how many: of a
            training batch, where that is known.

    Attributes:
        loss_fn: The function itself.
        manner: How it answers.
        numbers: Common random numbers, where it draws some.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> loss = MeasuredLoss(lambda module, x: x.mul_(2).sum(1), net, Fork(net))
        >>> batch = torch.ones(3, 2)
        >>> loss(net, batch), bool((batch == 1).all())
        (tensor([4., 4., 4.]), True)
    """

    def __init__(
        self, loss_fn: LossFn, live: nn.Module, fork: Fork, manner: Manner | None = None, together: int | None = None
    ) -> None:
        self.loss_fn = loss_fn
        self.manner = Manner() if manner is None else manner
        self.numbers = CommonNumbers(loss_fn, fork.module)
        self.transfers = Transfers(live, fork.device)
        self.together = together
        self.on_copies = True
        self._arrive = fork.arrive
        self._live = live
        self.attend(fork.module, fork.own)
        fork.keep_attributes()
        if isinstance(loss_fn, Behavioral):
            self.loss_fn = loss_fn.at(self._at_fork(fork), lambda: self.numbers.active)

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """As `LossFn`."""
        manner = self.manner
        batch = self.prepared(module, batch)
        self._arrive()
        if manner.with_gradient and not torch.is_grad_enabled():
            with torch.enable_grad():
                return self.loss_fn(module, batch).detach()
        return self.loss_fn(module, batch)

    @property
    def is_summed(self) -> bool:
        """Whether what it gives of several samples is their sum, which `losses_of` divides by their number."""
        return self.manner.summed

    def prepared(self, module: nn.Module, batch: Batch) -> Batch:
        """What the loss function is given of a batch: a copy that has been through the transfer hooks."""
        hooked = self.transfers.names and not (self.manner.transferred or self.manner.untransferable)
        if self.on_copies or hooked:
            # The batch may be the kept reference set itself, where whatever a loss function writes would stay.
            batch = map_leaves(_copied, batch)
        return self.transfers(module, batch) if hooked else batch

    def in_place(self) -> MeasuredLoss:
        """The same on the batch itself, to see what the loss function does to it."""
        same = copy.copy(self)
        same.on_copies = False
        return same

    def of_raw(self) -> MeasuredLoss:
        """The same for samples that have not been through the transfer hooks: those that a user gives."""
        same = copy.copy(self)
        same.manner = replace(self.manner, transferred=False)
        return same

    def _at_fork(self, fork: Fork) -> nn.Module:
        """A copy of the fork's module that stays where it is."""
        still = private_copy(fork.module)
        theirs = {id(own): copied for own, copied in zip(fork.module.parameters(), still.parameters(), strict=True)}
        return self.attend(still, {live: theirs[id(own)] for live, own in fork.own.items()})

    def attend(self, module: nn.Module, parameters: dict[int, torch.Tensor] | None = None) -> nn.Module:
        """Prepare a copy of the live module for being asked; returns it.

        Args:
            module: A fork's, or a twin of it.
            parameters: Its own by the `id` of the live ones; None where others will stand in for them.
        """
        trainers = (getattr(part, "_trainer", None) for part in self._live.modules())
        trainer = next((trainer for trainer in trainers if trainer is not None), None)
        for part in module.modules():
            if trainer is not None and "_trainer" in vars(part):
                part._trainer = stand_in_for(trainer, self._live, module, parameters)
                part.log = part.log_dict = part.print = muted  # type: ignore[assignment]
            if isinstance(part, _RECURRENT) and _device_of(part) == "cuda":
                _let_backward(part)
        return module


def as_asked(loss_fn: LossFn) -> Callable[[nn.Module, Batch], Batch]:
    """What turns a kept batch into the one that `loss_fn` is asked about."""
    if isinstance(loss_fn, MeasuredLoss):
        return loss_fn.prepared
    return lambda module, batch: map_leaves(_copied, batch)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def twin_for(loss_fn: LossFn, module: nn.Module) -> nn.Module:
    """A `twin_of` the module that a loss function can be asked with."""
    twin = twin_of(module)
    return loss_fn.attend(twin) if isinstance(loss_fn, MeasuredLoss) else twin


def _device_of(part: nn.Module) -> str:
    return next((weight.device.type for weight in part.parameters()), "cpu")


def _let_backward(part: nn.Module) -> None:
    """CuDNN's recurrent layers have a backward pass in train mode only, where without dropout they are the same."""
    if type(part).forward in [kind.forward for kind in _RECURRENT]:  # another one may ask for the mode itself
        part.training, part.dropout = True, 0.0  # type: ignore[assignment]
