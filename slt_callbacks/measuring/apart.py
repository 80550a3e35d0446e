"""Measurements that know nothing of each other, so that any of them can be made anywhere, at any time, and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slt_callbacks.measuring.estimator import Estimator

if TYPE_CHECKING:
    from torch import nn

    from slt_callbacks.measuring.measurement import Measurement
    from slt_callbacks.measuring.sampling_run import OnSteps


class Apart(Estimator):
    """An estimator each of whose measurements is its first: chains start at the weights, "auto" is found anew.

    What observables compare with the measurement before, such as the alignment of two kernels, is as at a first one.

    Args:
        estimator: Whose settings and samples are taken, and which has not measured yet; it is left as it is.

    Example:
        >>> import torch
        >>> from slt_callbacks import SamplerConfig
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> config = SamplerConfig(num_chains=1, num_draws=2, num_burnin_steps=0)
        >>> loss_fn = lambda net, x: net(x).square().mean(1)
        >>> apart = Apart(Estimator(draw_reference([torch.ones(4, 2)]), loss_fn, None, config, persistent=True))
        >>> net = torch.nn.Linear(2, 1)
        >>> first, again = apart.measure(net, step=7), apart.measure(net, step=7)
        >>> first["llc"]["mean"] == again["llc"]["mean"]
        True
    """

    def __init__(self, estimator: Estimator) -> None:
        vars(self).update(vars(estimator.twin()))

    def measure(self, module: nn.Module, step: int = 0, on_steps: OnSteps | None = None) -> Measurement:
        """As `Estimator.measure`, by one that has not measured before."""
        return Estimator.measure(self.twin(), module, step, on_steps)
