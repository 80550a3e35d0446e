"""The local learning coefficient."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from slt_callbacks.observables.base import Part, ReferencePoint
from slt_callbacks.observables.trace import Trace
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.diagnostics import effective_sample_size


class LLC:
    r"""Local learning coefficient (LLC): how much the loss grows around the fork, as the chains see it.

    .. math:: \hat\lambda(w^*) = nbeta \left(\mathbb{E}[L(w)] - L(w^*)\right)

    Every draw is compared with the loss at w* of the same samples, which takes the minibatch noise of L out of the
    difference. The estimate is dimensionless, and negative where the chains find lower losses than the fork has: it is
    reported as it is.

    `compute` returns, with C chains and T draws:

    * ``mean``: average over the valid chains;
    * ``stderr``: ``std / sqrt(C)``; with one chain, from the effective sample size of its trace;
    * ``std``: standard deviation over valid chains (ddof 1); NaN with one chain;
    * ``per_chain``: ``(C,)`` float64, NaN for a dropped chain;
    * ``variance_llc``: ``nbeta ** 2 * Var(L)`` over all valid draws, with the noise of minibatches on top;
    * ``reference_loss``: mean loss at w*, in the unit of the loss;
    * ``loss_trace``: mean losses of the draws, ``(C, T)`` float64, in the unit of the loss.

    Source: Lau et al. (arXiv 2308.12108), equation 11; Hoogland et al. (arXiv 2402.02364), equation 4. The variance
    companion has the form of Watanabe's singular fluctuation (2009, chapter 6).

    Example:
        >>> llc = LLC()
        >>> empty = torch.empty(0)
        >>> llc.reset(ReferencePoint(0, 1.0, empty, empty, nbeta=10.0, localization=0.0, num_chains=1, num_draws=2))
        >>> for index, loss in enumerate(torch.tensor([1.5, 2.5])):
        ...     llc.update(Draw(chain=0, index=index, samples=None, losses=loss, loss=loss, excess=loss - 1.0))
        >>> llc.compute()["mean"]
        10.0
    """

    def refine(self, parts: Sequence[Part]) -> dict[str, LLC]:
        """The same of every posterior beside the main one."""
        return {part.name: copy.copy(self) for part in parts}

    def reset(self, reference: ReferencePoint) -> None:
        """Start a measurement."""
        self._reference = reference
        self._losses = Trace(reference.num_chains, reference.num_draws)
        self._excess = Trace(reference.num_chains, reference.num_draws)

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        self._losses.put(draw.chain, draw.index, draw.loss)
        self._excess.put(draw.chain, draw.index, draw.excess)

    def discard(self, chain: int) -> None:
        """Take back the draws of a chain that failed."""
        self._losses.drop(chain)
        self._excess.drop(chain)

    def compute(self) -> dict[str, Any]:
        """The estimate and its errors; see the class."""
        excess = self._excess.values() * self._reference.nbeta
        per_chain = excess.mean(dim=1)
        valid = excess[per_chain.isfinite()]
        std = float(per_chain[per_chain.isfinite()].std()) if len(valid) > 1 else math.nan
        return {
            "mean": float(valid.mean()),
            "stderr": std / math.sqrt(len(valid)) if len(valid) > 1 else _stderr_of_one(valid),
            "std": std,
            "per_chain": per_chain,
            "variance_llc": float(valid.var()) if valid.numel() > 1 else math.nan,
            "reference_loss": self._reference.loss,
            "loss_trace": self._losses.values(),
        }


def _stderr_of_one(trace: torch.Tensor) -> float:
    """Standard error of the mean of one autocorrelated chain ``(1, T)``."""
    if len(trace) != 1:
        return math.nan
    return float(trace.std()) / math.sqrt(effective_sample_size(trace)) if trace.shape[1] > 1 else math.nan
