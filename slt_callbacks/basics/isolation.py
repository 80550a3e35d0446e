"""A world of its own for sampling, inside somebody's training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from slt_callbacks.basics.rng import isolated_rng


@contextmanager
def undisturbed(module: nn.Module, seed: int) -> Iterator[None]:
    """Own random numbers, gradients on, no autocast, whatever the caller has set.

    Args:
        module: Says on which device.
        seed: Of the global generators in the block; they are put back after it.

    Example:
        >>> with torch.no_grad(), undisturbed(nn.Linear(1, 1), seed=0):
        ...     torch.is_grad_enabled()
        True
    """
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    with ExitStack() as stack:
        stack.enter_context(isolated_rng(seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device, enabled=False))
        yield
