"""Langevin dynamics with velocities: chains coast along flat directions, with a friction held or regulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from slt_callbacks.sampling.dynamics import Dynamics, State
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.step_sizes import BIASED, AutoStep, check_step_size, for_curvature, is_finite, number_of


@dataclass(frozen=True)
class SGHMC(Dynamics):
    r"""Stochastic gradient Hamiltonian Monte Carlo: every weight has a velocity, and a friction that wears it down.

    .. math:: v \leftarrow (1 - friction)\, v - \epsilon\left[nbeta \nabla L_m(w) + localization (w - w^*)\right]
        + \sqrt{2\, friction\, \epsilon}\, \xi, \qquad w \leftarrow w + v, \qquad \xi \sim N(0, I), \quad v_0 = 0

    Along a direction of curvature k the stationary variance is :math:`1 / (k (1 - \epsilon k / (2 (2 - friction))))`,
    and the longest stable step is :math:`2 (2 - friction) / k`. With friction 1 it is SGLD with twice the step. With
    less, flat directions forget sooner: at the same bias of 2 % and friction 0.1 in 19 steps where the curvature is a
    twentieth of the largest, which takes SGLD 500. On deep linear networks (``python -m tests.benchmarks samplers``) it
    is, as `SGNHT`, within 10 % of the known learning coefficient over a sixteenfold range of steps, where dynamics
    without velocities are over a twofold one.

    Noise of minibatches, of variance V along a direction and with no memory of its own, adds
    :math:`\epsilon V / (2\, friction)` of the variance: the velocity adds up the noise of 1 / friction steps.

    Args:
        step_size: :math:`\epsilon`, in squared units of the weights. "auto": the step whose stationary bias is 2 % in
            the stiffest direction, found at the first measurement and held.
        friction: Share of the velocity that a step takes away, in (0, 1].

    Raises:
        ValueError: If `step_size` is neither "auto" nor a finite number >= 0, or `friction` is outside its range.

    Source: Chen, Fox & Guestrin 2014 (arXiv 1402.4102), equation 15, without an estimate of the gradient's noise;
    their learning rate is `step_size`. The closed forms are ours.

    Example:
        >>> dynamics = SGHMC(step_size=0.5, friction=0.5)
        >>> weights = torch.tensor([1.0])
        >>> state = dynamics.init(weights)
        >>> for step in range(2):
        ...     dynamics.step(weights, torch.tensor([1.0]), torch.zeros(1), torch.zeros(1), LocalPosterior(1.0, 0.0),
        ...                   state, step)
        ...     print(weights.item(), state["velocity"].item())
        0.5 -0.5
        -0.25 -0.75
    """

    auto: ClassVar[AutoStep] = BIASED
    step_size: float | Literal["auto"] = "auto"
    friction: float = 0.1

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        _check_friction(self.friction)

    def init(self, position: torch.Tensor) -> State:
        """Velocities, all zero."""
        return {"velocity": torch.zeros_like(position)}

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
        velocity = state["velocity"].mul_(1 - self.friction)
        velocity.sub_(posterior.gradient(gradient, position, anchor), alpha=step_size)
        velocity.add_(noise, alpha=math.sqrt(2 * self.friction * step_size))
        position.add_(velocity)

    def with_curvature(self, curvature: float) -> SGHMC:
        """The same dynamics with "auto" replaced by the step whose bias at `curvature` (k_max) is 2 %."""
        return for_curvature(self, 2 * curvature / (2 - self.friction), self.auto)

    def step_bias(self, curvature: float) -> float:
        """Relative excess of the stationary variance along a direction of curvature k, as `stability`.

        Example:
            >>> SGHMC("auto", friction=0.5).with_curvature(80.0).step_bias(80.0)
            0.02
        """
        return self.stability(curvature)

    def stability(self, curvature: float) -> float:
        """Share of the longest stable step along a direction of curvature k: ``step_size * k / (2 (2 - friction))``."""
        return number_of(self.step_size) * curvature / (2 * (2 - self.friction))

    def noise_excess(self, noise: float, curvature: float) -> float:
        """Variance that noise of minibatches, of variance V, adds along a direction of curvature k; inf if unstable.

        Example:
            >>> dynamics = SGHMC(step_size=1e-3, friction=0.1)
            >>> dynamics.noise_excess(noise=40.0, curvature=100.0)  # 1e-3 * 40 / (2 * 0.1), of 1 / (k (1 - bias))
            0.0020540540540540542
        """
        return _noise_excess(number_of(self.step_size), self.friction, noise, curvature)

    def memory(self, curvature: float) -> float:
        """Steps in which a chain forgets where it began along a direction of curvature k, from above.

        The larger of ``friction / (step_size * k)``, in which it creeps back where friction rules, and
        ``2 / friction``, in which an oscillation dies away. For steps of at most half the longest stable one and a
        friction of at most one half, it is never too short, and too long by no more than a factor of 2.1.

        Example:
            >>> SGHMC(step_size=1e-3, friction=0.1).memory(1.0), SGHMC(step_size=1e-3, friction=0.1).memory(80.0)
            (100.0, 20.0)
        """
        return _forgetting(number_of(self.step_size) * curvature, self.friction)


@dataclass(frozen=True)
class SGNHT(Dynamics):
    r"""Stochastic gradient Nosé-Hoover thermostats: `SGHMC` whose friction follows the noise.

    .. math:: v \leftarrow (1 - u)\, v - \epsilon\left[nbeta \nabla L_m(w) + localization (w - w^*)\right]
        + \sqrt{2\, friction\, \epsilon}\, \xi, \qquad w \leftarrow w + v, \qquad
        u \leftarrow \min\left(1,\; u + v^2 - \frac{2 \epsilon}{2 - friction}\right)

    with :math:`\xi \sim N(0, I)`, :math:`v_0 = 0` and :math:`u_0 = friction`. Every weight has a thermostat u of its
    own, which is the multivariate variant; that of Ding et al. has one scalar u and takes the mean of :math:`v^2` over
    all weights, which a step on pieces of the weights cannot. A weight's own noise is then met by a friction of its
    own.

    u brings the mean of :math:`v^2` to what it is in `SGHMC` on a flat loss, :math:`2 \epsilon / (2 - friction)`. The
    paper's :math:`\epsilon` is that of a friction near 0, and would make the stationary variance 1 - u / 2 of the right
    one. While u is nearly still, noise of minibatches of variance V along a direction raises it by about
    :math:`\epsilon V / 2`, and on a quadratic the variance is (2 - u) / (2 - friction) of the right one.

    How fast u follows depends on the unit of the weights, as in the paper: it takes some friction / :math:`\epsilon`
    steps, and around its mean u goes to and fro with a standard deviation of :math:`\sqrt\epsilon`. With
    :math:`\epsilon` of 1e-4 these are 1000 steps and 0.01; a chain that is shorter is as good as `SGHMC`. Where
    :math:`\epsilon` is not small against :math:`friction^2`, u is often below 0 and drives the velocity, until its
    square brings u back: the chain stays stable, but such long steps are not exact. Above 1 it would turn the velocity
    round, and above 2 let it grow without end: u ends at 1, where the step is that of SGLD, and what noise is left over
    adds to the variance.

    Args:
        step_size: :math:`\epsilon`, in squared units of the weights. "auto": as in `SGHMC`.
        friction: Of u at first, and of the noise that is added, in (0, 1]. u has to find room above it: well below 1.

    Raises:
        ValueError: If `step_size` is neither "auto" nor a finite number >= 0, or `friction` is outside its range.

    Source: Ding et al. 2014, "Bayesian sampling using stochastic gradient thermostats" (NeurIPS), in velocities
    :math:`v = h p`, :math:`\epsilon = h^2`, friction :math:`= h A`; a thermostat a weight: Gan et al. 2015, "Scalable
    deep Poisson factor analysis for topic modeling" (ICML). The mean of :math:`v^2` that u aims at is ours.

    Example:
        >>> dynamics = SGNHT(step_size=0.5, friction=0.4)
        >>> weights = torch.tensor([1.0])
        >>> state = dynamics.init(weights)
        >>> dynamics.step(weights, torch.tensor([2.0]), torch.zeros(1), torch.zeros(1), LocalPosterior(1.0, 0.0),
        ...               state, 0)
        >>> weights.item(), round(state["friction"].item(), 3)  # 0.4 + (-1)^2 - 2 * 0.5 / (2 - 0.4)
        (0.0, 0.775)
    """

    auto: ClassVar[AutoStep] = BIASED
    step_size: float | Literal["auto"] = "auto"
    friction: float = 0.1

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        _check_friction(self.friction)

    def init(self, position: torch.Tensor) -> State:
        """Velocities, all zero, and the thermostats u, as "friction"."""
        return {"velocity": torch.zeros_like(position), "friction": torch.full_like(position, self.friction)}

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
        velocity, friction = state["velocity"], state["friction"]
        velocity.addcmul_(velocity, friction, value=-1)
        velocity.sub_(posterior.gradient(gradient, position, anchor), alpha=step_size)
        velocity.add_(noise, alpha=math.sqrt(2 * self.friction * step_size))
        position.add_(velocity)
        friction.addcmul_(velocity, velocity).sub_(2 * step_size / (2 - self.friction)).clamp_(max=1.0)

    def with_curvature(self, curvature: float) -> SGNHT:
        """The same dynamics with "auto" replaced by the step whose bias at `curvature` (k_max) is at most 2 %."""
        return for_curvature(self, 2 * curvature / (2 - self.friction), self.auto)

    def step_bias(self, curvature: float) -> float:
        """That of `SGHMC`, ``step_size * k / (2 (2 - friction))``, before u has found its place; from then on less."""
        return self.stability(curvature)

    def stability(self, curvature: float) -> float:
        """Share of the longest stable step along a direction of curvature k, for u at `friction`: as in `SGHMC`."""
        return number_of(self.step_size) * curvature / (2 * (2 - self.friction))

    def noise_excess(self, noise: float, curvature: float) -> float:
        """As in `SGHMC`: what noise of minibatches adds before u has risen, and from then on an upper bound."""
        return _noise_excess(number_of(self.step_size), self.friction, noise, curvature)

    def memory(self, curvature: float) -> float:
        """Steps in which a chain forgets where it began along a direction of curvature k, for u at `friction`."""
        return _forgetting(number_of(self.step_size) * curvature, self.friction)


def _check_friction(friction: object) -> None:
    if not (is_finite(friction) and 0 < friction <= 1):
        raise ValueError(f"Expected `friction` to be in (0, 1], but got {friction!r}.")


def _noise_excess(step_size: float, friction: float, noise: float, curvature: float) -> float:
    room = 1 - step_size * curvature / (2 * (2 - friction))
    return step_size * noise / (2 * friction * curvature * room) if room > 0 else math.inf


def _forgetting(pull: float, friction: float) -> float:
    """By ``step_size k``; infinite where nothing pulls."""
    return max(friction / pull, 2 / friction) if pull > 0 else math.inf
