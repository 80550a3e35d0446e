"""Diagnostics against traces whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from slt_callbacks.stats.diagnostics import drift, effective_sample_size, split_rhat


def autoregressive(chains: int, draws: int, a: float, seed: int) -> torch.Tensor:
    """Stationary AR(1) of variance 1."""
    noise = torch.randn(chains, draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    trace = noise.clone()
    for t in range(1, draws):
        trace[:, t] = a * trace[:, t - 1] + math.sqrt(1 - a**2) * noise[:, t]
    return trace


def test_rhat_is_the_split_formula() -> None:
    trace = autoregressive(3, 40, 0.5, 0) + torch.tensor([0.0, 0.5, -1.0])[:, None]
    halves = trace.reshape(6, 20).numpy()
    within = halves.var(axis=1, ddof=1).mean()
    between = 20 * halves.mean(axis=1).var(ddof=1)
    assert split_rhat(trace) == pytest.approx(math.sqrt((19 / 20 * within + between / 20) / within), rel=1e-9)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregressive_trace(a: float) -> None:
    # The mean of an AR(1) has the variance of n (1 - a) / (1 + a) independent draws.
    sizes = [effective_sample_size(autoregressive(4, 1000, a, seed)) for seed in range(5)]
    assert np.mean(sizes) == pytest.approx(4000 * (1 - a) / (1 + a), rel=0.15)


@pytest.mark.parametrize("a", [0.0, 0.6, 0.9])
def test_drift_of_a_stationary_trace_has_a_spread_of_about_one(a: float) -> None:
    scores = np.array([drift(autoregressive(4, 200, a, seed)) for seed in range(120)])
    # The error of the mean is 1 / sqrt(120) = 0.09, that of the spread 0.065; short traces overstate their ESS.
    assert abs(scores.mean()) < 0.35
    assert 0.8 < scores.std() < 1.35


def test_drift_has_the_sign_of_the_movement_and_ignores_offsets_between_chains() -> None:
    trace = autoregressive(4, 200, 0.3, 1)
    slope = torch.linspace(0, 1.5, 200)
    assert drift(trace + slope) > 4
    assert drift(trace - slope) < -4
    offsets = 100 * torch.arange(4.0, dtype=torch.float64)[:, None]
    assert drift(trace + offsets) == pytest.approx(drift(trace), rel=1e-6)


def test_diagnostics_do_not_depend_on_the_unit() -> None:
    trace = autoregressive(3, 60, 0.4, 2)
    for statistic in (split_rhat, effective_sample_size, drift):
        assert statistic(7 * trace - 3) == pytest.approx(statistic(trace), rel=1e-9)


@pytest.mark.parametrize(("statistic", "fewest"), [(split_rhat, 8), (effective_sample_size, 8), (drift, 16)])
def test_too_few_draws_a_constant_or_a_nan_give_nan(statistic: Any, fewest: int) -> None:
    trace = autoregressive(3, fewest, 0.0, 3)
    assert math.isfinite(statistic(trace))
    assert math.isnan(statistic(trace[:, :-1]))
    assert math.isnan(statistic(trace[:0]))
    assert math.isnan(statistic(torch.ones(3, 40)))
    trace[1, 2] = math.nan
    assert math.isnan(statistic(trace))


@pytest.mark.parametrize("statistic", [split_rhat, effective_sample_size])
def test_a_trace_has_two_dimensions(statistic: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `trace` to have shape \(chain, draw\), but got \(5,\)"):
        statistic(torch.zeros(5))


def test_one_chain_that_stands_still_among_four_is_an_alarm() -> None:
    trace = 10 + autoregressive(4, 100, 0.3, 4)
    trace[2] = 20.0
    halves = trace.reshape(8, 50).numpy()
    within, between = halves.var(axis=1, ddof=1).mean(), 50 * halves.mean(axis=1).var(ddof=1)
    assert within > 0
    assert split_rhat(trace) == pytest.approx(math.sqrt((49 / 50 * within + between / 50) / within), rel=1e-9)
    assert split_rhat(trace) > 2.6
    assert effective_sample_size(trace) < 10  # of 400 draws
    others = trace[[0, 1, 3]]
    assert abs(drift(trace)) < 3
    assert np.sign(drift(trace)) == np.sign(drift(others))


def test_drift_pays_for_the_autocorrelation_of_every_chain_apart() -> None:
    trace = torch.cat([autoregressive(2, 80, a, 6) for a in (0.0, 0.5, 0.9)])
    trace[1] = 7.0  # stands still: it counts with all its draws
    halves = trace[:, :40], trace[:, 40:]
    halves[1].add_((halves[0].mean(dim=1) - halves[1].mean(dim=1) + 0.3)[:, None])  # all drift alike
    sizes = [[effective_sample_size(chain[None]) for chain in half] for half in halves]
    assert all(math.isnan(of_half[1]) for of_half in sizes)
    totals = [sum(size for size in of_half if not math.isnan(size)) + 40 for of_half in sizes]
    variance = sum(float(half.var(dim=1).mean()) / total for half, total in zip(halves, totals, strict=True))
    assert drift(trace) == pytest.approx(0.3 / math.sqrt(variance), rel=1e-9)


def test_chains_that_stop_moving_halfway_have_drifted() -> None:
    trace = autoregressive(4, 100, 0.3, 5)
    trace[:, 50:] = 4.0
    assert drift(trace) > 10
    assert drift(-trace) < -10
    assert math.isfinite(split_rhat(trace))


def test_where_no_chain_moves_there_is_nothing_to_say() -> None:
    apart = torch.arange(4.0)[:, None].expand(4, 40)
    assert all(math.isnan(statistic(apart)) for statistic in (split_rhat, effective_sample_size, drift))
