"""From a module and a batch to losses: the user's function, checked and brought to one form."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.basics.plain import brief, shown
from slt_callbacks.data.batches import Batch, describe, leaves

if TYPE_CHECKING:
    LossFn = Callable[[Any, Batch], torch.Tensor]
else:  # LightningCLI would refuse a function that does not say that it returns a tensor
    LossFn = Callable[[Any, Batch], Any]
"""``(module, batch) -> losses``: one a sample ``(B,)``, one a token ``(B, T)`` (averaged), or a scalar mean."""

_BASES = ("LightningModule", "LightningDataModule", "DataHooks", "ModelHooks")


def resolve_loss(loss_fn: LossFn | None, module: nn.Module) -> LossFn:
    """The loss to sample: `loss_fn`, or the module's own.

    Args:
        loss_fn: The user's function, or None for ``module.per_sample_loss(batch)`` or, failing that, the loss that
            ``module.training_step`` returns, with its logging muted.
        module: The live module; only looked at.

    Raises:
        TypeError: If `loss_fn` cannot be called.
        ValueError: If it is None and the module has neither method.

    Example:
        >>> class Net(nn.Linear):
        ...     def per_sample_loss(self, batch):
        ...         return self(batch).square().mean(1)
        >>> net = Net(2, 1)
        >>> resolve_loss(None, net)(net, torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    check_loss_fn(loss_fn)
    if loss_fn is not None:
        return loss_fn
    if callable(getattr(module, "per_sample_loss", None)):
        return _per_sample_method
    if overrides(type(module), "training_step"):
        return training_step_loss
    raise ValueError(
        f"Expected `loss_fn`, or a method `per_sample_loss(batch)` or `training_step(batch, batch_idx)` on "
        f"{type(module).__name__}, but found none: pass a function `loss_fn(module, batch)` that returns one loss a "
        "sample."
    )


def name_of_loss(loss_fn: LossFn | None, module: nn.Module) -> str:
    """What `resolve_loss` takes, by the name that the user knows it by.

    Example:
        >>> def losses(module, batch):
        ...     return module(batch).square().mean(1)
        >>> class Net(nn.Linear):
        ...     def per_sample_loss(self, batch):
        ...         return self(batch).square().mean(1)
        >>> name_of_loss(losses, Net(2, 1)), name_of_loss(None, Net(2, 1))
        ('losses', 'Net.per_sample_loss')
    """
    if loss_fn is None:
        own = "per_sample_loss" if callable(getattr(module, "per_sample_loss", None)) else "training_step"
        return f"{type(module).__name__}.{own}"
    if isinstance(loss_fn, functools.partial):
        return name_of_loss(loss_fn.func, module)
    name = str(getattr(loss_fn, "__qualname__", type(loss_fn).__qualname__)).rpartition("<locals>.")[2]
    code = getattr(loss_fn, "__code__", None)
    if code is not None and name.endswith("<lambda>"):  # of which there may be many
        return f"{name} in line {code.co_firstlineno} of {os.path.basename(code.co_filename)}"
    return name


def overrides(kind: type, name: str) -> bool:
    """Whether a class has a method of its own where Lightning's base classes have one that does nothing.

    What subclasses Lightning brings, such as its demo modules, are like a user's.

    Example:
        >>> class Net(nn.Module):
        ...     def training_step(self, batch, batch_idx):
        ...         return batch.mean()
        >>> overrides(Net, "training_step"), overrides(Net, "on_after_batch_transfer")
        (True, False)
    """
    for owner in kind.__mro__:
        if name in vars(owner):
            package = owner.__module__.partition(".")[0]
            return not (owner.__name__ in _BASES and package in ("lightning", "pytorch_lightning"))
    return False


def muted(*_args: Any, **_kwargs: Any) -> None:
    """Stands in for `log` and its like on a fork."""


def check_loss_fn(loss_fn: Any) -> None:
    """Refuse what cannot be a loss function.

    Raises:
        TypeError: If it is neither None nor callable.
    """
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"Expected `loss_fn` to be a function (module, batch) -> losses, but got {shown(loss_fn)}.")


def losses_of(loss_fn: LossFn, module: nn.Module, batch: Batch, size: int) -> torch.Tensor:
    """Losses of one batch: shape ``(size,)``, or ``()`` where `loss_fn` gives only the mean.

    Raises:
        TypeError: If `loss_fn` does not return a real floating-point tensor.
        ValueError: If its shape is none of ``(size,)``, ``(size, T)``, ``()``.
    """
    losses = as_losses(loss_fn(module, batch), size)
    return losses / size if getattr(loss_fn, "is_summed", False) else losses


def as_losses(losses: Any, size: int) -> torch.Tensor:
    """What a loss function returned for `size` samples, brought to the form of `losses_of`; the errors are the same."""
    if not isinstance(losses, torch.Tensor):
        raise TypeError(
            f"Expected `loss_fn` to return a tensor of losses, but got {type(losses).__name__}: return the tensor "
            "itself, not its .item()."
        )
    if not losses.is_floating_point():
        raise TypeError(f"Expected `loss_fn` to return floating-point losses, but got {losses.dtype}.")
    if losses.ndim == 2 and losses.shape[0] == size and losses.shape[1] > 0:
        return losses.mean(1)
    if losses.ndim == 0 and size == 1:
        return losses.reshape(1)  # a `squeeze` in the user's model takes the only sample's dimension with it
    if losses.ndim == 0 or losses.shape == (size,):
        return losses
    raise ValueError(
        f"Expected `loss_fn` to return one loss a sample, shape ({size},), one a token, ({size}, T), or a scalar, but "
        f'got {tuple(losses.shape)} for a batch of {size}: use reduction="none" and average over all but the first '
        "dimension."
    )


class Form(NamedTuple):
    """What a loss function returns."""

    per_sample: bool
    """One loss a sample, else a mean."""
    by_token: bool
    """One a token, of which a sample has several."""


def check_loss(
    loss_fn: LossFn, module: nn.Module, touches: Callable[[torch.Tensor], bool], batch: Batch, size: int
) -> Form:
    """Try `loss_fn` on one batch with gradient, so that a mistake shows before any training.

    Args:
        loss_fn: From `resolve_loss`.
        module: A fork, not the live module.
        touches: Whether a loss has a gradient that reaches its weights, as a fork says.
        batch: A batch of `size` samples.
        size: Number of samples.

    Returns:
        The form of the losses.

    Raises:
        TypeError: As `losses_of`.
        ValueError: As `losses_of`; also if there is no gradient, or if the batch was changed in place.
        LossFnError: If `loss_fn`, or its gradient, raises.
    """
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, torch.Tensor)]
    versions = [leaf._version for leaf in tensors]
    try:
        returned = loss_fn(module, batch)
    except Exception as error:
        raise LossFnError(
            f"`loss_fn` raised {type(error).__name__} on {describe(batch)}: {brief(str(error))}. "
            f"{_what_to_write(loss_fn, batch)}"
        ) from error
    losses = as_losses(returned, size)
    if [leaf._version for leaf in tensors] != versions:
        raise ValueError(
            f"Expected `loss_fn` to leave its batch as it is, but it changed {describe(batch)} in place: clone the "
            "tensor before writing into it."
        )
    if not _has_gradient(losses, touches):
        raise ValueError(
            "Expected the result of `loss_fn` to have a gradient with respect to the module it was given, but it has "
            "none: use the `module` argument (it is a copy of the live one), and no torch.no_grad(), .detach() or "
            ".item()."
        )
    return Form(losses.ndim == 1, returned.ndim == 2 and returned.shape[1] > 1)


def _has_gradient(losses: torch.Tensor, touches: Callable[[torch.Tensor], bool]) -> bool:
    if not losses.requires_grad:
        return False
    try:
        return touches(losses.mean())
    except Exception as error:
        raise LossFnError(
            f"The gradient of the loss raised {type(error).__name__}: {error}. It is taken in eval mode, and for "
            "the parameters of the module alone: a layer that has a gradient only in train mode, or that calls "
            "`backward` inside, needs another form here (for a checkpoint use_reentrant=False)."
        ) from error


def _what_to_write(loss_fn: LossFn, batch: Batch) -> str:
    """How a loss function that raised may be mended."""
    loss_fn = getattr(loss_fn, "loss_fn", loss_fn)  # of a measurement's loss, the user's own
    if loss_fn is training_step_loss:
        hint = "Pass `loss_fn` instead of relying on `training_step`."
    elif loss_fn is _per_sample_method:
        hint = "It was called as module.per_sample_loss(batch)."
    else:
        hint = "It was called as loss_fn(module, batch) and has to return the losses."
    if isinstance(batch, torch.Tensor):  # of (x, y) each tensor is taken for a batch of its own
        hint += " If `reference` is one batch of several tensors, write [batch]."
    return hint


def _per_sample_method(module: Any, batch: Batch) -> torch.Tensor:
    losses: torch.Tensor = module.per_sample_loss(batch)
    return losses


def training_step_loss(module: Any, batch: Batch) -> torch.Tensor:
    """The loss that a module's ``training_step`` returns, with its logging muted."""
    # Instance attributes of a private fork: the class, and the live module, keep their logging.
    module.log = module.log_dict = muted
    output = module.training_step(batch, 0) if _takes_batch_index(module) else module.training_step(batch)
    loss: torch.Tensor = output["loss"] if isinstance(output, dict) else output
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss.reshape(())
    return loss


def _takes_batch_index(module: nn.Module) -> bool:
    arguments = inspect.signature(type(module).training_step).parameters  # type: ignore[attr-defined]
    return len(arguments) > 2 or any(argument.kind is argument.VAR_POSITIONAL for argument in arguments.values())
