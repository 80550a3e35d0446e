"""Langevin dynamics without friction: SGLD, and SGLD behind a preconditioner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.step_sizes import (
    BIASED,
    AutoStep,
    check_step_size,
    for_curvature,
    forgetting,
    is_finite,
    number_of,
)


@dataclass(frozen=True)
class SGLD(Dynamics):  # by name: LightningCLI forgets the class of what is a dataclass and nothing else
    r"""Stochastic gradient Langevin dynamics.

    .. math:: w \leftarrow w - \tfrac{\epsilon}{2}\left[nbeta \nabla L_m(w) + localization (w - w^*)\right]
        + \sqrt{\epsilon}\, \xi, \qquad \xi \sim N(0, I)

    Args:
        step_size: :math:`\epsilon`, in squared units of the weights. "auto": the largest step whose stationary bias
            stays under 2 % in the stiffest direction, found at the first measurement and held. Where the bias passes
            5 % the step is halved, and where the step could be eight times as long it grows: that is logged as an
            event, and the detectors start afresh rather than call it a jump.

    Raises:
        ValueError: If `step_size` is neither "auto" nor a finite number >= 0.

    Source: Welling & Teh 2011; Lau et al. (arXiv 2308.12108), algorithm 1.

    Example:
        >>> dynamics = SGLD(step_size=0.5)
        >>> weights = torch.tensor([1.0])
        >>> dynamics.step(weights, torch.tensor([2.0]), torch.tensor([0.0]), torch.tensor([0.0]),
        ...               LocalPosterior(nbeta=1.0, localization=0.0), {}, 0)
        >>> weights
        tensor([0.5000])
    """

    auto: ClassVar[AutoStep] = BIASED
    step_size: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_step_size(self.step_size)

    def init(self, position: torch.Tensor) -> State:
        """No state: the next step depends on the position alone."""
        return {}

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
        position.add_(posterior.gradient(gradient, position, anchor), alpha=-step_size / 2)
        position.add_(noise, alpha=math.sqrt(step_size))

    def with_curvature(self, curvature: float) -> SGLD:
        """The same dynamics with "auto" replaced by the step whose bias at `curvature` (k_max) is 2 %."""
        return for_curvature(self, curvature, self.auto)

    def step_bias(self, curvature: float) -> float:
        """Relative excess of the stationary variance along a direction of curvature k: ``step_size * k / 4``.

        Example:
            >>> SGLD(step_size=1e-3).step_bias(80.0)
            0.02
        """
        return self.stability(curvature)

    def stability(self, curvature: float) -> float:
        """Share of the longest stable step along a direction of curvature k, which at 1 ends: ``step_size * k / 4``."""
        return number_of(self.step_size) * curvature / 4

    def memory(self, curvature: float) -> float:
        """Steps in which a chain forgets where it began along a direction of curvature k: ``2 / (step_size * k)``."""
        return forgetting(number_of(self.step_size) * curvature)


@dataclass(frozen=True)
class RMSPropSGLD(Dynamics):
    r"""SGLD with a diagonal preconditioner from a running average of squared loss gradients.

    .. math:: w \leftarrow w - \tfrac{\epsilon}{2} G \left[nbeta \nabla L_m(w) + localization (w - w^*)\right]
        + \sqrt{\epsilon G}\, \xi, \qquad G = \frac{1}{\sqrt{\hat V} + damping}

    V averages the squared gradient of the loss alone (no `nbeta`, no localization) with weight `decay`, from 0 and
    bias-corrected. There are two other variants: V from 1 with bias correction (Hitchcock & Hoogland), whose first
    corrected V is the squared gradient plus decay / (1 - decay), 99 by default, with a G that is about 0.1 at most; and
    V from 0 without (devinterp), whose first V is 1 - decay of the squared gradient, with a G up to 10 times as large.

    Without the Gamma term the target is exact only while G does not follow the position: with the whole reference set
    in every step and a chain that mixes slower than V forgets (1 / (1 - decay) steps), the chain samples p / G and the
    LLC comes out too large, of a quadratic up to twice as large. Measured where 200 is right, on 200 weights of
    curvature 1 and 200 of 1e4 with `nbeta` 1 and no localization: 272 at a step of 4e-3, 288 at 1e-3. Minibatch noise
    keeps G still: use it with minibatches.

    Args:
        step_size: :math:`\epsilon`, in squared units of the weights over G. "auto": as in `SGLD`, for the largest
            preconditioner possible, ``1 / damping``.
        decay: Weight of the past in V, in [0, 1).
        damping: Added to the root of V, > 0, in units of the gradient.

    Raises:
        ValueError: If a setting is outside its range.

    Source: Li et al. 2016 (arXiv 1512.07666) without the Gamma term; Hitchcock & Hoogland (arXiv 2507.21449).

    Example:
        >>> dynamics = RMSPropSGLD(step_size=0.5, damping=1.0)
        >>> weights = torch.tensor([1.0])
        >>> state = dynamics.init(weights)
        >>> dynamics.step(weights, torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([0.0]),
        ...               LocalPosterior(nbeta=1.0, localization=0.0), state, 0)
        >>> weights  # G = 1 / (3 + 1), so 1 - 0.25 * 3 / 4
        tensor([0.8125])
    """

    auto: ClassVar[AutoStep] = BIASED
    step_size: float | Literal["auto"] = "auto"
    decay: float = 0.99
    damping: float = 0.1

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        if not (is_finite(self.decay) and 0 <= self.decay < 1):
            raise ValueError(f"Expected `decay` to be in [0, 1), but got {self.decay!r}.")
        if not (is_finite(self.damping) and self.damping > 0):
            raise ValueError(f"Expected `damping` to be a positive number, but got {self.damping!r}.")

    def init(self, position: torch.Tensor) -> State:
        """The running average of squared gradients, all zero."""
        return {"square_average": torch.zeros_like(position)}

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
        average = state["square_average"].mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        preconditioner = self.preconditioner(average, sgld_step + 1)
        position.addcmul_(posterior.gradient(gradient, position, anchor), preconditioner, value=-step_size / 2)
        position.addcmul_(noise, preconditioner.sqrt_(), value=math.sqrt(step_size))

    def preconditioner(self, square_average: torch.Tensor, num_steps: int) -> torch.Tensor:
        """G after `num_steps` steps (>= 1), as a new tensor of the shape of `square_average`."""
        corrected = square_average / (1 - self.decay**num_steps)
        return corrected.sqrt_().add_(self.damping).reciprocal_()

    def with_curvature(self, curvature: float) -> RMSPropSGLD:
        """The same dynamics with "auto" replaced: G is at most ``1 / damping``, so that bound sets the step."""
        return for_curvature(self, curvature / self.damping, self.auto)

    def step_bias(self, curvature: float) -> float:
        """An upper bound: ``step_size * k / (4 * damping)``, what a direction without any gradient would have."""
        return self.stability(curvature)

    def stability(self, curvature: float) -> float:
        """An upper bound, as that of `step_bias`, on the share of the longest stable step."""
        return number_of(self.step_size) * curvature / (4 * self.damping)

    def memory(self, curvature: float) -> float:
        """Steps in which a chain forgets where it began along a direction of curvature k, for the largest G."""
        return forgetting(number_of(self.step_size) * curvature / self.damping)
