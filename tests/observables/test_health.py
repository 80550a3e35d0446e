"""Counts and diagnostics of the same draws."""

from __future__ import annotations

import math

import pytest
import torch

from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.diagnostics import drift, effective_sample_size, split_rhat

TRACE = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def fed(trace: torch.Tensor) -> ChainHealth:
    health, empty = ChainHealth(), torch.empty(0)
    health.reset(ReferencePoint(0, 1.0, empty, empty, 1.0, 0.0, *trace.shape))
    for chain, row in enumerate(trace):
        for index, value in enumerate(row):
            health.update(Draw(chain, index, samples=None, losses=value, loss=value + 100 * index, excess=value))
    return health


def test_health_is_of_the_paired_losses_of_the_chains_left() -> None:
    trace = TRACE.clone()
    trace[1, 3] = math.inf
    health = fed(trace)
    health.discard(1)
    result = health.compute()
    left = TRACE[[0, 2]]
    assert result["failed_chains"] == 1
    assert result["num_valid_draws"] == 80
    assert result["rhat"] == pytest.approx(split_rhat(left))
    assert result["ess"] == pytest.approx(effective_sample_size(left))
    assert result["drift"] == pytest.approx(drift(left))


def test_reset_forgets_the_failed() -> None:
    health, empty = fed(TRACE), torch.empty(0)
    health.discard(0)
    health.reset(ReferencePoint(0, 1.0, empty, empty, 1.0, 0.0, 2, 4))
    result = health.compute()
    assert result["failed_chains"] == result["num_valid_draws"] == 0
    assert math.isnan(result["rhat"])
