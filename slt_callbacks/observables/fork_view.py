"""The fork as an observable without chains sees it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from slt_callbacks.data.batches import Batch
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.measured import MeasuredLoss, as_asked
from slt_callbacks.losses.objective import Objective
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.weights.copies import twin_of


class ForkView:
    """A private copy of the module at w*, to be read, run and even moved: all is put back after every observable.

    Args:
        objective: The losses of the reference set; its fork is what is looked at.
        point: What is known of w*.
        samples: Those that the observable brings; None where it looks at the reference set.

    Attributes:
        point: What is known of w*: training step, loss, losses, rows of the samples.
        module: A copy of its own for this observable, in eval mode, on the weights of the fork: hooks stay with it.
        parameters: The trainable parameters, to be moved in place under ``torch.no_grad()``.
        device: Where they are, and what `batches` gives.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> from slt_callbacks.weights.fork import Fork
        >>> loss_fn = lambda module, batch: module(batch)[:, 0].square()
        >>> objective = Objective(Fork(nn.Linear(1, 1)), loss_fn, draw_reference([torch.ones(2, 1)]))
        >>> none = torch.empty(0)
        >>> view = ForkView(objective, ReferencePoint(0, 1.0, none, none, 1.0, 0.0, 1, 1))
        >>> with torch.no_grad():
        ...     for parameter in view.parameters:
        ...         _ = parameter.zero_()
        >>> view.loss()
        0.0
    """

    def __init__(self, objective: Objective, point: ReferencePoint, samples: ReferenceSet | None = None) -> None:
        self._objective = objective
        self._samples = samples
        self.point = point
        self.parameters = objective.fork.parameters
        self.device = objective.fork.device

    @cached_property
    def module(self) -> nn.Module:
        """See the class."""
        return twin_of(self._objective.fork.module)

    def batches(self, most: int | None = None) -> list[Batch]:
        """Copies of the samples as the loss gets them, in batches that a forward pass may take.

        Args:
            most: Only the first so many of them; None for all.
        """
        size = len(self._objective if self._samples is None else self._samples)
        places = torch.arange(size if most is None else min(most, size), device="cpu")
        if self._samples is not None:
            chosen = self._samples if most is None else self._samples.subset(places)
            return [batch for batch, _ in self.batches_of(chosen)]
        prepare = as_asked(self._objective.loss_fn)
        return [prepare(self.module, batch) for batch, _ in self._objective.batches(None if most is None else places)]

    def batches_of(self, samples: ReferenceSet) -> list[tuple[Batch, torch.Tensor]]:
        """Copies of samples of one's own as the loss would get them, and where each stands, int64 ``(B,)``."""
        loss_fn = self._objective.loss_fn
        prepare = as_asked(loss_fn.of_raw() if isinstance(loss_fn, MeasuredLoss) else loss_fn)
        return [(prepare(self.module, batch), where) for batch, where in self._objective.batches_of(samples)]

    def loss(self) -> float:
        """Mean loss over the reference set at the present weights."""
        return float(self._objective.losses().mean())

    def losses(self) -> torch.Tensor:
        """One loss a reference sample ``(N,)`` at the present weights."""
        return self._objective.sample_losses()

    def reset(self) -> None:
        """Put weights and buffers back to w*; `module` is a new copy from here on."""
        self._objective.fork.reset()
        self.__dict__.pop("module", None)
