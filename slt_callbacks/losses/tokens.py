"""One loss a token: for observables that look inside the samples."""

from __future__ import annotations

import torch

from slt_callbacks.losses.objective import Objective


class TokenObjective(Objective):
    """The same reference set, with the loss of every token where `Objective` has that of every sample.

    Raises:
        ValueError: From `sample_losses`, if the loss function does not return ``(B, T)``, one T for all samples.
    """

    @torch.no_grad()
    def sample_losses(self, places: torch.Tensor | None = None) -> torch.Tensor:
        """One loss a token, ``(B * T,)``, sample by sample."""
        parts = []
        for batch, where in self.batches(places):
            self.set_numbers(where, places)
            losses = self.loss_fn(self.fork.module, batch)
            if losses.ndim != 2 or len(losses) != len(where):
                raise ValueError(
                    f"Expected `loss_fn` to return one loss a token, shape (B, T), for `per_token=True`, but got "
                    f"{tuple(losses.shape)} for a batch of {len(where)}: do not average over the tokens."
                )
            parts.append((losses, where))
        if len({losses.shape[1] for losses, _ in parts}) > 1:
            raise ValueError("Expected samples of one length for `per_token=True`, but got several: pad them.")
        return self._in_order(parts).flatten()
