"""Averaged noise against closed forms: no step-size bias, whatever stable step is taken."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks import Influence, LeimkuhlerMatthews, LossKernel, SamplerConfig, estimate
from slt_callbacks.sampling.chains import make_chains
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.sequential import SequentialEngine
from tests import oracles
from tests.observables.test_loss_kernel import Copies, regression, regression_loss
from tests.problems import TWO_SAMPLES, Quadratic, Weights, llc, objective_for

H, NBETA, GAMMA = (0.2, 1.0, 3.0, 0.0), 50.0, 5.0
STIFFEST = NBETA * max(H) + GAMMA
COPIES = 500


def config(stiffness: float, **changes: Any) -> SamplerConfig:
    """Steps with ``eps k_max = stiffness``."""
    dynamics = LeimkuhlerMatthews(stiffness / STIFFEST)
    plain = SamplerConfig(dynamics, nbeta=NBETA, localization=GAMMA, num_chains=2, num_draws=400, num_burnin_steps=400)
    return replace(plain, **changes)


def measure(settings: SamplerConfig, slope: tuple[float, ...] | float = 0.0, copies: int = COPIES) -> Any:
    tilts = slope if isinstance(slope, float) else torch.tensor(slope).repeat(copies)
    h = torch.tensor(H).repeat(copies)
    return estimate(Weights(len(h)), TWO_SAMPLES, Quadratic(h, tilts), sampler=settings)


@pytest.mark.parametrize("stiffness", [0.5, 1.0, 2.0, 3.0])
def test_the_stationary_llc_is_exact_at_every_stable_step(stiffness: float) -> None:
    exact = oracles.exact_llc(H, NBETA, GAMMA)
    assert exact == pytest.approx(1.2717, abs=1e-4)
    measured = measure(config(stiffness))
    assert 3 * measured["llc"]["stderr"] / COPIES < 0.015 * exact
    assert llc(measured) / COPIES == pytest.approx(exact, rel=0.01)
    assert oracles.stationary_llc(H, NBETA, GAMMA, stiffness / STIFFEST) > 1.04 * exact, "what the other noise gives"


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_from_w_star_every_draw_has_the_variance_of_the_formula(engine: str) -> None:
    settings = config(3.0, num_draws=12, num_burnin_steps=0, engine=engine)
    copies = 20_000
    trace = measure(settings, copies=copies)["llc"]["loss_trace"].double().mean(0).numpy() / copies
    k, eps = NBETA * np.array(H) + GAMMA, 3.0 / STIFFEST
    times = np.arange(12)[:, None]
    variance = 1 / k + (eps / 4 - 1 / k) * (1 - eps * k / 2) ** (2.0 * (times - 1))
    variance[0] = 0.0
    expected = (np.array(H) * variance / 2).sum(1)
    assert trace[0] == 0.0
    # A draw is the mean of h w^2 / 2 over copies x chains: 1 / sqrt(20000) of itself per direction.
    np.testing.assert_allclose(trace[1:], expected[1:], rtol=0.03)
    assert expected[1] < 0.8 * expected[-1], "nothing to see"


@pytest.mark.parametrize("stiffness", [1.0, 3.0])
def test_off_a_minimum_the_shift_is_that_of_the_posterior(stiffness: float) -> None:
    slope = (0.1, -0.4, 0.3, 0.05)
    exact = oracles.exact_llc(H, NBETA, GAMMA) + oracles.off_minimum_shift(H, slope, NBETA, GAMMA)
    measured = measure(config(stiffness), slope)
    assert exact < 0
    assert llc(measured) / COPIES == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("stiffness", [0.5, 2.0, 3.0])
def test_kernel_and_influence_of_linear_regression_are_those_without_a_step(stiffness: float) -> None:
    x, y = regression()
    weights, residuals = oracles.regression_minimum(x, y)
    nbeta, gamma, copies = 8.0, 2.0, 40
    k_max = nbeta * np.linalg.eigvalsh(x.T @ x / len(x)).max() + gamma
    settings = SamplerConfig(
        LeimkuhlerMatthews(stiffness / k_max),
        batch_size=None,
        nbeta=nbeta * copies,  # the loss is the mean over all copies
        localization=gamma,
        num_draws=400,
        num_burnin_steps=60,
    )
    tile = torch.arange(copies).repeat_interleave(6)
    data = [(torch.tensor(np.tile(x, (copies, 1))), torch.tensor(np.tile(y, copies)), tile)]
    observables = {"kernel": LossKernel(), "influence": Influence(data)}
    found = estimate(Copies(weights, copies), data, regression_loss, observables=observables, sampler=settings)
    exact = oracles.regression_kernel(x, residuals, nbeta, gamma, eps=0.0)
    for matrix, sign in ((found["kernel"]["covariance"], 1.0), (found["influence"]["bif"], -1.0)):
        blocks = np.stack([sign * matrix.numpy()[6 * i : 6 * i + 6, 6 * i : 6 * i + 6] for i in range(copies)])
        mean, stderr = blocks.mean(0), blocks.std(0, ddof=1) / math.sqrt(copies)
        assert np.abs((mean - exact) / stderr).max() < 4
        assert np.abs(mean - exact).max() < 0.04 * exact.max()
    if stiffness > 1:
        biased = oracles.regression_kernel(x, residuals, nbeta, gamma, stiffness / k_max)
        assert np.abs(biased - exact).max() > 0.2 * exact.max(), "what the other noise gives"


@pytest.mark.parametrize(("stiffness", "batch_size"), [(0.5, 8), (2.0, 32)])
def test_minibatch_noise_adds_the_share_of_its_formula(stiffness: float, batch_size: int) -> None:
    # Tilts of the samples are minibatch noise of a known variance. With 3072 samples an epoch is hardly felt.
    h, nbeta, gamma, dimension, num_samples = 1.0, 30.0, 5.0, 24, 3072
    k = nbeta * h + gamma
    eps = stiffness / k
    tilts = torch.randn(num_samples, dimension, generator=torch.Generator().manual_seed(0)) * math.sqrt(batch_size) / 4
    tilts -= tilts.mean(0)

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return h * module.w.square().sum() / 2 + batch @ module.w

    settings = SamplerConfig(
        LeimkuhlerMatthews(eps),
        nbeta=nbeta,
        localization=gamma,
        num_chains=8,
        num_draws=1500,
        num_burnin_steps=20,
        batch_size=batch_size,
        engine="vectorized",
    )
    measured = estimate(Weights(dimension), [tilts], loss_fn, sampler=settings)
    variance = nbeta**2 * float(tilts.var(0).sum()) / batch_size  # V, over all directions
    exact = nbeta * h * (dimension + eps * variance / (4 * (1 - eps * k / 4))) / (2 * k)
    assert exact > 1.1 * nbeta * h * dimension / (2 * k), "nothing to see"
    assert llc(measured) == pytest.approx(exact, rel=0.03)


def test_a_chain_that_goes_on_has_kept_its_last_noise() -> None:
    settings = config(2.0, num_chains=1, num_draws=1, num_burnin_steps=0)
    h = torch.tensor(H).repeat(50)

    def positions(*lengths: int) -> torch.Tensor:
        objective = objective_for(Weights(len(h)), Quadratic(h))
        engine = SequentialEngine(objective, settings.dynamics, LocalPosterior(NBETA, GAMMA))
        (chain,) = make_chains(settings, torch.device("cpu"), seed=0, step=1)
        for length in lengths:
            list(engine.advance([chain], range(length), keep=True))
        assert chain.displacement is not None
        return chain.displacement

    assert torch.equal(positions(20), positions(7, 13))
