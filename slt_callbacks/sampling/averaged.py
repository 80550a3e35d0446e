"""Langevin dynamics whose noise is averaged over two steps: no bias on a quadratic, however long the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.step_sizes import AutoStep, check_step_size, for_curvature, forgetting, number_of


@dataclass(frozen=True)
class LeimkuhlerMatthews(Dynamics):
    r"""SGLD with the mean of the last two noises: one gradient a step, and no step-size bias on a quadratic.

    .. math:: w_{t+1} = w_t - \tfrac{\epsilon}{2}\left[nbeta \nabla L_m(w_t) + localization (w_t - w^*)\right]
        + \sqrt{\epsilon}\, \tfrac{\xi_t + \xi_{t-1}}{2}, \qquad \xi_t \sim N(0, I), \quad \xi_{-1} = 0

    Along a direction of curvature k the stationary variance is 1 / k for every stable step, :math:`\epsilon k < 4`;
    SGLD's is :math:`1 / (k (1 - \epsilon k / 4))`. So steps may be 25 times as long as SGLD's at a bias of 2 %, and a
    direction of curvature k is forgotten in :math:`2 / (\epsilon k)` of them. Beyond quadratics the error is of second
    order in the step, and where the loss is stiffer at the chains' positions than at w* it is not small: "auto" looks
    there, and ``slt/health/stability`` tells the largest :math:`\epsilon k_{max} / 4` it has seen.

    "auto" is half the longest stable step, some 25 times SGLD's at a bias of 2 %. It is judged where the chains stand
    after their burn-in, for many losses are stiffer there than at the weights, and is shorter where the noise of
    minibatches would add more than 5 % to the LLC. Another step is no break in the series.

    Noise of minibatches, of variance V along a direction, adds :math:`\epsilon V / (4 (1 - \epsilon k / 4))` of the
    variance, as it does to SGLD's; ``slt/health/noise_bias`` estimates what this adds to the LLC.

    Args:
        step_size: :math:`\epsilon`, in squared units of the weights. "auto": half the longest stable step, by the
            largest curvature at w* and then at the chains' positions after their burn-in, and shorter where the noise
            of minibatches asks for it. It may change from one measurement to the next.

    Raises:
        ValueError: If `step_size` is neither "auto" nor a finite number >= 0.

    Source: Leimkuhler & Matthews 2013, "Rational construction of stochastic numerical methods for molecular sampling"
    (Appl. Math. Res. Express), the high-friction limit of BAOAB; Vilmart 2015 reads it as a postprocessed integrator.

    Example:
        >>> dynamics = LeimkuhlerMatthews(step_size=1.0)
        >>> weights = torch.tensor([1.0])
        >>> state = dynamics.init(weights)
        >>> for step in range(2):
        ...     dynamics.step(weights, torch.zeros(1), torch.tensor([2.0]), torch.zeros(1), LocalPosterior(0.0, 1.0),
        ...                   state, step)
        ...     print(weights.item())
        1.5
        2.75
    """

    auto: ClassVar[AutoStep] = AutoStep(aim=0.5, most=0.75, least=0.125, is_biased=False)
    step_size: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_step_size(self.step_size)

    def init(self, position: torch.Tensor) -> State:
        """The noise of the step before: none."""
        return {"noise": torch.zeros_like(position)}

    def step(
        self,
        position: torch.Tensor,
        gradient: torch.Tensor,
        noise: torch.Tensor,
        anchor: torch.Tensor,
        posterior: LocalPosterior,
        state: Mapping[str, torch.Tensor],
        sgld_step: int,
    ) -> None:
        """One update in place; arguments as in `Dynamics.step`."""
        step_size = number_of(self.step_size)
        last = state["noise"]
        position.add_(posterior.gradient(gradient, position, anchor), alpha=-step_size / 2)
        position.add_(last.add_(noise), alpha=math.sqrt(step_size) / 2)
        last.copy_(noise)

    def with_curvature(self, curvature: float) -> LeimkuhlerMatthews:
        """The same dynamics with "auto" replaced by half the longest step that is stable at `curvature` (k_max)."""
        return for_curvature(self, curvature, self.auto)

    def step_bias(self, curvature: float) -> float:
        """Relative excess of the stationary variance of a quadratic of curvature k: 0 for every stable step.

        Example:
            >>> LeimkuhlerMatthews(0.03).step_bias(100.0), LeimkuhlerMatthews(0.05).step_bias(100.0)
            (0.0, inf)
        """
        return 0.0 if self.stability(curvature) < 1 else math.inf

    def stability(self, curvature: float) -> float:
        """Share of the longest stable step along a direction of curvature k, which at 1 ends: ``step_size * k / 4``.

        Example:
            >>> LeimkuhlerMatthews("auto").with_curvature(80.0).stability(80.0)
            0.5
        """
        return number_of(self.step_size) * curvature / 4

    def memory(self, curvature: float) -> float:
        """Steps in which a chain forgets where it began along a direction of curvature k: ``2 / (step_size * k)``."""
        return forgetting(number_of(self.step_size) * curvature)
