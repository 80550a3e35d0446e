"""Chains split over ranks: the same numbers as in one process, and an end on all of them where one fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import (
    LLC,
    Estimator,
    Influence,
    LeimkuhlerMatthews,
    LossKernel,
    Measurement,
    Refinement,
    RMSPropSGLD,
    TrajectoryPCA,
)
from slt_callbacks.basics.errors import RankFailedError
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring.refinement import RefinementSet
from slt_callbacks.sampling.config import SamplerConfig
from tests.problems import settings, squared_error
from tests.processes import ThreadRank, on_ranks


def data(size: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator))]


def network(steps: int = 0) -> nn.Module:
    """The same one everywhere, as after so many training steps."""
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1 + 0.1 * steps))
    return module


def observables() -> dict[str, Any]:
    return {"llc": LLC(), "kernel": LossKernel(), "influence": Influence(data(4))}


def estimator(config: SamplerConfig, ranks: Any = None, loss_fn: Any = squared_error) -> Estimator:
    return Estimator(draw_reference(data()), loss_fn, observables(), config, seed=3, persistent=True, ranks=ranks)


def series(one: Estimator, steps: int = 3) -> list[Measurement]:
    return [one.measure(network(step), step) for step in range(1, steps + 1)]


def same(one: Measurement, other: Measurement, tolerance: float = 0.0) -> None:
    for key, result in one.results.items():
        for name, value in result.items():
            if name == "seconds":
                continue
            if isinstance(value, (int, float, torch.Tensor)):
                a, b = torch.as_tensor(value).double(), torch.as_tensor(other[key][name]).double()
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True, msg=f"{key}/{name}")


CONFIGS = {
    "sequential": settings(num_chains=5, num_draws=20, num_burnin_steps=40, engine="sequential"),
    "minibatches": settings(num_chains=4, num_draws=20, num_burnin_steps=40, batch_size=4, engine="sequential"),
    "preconditioned": settings(
        dynamics=RMSPropSGLD(1e-3), num_chains=3, num_draws=20, num_burnin_steps=40, engine="sequential"
    ),
    "averaged noise": settings(
        dynamics=LeimkuhlerMatthews(), num_chains=4, num_draws=20, num_burnin_steps="auto", engine="sequential"
    ),
    "averaged noise, minibatches": settings(
        dynamics=LeimkuhlerMatthews(), num_chains=4, num_draws=20, localization=20.0, batch_size=4, engine="sequential"
    ),
    "averaged noise, one chain": settings(
        dynamics=LeimkuhlerMatthews(), num_chains=1, num_draws=20, num_burnin_steps=5, engine="sequential"
    ),
    "fewer chains than ranks": settings(num_chains=2, num_draws=20, num_burnin_steps=40, engine="sequential"),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_three_ranks_find_what_one_process_finds_cold_and_warm(config: SamplerConfig) -> None:
    alone = series(estimator(config))
    for rank in on_ranks(3, lambda ranks: series(estimator(config, ranks))):
        assert not isinstance(rank, Exception), rank
        for one, other in zip(alone, rank, strict=True):
            same(one, other, tolerance=1e-12)


def test_the_vectorized_engine_is_split_too() -> None:
    config = settings(num_chains=4, num_draws=20, num_burnin_steps=10, engine="vectorized")
    alone = series(estimator(config))
    for rank in on_ranks(2, lambda ranks: series(estimator(config, ranks))):
        for one, other in zip(alone, rank, strict=True):
            same(one, other, tolerance=1e-4)


def test_each_rank_does_its_share_of_the_work() -> None:
    config = settings(num_chains=5, num_draws=20, engine="sequential")

    def steps(ranks: ThreadRank) -> int:
        taken: list[int] = []
        one = estimator(config, ranks)
        assert one.expected_steps == 20 * (3 if ranks.rank == 0 else 2)
        one.measure(network(), 1, on_steps=taken.append)
        return sum(taken)

    assert on_ranks(2, steps) == [60, 40]


def test_buffers_are_those_of_rank_0() -> None:
    config = settings(num_chains=2, num_draws=20, engine="sequential")

    def measure(ranks: Any, shift: float) -> Measurement:
        module = network()
        module[1].running_mean += shift
        return estimator(config, ranks).measure(module, 1)

    alone = measure(None, 0.0)
    for rank in on_ranks(2, lambda ranks: measure(ranks, float(ranks.rank))):
        same(alone, rank)


def test_queries_are_those_of_rank_0() -> None:
    config = settings(num_chains=2, num_draws=20, engine="sequential")

    def measure(ranks: Any, shift: float) -> Measurement:
        x, y = data(4)[0]
        queried = {"influence": Influence([(x + shift, y)])}
        return Estimator(draw_reference(data()), squared_error, queried, config, ranks=ranks).measure(network(), 1)

    alone = measure(None, 0.0)
    for rank in on_ranks(2, lambda ranks: measure(ranks, float(ranks.rank))):
        same(alone, rank, tolerance=1e-12)


def test_so_are_the_probes_of_a_trajectory() -> None:
    """Otherwise a resume, whose rows are rank 0's, would begin it anew on every other rank."""

    def measure(ranks: ThreadRank) -> tuple[torch.Tensor, Any]:
        trajectory = TrajectoryPCA([data(4)[0][0] + ranks.rank])
        queried: Any = {"trajectory": trajectory}
        Estimator(draw_reference(data()), squared_error, queried, ranks=ranks).measure(network(), 1)
        return trajectory.rows, trajectory.state_dict()["probes"]

    (rows, probes), (others, their_probes) = on_ranks(2, measure)
    assert torch.equal(rows, others)
    assert probes == their_probes


def test_queries_that_one_rank_cannot_draw_end_it_on_all() -> None:
    def make(ranks: ThreadRank) -> Estimator:
        queries = data(4) if ranks.rank == 0 else []
        return Estimator(draw_reference(data()), squared_error, {"influence": Influence(queries)}, ranks=ranks)

    for error in on_ranks(2, make):
        assert isinstance(error, RankFailedError)
        assert "rank 1: ValueError: observables['influence']" in str(error)


def test_a_checkpoint_of_rank_0_holds_the_chains_of_all_and_suits_any_number_of_ranks() -> None:
    config = CONFIGS["sequential"]

    def state(ranks: Any) -> dict[str, Any]:
        one = estimator(config, ranks)
        series(one, 2)
        return one.state_dict()

    def go_on(saved: dict[str, Any], ranks: Any = None) -> Measurement:
        one = estimator(config, ranks)
        one.load_state_dict(saved)
        return one.measure(network(3), 3)

    saved = on_ranks(2, state)[0]
    assert sorted(saved["chains"]) == [0, 1, 2, 3, 4]
    expected = series(estimator(config), 3)[-1]
    same(go_on(saved), expected, tolerance=1e-12)
    for rank in on_ranks(3, lambda ranks: go_on(saved, ranks)):
        same(rank, expected, tolerance=1e-12)


@pytest.mark.parametrize("when", [1, 8, 30])
def test_a_loss_that_raises_on_one_rank_ends_the_measurement_on_all_and_the_next_one_works(when: int) -> None:
    config = settings(num_chains=4, num_draws=20, engine="sequential")

    def work(ranks: ThreadRank) -> tuple[Exception | None, Measurement]:
        calls = {"left": when if ranks.rank == 1 else 10**9}

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            calls["left"] -= 1
            if calls["left"] == 0:
                raise ValueError("corrupt sample")
            return squared_error(module, batch)

        one, error = estimator(config, ranks, loss_fn), None
        try:
            one.measure(network(), 1)
        except RankFailedError as failure:
            error = failure
            one.failed(1, str(failure))  # as the monitor does
        return error, one.measure(network(), 2)

    alone = estimator(config).measure(network(), 2)
    for error, second in on_ranks(2, work):
        assert "corrupt sample" in str(error)
        assert str(error).startswith("rank 1: ")
        same(alone, second)


@pytest.mark.parametrize("error", [ValueError("corrupt sample"), torch.OutOfMemoryError("no memory")])
def test_a_gradient_pass_that_one_rank_cannot_take_ends_on_all_before_those_of_refinements(error: Exception) -> None:
    """Otherwise the others would meet it in the pass of a refinement, take that for lost, and wait for ever."""
    refinements = RefinementSet({name: Refinement(f"{name}.*") for name in ("0", "3")})

    def work(ranks: ThreadRank) -> Any:
        sound = [True]

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            if ranks.rank == 1 and not sound[0]:
                raise error
            return squared_error(module, batch)

        one = Estimator(draw_reference(data()), loss_fn, None, ranks=ranks, refinements=refinements)
        one.check(network())
        sound[0] = False
        one.time_pass(network())

    for found in on_ranks(2, work):
        assert isinstance(found, RankFailedError)
        assert str(error) in str(found)


class Poisoned:
    """NaN after so many calls."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.calls += 1
        return squared_error(module, batch) * (math.nan if self.calls > self.after else 1.0)


def test_a_chain_that_diverges_on_one_rank_is_dropped_on_all() -> None:
    config = settings(num_chains=4, num_draws=20, engine="sequential")

    def calls(ranks: ThreadRank) -> int:
        counting = Poisoned(10**9)
        estimator(config, ranks, counting).measure(network(), 1)
        return counting.calls

    many = on_ranks(2, calls)[1]

    def work(ranks: ThreadRank) -> Measurement:
        late = Poisoned(many - 5 if ranks.rank == 1 else 10**9)  # in the last chain
        return estimator(config, ranks, late).measure(network(), 1)

    first, second = on_ranks(2, work)
    assert first["health"]["failed_chains"] == second["health"]["failed_chains"] == 1
    assert first["llc"]["per_chain"].isnan().tolist() == [False, False, False, True]
    assert math.isfinite(first["llc"]["mean"])
    assert torch.equal(first["kernel"]["covariance"], second["kernel"]["covariance"])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("which", ["reference", "queries"])
def test_a_loss_that_is_nan_at_the_fork_on_one_rank_fails_the_measurement_on_all(rank: int, which: str) -> None:
    config = settings(num_chains=4, num_draws=20, engine="sequential")
    size = {"reference": 12, "queries": 4}[which]

    def work(ranks: ThreadRank) -> list[Measurement]:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            bad = ranks.rank == rank and len(batch[0]) == size and step == 1
            return squared_error(module, batch) * (math.nan if bad else 1.0)

        one, step = estimator(config, ranks, loss_fn), 1
        first = one.measure(network(), 1)
        step = 2
        return [first, one.measure(network(), 2)]

    alone = estimator(config).measure(network(), 2)
    for found in on_ranks(2, work):
        assert not isinstance(found, Exception), found
        assert found[0].failed
        assert "not finite at the fork" in str(found[0].error)
        same(alone, found[1])
