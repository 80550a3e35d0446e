"""k_max from a few gradients, and the step size that comes out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks.basics.rng import generator
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.langevin import SGLD
from slt_callbacks.sampling.posterior import LocalPosterior
from tests import oracles
from tests.problems import TWO_SAMPLES, Quadratic, Weights, estimate, llc, objective_for, settings


def k_max(h: torch.Tensor, nbeta: float, gamma: float, seed: int = 0, **options: Any) -> float:
    objective = objective_for(Weights(torch.zeros(len(h), dtype=torch.float64)), Quadratic(h, **options))
    before = objective.fork.position.clone()
    found, direction = largest_curvature(objective, LocalPosterior(nbeta, gamma), generator(torch.device("cpu"), seed))
    assert torch.equal(objective.fork.position, before)
    assert direction.shape == before.shape
    return found


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("dimension", [2, 10, 50])
@pytest.mark.parametrize("gamma", [0.0, 30.0])
def test_curvature_of_a_quadratic_is_within_10_percent_for_most_starts_and_never_too_large(
    condition: float, dimension: int, gamma: float
) -> None:
    h = torch.logspace(0, float(np.log10(condition)), dimension, dtype=torch.float64) / condition * 7
    exact = 20.0 * 7 + gamma
    found = [k_max(h, 20.0, gamma, seed, slope=0.3) for seed in range(11)]
    assert float(np.median(found)) == pytest.approx(exact, rel=0.1)
    assert min(found) > 0.6 * exact  # a start that happens to lie across the top direction needs more iterations
    assert max(found) < exact * (1 + 1e-9)


def test_a_second_fork_goes_on_from_the_direction_of_the_first() -> None:
    h = torch.logspace(0, 2, 50, dtype=torch.float64) / 100 * 7
    objective = objective_for(Weights(torch.zeros(50, dtype=torch.float64)), Quadratic(h))
    posterior, source = LocalPosterior(20.0, 0.0), generator(torch.device("cpu"), 4)
    found = []
    direction = None
    for _ in range(6):
        k, direction = largest_curvature(objective, posterior, source, direction)
        found.append(k)
    assert found == sorted(found)
    assert found[-1] == pytest.approx(140.0, rel=0.01)


def test_curvature_of_a_saddle_is_the_largest_in_size() -> None:
    assert k_max(torch.tensor([-5.0, 1.0, 0.1]), 2.0, 3.0) == pytest.approx(13.0, rel=0.01)


def test_without_loss_the_curvature_is_the_localization() -> None:
    assert k_max(torch.ones(4), 0.0, 3.0) == 3.0
    assert k_max(torch.zeros(4), 5.0, 3.0) == 3.0


@pytest.mark.parametrize("nbeta", [1.0, 1e4, 1e8])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_curvature_of_a_singular_loss_is_the_one_that_a_chain_meets(nbeta: float, gamma: float) -> None:
    objective = objective_for(Weights(4), lambda m, b: m.w.pow(4).sum().expand(len(b)))
    found, _ = largest_curvature(objective, LocalPosterior(nbeta, gamma), generator(torch.device("cpu"), 0))
    # The secant over half a standard deviation d: k = 4 nbeta d^2 with d^2 = 1 / (4 k), hence k = sqrt(nbeta) along one
    # weight; less, but at most 4 times, along a direction between them.
    assert 0.24 * nbeta**0.5 < found < 1.5 * (nbeta**0.5 + gamma)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_auto_step_gives_the_llc_of_a_quadratic_within_10_percent(condition: float) -> None:
    h = torch.logspace(0, float(np.log10(condition)), 50) / condition * 7
    nbeta, gamma = 50.0, 40.0
    config = settings(
        "auto", nbeta=nbeta, localization=gamma, num_draws=60, num_burnin_steps=200, num_steps_bw_draws=8, num_chains=4
    )
    measurement = estimate(Weights(50), TWO_SAMPLES, Quadratic(h), sampler=config)
    exact = oracles.exact_llc(h.numpy(), nbeta, gamma)
    step = measurement["health"]["step_size"]
    assert step == pytest.approx(0.08 / (nbeta * 7 + gamma), rel=0.25)  # see above: k_max may be low
    assert measurement["health"]["step_bias"] == pytest.approx(0.02, rel=1e-6)
    assert llc(measurement) == pytest.approx(exact, rel=0.1)
    sampled = oracles.quadratic_llc(h.numpy(), nbeta, gamma, step, 60, 200, 8)
    assert abs(llc(measurement) - sampled.mean) < 3 * sampled.stderr(4)


def test_step_bias_of_a_fixed_step_is_reported() -> None:
    measurement = estimate(Weights(4), TWO_SAMPLES, Quadratic(torch.ones(4)), sampler=settings(1e-2, nbeta=39.0))
    assert measurement["health"]["step_bias"] == pytest.approx(0.1, rel=1e-3)
    assert measurement["health"]["step_size"] == 1e-2
    assert SGLD(1e-2).step_bias(40.0) == pytest.approx(0.1)
