"""One step of each dynamics against its formula, written again in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks.sampling.dynamics import resolve_step_size
from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.underdamped import SGHMC, SGNHT

NBETA, GAMMA = 7.0, 3.0
POSTERIOR = LocalPosterior(NBETA, GAMMA)


def vectors(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(number)]


def test_sgld_takes_the_step_of_its_formula() -> None:
    position, gradient, noise, anchor = vectors(4)
    w, g, xi, w0 = (x.numpy().copy() for x in (position, gradient, noise, anchor))
    SGLD(0.01).step(position, gradient, noise, anchor, POSTERIOR, {}, 0)
    np.testing.assert_allclose(position, w - 0.005 * (NBETA * g + GAMMA * (w - w0)) + 0.1 * xi, rtol=1e-12)
    np.testing.assert_array_equal(gradient, g)
    np.testing.assert_array_equal(anchor, w0)


def test_rmsprop_takes_the_step_of_its_formula_with_v_of_the_loss_alone() -> None:
    eps, decay, damping = 0.02, 0.9, 0.1
    dynamics = RMSPropSGLD(eps, decay, damping)
    position, anchor, *others = vectors(12)
    w, w0 = position.numpy().copy(), anchor.numpy().copy()
    state = dynamics.init(position)
    v = np.zeros(6)
    for step in range(5):
        gradient, noise = others[2 * step : 2 * step + 2]
        g, xi = gradient.numpy().copy(), noise.numpy().copy()
        dynamics.step(position, gradient, noise, anchor, POSTERIOR, state, step)
        v = decay * v + (1 - decay) * g**2
        preconditioner = 1 / (np.sqrt(v / (1 - decay ** (step + 1))) + damping)
        w = w - eps / 2 * preconditioner * (NBETA * g + GAMMA * (w - w0)) + np.sqrt(eps * preconditioner) * xi
        np.testing.assert_allclose(position, w, rtol=1e-10)
        np.testing.assert_array_equal(gradient, g)
        np.testing.assert_array_equal(anchor, w0)


@pytest.mark.parametrize("friction", [0.3, 1.0])
@pytest.mark.parametrize("kind", [SGHMC, SGNHT])
def test_underdamped_dynamics_take_the_steps_of_their_formulas(kind: Any, friction: float) -> None:
    eps = 0.02
    dynamics = kind(eps, friction)
    position, anchor, *others = vectors(12)
    w, w0 = position.numpy().copy(), anchor.numpy().copy()
    state = dynamics.init(position)
    v, u = np.zeros(6), np.full(6, friction)
    for step in range(5):
        gradient, noise = others[2 * step : 2 * step + 2]
        g, xi = gradient.numpy().copy(), noise.numpy().copy()
        dynamics.step(position, gradient, noise, anchor, POSTERIOR, state, step)
        v = (1 - u) * v - eps * (NBETA * g + GAMMA * (w - w0)) + np.sqrt(2 * friction * eps) * xi
        w = w + v
        if kind is SGNHT:
            u = np.minimum(1.0, u + v**2 - 2 * eps / (2 - friction))
            np.testing.assert_allclose(state["friction"], u, rtol=1e-10)
        np.testing.assert_allclose(position, w, rtol=1e-10)
        np.testing.assert_allclose(state["velocity"], v, rtol=1e-10)
        np.testing.assert_array_equal(gradient, g)
        np.testing.assert_array_equal(anchor, w0)


def test_with_full_friction_sghmc_is_sgld_with_twice_the_step() -> None:
    position, gradient, noise, anchor = vectors(4)
    other, same_noise = position.clone(), noise.clone()
    dynamics = SGHMC(0.01, friction=1.0)
    state = dynamics.init(position)
    for step in range(3):
        dynamics.step(position, gradient, noise, anchor, POSTERIOR, state, step)
        SGLD(0.02).step(other, gradient, same_noise, anchor, POSTERIOR, {}, step)
    torch.testing.assert_close(position, other, rtol=1e-12, atol=0)
    for formula in ("step_bias", "stability", "memory"):
        assert getattr(dynamics, formula)(1.0) == getattr(SGLD(0.02), formula)(1.0)


@pytest.mark.parametrize("kind", [SGHMC, SGNHT])
@pytest.mark.parametrize("wrong", [0.0, -0.1, 1.1, math.nan, True, None, "high"])
def test_friction_has_to_be_a_share(kind: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `friction` to be in \(0, 1\], but got"):
        kind(1e-3, friction=wrong)


@pytest.mark.parametrize("kind", [SGHMC, SGNHT])
@pytest.mark.parametrize("wrong", [-1e-3, math.inf, "fast", None])
def test_a_step_size_is_a_number_or_auto(kind: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match='Expected `step_size` to be "auto" or a finite number >= 0, but got'):
        kind(wrong)


def test_rmsprop_defaults_are_those_of_the_methods() -> None:
    assert (RMSPropSGLD().decay, RMSPropSGLD().damping, RMSPropSGLD().step_size) == (0.99, 0.1, "auto")


@pytest.mark.parametrize("curvature", [0.5, 300.0])
def test_auto_step_has_a_bias_of_two_percent(curvature: float) -> None:
    assert SGLD().with_curvature(curvature).step_size == pytest.approx(0.08 / curvature)
    assert SGLD().with_curvature(curvature).step_bias(curvature) == pytest.approx(0.02)
    preconditioned = RMSPropSGLD(damping=0.5).with_curvature(curvature)
    assert preconditioned.step_size == pytest.approx(0.5 * 0.08 / curvature)
    assert preconditioned.step_bias(curvature) == pytest.approx(0.02)
    assert preconditioned.damping == 0.5
    for kind in (SGHMC, SGNHT):
        moving = kind(friction=0.4).with_curvature(curvature)
        assert moving.step_size == pytest.approx(0.02 * 3.2 / curvature)
        assert moving.step_bias(curvature) == pytest.approx(0.02)
        assert moving.friction == 0.4


def test_a_number_is_never_replaced() -> None:
    for dynamics in (SGLD(0.3), RMSPropSGLD(0.3), SGHMC(0.3), SGNHT(0.3)):
        assert resolve_step_size(dynamics, 5.0) is dynamics
        assert dynamics.with_curvature(5.0).step_size == 0.3


@pytest.mark.parametrize("curvature", [0.0, -1.0, math.nan, math.inf])
def test_auto_without_a_positive_curvature_says_so(curvature: float) -> None:
    with pytest.raises(ValueError, match='step_size="auto" needs a positive curvature, but found'):
        resolve_step_size(SGLD(), curvature)


def test_auto_of_a_dynamics_that_cannot_resolve_it_says_what_to_add() -> None:
    @dataclass(frozen=True)
    class Mine:
        step_size: Any = "auto"

        def init(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
            return {}

        def step(self, *_args: Any, **_kwargs: Any) -> None:
            pass

    with pytest.raises(TypeError, match=r'Mine has step_size="auto" but no method `with_curvature\(curvature\)`'):
        resolve_step_size(Mine(), 1.0)


@pytest.mark.parametrize("dynamics", [SGLD(), RMSPropSGLD(), SGHMC(), SGNHT()])
def test_an_unresolved_auto_step_is_refused(dynamics: Any) -> None:
    position = torch.zeros(2)
    with pytest.raises(ValueError, match='`step_size` is still "auto"'):
        dynamics.step(position, position, position, position, POSTERIOR, dynamics.init(position), 0)
