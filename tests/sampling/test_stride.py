"""The step in use: chosen at w*, judged where chains stand, shortened and lengthened by stated rules."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LLC, SGLD, Estimator, LeimkuhlerMatthews, RMSPropSGLD, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.curvature import Stiffness, stiffness_at
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.stride import Stride
from slt_callbacks.weights.fork import Fork
from tests.problems import TWO_SAMPLES, Quadratic, Weights, llc, objective_for

POSTERIOR = LocalPosterior(nbeta=10.0, localization=5.0)


def stride(dynamics: Any = None, **settings: Any) -> Stride:
    return Stride(SamplerConfig(dynamics or LeimkuhlerMatthews(), **settings), POSTERIOR)


def stiff(curvature: float, noise: float = 0.0) -> Stiffness:
    return Stiffness(curvature, noise, along_noise=curvature)


class TestChosen:
    def test_at_half_of_what_is_stable_by_the_curvature_at_w_star(self) -> None:
        one = stride()
        assert one.step_size == "auto"
        assert not one.begin(100.0)
        assert one.step_size == pytest.approx(2 / 100)
        assert one.stability == pytest.approx(0.5)

    def test_by_the_chains_where_they_stand_stiffer(self) -> None:
        one = stride()
        one.begin(100.0)
        assert not one.suits([stiff(130.0), stiff(300.0)], llc=3.0)
        assert one.step_size == pytest.approx(2 / 300)
        assert one.suits([stiff(250.0)], llc=3.0)
        assert one.stability == pytest.approx(0.5), "the largest seen with the step in use"

    def test_one_where_they_are_softer_is_held(self) -> None:
        one = stride()
        one.begin(100.0)
        assert one.suits([stiff(20.0)], llc=3.0)
        assert one.step_size == pytest.approx(2 / 100)

    @pytest.mark.parametrize(("share", "held"), [(0.7, True), (0.8, False)])
    def test_in_later_measurements_it_is_shortened_above_three_quarters(self, share: float, held: bool) -> None:
        one = stride()
        one.begin(100.0)
        one.suits([stiff(100.0)], llc=3.0)
        one.finish(one.seen, llc=3.0)
        one.begin(100.0)
        assert one.suits([stiff(200.0 * share)], llc=3.0) == held
        assert one.step_size == pytest.approx(2 / 100 if held else 2 / (200.0 * share))

    def test_a_later_w_star_that_is_stiffer_shortens_it_before_any_step(self) -> None:
        one = stride()
        one.begin(100.0)
        one.finish([stiff(100.0)], llc=3.0)
        one.begin(1000.0)
        assert one.step_size == pytest.approx(2 / 1000)

    @pytest.mark.parametrize(("curvature", "grows"), [(30.0, False), (20.0, True)])
    def test_it_grows_where_it_is_under_an_eighth_of_what_is_stable(self, curvature: float, grows: bool) -> None:
        one = stride()
        one.begin(100.0)
        one.suits([stiff(curvature)], llc=3.0)
        one.finish(one.seen, llc=3.0)
        one.begin(curvature)
        assert one.step_size == pytest.approx(2 / curvature if grows else 2 / 100)

    def test_a_number_is_held_whatever_is_seen(self) -> None:
        one = stride(LeimkuhlerMatthews(0.5))
        one.begin(100.0)
        assert one.suits([stiff(1000.0)], llc=3.0)
        assert one.step_size == 0.5
        assert one.stability == pytest.approx(125.0)

    def test_chains_that_have_diverged_say_nothing(self) -> None:
        one = stride()
        one.begin(100.0)
        assert one.suits([Stiffness(math.nan, math.nan, math.nan), stiff(90.0)], llc=math.nan)
        assert one.seen == [stiff(90.0)]


class TestNoise:
    def test_the_step_is_that_whose_noise_adds_four_percent(self) -> None:
        one = stride()
        one.begin(100.0)
        noisy = stiff(100.0, noise=100.0)
        assert not one.suits([noisy], llc=3.0 + noisy.excess_llc(2 / 100, 5.0))
        assert noisy.excess_llc(float(one.dynamics.step_size), 5.0) == pytest.approx(0.04 * 3.0)
        assert one.noise_bias(3.0 * 1.04) == pytest.approx(0.04)

    def test_one_look_shortens_it_to_a_quarter_at_most(self) -> None:
        one = stride()
        one.begin(100.0)
        noisy = stiff(100.0, noise=20000.0)
        for taken in (4, 16):
            assert not one.suits([noisy], llc=3.0 + noisy.excess_llc(float(one.dynamics.step_size), 5.0))
            assert one.step_size == pytest.approx(2 / 100 / taken)

    def test_little_of_it_is_left_alone(self) -> None:
        one = stride()
        one.begin(100.0)
        assert one.suits([stiff(100.0, noise=1.0)], llc=3.0)

    def test_a_small_llc_is_measured_against_that_of_one_direction(self) -> None:
        one = stride()
        one.begin(100.0)
        noisy = stiff(100.0, noise=20.0)
        one.suits([noisy], llc=noisy.excess_llc(2 / 100, 5.0))
        assert noisy.excess_llc(float(one.dynamics.step_size), 5.0) == pytest.approx(0.04 * 0.5)

    def test_it_may_not_grow_into_the_noise(self) -> None:
        one = stride()
        one.begin(1000.0)
        one.finish([stiff(20.0, noise=300.0)], llc=3.0)
        one.begin(20.0)
        assert one.step_size == pytest.approx(2 / 1000)

    @pytest.mark.parametrize("localization", [0.0, 5.0, 90.0])
    def test_step_and_excess_are_inverse(self, localization: float) -> None:
        noisy = stiff(100.0, noise=40.0)
        step_size = noisy.step_size_for(0.01, localization)
        assert noisy.excess_llc(step_size, localization) == pytest.approx(0.01)
        assert 0 < step_size < 4 / 100
        assert noisy.excess_llc(4 / 100, localization) == math.inf
        assert stiff(100.0).step_size_for(0.01, localization) == math.inf


class TestBurnIn:
    @pytest.mark.parametrize(
        ("dynamics", "expected"),
        [
            (LeimkuhlerMatthews(0.02), 30),  # 1.5 * 2 / (0.02 * 5)
            (LeimkuhlerMatthews(0.5), 8),
            (LeimkuhlerMatthews(1e-3), 88),
            (LeimkuhlerMatthews(0.0), 88),
            (SGLD(0.01), 60),
            (RMSPropSGLD(0.01, damping=0.5), 30),
        ],
    )
    def test_auto_is_one_and_a_half_memories_of_the_flattest_direction(self, dynamics: Any, expected: int) -> None:
        assert stride(dynamics, num_burnin_steps="auto").burn_in == expected

    def test_without_localization_nothing_is_forgotten(self) -> None:
        config = SamplerConfig(LeimkuhlerMatthews(0.02), localization=0.0)
        assert Stride(config, LocalPosterior(10.0, 0.0)).burn_in == 88

    def test_a_number_is_a_number(self) -> None:
        assert stride(LeimkuhlerMatthews(0.02), num_burnin_steps=7).burn_in == 7

    def test_before_there_is_a_step_it_is_the_most(self) -> None:
        assert stride().burn_in == SamplerConfig().most_burnin_steps == 88

    def test_what_was_used_is_told(self) -> None:
        config = SamplerConfig(LeimkuhlerMatthews(0.02), nbeta=10.0, localization=5.0, num_draws=4, num_chains=2)
        found = estimate(Weights(4), [torch.zeros(2, 1)], Quadratic(torch.ones(4)), sampler=config)
        assert found["health"]["num_burnin_steps"] == 30
        assert found["cost"]["sgld_steps"] == 2 * 34


class TestStiffness:
    @pytest.mark.parametrize("batch_size", [None, 8])
    def test_curvature_and_noise_of_a_regression_are_those_of_its_matrix(self, batch_size: int | None) -> None:
        rng = torch.Generator().manual_seed(3)
        x = torch.randn(64, 5, generator=rng, dtype=torch.float64) * torch.tensor([3.0, 1.0, 1.0, 0.5, 0.1])
        y = torch.randn(64, 1, generator=rng, dtype=torch.float64)
        torch.manual_seed(0)
        module = nn.Linear(5, 1, bias=False, dtype=torch.float64)
        objective = objective_for(
            module, lambda m, b: (m(b[0]) - b[1]).square().sum(1) / 2, [(x, y)], batch_size=batch_size
        )
        position = module.weight.detach().flatten() + 0.3
        residuals = x @ position - y[:, 0]
        gradients = x * residuals[:, None]
        wanted = POSTERIOR.nbeta**2 * float(gradients.var(0).sum()) / (batch_size or math.inf)
        wanted *= 1 - (batch_size or 64) / 64
        found = [
            stiffness_at(objective, POSTERIOR, position, torch.Generator().manual_seed(seed), None, known=50.0)
            for seed in range(400 if batch_size else 1)
        ]
        h = x.T @ x / 64
        k_max = POSTERIOR.nbeta * float(torch.linalg.eigvalsh(h).max()) + POSTERIOR.localization
        assert max(one.curvature for one in found) <= k_max * (1 + 1e-6)
        assert sum(one.curvature for one in found) / len(found) == pytest.approx(k_max, rel=0.05)
        assert sum(one.noise for one in found) / len(found) == pytest.approx(wanted, rel=0.07, abs=1e-12)
        if batch_size:
            covariance = torch.cov(gradients.T)
            along = POSTERIOR.nbeta * float((h * covariance).sum() / covariance.trace()) + POSTERIOR.localization
            # Of the last pair, whose own noise would be the weight that makes this exact.
            weighted = sum(one.noise * one.along_noise for one in found) / sum(one.noise for one in found)
            assert weighted == pytest.approx(along, rel=0.2)

    def test_a_flat_loss_has_the_curvature_of_the_localization(self) -> None:
        objective = objective_for(Weights(3), Quadratic(torch.zeros(3)))
        at = torch.ones(3)
        found = stiffness_at(objective, POSTERIOR, at, torch.Generator(), None, known=5.0)
        assert found == Stiffness(5.0, 0.0, 5.0)


class Lists(nn.Module):
    """A training step that counts itself in a list, a buffer and a frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.slow = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))
        self.calls: torch.Tensor
        self.seen: list[int] = []


def test_a_look_leaves_the_chain_as_it_was() -> None:
    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        module.seen.append(1)
        module.calls += 1
        module.slow.data += 1
        return (module.w.square().sum() * (1 + 0.1 * len(module.seen))).expand(len(batch))

    fork = Fork(Lists(), share_frozen=False)
    objective = Objective(fork, loss_fn, draw_reference([torch.zeros(4, 1)]))
    fork.position.fill_(2.0)
    objective.backward()
    objective.take_gradients()
    with fork.put_back():
        stiffness_at(objective, POSTERIOR, torch.ones(3), torch.Generator(), None, known=5.0)
    module: Any = fork.module
    assert (len(module.seen), float(module.calls), float(module.slow[0])) == (1, 1.0, 1.0)
    assert fork.position.tolist() == [2.0] * 3


class TestStateOfARun:
    def test_a_resumed_run_goes_on_with_what_was_seen(self) -> None:
        def run(stop: bool) -> list[float]:
            data = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
            found = []

            def made() -> Estimator:
                return Estimator(
                    draw_reference([data]),
                    Stiffer(),
                    None,
                    SamplerConfig(num_draws=16, batch_size=8, engine="sequential"),
                    persistent=True,
                )

            one = made()
            for step in range(4):
                found.append(llc(one.measure(Weights(torch.full((3,), 1.0 + step)), step)))
                if stop:
                    state, one = one.state_dict(), made()
                    one.load_state_dict(state)
            return found

        assert run(stop=False) == run(stop=True)


class Stiffer:
    """Of the fourth power: the stiffer, the further from 0."""

    def __call__(self, module: Any, batch: torch.Tensor) -> torch.Tensor:
        return (batch * module.w).sum(1).square().square() / 4


class TestEdges:
    @pytest.mark.parametrize("dynamics", [LeimkuhlerMatthews(), LeimkuhlerMatthews(1e-2), SGLD(), SGLD(1e-3)])
    def test_a_loss_that_curves_downwards_along_its_noise(self, dynamics: Any) -> None:
        def loss_fn(module: Any, batch: torch.Tensor) -> torch.Tensor:
            w = module.w
            return 2 * w[1].square() - w[0].cosh().log() + batch[:, 0] * w[0]

        data = torch.randn(32, 1, generator=torch.Generator().manual_seed(0))
        config = SamplerConfig(dynamics, nbeta=5.0, localization=0.0, num_draws=20, num_burnin_steps=20, batch_size=8)
        found = Estimator(draw_reference([data]), loss_fn, None, config).measure(Weights(2))
        assert found.error is None
        assert math.isfinite(found["health"]["noise_bias"])

    @pytest.mark.parametrize("num_burnin_steps", [0, 1, 2, 3, 5, 6])
    def test_every_draw_comes_once_whatever_the_burn_in(self, num_burnin_steps: int) -> None:
        seen: list[tuple[int, int]] = []

        class Seen(LLC):
            def update(self, draw: Any) -> None:
                seen.append((draw.chain, draw.index))
                super().update(draw)

        data = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        config = SamplerConfig(num_draws=20, num_burnin_steps=num_burnin_steps, batch_size=8, engine="sequential")
        for seed in range(4):
            seen.clear()
            Estimator(draw_reference([data]), Stiffer(), {"llc": Seen()}, config, seed=seed).measure(Weights(3))
            assert seen == [(chain, index) for chain in range(4) for index in range(20)]

    def test_a_chain_that_stands_nowhere_any_more_costs_itself_alone(self) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:  # nothing beyond 1
            return (8 - 8 * (1 - module.w.square()).sqrt()).sum().expand(len(batch))

        lost = 0
        for seed in range(16):
            config = SamplerConfig(nbeta=5.0, localization=1.0, num_draws=20, num_burnin_steps=10, engine="sequential")
            one = Estimator(draw_reference(TWO_SAMPLES), loss_fn, None, config, seed=seed, persistent=True)
            one.measure(Weights(torch.zeros(1)), 1)
            found = one.measure(Weights(torch.full((1,), 0.75)), 2)
            failed = found["health"]["failed_chains"]
            lost += failed > 0
            assert found.error is None or failed == 4, found.error
            assert "diverged?" not in (found.error or "")
        assert lost > 0, "nothing was tried"

    def test_a_step_that_all_have_diverged_with_is_not_taken_again(self) -> None:
        one = stride()
        one.begin(100.0)
        one.finish([stiff(100.0)], llc=3.0)
        one.retreat()
        assert one.step_size == pytest.approx(0.02 / 8)
        again = stride()
        again.load_state_dict(one.state_dict())
        for resumed in (one, again):
            resumed.begin(100.0)
            assert resumed.step_size == pytest.approx(0.01), "half of it"

    def test_a_pilot_that_is_carried_away_begins_again_with_a_smaller_step(self) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:  # flat at w*, and a wall
            return (module.w.abs() > 0.5).float().mul(module.w.square().exp()).sum().mul(1e4).expand(len(batch)) + (
                module.w.square().sum() / 2
            )

        config = SamplerConfig(nbeta=10.0, localization=1.0, num_draws=20, num_burnin_steps=20, engine="sequential")
        found = Estimator(draw_reference(TWO_SAMPLES), loss_fn, None, config).measure(Weights(3))
        assert found.error is None
        assert found["health"]["failed_chains"] == 0
        assert found["health"]["step_size"] < 2 / 11

    def test_the_curvature_at_w_star_is_that_of_several_minibatches_or_of_all(self) -> None:
        x = torch.randn(64, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        y = torch.zeros(64, 1, dtype=torch.float64)
        k_max = 10.0 * float(torch.linalg.eigvalsh(x.T @ x / 64).max()) + 100.0
        for batch_size in (16, 32):  # four of them are all samples
            config = SamplerConfig(nbeta=10.0, num_draws=4, num_burnin_steps=4, batch_size=batch_size)
            loss_fn = lambda m, b: (m(b[0]) - b[1]).square().sum(1) / 2  # noqa: E731
            module = nn.Linear(5, 1, bias=False, dtype=torch.float64)
            one = Estimator(draw_reference([(x, y)]), loss_fn, None, config)
            assert one.automatic_step_size(module) == pytest.approx(2 / k_max, rel=0.02)

    def test_a_fork_is_let_go_after_an_error(self) -> None:
        forks: list[Any] = []

        def loss_fn(module: Any, batch: torch.Tensor) -> torch.Tensor:
            forks.append(weakref.ref(module))
            if len(forks) > 60:
                raise ValueError("no more")
            return (batch * module.w).sum(1).square()

        one = Estimator(draw_reference([torch.ones(8, 3)]), loss_fn, None, SamplerConfig(), persistent=True)
        assert one.attempt(Weights(3), 1).error is not None
        gc.collect()
        assert {fork() for fork in forks} == {None}
