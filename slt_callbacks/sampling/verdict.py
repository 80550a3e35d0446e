"""Which chains have failed: their losses are not finite, or beyond any sense."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from slt_callbacks.sampling.draws import Draw


class Verdict:
    r"""Keeps a few numbers of every draw on the device, and looks at them once, when the chains have ended.

    They are the excess loss of the draw, and the mean of whatever else it carries, the losses of the reference set and
    of queries, less that at w*. With P parameters and N samples, a chain has failed if one of them is not finite or

    * nbeta times the excess is above ``1000 + 10 P``. At equilibrium it is about half the number of parameters at most
      (equipartition), and fluctuates by its root: twenty times that, and never less than 1000, is divergence and not
      sampling.
    * nbeta times the excess is below minus ten times ``1000 + 10 P + nbeta max|loss at w*|``. Off a minimum the loss
      falls, and no loss that is not negative can fall by more than it was at w*; others, such as minus the logarithm of
      a density, have no floor, which is why the bound is so much wider than upwards.
    * for the other losses: the same with N times the room, since a single sample may carry the excess of the whole set.

    Args:
        nbeta: Inverse temperature times samples.
        num_parameters: P.
        at_fork: Losses of the reference set at w*, ``(N,)``, or of its minibatches.
        num_samples: N.
        queries_at_fork: Mean loss at w* of what draws carry in ``query_losses``, by key.

    Example:
        >>> verdict = Verdict(nbeta=10.0, num_parameters=2, at_fork=torch.ones(4), num_samples=4)
        >>> for chain, excess in enumerate(torch.tensor([-1.0, 1e3, -1e9, float("nan")])):
        ...     verdict.update(Draw(chain, 0, samples=None, losses=excess, loss=excess, excess=excess))
        >>> verdict.failed()
        {1, 2, 3}
    """

    def __init__(
        self,
        nbeta: float,
        num_parameters: int,
        at_fork: torch.Tensor,
        num_samples: int,
        queries_at_fork: Mapping[str, float] | None = None,
    ) -> None:
        self._nbeta = nbeta
        self._highest = 1000.0 + 10.0 * num_parameters
        self._lowest = -10.0 * (self._highest + nbeta * float(at_fork.abs().max()))
        self._at_fork = float(at_fork.mean())
        self._num_samples = num_samples
        self._queries_at_fork = queries_at_fork or {}
        self._seen: dict[int, list[torch.Tensor]] = {}

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        others = [losses.mean() - self._queries_at_fork[key] for key, losses in draw.query_losses.items()]
        if draw.reference_losses is not None:
            others.append(draw.reference_losses.mean() - self._at_fork)
        numbers = torch.stack([draw.excess, *(other / self._num_samples for other in others)])
        self._seen.setdefault(draw.chain, []).append(numbers)

    def failed(self) -> set[int]:
        """Those of the chains seen since the last call that have failed; the one place that waits for the device."""
        if not self._seen:
            return set()
        table = torch.stack([torch.stack(draws) for draws in self._seen.values()]).cpu().double() * self._nbeta
        good = ((table > self._lowest) & (table < self._highest)).flatten(1).all(dim=1)  # NaN is neither
        chains, self._seen = list(self._seen), {}
        return {chain for chain, ok in zip(chains, good.tolist(), strict=True) if not ok}
