"""Chains: when draws are seen, what they carry, and how warm chains burn in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from slt_callbacks.sampling.chains import Chain, warm_round
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.sampler import Sampler
from tests.problems import Quadratic, Weights, engine_for, objective_for, settings

H = torch.tensor([0.5, 2.0, 4.0])


class Recorder:
    """A dynamics that keeps where it was before every step and moves a known way, without noise."""

    step_size = 1e-2

    def __init__(self) -> None:
        self.positions: list[torch.Tensor] = []
        self.sgld_steps: list[int] = []

    def init(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"count": torch.zeros_like(position)}

    def step(
        self, position: Any, gradient: Any, noise: Any, anchor: Any, posterior: Any, state: Any, sgld_step: int
    ) -> None:
        self.positions.append(position.clone())
        self.sgld_steps.append(sgld_step)
        state["count"].add_(1)
        position.add_(0.1)


def draws_of(config: Any, module: Any = None, chains: Any = None, **options: Any) -> tuple[list[Draw], Sampler]:
    objective = objective_for(module or Weights(3), Quadratic(H))
    engine, cold = engine_for(objective, config)
    sampler = Sampler(engine, config, chains or cold, **options)
    return [draw for _, draws in sampler.draws() for draw in draws], sampler


@pytest.mark.parametrize(("burn_in", "between"), [(0, 1), (4, 1), (0, 3), (5, 2)])
def test_draw_j_is_seen_at_step_b_plus_j_theta_before_the_update(burn_in: int, between: int) -> None:
    recorder = Recorder()
    config = dataclasses.replace(
        settings(num_draws=4, num_chains=1, num_burnin_steps=burn_in, num_steps_bw_draws=between), dynamics=recorder
    )
    draws, sampler = draws_of(config)
    assert [draw.index for draw in draws] == [0, 1, 2, 3]
    for draw in draws:
        step = burn_in + draw.index * between
        position = torch.full((3,), 0.1 * step)
        torch.testing.assert_close(recorder.positions[step], position)
        torch.testing.assert_close(draw.loss, (H * position**2 / 2).sum())
        torch.testing.assert_close(draw.losses, draw.loss.expand(2))
    assert len(recorder.positions) == sampler.sgld_steps == config.num_steps
    assert recorder.sgld_steps == list(range(config.num_steps))


def test_first_draw_without_burn_in_is_the_fork_itself() -> None:
    draws, _ = draws_of(settings(0.1, num_draws=2, num_burnin_steps=0), Weights(torch.ones(3)))
    for chain in range(2):
        first, second = (draw for draw in draws if draw.chain == chain)
        assert float(first.excess) == 0
        assert float(first.loss) == pytest.approx(3.25)
        assert float(second.excess) != 0


def test_a_chain_draws_the_same_however_many_others_there_are() -> None:
    few, many = (
        {(draw.chain, draw.index): float(draw.loss) for draw in draws_of(settings(0.1, num_chains=c, num_draws=5))[0]}
        for c in (2, 4)
    )
    assert few.items() <= many.items()
    assert len(many) == 20
    assert len({loss for (_, index), loss in many.items() if index == 3}) == 4


def test_on_steps_hears_of_every_gradient_step() -> None:
    heard: list[int] = []
    config = settings(num_draws=3, num_burnin_steps=7, num_steps_bw_draws=2)
    _, sampler = draws_of(config, on_steps=heard.append)
    assert sum(heard) == sampler.sgld_steps == 2 * config.num_steps
    assert sampler.num_burnin_steps == 7


@pytest.mark.parametrize("keep", [True, False])
def test_positions_are_kept_only_when_asked(keep: bool) -> None:
    recorder = Recorder()
    config = dataclasses.replace(settings(num_draws=4, num_chains=1), dynamics=recorder)
    objective = objective_for(Weights(3), Quadratic(H))
    engine, chains = engine_for(objective, config)
    for _, draws in Sampler(engine, config, chains, keep=keep).draws():
        list(draws)
    if keep:
        assert chains[0].displacement is not None
        torch.testing.assert_close(chains[0].displacement, torch.full((3,), 0.4))
        assert chains[0].sgld_step == 4
    else:
        assert chains[0].displacement is None


def test_warm_chains_start_at_the_fork_plus_their_displacement() -> None:
    config = settings(0.1, num_draws=1, num_chains=1)
    displacement = torch.tensor([1.0, -2.0, 0.5])
    objective = objective_for(Weights(torch.ones(3)), Quadratic(H))
    engine, (chain,) = engine_for(objective, config)
    chain.displacement = displacement
    ((_, draws),) = Sampler(engine, config, [chain]).draws()
    (draw,) = draws
    assert float(draw.loss) == pytest.approx(float((H * (1 + displacement) ** 2 / 2).sum()))


def warm(config: Any, start: float, chains: int = 3) -> Sampler:
    objective = objective_for(Weights(30), Quadratic(torch.ones(30)))
    engine, cold = engine_for(objective, dataclasses.replace(config, num_chains=chains))
    for chain in cold:
        chain.displacement = torch.full((30,), start)
    sampler = Sampler(engine, config, cold, keep=True)
    for _, draws in sampler.draws():
        list(draws)
    return sampler


@pytest.mark.parametrize("cold_burn_in", [8, 50, 400])
def test_warm_burn_in_is_one_round_at_rest_longer_under_drift_and_never_longer_than_cold(cold_burn_in: int) -> None:
    config = settings(1e-3, nbeta=10.0, localization=1.0, num_burnin_steps=cold_burn_in, num_draws=2)
    far = warm(config, start=30.0)  # relaxes over 200 steps, from an energy thousands of times that at rest
    assert far.num_burnin_steps == cold_burn_in
    at_rest = warm(dataclasses.replace(config, nbeta=0.0), start=0.1)
    assert at_rest.num_burnin_steps <= cold_burn_in
    assert at_rest.sgld_steps == 3 * (at_rest.num_burnin_steps + 2)


def test_warm_burn_in_of_stationary_chains_is_usually_one_round() -> None:
    # eps k = 0.55: a round of 80 steps forgets where it started.
    config = settings(0.05, nbeta=10.0, localization=1.0, num_burnin_steps=400, num_draws=2)
    rounds = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        objective = objective_for(Weights(30), Quadratic(torch.ones(30)))
        engine, chains = engine_for(objective, config)
        for chain in chains:
            chain.noise.manual_seed(100 * seed + chain.index)
            chain.displacement = torch.randn(30, generator=generator) / 11**0.5
        sampler = Sampler(engine, config, chains)
        for _, draws in sampler.draws():
            list(draws)
        rounds.append(sampler.num_burnin_steps // 80)
    assert rounds.count(1) >= 10
    assert max(rounds) <= 3


@pytest.mark.parametrize(("cold", "expected"), [(0, 0), (5, 5), (60, 16), (500, 100)])
def test_a_warm_round_is_a_fifth_of_the_cold_burn_in_but_long_enough_to_test(cold: int, expected: int) -> None:
    assert warm_round(cold) == expected


def test_state_and_step_count_of_a_dynamics_go_on_with_a_warm_chain() -> None:
    recorder = Recorder()
    config = dataclasses.replace(settings(num_draws=3, num_chains=1), dynamics=recorder)
    objective = objective_for(Weights(3), Quadratic(H))
    engine, chains = engine_for(objective, config)
    for _ in range(2):
        for _, draws in Sampler(engine, config, chains, keep=True).draws():
            list(draws)
    assert recorder.sgld_steps == list(range(6))
    assert isinstance(chains[0], Chain)
    assert chains[0].state is not None
    assert chains[0].state["count"].tolist() == [6, 6, 6]
