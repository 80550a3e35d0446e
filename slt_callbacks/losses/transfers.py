"""What Lightning does to a batch on its way to `training_step`: hooks that a module or its data module overrides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from slt_callbacks.data.batches import Batch
from slt_callbacks.losses.functions import overrides

# In Lightning's order.
HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class Transfers:
    """Takes a batch as it comes out of a loader, and gives it as the training loss sees it.

    A hook of the data module comes before one of the module, as in Lightning. That of the data module runs on a shallow
    copy of it, that of the module on the fork.

    Args:
        live: The module that is measured.
        device: Where the fork is.

    Attributes:
        names: The hooks that are overridden, in the order in which they run.

    Example:
        >>> class Net(nn.Linear):
        ...     def on_after_batch_transfer(self, batch, dataloader_idx):
        ...         return batch / 255
        >>> net = Net(1, 1)
        >>> transfers = Transfers(net, torch.device("cpu"))
        >>> transfers.names, transfers(net, torch.tensor([51.0]))
        (['on_after_batch_transfer'], tensor([0.2000]))
    """

    def __init__(self, live: nn.Module, device: torch.device) -> None:
        data = getattr(getattr(live, "_trainer", None), "datamodule", None)
        self._device = device
        self._of_data = {} if data is None else {name: data for name in HOOKS if overrides(type(data), name)}
        self.names = [name for name in HOOKS if name in self._of_data or overrides(type(live), name)]

    def __call__(self, module: nn.Module, batch: Batch) -> Batch:
        """A batch, which may be written into, as `module`, a fork or its twin, is trained on it."""
        for name in self.names:
            owner = copy.copy(self._of_data[name]) if name in self._of_data else module
            hook: Callable[..., Any] = getattr(owner, name)
            batch = hook(batch, self._device, 0) if name == "transfer_batch_to_device" else hook(batch, 0)
        return batch
