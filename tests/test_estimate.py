"""One measurement, and an estimator over a run: failures, seeds, memory, bad input."""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.influence import Influence
from slt_callbacks.observables.llc import LLC
from slt_callbacks.observables.loss_kernel import LossKernel
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
from slt_callbacks.sampling.posterior import default_nbeta
from tests import oracles
from tests.problems import TWO_SAMPLES, Estimator, Quadratic, Weights, estimate, llc, settings, squared_error

X = torch.linspace(-1, 1, 60).view(20, 3) ** 3
Y = torch.linspace(1, 0, 20)[:, None].sqrt()
DATA = [(X, Y)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def trace(measurement: Measurement) -> torch.Tensor:
    found: torch.Tensor = measurement["llc"]["loss_trace"]
    return found


# Seeds


def test_same_seed_same_draws_and_another_seed_other_draws() -> None:
    config = settings(1e-2, num_draws=5, batch_size=4)
    first, again, other = (estimate(network(), DATA, squared_error, sampler=config, seed=s) for s in (3, 3, 4))
    assert torch.equal(trace(first), trace(again))
    assert not torch.equal(trace(first), trace(other))


def test_the_step_of_the_fork_decides_the_random_numbers_too() -> None:
    traces = [
        trace(Estimator(draw_reference(DATA), squared_error, config=settings(1e-2)).measure(network(), step))
        for step in (1, 1, 2)
    ]
    assert torch.equal(traces[0], traces[1])
    assert not torch.equal(traces[0], traces[2])


def test_global_seeds_have_no_say() -> None:
    traces = []
    for seed in (1, 2):
        module = network()
        torch.manual_seed(seed)
        np.random.seed(seed)
        traces.append(trace(estimate(module, DATA, squared_error, sampler=settings(1e-2, batch_size=4))))
    assert torch.equal(*traces)


@pytest.mark.parametrize("batch_size", [None, 6])
def test_block_size_does_not_change_the_numbers(batch_size: int | None) -> None:
    whole, blocks = (
        trace(
            estimate(
                network().double(),
                DATA,
                squared_error,
                sampler=settings(1e-2, num_draws=8, batch_size=batch_size, block_size=block_size),
            )
        )
        for block_size in (None, 4)
    )
    torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=0)


def test_a_chain_does_not_depend_on_how_many_others_there_are() -> None:
    few, many = (
        trace(estimate(network(), DATA, squared_error, sampler=settings(1e-2, batch_size=5, num_chains=c)))
        for c in (2, 4)
    )
    assert torch.equal(few, many[:2])


def test_scalar_and_per_sample_losses_give_the_same_llc() -> None:
    per_sample, scalar = (
        estimate(network(), DATA, loss_fn, sampler=settings(1e-2, num_draws=6))
        for loss_fn in (squared_error, lambda m, b: squared_error(m, b).mean())
    )
    torch.testing.assert_close(trace(per_sample), trace(scalar), rtol=1e-5, atol=1e-7)
    assert llc(per_sample) == pytest.approx(llc(scalar), rel=1e-3, abs=1e-5)


# What a measurement says


def test_a_measurement_has_the_promised_names() -> None:
    config = settings(1e-3, num_draws=20, num_burnin_steps=3)
    measurement = estimate(network(), DATA, squared_error, sampler=config)
    assert set(measurement["llc"]) >= {
        "mean",
        "stderr",
        "std",
        "per_chain",
        "variance_llc",
        "reference_loss",
        "loss_trace",
    }
    assert set(measurement["health"]) >= {
        "failed_chains",
        "num_valid_draws",
        "rhat",
        "ess",
        "drift",
        "step_size",
        "step_bias",
    }
    assert measurement["cost"]["sgld_steps"] == 2 * 23
    assert 0 < measurement["cost"]["seconds"] < 60
    assert measurement["health"]["num_valid_draws"] == 40
    assert measurement["health"]["failed_chains"] == 0
    assert measurement.step == 0
    assert not measurement.failed
    assert measurement.scalars()["llc/mean"] == llc(measurement)
    assert all(isinstance(value, (int, float)) for value in measurement.scalars().values())
    with pytest.raises(KeyError, match="No observable 'kernel' in this measurement"):
        measurement["kernel"]


def test_reference_loss_is_the_mean_over_the_whole_set_even_with_minibatches() -> None:
    module = network()
    measurement = estimate(module, DATA, squared_error, sampler=settings(batch_size=3))
    assert measurement["llc"]["reference_loss"] == pytest.approx(
        float(squared_error(module, (X, Y)).detach().mean()), rel=1e-6
    )


def test_nbeta_defaults_to_n_over_log_n_and_is_reported() -> None:
    measurement = estimate(network(), DATA, squared_error, sampler=settings(nbeta=None), num_samples=12)
    assert measurement["health"]["nbeta"] == pytest.approx(default_nbeta(12))


def test_two_llcs_do_not_collide() -> None:
    measurement = estimate(
        network(), DATA, squared_error, observables={"first": LLC(), "second": LLC()}, sampler=settings()
    )
    assert measurement["first"]["mean"] == measurement["second"]["mean"]


class Held:
    """A user's own observable without `discard`."""

    def reset(self, reference: Any) -> None:
        self.chains: list[int] = []
        self.sum = 0.0

    def update(self, draw: Any) -> None:
        self.chains.append(draw.chain)
        self.sum += float(draw.excess)

    def compute(self) -> dict[str, float]:
        return {"draws": len(self.chains), "mean": self.sum / len(self.chains)}


@dataclasses.dataclass(frozen=True)
class Still:
    """A user's own dynamics: stays put, then jumps to a value of its chain's first random number."""

    step_size: float = 1.0

    def init(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def step(
        self, position: Any, gradient: Any, noise: Any, anchor: Any, posterior: Any, state: Any, sgld_step: int
    ) -> None:
        position.copy_(noise)


def test_users_own_dynamics_and_observable_work() -> None:
    config = dataclasses.replace(settings(num_draws=400, num_burnin_steps=1, nbeta=2.0), dynamics=Still())
    observables = {"held": Held(), "llc": LLC()}
    measurement = estimate(Weights(50), TWO_SAMPLES, Quadratic(torch.ones(50)), observables=observables, sampler=config)
    # Independent standard normal positions: nbeta L has mean 50 and variance 100.
    assert abs(llc(measurement) - 50) < 3 * 10 / 800**0.5
    assert measurement["held"]["draws"] == 800
    assert measurement["held"]["mean"] == pytest.approx(llc(measurement) / 2.0, rel=1e-6)
    assert math.isnan(measurement["health"]["step_bias"])


# Failing chains


class Poison:
    """A loss that turns non-finite, or senseless, in one chain at one of its steps."""

    def __init__(self, chain: int | None, at: int, value: float, steps: int) -> None:
        self.chain, self.at, self.value, self.steps, self.calls = chain, at, value, steps, 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        losses = squared_error(module, batch)
        if torch.is_grad_enabled() and not self.warming:
            chain, step = divmod(self.calls, self.steps)
            self.calls += 1
            if step == self.at and self.chain in (None, chain):
                return losses * 0 + self.value
        return losses

    warming = True


def poisoned(chain: int | None, at: int, value: float, observables: Any = None) -> Measurement:
    config = settings(1e-3, num_chains=3, num_draws=10, num_burnin_steps=2)
    loss_fn = Poison(chain, at, value, config.num_steps)
    reference = draw_reference(DATA)

    class Switch(LLC):
        def reset(self, point: Any) -> None:  # called when the chains are about to start
            super().reset(point)
            loss_fn.warming = False

    estimator = Estimator(reference, loss_fn, {"llc": Switch(), **(observables or {})}, config)
    return estimator.measure(network())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9, -1e9])
@pytest.mark.parametrize("at", [2, 6, 11])
def test_a_failed_chain_is_dropped_from_its_first_draw_on_and_counted(value: float, at: int) -> None:
    clean = poisoned(None, -1, 0.0, {"held": Held()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = poisoned(1, at, value, {"held": Held()})
    assert not found.failed
    assert found["llc"]["per_chain"].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(
        found["llc"]["per_chain"][[0, 2]], clean["llc"]["per_chain"][[0, 2]], rtol=1e-9, atol=1e-15
    )
    assert llc(found) == pytest.approx(float(clean["llc"]["per_chain"][[0, 2]].mean()))
    assert found["llc"]["loss_trace"][1].isnan().all()
    assert found["health"]["failed_chains"] == 1
    assert found["health"]["num_valid_draws"] == 20
    assert clean["health"]["num_valid_draws"] == 30
    assert found["held"]["draws"] == 20
    assert math.isfinite(found["held"]["mean"])


def test_a_step_beyond_stability_is_divergence_and_not_an_estimate() -> None:
    # eps k = 5 > 4: doubles and more at every step, finite for a long time.
    config = settings(0.5, nbeta=10.0, localization=0.0, num_draws=12, num_burnin_steps=6)
    with pytest.warns(UserWarning, match="all 2 chains diverged: try a smaller `step_size`") as caught:
        measurement = estimate(Weights(5), TWO_SAMPLES, Quadratic(torch.ones(5)), sampler=config)
    assert len([w for w in caught if issubclass(w.category, UserWarning)]) == 1
    assert measurement.failed
    assert math.isnan(llc(measurement))
    assert measurement["llc"]["per_chain"].isnan().all()
    assert measurement["health"]["failed_chains"] == 2
    assert measurement["health"]["num_valid_draws"] == 0
    assert measurement["llc"]["reference_loss"] == 0


QUERIES = [(X[:4], Y[:4] + 5)]


def probed(bad: Any, value: float = math.nan, **changes: Any) -> Measurement:
    """Three chains, whose `bad` ones see `value` where a loss is asked about without gradient, at one of ten draws."""
    config = settings(1e-3, num_chains=3, num_draws=10, **changes)
    sampling, calls = False, 0

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        nonlocal calls
        losses = squared_error(module, batch)
        if torch.is_grad_enabled() or not sampling:
            return losses
        calls += 1
        chain, draw = divmod(calls - 1, 10)
        return losses.index_fill(0, torch.tensor([1]), value) if chain in bad and draw == 4 else losses

    class Switch(LLC):
        def reset(self, point: Any) -> None:  # called when the chains are about to start
            nonlocal sampling
            super().reset(point)
            sampling = True

    probing = {"kernel": LossKernel()} if "batch_size" in changes else {"influence": Influence(QUERIES)}
    return Estimator(draw_reference(DATA), loss_fn, {"llc": Switch(), **probing}, config).measure(network())


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e12, -1e12])
@pytest.mark.parametrize(
    ("changes", "key", "name"), [({}, "influence", "bif"), ({"batch_size": 5}, "kernel", "covariance")]
)
def test_a_loss_that_only_an_observable_asked_for_fails_its_chain(
    value: float, changes: dict[str, int], key: str, name: str
) -> None:
    found, clean = probed({1}, value, **changes), probed({}, **changes)
    assert found["health"]["failed_chains"] == 1
    assert found["health"]["num_valid_draws"] == 20
    assert found["llc"]["per_chain"].isnan().tolist() == [False, True, False]
    assert torch.equal(found["llc"]["per_chain"][[0, 2]], clean["llc"]["per_chain"][[0, 2]])
    assert found[key][name].isfinite().all()
    assert not clean[key][name].equal(found[key][name])
    assert float(found[key][name].abs().max()) < 10 * float(clean[key][name].abs().max())


def test_where_every_chain_meets_such_a_loss_none_is_left() -> None:
    found = probed({0, 1, 2})
    assert found.failed
    assert found["health"]["failed_chains"] == 3
    assert found["influence"]["bif"].isnan().all()


def test_a_query_that_is_senseless_at_the_fork_is_told_apart_from_divergence() -> None:
    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        losses = squared_error(module, batch)
        return losses.masked_fill(batch[1][:, 0] > 4, math.inf)  # the queries alone

    with pytest.warns(
        UserWarning, match=r"a loss that \['influence'\] asks for is not finite at the fork: look at its"
    ):
        measurement = estimate(
            network(), DATA, loss_fn, observables={"influence": Influence(QUERIES)}, sampler=settings()
        )
    assert measurement.failed


def test_measuring_again_at_the_same_step_does_not_repeat_the_noise() -> None:
    size, nbeta, eps = 4000, 10.0, 4e-3  # the chains forget in 50 steps; a round of 21 that came again would add up
    config = settings(eps, nbeta=nbeta, localization=0.0, num_chains=1, num_draws=5, num_burnin_steps=200)
    one = Estimator(draw_reference(TWO_SAMPLES), Quadratic(torch.ones(size)), config=config, persistent=True)
    found = [one.measure(Weights(size), step=7)["llc"]["mean"] for _ in range(6)]
    expected = oracles.stationary_llc([1.0] * size, nbeta, 0.0, eps)
    spread = math.sqrt(oracles.stationary_variance_companion([1.0] * size, nbeta, 0.0, eps))
    assert max(abs(llc - expected) for llc in found) < 4 * spread


def test_no_chain_left_is_a_failed_measurement_even_for_an_observable_that_cannot_compute() -> None:
    found = poisoned(None, 4, math.nan, {"held": Held()})
    assert found.failed
    assert found["held"] == {}
    assert math.isnan(llc(found))


def test_a_fork_without_a_finite_loss_fails_with_one_warning() -> None:
    module = network()
    with torch.no_grad():
        module[0].weight[0, 0] = math.nan
    with pytest.warns(UserWarning, match="the loss or its gradient is not finite at the fork") as caught:
        measurement = estimate(module, DATA, squared_error, sampler=settings())
    assert len(caught) == 1
    assert measurement.failed
    assert math.isnan(llc(measurement))
    assert measurement["health"]["failed_chains"] == 2


def test_an_equilibrium_far_from_the_fork_is_no_divergence() -> None:
    h = torch.full((4000,), 1.0)
    config = settings(1e-2, nbeta=50.0, localization=0.0, num_draws=5, num_burnin_steps=100)
    measurement = estimate(Weights(4000), TWO_SAMPLES, Quadratic(h), sampler=config)
    assert llc(measurement) > 1900
    assert measurement["health"]["failed_chains"] == 0


# Persistent chains


def quadratic_estimator(dynamics: Any = None, **changes: Any) -> Estimator:
    config = settings(2e-3, nbeta=50.0, localization=5.0, **changes)
    if dynamics is not None:
        config = dataclasses.replace(config, dynamics=dynamics)
    return Estimator(draw_reference(TWO_SAMPLES), Quadratic(torch.ones(500)), config=config, persistent=True)


def test_the_second_measurement_starts_where_the_first_one_ended() -> None:
    estimator = quadratic_estimator(num_draws=40, num_burnin_steps=0)
    first = estimator.measure(Weights(500), step=1)
    second = estimator.measure(Weights(500), step=2)
    together = oracles.quadratic_llc(np.ones(500), 50.0, 5.0, 2e-3, 80)
    # Draw 40 of one long chain: the closed form at that step, against 0 for a cold start.
    assert float(trace(first)[:, 0].abs().max()) == 0
    spread = 4 * math.sqrt(together.draw_covariance[40, 40])
    assert 0 < spread < together.draw_means[40]
    for chain in range(2):
        assert abs(50.0 * float(trace(second)[chain, 0]) - together.draw_means[40]) < spread
    stderr = math.sqrt(float(together.draw_covariance[40:, 40:].mean()) / 2)
    assert abs(llc(second) - float(together.draw_means[40:].mean())) < 3 * stderr


def test_displacement_is_carried_along_when_the_weights_move() -> None:
    estimator = quadratic_estimator(num_draws=1, num_burnin_steps=0, num_chains=1)
    estimator.measure(Weights(500))
    displacement = estimator.state_dict()["chains"][0]["displacement"]
    moved = torch.linspace(-1, 1, 500)
    second = estimator.measure(Weights(moved), step=1)
    assert float(trace(second)) == pytest.approx(float((moved + displacement).square().sum() / 2), rel=1e-5)


def test_warm_measurements_cost_less_and_hold_the_value() -> None:
    estimator = quadratic_estimator(num_draws=30, num_burnin_steps=400)
    expected = [estimator.expected_steps]
    first = estimator.measure(Weights(500), step=1)
    expected.append(estimator.expected_steps)
    second = estimator.measure(Weights(500), step=2)
    assert first["cost"]["sgld_steps"] == expected[0] == 2 * 430
    assert second["cost"]["sgld_steps"] == 2 * (second["health"]["num_burnin_steps"] + 30)
    assert expected[1] == 2 * (80 + 30)
    assert second["health"]["num_burnin_steps"] <= 240
    exact = oracles.quadratic_llc(np.ones(500), 50.0, 5.0, 2e-3, 30, 400)
    for measurement in (first, second):
        assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)


def test_burn_in_is_extended_when_the_landscape_changes_abruptly() -> None:
    loss_fn = Quadratic(torch.ones(500))
    config = settings(2e-3, nbeta=50.0, localization=5.0, num_draws=30, num_burnin_steps=400)
    estimator = Estimator(draw_reference(TWO_SAMPLES), loss_fn, config=config, persistent=True)
    estimator.measure(Weights(500), step=1)
    loss_fn.h = torch.full((500,), 0.01)  # from k = 55 to k = 5.5: the chains have to spread three times as far
    loss_fn.h[:5] = 8.0
    measurement = estimator.measure(Weights(500), step=2)
    assert measurement["health"]["num_burnin_steps"] >= 80


def test_a_failed_chain_starts_cold_again_and_the_others_stay_warm() -> None:
    estimator = quadratic_estimator(num_draws=3, num_burnin_steps=40)
    estimator.measure(Weights(500), step=1)
    state = estimator.state_dict()
    state["chains"][1]["displacement"] = torch.full((500,), 1e10)
    estimator.load_state_dict(state)
    failed = estimator.measure(Weights(500), step=2)
    assert failed["llc"]["per_chain"].isnan().tolist() == [False, True]
    assert set(estimator.state_dict()["chains"]) == {0}
    steps = estimator.expected_steps
    assert steps == (16 + 3) + (40 + 3)
    healthy = estimator.measure(Weights(500), step=3)
    assert not healthy["llc"]["per_chain"].isnan().any()
    assert set(estimator.state_dict()["chains"]) == {0, 1}


def test_after_a_failed_measurement_every_chain_is_cold() -> None:
    estimator = quadratic_estimator(num_draws=3, num_burnin_steps=20)
    estimator.measure(Weights(500), step=1)
    broken = Weights(500)
    broken.w.data[0] = math.nan
    assert estimator.measure(broken, step=2).failed
    assert estimator.state_dict()["chains"] == {}
    assert estimator.measure(Weights(500), step=3)["cost"]["sgld_steps"] == 2 * 23


def test_without_persistence_nothing_is_remembered() -> None:
    estimator = Estimator(draw_reference(TWO_SAMPLES), Quadratic(torch.ones(4)), config=settings(1e-2))
    first, second = (estimator.measure(Weights(4), step=7) for _ in range(2))
    assert torch.equal(trace(first), trace(second))
    assert estimator.state_dict()["chains"] == {}


@pytest.mark.parametrize("dynamics", [SGLD("auto"), RMSPropSGLD(1e-3)])
def test_a_reloaded_estimator_goes_on_with_the_same_numbers(dynamics: Any) -> None:
    first, resumed = (quadratic_estimator(dynamics, num_draws=20, num_burnin_steps=20) for _ in range(2))
    first.measure(Weights(500), step=1)
    resumed.load_state_dict(first.state_dict())
    # Not the k_max, which begins from another direction, but every number of the chains.
    assert torch.equal(trace(first.measure(Weights(500), 2)), trace(resumed.measure(Weights(500), 2)))
    assert resumed.dynamics == first.dynamics


def test_other_parameters_than_the_chains_were_kept_for_start_afresh_with_a_warning() -> None:
    estimator = Estimator(draw_reference(DATA), squared_error, config=settings(1e-3), persistent=True)
    module = network()
    estimator.measure(module, step=1)
    module[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="kept for 26 trainable parameters, but the module now has 6"):
        measurement = estimator.measure(module, step=2)
    assert math.isfinite(llc(measurement))


def test_auto_step_is_found_once_and_held_until_its_bias_is_past_5_percent() -> None:
    loss_fn = Quadratic(torch.ones(20))
    config = settings("auto", nbeta=50.0, num_burnin_steps=100)
    estimator = Estimator(draw_reference(TWO_SAMPLES), loss_fn, config=config, persistent=True)
    first = estimator.measure(Weights(20), step=1)
    loss_fn.h = torch.full((20,), 2.4)
    second = estimator.measure(Weights(20), step=2)
    assert second["health"]["step_size"] == first["health"]["step_size"] == pytest.approx(0.08 / 51, rel=0.01)
    assert second["health"]["step_bias"] == pytest.approx(0.02 * 121 / 51, rel=0.02)
    loss_fn.h = torch.full((20,), 6.0)  # a bias of 11.8 %: two halvings
    third = estimator.measure(Weights(20), step=3)
    assert third["health"]["step_size"] == first["health"]["step_size"] / 4
    assert third["health"]["step_bias"] == pytest.approx(0.005 * 301 / 51, rel=0.02)
    assert third["cost"]["sgld_steps"] > second["cost"]["sgld_steps"], "chains of the longer step have ended"
    loss_fn.h = torch.ones(20)
    assert estimator.measure(Weights(20), step=4)["health"]["step_size"] == third["health"]["step_size"], "no way back"


def with_kernel(x: torch.Tensor = X, **changes: Any) -> Estimator:
    config = settings(1e-3, num_draws=10, **changes)
    return Estimator(draw_reference([(x, Y)]), squared_error, {"kernel": LossKernel()}, config, persistent=True)


def test_other_samples_of_the_same_number_are_noticed_on_resume() -> None:
    first = with_kernel()
    first.measure(network(), 1)
    with pytest.warns(UserWarning, match=r"with other settings or samples \(`checksum` was .* and is .*: they start"):
        (other := with_kernel(X + 0.1)).load_state_dict(first.state_dict())
    assert other.state_dict()["chains"] == {}
    assert math.isnan(other.measure(network(), 2)["kernel"]["alignment"]), "rows of other samples do not compare"


def test_other_settings_of_the_chains_leave_what_observables_remember_of_the_samples() -> None:
    first = with_kernel()
    first.measure(network(), 1)
    state = first.state_dict()
    resumed = with_kernel(localization=2.0)
    with pytest.warns(UserWarning, match="`localization` was 1.0 and is 2.0"):
        resumed.load_state_dict(state)
    assert resumed.state_dict()["chains"] == {}
    assert torch.equal(resumed.state_dict()["observables"]["kernel"]["order"], state["observables"]["kernel"]["order"])
    assert math.isfinite(resumed.measure(network(), 2)["kernel"]["alignment"])


@pytest.mark.parametrize("changed", [True, False])
def test_other_queries_of_the_same_number_are_not_compared_on_resume(changed: bool) -> None:
    def queried(shift: float) -> Estimator:
        observables = {"kernel": LossKernel(), "influence": Influence([(X[:3] + shift, Y[:3])])}
        config = settings(1e-3, num_draws=10)
        return Estimator(draw_reference([(X, Y)]), squared_error, observables, config, persistent=True)

    first = queried(0.0)
    first.measure(network(), 1)
    resumed = queried(1.0 if changed else 0.0)
    assert resumed.load_state_dict(first.state_dict())
    found = resumed.measure(network(), 2)
    assert math.isnan(found["influence"]["shift"]) == changed
    assert math.isfinite(found["kernel"]["alignment"])


class Scalars:
    """Numbers as numpy and torch give them."""

    def reset(self, reference: Any) -> None:
        self.seen: list[float] = []

    def update(self, draw: Any) -> None:
        self.seen.append(float(draw.excess))

    def compute(self) -> dict[str, Any]:
        values = np.array(self.seen)
        return {
            "double": np.median(values),
            "single": np.float32(1.5),
            "count": np.int64(len(values)),
            "tensor": torch.tensor(2.5),
            "vector": torch.tensor([1.0]),
        }


def test_numbers_of_numpy_and_torch_are_numbers_everywhere(tmp_path: Path) -> None:
    config = settings(np.float64(1e-3), localization=np.float64(2.0), nbeta=np.float64(5.0))
    estimator = Estimator(draw_reference(DATA), squared_error, {"own": Scalars()}, config, persistent=True)
    found = estimator.measure(network(), 1)
    scalars = found.scalars()
    assert {key for key in scalars if key.startswith("own/")} == {"own/double", "own/single", "own/count", "own/tensor"}
    assert {type(value) for value in scalars.values()} == {int, float}
    assert isinstance(found["own"]["vector"], torch.Tensor)
    torch.save([estimator.state_dict(), scalars], tmp_path / "state.pt")
    state, _ = torch.load(tmp_path / "state.pt", weights_only=True)
    assert estimator.load_state_dict(state)


def test_lists_and_tuples_are_one_structure() -> None:
    collated = TensorDataset(X, Y)  # into a list of two tensors
    observables = {"influence": Influence([(X, Y)]), "kernel": LossKernel()}
    found = estimate(network(), collated, squared_error, observables=observables, sampler=settings(num_draws=10))
    torch.testing.assert_close(found["influence"]["bif"], -found["kernel"]["covariance"], rtol=1e-9, atol=1e-15)


def test_a_step_size_that_the_user_gave_is_never_changed() -> None:
    loss_fn = Quadratic(torch.full((20,), 6.0))
    estimator = Estimator(draw_reference(TWO_SAMPLES), loss_fn, config=settings(0.08 / 51, nbeta=50.0))
    health = estimator.measure(Weights(20), step=1)["health"]
    assert health["step_size"] == 0.08 / 51
    assert health["step_bias"] > 0.1


# Bad input


@pytest.mark.parametrize(
    ("observables", "error", "message"),
    [
        ([LLC()], TypeError, "Expected `observables` to be a mapping"),
        ({}, ValueError, "Expected `observables` to hold at least one observable"),
        ({"health": LLC()}, ValueError, "Expected `observables` to leave the keys .*but got 'health'"),
        ({"cost": LLC()}, ValueError, "but got 'cost'"),
        ({"a/b": LLC()}, ValueError, "names without a slash, but got 'a/b'"),
        ({3: LLC()}, ValueError, "names without a slash, but got 3"),
        ({"llc": LLC}, TypeError, r"Expected `observables\['llc'\]` to be an object with `reset`"),
        ({"llc": "llc"}, TypeError, r"Expected `observables\['llc'\]` to be an object with `reset`"),
        (dict.fromkeys(["a", "b"], LLC()), ValueError, "to have an object of its own, but got one as 'a' and as 'b'"),
    ],
)
def test_wrong_observables_are_named(observables: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        estimate(network(), DATA, squared_error, observables=observables, sampler=settings())


def test_wrong_arguments_of_estimate_are_named() -> None:
    with pytest.raises(ValueError, match="Expected `reference` to hold samples, but it is empty"):
        estimate(network(), [], squared_error)
    with pytest.raises(ValueError, match="to be finite, but sample 0 holds NaN"):
        estimate(network(), [(X * math.nan, Y)], squared_error)
    with pytest.raises(ValueError, match="Expected `num_samples` to be at most the 20 samples"):
        estimate(network(), DATA, squared_error, num_samples=21)
    with pytest.raises(ValueError, match="Expected `batch_size` to be at most the 20 reference samples, but got 21"):
        estimate(network(), DATA, squared_error, sampler=settings(batch_size=21))
    with pytest.raises(ValueError, match="to have a trainable parameter"):
        estimate(network().requires_grad_(False), DATA, squared_error, sampler=settings())
    with pytest.raises(TypeError, match="floating-point losses, but got torch"):
        estimate(network(), DATA, lambda m, b: squared_error(m, b).long(), sampler=settings())
    with pytest.raises(ValueError, match="to have a gradient"):
        estimate(network(), DATA, lambda m, b: squared_error(m, b).detach(), sampler=settings())
    with pytest.raises(LossFnError, match="`loss_fn` raised ZeroDivisionError"):
        estimate(network(), DATA, lambda m, b: 1 / 0, sampler=settings())
    with pytest.raises(ValueError, match='step_size="auto" needs a positive curvature'):
        estimate(network(), DATA, squared_error, sampler=settings("auto", nbeta=0.0, localization=0.0))
    with pytest.raises(ValueError, match="Expected at least 2 reference samples for the default `nbeta`"):
        estimate(network(), DATA, squared_error, num_samples=1)
    with pytest.raises(TypeError, match="Expected `seed` to be an integer, but got '3'"):
        estimate(network(), DATA, squared_error, seed="3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected `seed` to be an integer, but got 0\.5"):
        Estimator(draw_reference(DATA), squared_error, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Expected `loss_fn` to be a function \(module, batch\) -> losses, but got 3"):
        Estimator(draw_reference(DATA), 3)  # type: ignore[arg-type]


def test_check_finds_a_mistake_without_sampling() -> None:
    estimator = Estimator(draw_reference(DATA), lambda m, b: squared_error(m, b).detach(), config=settings())
    with pytest.raises(ValueError, match="to have a gradient"):
        estimator.check(network())
    assert SamplerConfig().num_chains == 4


def test_what_is_refused_once_is_refused_again() -> None:
    estimator = Estimator(draw_reference(DATA), lambda m, b: squared_error(m, b).mean(), {"kernel": LossKernel()})
    for _ in range(2):
        with pytest.raises(ValueError, match="to return one loss a sample, shape"):
            estimator.measure(network())


def tokens(module: Any, batch: Any) -> torch.Tensor:
    return (module(batch[0]) - batch[1]).square().expand(-1, 3)


@pytest.mark.parametrize(
    ("loss_fn", "most", "message"),
    [
        (squared_error, 4096**2, "to return one loss a token, shape"),
        (lambda m, b: tokens(m, b).mean(), 4096**2, "to return one loss a sample, shape"),
        (tokens, 60**2 - 1, "a loss kernel of tokens of at most 3599 entries.*but got 60 x 60: lower `num_samples`"),
    ],
)
def test_a_kernel_of_tokens_that_cannot_work_is_refused_before_training(
    loss_fn: Any, most: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slt_callbacks.observables.pairs.MOST_ENTRIES", most)
    estimator = Estimator(draw_reference(DATA), loss_fn, {"kernel": LossKernel(per_token=True)}, settings())
    with pytest.raises(ValueError, match=message):
        estimator.check(network())


# Losses from a training step


class WithStep(nn.Sequential):
    """A module with a training step, as Lightning's are."""

    careless = False

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = squared_error(self, batch).mean()
        self.log("loss", loss)  # type: ignore[operator]
        return loss if not self.careless or loss.item() < 1e9 else loss * 0


class WithLosses(WithStep):
    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        return squared_error(self, batch)


@pytest.mark.parametrize("careless", [False, True])
def test_the_kernel_from_a_training_step_is_that_from_its_single_losses(
    careless: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(1e-3, num_draws=10, engine="sequential")
    found = []
    for kind in (WithStep, WithLosses):
        module = kind(*network().double())
        module.careless = careless
        observables = {"kernel": LossKernel(), "influence": Influence(QUERIES)}
        with caplog.at_level(logging.INFO, logger="slt_callbacks"):
            estimator = Estimator(draw_reference(DATA), None, observables, config)
            found.append([estimator.measure(module, step) for step in (1, 2)])
    for step, losses in zip(*found, strict=True):
        for key, name in (("kernel", "covariance"), ("influence", "bif")):
            scale = float(losses[key][name].abs().max())
            torch.testing.assert_close(step[key][name], losses[key][name], rtol=1e-5, atol=1e-8 * scale)
    told = [record.message for record in caplog.records if "batches of one" in record.message]
    assert len(told) == 1, "once a run, and only where a mean is all there is"
    assert ("in a loop" in told[0]) == careless
    assert "`per_sample_loss(batch)`" in told[0]
