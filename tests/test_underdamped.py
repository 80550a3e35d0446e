"""Velocities against closed forms: the bias of the step, the way there, and the noise of minibatches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks import SGHMC, SGNHT, SamplerConfig, estimate
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.posterior import LocalPosterior
from tests import oracles
from tests.problems import TWO_SAMPLES, Quadratic, Weights, llc

H, NBETA, GAMMA = np.array([0.2, 1.0, 3.0, 0.0]), 50.0, 5.0
K = NBETA * H + GAMMA
COPIES = 400


def measure(dynamics: Dynamics, num_draws: int, burn_in: int, copies: int = COPIES, **changes: Any) -> Any:
    settings = SamplerConfig(
        dynamics,
        nbeta=NBETA,
        localization=GAMMA,
        num_chains=2,
        num_draws=num_draws,
        num_burnin_steps=burn_in,
        **changes,
    )
    h = torch.tensor(H, dtype=torch.float32).repeat(copies)
    return estimate(Weights(len(h)), TWO_SAMPLES, Quadratic(h), sampler=settings)


def sghmc_llc(eps: float, friction: float) -> float:
    """Of a chain that has run for ever: the sum of nbeta h / (2 k (1 - eps k / (2 (2 - friction))))."""
    return float(np.sum(NBETA * H / (2 * K * (1 - eps * K / (2 * (2 - friction))))))


@pytest.mark.parametrize(("share", "friction"), [(0.04, 0.2), (0.25, 0.1), (0.6, 0.5), (0.25, 1.0)])
def test_the_stationary_llc_of_sghmc_is_that_of_its_bias(share: float, friction: float) -> None:
    eps = share * 2 * (2 - friction) / K.max()
    measured = measure(SGHMC(eps, friction), num_draws=500, burn_in=200)
    expected, exact = sghmc_llc(eps, friction), oracles.exact_llc(H, NBETA, GAMMA)
    assert 3 * measured["llc"]["stderr"] / COPIES < 0.02 * expected
    assert llc(measured) / COPIES == pytest.approx(expected, rel=0.015)
    if share > 0.1:
        assert expected > 1.1 * exact, "nothing to see"


def second_moments(k: float, eps: float, friction: float, num_steps: int) -> np.ndarray:
    """E w^2 before every step from w = v = 0, by the linear recursion of the second moments of (w, v)."""
    step = np.array([[1 - eps * k, 1 - friction], [-eps * k, 1 - friction]])
    moments, found = np.zeros((2, 2)), []
    for _ in range(num_steps):
        found.append(moments[0, 0])
        moments = step @ moments @ step.T + 2 * friction * eps * np.ones((2, 2))  # one noise moves both
    return np.array(found)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_from_w_star_every_draw_of_sghmc_has_its_second_moment(engine: Any) -> None:
    eps, friction, copies = 0.5 / K.max(), 0.2, 20_000
    measured = measure(SGHMC(eps, friction), num_draws=30, burn_in=0, copies=copies, engine=engine)
    trace = measured["llc"]["loss_trace"].double().mean(0).numpy() / copies
    each = [h / 2 * second_moments(k, eps, friction, 30) for h, k in zip(H, K, strict=True)]
    expected = np.sum(each, axis=0)
    # A draw is the mean of h w^2 / 2 over copies x chains: 1 / sqrt(20000) of itself per direction.
    np.testing.assert_allclose(trace, expected, rtol=0.03)
    assert expected[2] > 2.5 * expected[1], "noise alone would add the same at every step"


@pytest.mark.parametrize("friction", [0.1, 0.5])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5])
def test_memory_is_that_of_the_slowest_mode(share: float, friction: float) -> None:
    eps = 2 * (2 - friction) * share / 7.0
    modes = np.linalg.eigvals([[1 - eps * 7.0, 1 - friction], [-eps * 7.0, 1 - friction]])
    exact = -1 / math.log(np.abs(modes).max())
    for dynamics in (SGHMC(eps, friction), SGNHT(eps, friction)):
        assert 1.0 <= dynamics.memory(7.0) / exact < 2.1
        assert dynamics.memory(0.0) == math.inf


@pytest.mark.parametrize("kind", [SGHMC, SGNHT])
def test_beyond_the_longest_stable_step_a_chain_diverges(kind: Any) -> None:
    def spread(share: float) -> float:
        dynamics = kind(1.0, 0.1)
        k = share * 2 * (2 - 0.1)
        assert dynamics.stability(k) == pytest.approx(share)
        generator = torch.Generator().manual_seed(0)
        position, anchor = torch.zeros(100), torch.zeros(100)
        state = dynamics.init(position)
        for step in range(200):
            noise = torch.randn(100, generator=generator)
            dynamics.step(position, torch.zeros(100), noise, anchor, LocalPosterior(0.0, k), state, step)
        return float(position.square().mean())

    assert not spread(1.2) < 1e6
    if kind is SGHMC:
        assert spread(0.9) < 10


def thermostat_at_rest(pull: float, noise: float, friction: float) -> tuple[float, float]:
    """u that does not move and w^2 k, along a direction with eps k = `pull` and eps V / 2 = `noise`.

    With a friction u, E v^2 is 2 eps (friction + noise) / (u (2 - u - pull / 2)); it has to be 2 eps / (2 - friction).
    """
    room = 2 - pull / 2
    u = (room - math.sqrt(room**2 - 4 * (friction + noise) * (2 - friction))) / 2
    return u, (2 - u) / (2 - friction)


@pytest.mark.parametrize(("pull", "friction"), [(0.05, 0.1), (0.05, 0.3), (0.4, 0.2)])
def test_a_thermostat_gives_a_quadratic_the_right_variance(pull: float, friction: float) -> None:
    eps = pull / K.max()
    measured = measure(SGNHT(eps, friction), num_draws=700, burn_in=500)
    exact = oracles.exact_llc(H, NBETA, GAMMA)
    assert llc(measured) / COPIES == pytest.approx(exact, rel=0.02)
    if pull > 0.1:
        assert sghmc_llc(eps, friction) > 1.05 * exact, "what a friction that is held gives"


def test_a_thermostat_ends_at_one_where_there_is_more_noise_than_it_can_take() -> None:
    eps, k, variance, friction = 0.01, 10.0, 1e4, 0.1
    dynamics, posterior = SGNHT(eps, friction), LocalPosterior(1.0, k)
    generator = torch.Generator().manual_seed(0)
    position, anchor = torch.zeros(2000), torch.zeros(2000)
    state, found = dynamics.init(position), []
    for step in range(300):
        gradient, noise = torch.randn(2, 2000, generator=generator)
        dynamics.step(position, gradient * math.sqrt(variance), noise, anchor, posterior, state, step)
        found.append(float(position.square().mean()))
    assert float(state["friction"].max()) == 1.0
    assert float(state["friction"].mean()) > 0.95
    # The step of SGLD, with all of the noise: w <- (1 - eps k) w + noise.
    expected = (2 * friction * eps + eps**2 * variance) / (1 - (1 - eps * k) ** 2)
    assert np.mean(found[100:]) == pytest.approx(expected, rel=0.02)


class Tilted:
    """l_i(w) = h |w|^2 / 2 + tilts_i . w: minibatch noise of a known variance, the same everywhere."""

    h, gamma, dimension, num_samples, batch_size, nbeta = 1.0, 5.0, 24, 3072, 8, 30.0
    k = nbeta * h + gamma

    def __init__(self, strength: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tilts = torch.randn(self.num_samples, self.dimension, generator=generator) * strength
        self.tilts -= self.tilts.mean(0)
        covariance = np.cov(self.tilts.double().numpy().T, ddof=1)
        of_mean = float(np.trace(covariance)) * (1 - self.batch_size / self.num_samples) / self.batch_size
        self.variance = self.nbeta**2 * of_mean  # V, over all directions

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        return self.h * module.w.square().sum() / 2 + batch @ module.w

    def measure(self, dynamics: Dynamics, num_draws: int, burn_in: int) -> Any:
        settings = SamplerConfig(
            dynamics,
            nbeta=self.nbeta,
            localization=self.gamma,
            num_chains=8,
            num_draws=num_draws,
            num_burnin_steps=burn_in,
            batch_size=self.batch_size,
            engine="vectorized",
        )
        return estimate(Weights(self.dimension), [self.tilts], self, sampler=settings)

    def sghmc(self, eps: float, friction: float, num_draws: int, burn_in: int) -> float:
        """LLC of the chain from w* = 0 whose minibatches are an epoch's, each drawn once.

        What a noise of one step has become n steps later, r_n, follows the recursion of the chain. The mean tilts of
        two minibatches of one epoch have -1 / (M - 1) of their variance as covariance, and a draw sees one of them.
        """
        steps = np.arange(burn_in + num_draws)
        of_epoch = self.num_samples // self.batch_size
        response, state = np.zeros(len(steps) + 1), np.zeros(2)
        for n in range(1, len(response)):
            pulled = -eps * self.k * state[0] + (1 - friction) * state[1] + (n == 1)
            state = np.array([state[0] + pulled, pulled])
            response[n] = state[0]
        langevin = noise = with_own = 0.0
        for t in steps[burn_in:]:
            r = response[t - steps[:t]]  # of the noises at s < t
            sums = np.bincount(steps[:t] // of_epoch, weights=r, minlength=t // of_epoch + 1)
            langevin += 2 * friction * eps * float(r @ r)
            noise += eps**2 * (float(r @ r) * of_epoch - float(sums @ sums)) / (of_epoch - 1)
            with_own += eps * float(sums[t // of_epoch]) / (of_epoch - 1)  # Cov(w_t, c_t) nbeta / V
        langevin, noise, with_own = (x / num_draws for x in (langevin, noise, with_own))
        spread = self.dimension * langevin + self.variance * noise
        return self.nbeta * self.h * spread / 2 + self.variance * with_own


@pytest.mark.parametrize(("eps", "friction"), [(4e-3, 0.1), (2e-2, 0.3)])
def test_minibatch_noise_adds_to_sghmc_what_the_recursion_says(eps: float, friction: float) -> None:
    tilted = Tilted(strength=math.sqrt(8) * 0.1 * math.sqrt(friction / 0.1))
    expected = tilted.sghmc(eps, friction, 1000, 50)
    without = tilted.nbeta * tilted.h * tilted.dimension / (2 * tilted.k) / (1 - SGHMC(eps, friction).stability(35.0))
    share = eps * tilted.variance / tilted.dimension / (2 * friction)
    assert share > 0.15, "nothing to see"
    assert expected == pytest.approx(without * (1 + share), rel=0.05), "the docstring's, without epochs"
    measured = tilted.measure(SGHMC(eps, friction), 1000, 50)
    assert llc(measured) == pytest.approx(expected, rel=0.03)
    # From the difference of two minibatches in each of 8 chains: 10 % of it.
    assert measured["health"]["noise_bias"] == pytest.approx(share, rel=0.3)


def test_a_thermostat_absorbs_most_of_the_noise_of_minibatches_once_it_has_found_it() -> None:
    eps, friction = 4e-3, 0.1
    tilted = Tilted(strength=math.sqrt(8) * 0.1)
    regular = tilted.nbeta * tilted.h * tilted.dimension / (2 * tilted.k)
    held = tilted.sghmc(eps, friction, 1500, 500)
    u, expected = thermostat_at_rest(eps * tilted.k, eps * tilted.variance / tilted.dimension / 2, friction)
    measured = llc(tilted.measure(SGNHT(eps, friction), 1500, 500))
    assert u > 1.1 * friction
    assert held > 1.15 * regular
    assert measured == pytest.approx(expected * regular, rel=0.03)
