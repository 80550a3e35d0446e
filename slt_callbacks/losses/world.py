"""The world in which losses are taken: whatever the caller, or the Trainer, has switched on does not reach into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from slt_callbacks.basics.rng import isolated_rng
from slt_callbacks.losses.generators import own_generators, put_back, source_of


@contextmanager
def own_world(module: nn.Module, seed: int, *loss_fns: Any) -> Iterator[None]:
    """Sampling in its own world: own random numbers, gradients on, one way to a loss; put back whatever happens.

    * No autocast: chains run in full precision. One that the loss enters itself keeps no cast weights from one step to
      the next, as it would inside of ours: they would stay those of w*.
    * No anomaly detection: it would end all chains where one meets a NaN, and slows each step.
    * No fast path of attention. PyTorch takes it in eval mode without gradient, and gives other outputs at padded
      positions: the loss at w* and those of draws, taken without gradient, would not be the loss that chains descend.
    * Checkpointing, reentrant or not, as the variant that can tell the chains' gradients from all others.

    Args:
        module: The live module, which says where it is.
        seed: Of the global generators inside.
        loss_fns: The user's: generators that these or the module hold are put back too.

    Example:
        >>> with torch.no_grad(), own_world(nn.Linear(1, 1), seed=0):
        ...     torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
        (True, False)
        >>> torch.backends.mha.get_fastpath_enabled()
        True
    """
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    with ExitStack() as stack:
        stack.enter_context(isolated_rng(seed))
        stack.enter_context(put_back(map(source_of, own_generators(module, *loss_fns))))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(_slow_attention())
        stack.enter_context(_checkpoints_without_reentry())
        yield


@contextmanager
def _slow_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _checkpoints_without_reentry() -> Iterator[None]:
    """`torch.utils.checkpoint` looks this class up where ``use_reentrant=True``.

    The reentrant variant calls ``backward`` inside, which refuses to be told whose gradients are wanted, and so would
    leave gradients in every other leaf that the loss touches, such as the live weights of a teacher.
    """
    before = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _WithoutReentry  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = before  # type: ignore[misc]


class _WithoutReentry:
    """Stands in for `torch.utils.checkpoint.CheckpointFunction`: same values, same gradients, same memory."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )
