"""Losses that are stiffer where chains live than at w*: a step chosen at w* alone reads far too high, with R-hat 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from slt_callbacks import Estimator, LeimkuhlerMatthews, SamplerConfig, estimate
from tests.benchmarks import real_models
from tests.problems import TWO_SAMPLES, llc
from tests.test_exact import DeepLinear

NBETA = 1000.0


def deep_linear(dynamics: Any, localization: float, **settings: Any) -> Any:
    config = SamplerConfig(dynamics, nbeta=NBETA, localization=localization, engine="sequential", **settings)
    return estimate(DeepLinear((10, 10, 10), 5, 1), TWO_SAMPLES, DeepLinear.loss, sampler=config)


# By localization, with steps of a fifth and of a twenty-fifth of these alike: 4 chains of 2000 draws, +- 0.3.
TRUE = {10.0: 44.85, 1.0: 45.95}


@pytest.mark.parametrize("localization", [10.0, 1.0])
def test_a_step_of_half_of_what_is_stable_at_w_star_reads_too_high_and_says_so(localization: float) -> None:
    dynamics = LeimkuhlerMatthews(2 / (2 * NBETA + localization))
    found = deep_linear(dynamics, localization, num_draws=400, num_burnin_steps=100)
    assert llc(found) > 1.4 * TRUE[localization]
    assert found["health"]["rhat"] < 1.05, "nothing else warns"
    assert found["health"]["stability"] > 0.75


def test_auto_looks_where_the_chains_stand() -> None:
    found = deep_linear(LeimkuhlerMatthews(), 10.0, num_draws=800, num_burnin_steps=300)
    assert llc(found) == pytest.approx(TRUE[10.0], rel=0.05)
    assert found["health"]["stability"] == pytest.approx(0.5, abs=0.05)
    assert found["health"]["step_size"] < 0.6 * 2 / (2 * NBETA)
    assert abs(found["health"]["step_gap"]) < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_where_that_is_not_enough_half_a_step_disagrees(seed: int) -> None:
    # With little localization the stiffness of a chain keeps changing, and no step suits all of its way.
    config = SamplerConfig(nbeta=NBETA, localization=1.0, engine="sequential", num_draws=800, num_burnin_steps=300)
    found = estimate(DeepLinear((10, 10, 10), 5, 1), TWO_SAMPLES, DeepLinear.loss, sampler=config, seed=seed)
    error = llc(found) / TRUE[1.0] - 1
    assert abs(error) < 0.05 or found["health"]["step_gap"] > 0.05, found["health"]


@pytest.mark.slow
def test_a_recurrent_network_that_has_solved_its_task() -> None:
    problem = real_models.trained("GRU on first symbols")[1]
    config = SamplerConfig(engine="sequential")

    def measured(config: SamplerConfig) -> Any:
        return Estimator(problem.reference, problem.loss_fn, None, config, seed=1).measure(problem.module)

    # Steps of half of what is stable at w*, where nothing is left to learn.
    blind = measured(replace(config, dynamics=LeimkuhlerMatthews(2 / 230), num_draws=40))
    assert llc(blind) > 20
    assert blind["health"]["rhat"] < 1.1
    assert blind["health"]["stability"] > 0.75
    found = measured(config)
    assert 0.5 < llc(found) < 2, "chains ten times as long, with steps a tenth as long, give 1.0"
    assert found["health"]["stability"] < 0.75
    assert found["health"]["noise_bias"] < 0.15
