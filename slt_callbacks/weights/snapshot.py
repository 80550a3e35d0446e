"""The weights and buffers of a module at a training step, wherever they come from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from slt_callbacks.weights.copies import private_copy


@dataclass(frozen=True)
class Snapshot:
    """What is measured.

    Attributes:
        step: Optimizer steps done.
        module: With the weights and buffers of that step. Of a live one training goes on with them: whoever does not
            measure at once takes `captured`.

    Example:
        >>> import torch
        >>> live = nn.Linear(1, 1)
        >>> kept = Snapshot(3, live).captured()
        >>> _ = torch.nn.init.constant_(live.weight, 7.0)
        >>> kept.step, kept.module.weight.item() == 7.0
        (3, False)
    """

    step: int
    module: nn.Module

    def captured(self) -> Snapshot:
        """The same on a copy of its own, which training does not reach."""
        return Snapshot(self.step, private_copy(self.module))
