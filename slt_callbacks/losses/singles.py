"""Losses of single samples, from a loss function that only gives the mean of a batch."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.func import vmap

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.data.batches import Batch, has_rows, leaves, map_leaves, take_rows
from slt_callbacks.losses.functions import LossFn, losses_of
from slt_callbacks.losses.measured import MeasuredLoss, twin_for


class Singles:
    """Asks a loss function that gives a mean, such as a `training_step`, about batches of one.

    Args:
        loss_fn: From `resolve_loss`.
        module: A fork's module; it may move from call to call.
        at_once: Whether `torch.vmap` asks about all samples of a batch in one program, as `go_at_once` has found; where
            it fails after all, and without it, they are asked about one by one.

    Example:
        >>> mean = lambda module, x: module(x).square().mean()
        >>> Singles(mean, nn.Flatten(), at_once=True)(torch.tensor([[1.0], [3.0]]), size=2)
        tensor([1., 9.])
    """

    def __init__(self, loss_fn: LossFn, module: nn.Module, at_once: bool = False) -> None:
        self._loss_fn = loss_fn
        self._module = module
        self._at_once = at_once
        self._twin: nn.Module | None = None

    def __call__(self, batch: Batch, size: int, places: torch.Tensor | None = None) -> torch.Tensor:
        """One loss a sample, ``(size,)``, in the order of the batch.

        Args:
            batch: The samples.
            size: How many.
            places: Of a loss that draws random numbers: where the samples stand in the reference set, ``(size,)``.
        """
        if self._at_once and places is None:
            try:
                return self.at_once(batch, size)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._at_once = False  # vmap meets the user's code, and refuses in many ways
        return self.one_by_one(batch, size, places)

    def one_by_one(self, batch: Batch, size: int, places: torch.Tensor | None = None) -> torch.Tensor:
        """The same in a loop."""
        losses = []
        for row in range(size):
            if places is not None and isinstance(self._loss_fn, MeasuredLoss):
                self._loss_fn.numbers.set_for(places[row : row + 1])
            single = take_rows(batch, torch.tensor([row], device="cpu"), size)
            losses.append(losses_of(self._loss_fn, self._module, single, 1).mean())
        return torch.stack(losses)

    def at_once(self, batch: Batch, size: int) -> torch.Tensor:
        """The same in one program.

        Raises:
            TypeError: If something other than a tensor, such as a string, goes with every sample.
            RuntimeError: If `torch.vmap` refuses the module.
        """
        if self._twin is None:
            self._twin = twin_for(self._loss_fn, self._module)
        twin, rows = self._twin, [leaf for leaf in leaves(batch) if has_rows(leaf, size)]
        if not all(isinstance(row, torch.Tensor) for row in rows):
            raise TypeError("only tensors can be batched")

        def loss_of(*single: torch.Tensor) -> torch.Tensor:
            taken = iter(single)
            one = map_leaves(lambda leaf: next(taken)[None] if has_rows(leaf, size) else leaf, batch)
            return losses_of(self._loss_fn, twin, one, 1).mean()

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")  # still faster than a loop
            losses: torch.Tensor = vmap(loss_of)(*rows)
        return losses


@torch.no_grad()
def go_at_once(loss_fn: LossFn, module: nn.Module, batch: Batch, size: int) -> bool:
    """Whether `Singles` may ask about all samples at once: vmap takes the module, and gives what the loop gives."""
    singles = Singles(loss_fn, module)
    try:
        found = singles.at_once(batch, size)
    except Exception:  # noqa: BLE001  # as above
        return False
    return torch.allclose(found, singles.one_by_one(batch, size), rtol=1e-3)
