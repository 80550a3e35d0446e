"""What a chain tells at a draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Draw:
    """What one chain saw at one draw: numbers only, never weights.

    Attributes:
        chain: Index of the chain, from 0.
        index: Index of the draw within its chain, from 0.
        samples: Places of the minibatch in the reference set, int64 ``(B,)`` on the CPU; None for the whole set.
        losses: Losses of those samples before the update, ``(B,)``; ``()`` where the loss function gives a mean only.
        loss: Their mean, ``()``.
        excess: Their mean minus the mean loss at w* of the same samples, ``()``.
        reference_losses: Losses of the whole reference set at the same weights, ``(N,)``, where an observable asks.
        query_losses: Losses of the observables' own queries at the same weights, ``(Q,)``, by the observable's key.
    """

    chain: int
    index: int
    samples: torch.Tensor | None
    losses: torch.Tensor
    loss: torch.Tensor
    excess: torch.Tensor
    reference_losses: torch.Tensor | None = None
    query_losses: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Draw:
        """The same draw with its losses on another device."""
        return replace(
            self,
            losses=self.losses.to(device),
            loss=self.loss.to(device),
            excess=self.excess.to(device),
            reference_losses=None if self.reference_losses is None else self.reference_losses.to(device),
            query_losses={key: losses.to(device) for key, losses in self.query_losses.items()},
        )
