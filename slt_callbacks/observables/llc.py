"""The local learning coefficient."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch

from slt_callbacks.basics.plain import shown
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
    * ``loss_trace``: mean losses of the draws, ``(C, T)`` float64, in the unit of the loss;
    * with `num_train_samples`, ``free_energy`` = ``num_train_samples * reference_loss + mean * ln(num_train_samples)``,
      in nats, and ``num_train_samples`` itself.

    Of two places in weight space, Bayesian model selection prefers the one with the lower free energy: a simpler one
    with a larger loss up to some number of training samples, and beyond it the other. The loss has to be a negative log
    likelihood in nats; Watanabe's expansion goes on with ``ln ln n``, which is left out. L(w*) is that of the
    reference samples, so that their sampling error counts n times: compare checkpoints on one reference. It is a number
    of the main posterior alone. A refinement on other data or of another loss has no training set of n samples, and one
    of fewer weights is the model in which the others are known.

    Args:
        num_train_samples: n, how many terms the training loss is a mean of: samples of the training set, or tokens
            where the loss is a mean over these; None for no free energy.

    Raises:
        ValueError: If `num_train_samples` is not a positive integer.

    Source: Lau et al. (arXiv 2308.12108), equation 11; Hoogland et al. (arXiv 2402.02364), equation 4. The variance
    companion has the form of Watanabe's singular fluctuation (2009, chapter 6). Free energy over training: Carroll et
    al. (arXiv 2501.17745), Hoogland et al., after Watanabe.

    Example:
        >>> llc = LLC()
        >>> empty = torch.empty(0)
        >>> llc.reset(ReferencePoint(0, 1.0, empty, empty, nbeta=10.0, localization=0.0, num_chains=1, num_draws=2))
        >>> for index, loss in enumerate(torch.tensor([1.5, 2.5])):
        ...     llc.update(Draw(chain=0, index=index, samples=None, losses=loss, loss=loss, excess=loss - 1.0))
        >>> llc.compute()["mean"]
        10.0
        >>> llc.num_train_samples = 1000
        >>> round(llc.compute()["free_energy"], 3)  # 1000 * 1.0 + 10.0 * ln(1000)
        1069.078
    """

    num_train_samples: int | None = None  # of the class too: a subclass may have an `__init__` of its own

    def __init__(self, num_train_samples: int | None = None) -> None:
        wrong = isinstance(num_train_samples, bool) or not isinstance(num_train_samples, int) or num_train_samples < 1
        if num_train_samples is not None and wrong:
            raise ValueError(
                f"Expected `num_train_samples` to be a positive integer, but got {shown(num_train_samples)}: write the "
                "size of the training set, such as LLC(num_train_samples=len(train_data))."
            )
        self.num_train_samples = num_train_samples

    def refine(self, parts: Sequence[Part]) -> dict[str, LLC]:
        """The same of every posterior beside the main one, without a free energy."""
        found = {part.name: copy.copy(self) for part in parts}
        for llc in found.values():
            llc.num_train_samples = None
        return found

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
        mean, n = float(valid.mean()), self.num_train_samples
        return {
            "mean": mean,
            "stderr": std / math.sqrt(len(valid)) if len(valid) > 1 else _stderr_of_one(valid),
            "std": std,
            "per_chain": per_chain,
            "variance_llc": float(valid.var()) if valid.numel() > 1 else math.nan,
            "reference_loss": self._reference.loss,
            "loss_trace": self._losses.values(),
            **(
                {} if n is None else {"free_energy": free_energy(n, self._reference.loss, mean), "num_train_samples": n}
            ),
        }


def free_energy(num_train_samples: int, loss: float, llc: float) -> float:
    r"""The free energy of a place in weight space, to the two leading orders of Watanabe's expansion.

    .. math:: F = num\_train\_samples \cdot loss + llc \cdot \ln(num\_train\_samples)

    Args:
        num_train_samples: Terms that the training loss is a mean of.
        loss: Their mean negative log likelihood at w*, in nats.
        llc: The local learning coefficient there.

    Source: Watanabe (2009, chapter 6); Carroll et al. (arXiv 2501.17745).

    Example:
        >>> free_energy(1, 2.0, 5.0), round(free_energy(1000, 2.0, 5.0), 3)
        (2.0, 2034.539)
    """
    return num_train_samples * loss + llc * math.log(num_train_samples)


def _stderr_of_one(trace: torch.Tensor) -> float:
    """Standard error of the mean of one autocorrelated chain ``(1, T)``."""
    if len(trace) != 1:
        return math.nan
    return float(trace.std()) / math.sqrt(effective_sample_size(trace)) if trace.shape[1] > 1 else math.nan
