"""The share of steps that a Metropolis test would let pass, against its definition and a simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks import LLC, SGHMC, SGLD, SGNHT, Estimator, LeimkuhlerMatthews, RMSPropSGLD, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.acceptance import acceptance_at
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.selection import Selection
from tests.problems import TWO_SAMPLES, Quadratic, Weights, objective_for
from tests.processes import on_ranks

NBETA, GAMMA = 7.0, 3.0
POSTERIOR = LocalPosterior(NBETA, GAMMA)


def by_definition(w: np.ndarray, xi: np.ndarray, anchor: np.ndarray, eps: float) -> float:
    """On L = sum w^4 + sum w / 3, with both squares of the density of the step written out."""

    def energy(w: np.ndarray) -> float:
        return float(NBETA * (w**4 + w / 3).sum() + GAMMA / 2 * ((w - anchor) ** 2).sum())

    def target(w: np.ndarray) -> np.ndarray:
        return w - eps / 2 * (NBETA * (4 * w**3 + 1 / 3) + GAMMA * (w - anchor))

    there = target(w) + math.sqrt(eps) * xi
    back, forth = (-((a - target(b)) ** 2).sum() / (2 * eps) for a, b in ((w, there), (there, w)))
    return min(1.0, math.exp(energy(w) - energy(there) + back - forth))


def quartic(module: Any, batch: Any) -> torch.Tensor:
    w = module.w
    return (w**4 + w / 3).sum().expand(len(batch))


def test_it_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(5, generator=generator, dtype=torch.float64)
    objective = objective_for(Weights(anchor), quartic)
    found, expected = [], []
    for eps in (1e-2, 6e-2, 0.15):
        for _ in range(8):
            w, xi = torch.randn(2, 5, generator=generator, dtype=torch.float64) * torch.tensor([[0.3], [1.0]])
            expected.append(by_definition(w.numpy().copy(), xi.numpy().copy(), anchor.numpy(), eps))
            found.append(acceptance_at(objective, POSTERIOR, w, eps, xi.clone()))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert sum(one < 0.9 for one in expected) > 5
    assert sum(one == 1.0 for one in expected) > 2


def test_a_step_of_zero_is_always_accepted_and_one_to_nowhere_has_no_answer() -> None:
    objective = objective_for(Weights(3), quartic)
    assert acceptance_at(objective, POSTERIOR, torch.ones(3), 0.0, torch.ones(3)) == 1.0
    assert math.isnan(acceptance_at(objective, POSTERIOR, torch.ones(3), 1e-2, torch.full((3,), math.inf)))


def test_weights_that_do_not_move_have_no_part_in_it() -> None:
    anchor = torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    fork = Fork(Weights(anchor), selection=Selection(slices={"w": slice(1, 3)}))
    objective = Objective(fork, quartic, draw_reference(TWO_SAMPLES))
    w = anchor + torch.tensor([0.0, 0.2, -0.3, 0.0])
    xi = torch.tensor([5.0, 1.7, 2.2, -3.0], dtype=torch.float64)
    part = slice(1, 3)
    expected = by_definition(w[part].numpy(), xi[part].numpy(), anchor[part].numpy(), 0.06)
    assert acceptance_at(objective, POSTERIOR, w, 0.06, xi.clone()) == pytest.approx(expected, rel=1e-9)
    assert expected < 0.99


H = (0.2, 1.0, 3.0, 0.0)
COPIES = 15  # 60 weights


def simulated(k: np.ndarray, eps: float, number: int = 40_000) -> tuple[float, float]:
    """Mean and spread of the probability along a stationary SGLD chain on sum k w^2 / 2."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((number, len(k))) / np.sqrt(k * (1 - eps * k / 4))
    there = w - eps / 2 * k * w + np.sqrt(eps) * rng.standard_normal(w.shape)
    log_ratio = (k * (w**2 - there**2)).sum(1) / 2
    forth, back = there - w + eps / 2 * k * w, w - there + eps / 2 * k * there
    log_ratio += ((forth**2).sum(1) - (back**2).sum(1)) / (2 * eps)
    accepted = np.minimum(1, np.exp(log_ratio))
    return float(accepted.mean()), float(accepted.std())


def settings(eps: float, **changes: Any) -> SamplerConfig:
    plain = SamplerConfig(
        SGLD(eps),
        nbeta=50.0,
        localization=5.0,
        num_chains=500,
        num_draws=2,
        num_burnin_steps=80,
        engine="vectorized",
        acceptance=True,
    )
    return replace(plain, **changes)


def measure(config: SamplerConfig) -> Any:
    h = torch.tensor(H).repeat(COPIES)
    return estimate(Weights(len(h)), TWO_SAMPLES, Quadratic(h), sampler=config)


@pytest.mark.parametrize(("directions", "expected"), [(100, 0.98), (10_000, 0.84)])
def test_at_the_same_bias_it_falls_with_the_number_of_directions(directions: int, expected: float) -> None:
    mean, spread = simulated(np.ones(directions), 0.08, number=300)
    assert SGLD(0.08).step_bias(1.0) == 0.02
    assert abs(mean - expected) < 0.005 + 3 * spread / math.sqrt(300)
    objective = objective_for(Weights(directions), Quadratic(torch.ones(directions)))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        w, xi = torch.randn(2, directions, generator=generator)
        found.append(acceptance_at(objective, LocalPosterior(1.0, 0.0), w / math.sqrt(0.98), 0.08, xi))
    assert abs(np.mean(found) - expected) < 0.005 + 3 * spread / math.sqrt(300) < 0.05


@pytest.mark.parametrize("stiffness", [0.3, 0.8])
def test_on_a_quadratic_its_mean_is_that_of_a_simulation(stiffness: float) -> None:
    k = 50.0 * np.tile(H, COPIES) + 5.0
    eps = stiffness / k.max()
    expected, spread = simulated(k, eps)
    stderr = spread / math.sqrt(500)
    assert 4 * stderr < 0.05
    assert abs(simulated(k, 2 * eps)[0] - expected) > 8 * stderr, "another step would be seen"
    assert abs(measure(settings(eps))["health"]["acceptance"] - expected) < 4 * stderr


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_it_is_found_on_request_and_changes_nothing_else(engine: Any) -> None:
    config = settings(2e-3, num_chains=3, num_draws=5, num_burnin_steps=16, engine=engine)
    asked, not_asked = measure(config), measure(replace(config, acceptance=False))
    assert 0.5 < asked["health"]["acceptance"] < 1
    assert math.isnan(not_asked["health"]["acceptance"])
    assert torch.equal(asked["llc"]["loss_trace"], not_asked["llc"]["loss_trace"])
    assert asked["health"]["acceptance"] == measure(config)["health"]["acceptance"]


def test_it_is_that_of_the_step_in_use_with_every_dynamics() -> None:
    for dynamics in (SGLD(), RMSPropSGLD(), LeimkuhlerMatthews(), SGHMC(), SGNHT()):
        found = measure(settings(1.0, dynamics=dynamics, num_chains=20))["health"]
        short = measure(settings(1.0, dynamics=replace(dynamics, step_size=1e-5), num_chains=20))["health"]
        assert short["step_size"] == 1e-5
        assert found["acceptance"] < short["acceptance"] <= 1
        assert short["acceptance"] > 0.99


def test_all_ranks_tell_the_mean_over_all_chains() -> None:
    config = settings(3e-3, num_chains=5, num_burnin_steps=20, engine="sequential")
    h = torch.tensor(H).repeat(COPIES)

    def tell(ranks: Any = None) -> float:
        one = Estimator(draw_reference(TWO_SAMPLES), Quadratic(h), {"llc": LLC()}, config, ranks=ranks)
        return float(one.measure(Weights(len(h)), 1)["health"]["acceptance"])

    alone = tell()
    assert on_ranks(2, tell) == [pytest.approx(alone, rel=1e-9)] * 2


def test_a_measurement_that_fails_does_not_tell_the_last_one() -> None:
    h = torch.tensor(H)
    config = settings(2e-3, num_chains=2)
    one = Estimator(draw_reference(TWO_SAMPLES), Quadratic(h), {"llc": LLC()}, config)
    assert one.measure(Weights(4), 1)["health"]["acceptance"] > 0.5
    assert math.isnan(one.measure(Weights(torch.full((4,), math.nan)), 2)["health"]["acceptance"])


def test_acceptance_is_a_switch() -> None:
    assert not SamplerConfig().acceptance
    with pytest.raises(ValueError, match="Expected `acceptance` to be True or False, but got 1"):
        SamplerConfig(acceptance=1)  # type: ignore[arg-type]
