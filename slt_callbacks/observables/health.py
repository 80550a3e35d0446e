"""Whether the chains can be trusted."""

from __future__ import annotations

import math
from typing import Any

import torch

from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.trace import Trace
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.diagnostics import drift, effective_sample_size, split_rhat


class ChainHealth:
    """Diagnostics of the chains' losses, from the same draws as the LLC.

    `compute` returns:

    * ``failed_chains``: chains dropped for a non-finite or a senseless loss;
    * ``num_valid_draws``: draws left, over all chains;
    * ``rhat``: split R-hat; near 1 when the chains agree, NaN below 8 draws a chain;
    * ``ess``: effective sample size over all chains, in draws;
    * ``drift``: second half against first half, in standard errors.

    Source: `slt_callbacks.stats`.

    Example:
        >>> import torch
        >>> health, empty = ChainHealth(), torch.empty(0)
        >>> health.reset(ReferencePoint(0, 1.0, empty, empty, nbeta=1.0, localization=0.0, num_chains=2, num_draws=1))
        >>> for chain, loss in enumerate(torch.tensor([1.0, float("nan")])):
        ...     health.update(Draw(chain, 0, samples=None, losses=loss, loss=loss, excess=loss))
        >>> health.discard(1)
        >>> health.compute()["failed_chains"], health.compute()["num_valid_draws"]
        (1, 1)
    """

    def reset(self, reference: ReferencePoint) -> None:
        """Start a measurement."""
        self._excess = Trace(reference.num_chains, reference.num_draws)
        self._failed: set[int] = set()

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        self._excess.put(draw.chain, draw.index, draw.excess)

    def discard(self, chain: int) -> None:
        """Take back the draws of a chain that failed, and count it."""
        self._excess.drop(chain)
        self._failed.add(chain)

    @property
    def excess(self) -> float:
        """Mean excess loss over all valid draws; NaN without any."""
        trace = self._valid()
        return float(trace.mean()) if len(trace) else math.nan

    @property
    def halves(self) -> tuple[float, float]:
        """The same of the first half of each chain's draws, and of the second."""
        trace = self._valid()
        middle = trace.shape[1] // 2
        return float(trace[:, :middle].mean()), float(trace[:, middle:].mean())

    def compute(self) -> dict[str, Any]:
        """The diagnostics; see the class."""
        trace = self._valid()
        return {
            "failed_chains": len(self._failed),
            "num_valid_draws": trace.numel(),
            "rhat": split_rhat(trace),
            "ess": effective_sample_size(trace),
            "drift": drift(trace),
        }

    def _valid(self) -> torch.Tensor:
        trace = self._excess.values()
        return trace[trace.isfinite().all(dim=1)]
