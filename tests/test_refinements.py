"""Posteriors beside the main one, against what is known of each: blocks of a Hessian, other data, other losses."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from slt_callbacks import (
    LLC,
    SGHMC,
    SGLD,
    LeimkuhlerMatthews,
    LossKernel,
    Measurement,
    Refinement,
    SamplerConfig,
    behavioral,
    estimate,
)
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.refinement import RefinementSet
from tests.problems import TWO_SAMPLES, Quadratic, Weights, settings, squared_error
from tests.processes import on_ranks

NBETA, GAMMA = 50.0, 5.0


def long(step_size: float, chains: int = 16, draws: int = 80, **changes: Any) -> SamplerConfig:
    """Averaged noise has no bias on quadratics, and many chains at once are one program."""
    told: dict[str, Any] = {"nbeta": NBETA, "localization": GAMMA, "num_burnin_steps": 15, "batch_size": None}
    told |= {"engine": "vectorized", "num_steps_bw_draws": 3}
    return SamplerConfig(LeimkuhlerMatthews(step_size), num_chains=chains, num_draws=draws, **(told | changes))


def near(record: Any, exact: float, errors: float = 4.0) -> bool:
    """Within so many standard errors, which must themselves be small enough to tell anything."""
    llc = record["llc"]
    return bool(abs(llc["mean"] - exact) < errors * llc["stderr"] < 0.25 * exact)


class Coupled(nn.Module):
    """Two scalars and a vector of two; the loss couples the scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.c = nn.Parameter(torch.zeros(2))


def coupled_loss(module: Coupled, batch: torch.Tensor) -> torch.Tensor:
    a, b, c = module.a, module.b, module.c
    return (a**2 + b**2 + a * b + 0.5 * c[0] ** 2 + 2 * c[1] ** 2).expand(len(batch))


def exact(*curvatures: float, nbeta: float = NBETA) -> float:
    return sum(nbeta * h / (2 * (nbeta * h + GAMMA)) for h in curvatures)


@pytest.fixture(scope="module")
def blocks() -> Measurement:
    return estimate(
        Coupled(),
        TWO_SAMPLES,
        coupled_loss,
        sampler=long(0.01),
        refinements={
            "a": Refinement("a"),
            "b": Refinement("b"),
            "pair": Refinement(["a", "b"]),
            "c": Refinement("c"),
            "c0": Refinement("c", slices={"c": 0}),
            "c1": Refinement(["c", "a"], slices={"c": 1, "a": 0}),
        },
    )


class TestWeights:
    @pytest.mark.parametrize(
        ("name", "curvatures", "size"),
        [
            ("a", [2.0], 1),
            ("b", [2.0], 1),
            ("pair", [3.0, 1.0], 2),
            ("c", [1.0, 4.0], 2),
            ("c0", [1.0], 1),
            ("c1", [4.0, 2.0], 2),
        ],
    )
    def test_it_is_that_of_the_block(self, blocks: Measurement, name: str, curvatures: list[float], size: int) -> None:
        refined = blocks.refinements[name]
        assert near(refined, exact(*curvatures))
        assert refined["num_parameters"] == size
        assert refined["health"]["rhat"] < 1.02

    def test_the_numbers_of_the_methods(self) -> None:
        assert exact(3.0, 1.0) == pytest.approx(0.93842, abs=1e-5)
        assert exact(2.0) == pytest.approx(0.47619, abs=1e-5)

    def test_parts_add_up_where_the_hessian_has_blocks(self, blocks: Measurement) -> None:
        part = {name: record["llc"] for name, record in blocks.refinements.items()}
        error = 4 * (blocks["llc"]["stderr"] + part["pair"]["stderr"] + part["c"]["stderr"])
        assert part["pair"]["mean"] + part["c"]["mean"] == pytest.approx(blocks["llc"]["mean"], abs=error)

    def test_no_two_of_them_draw_the_same_noise(self, blocks: Measurement) -> None:
        traces = [blocks.refinements[name]["llc"]["loss_trace"] for name in ("a", "b")]
        correlation = torch.corrcoef(torch.stack([trace.flatten() for trace in traces]))[0, 1]
        assert abs(float(correlation)) < 0.15  # five standard errors of 1280 draws

    def test_an_automatic_step_is_that_of_the_part(self) -> None:
        config = long(0.01, chains=2, draws=20)
        config = SamplerConfig(**{**vars(config), "dynamics": LeimkuhlerMatthews()})
        refinements = {"flat": Refinement("w", slices={"w": 0})}
        found = estimate(
            Weights(2), TWO_SAMPLES, Quadratic(torch.tensor([1.0, 1000.0])), sampler=config, refinements=refinements
        )
        ratio = found.refinements["flat"]["health"]["step_size"] / found["health"]["step_size"]
        assert ratio == pytest.approx((1000 * NBETA + GAMMA) / (NBETA + GAMMA), rel=0.2)


class TestOtherData:
    """l(w, h) = h w^2 / 2 with the curvature as the sample."""

    @staticmethod
    def loss(module: Weights, h: torch.Tensor) -> torch.Tensor:
        return h[:, 0] * module.w.square().sum() / 2

    def test_the_same_nbeta_with_the_loss_of_the_others(self) -> None:
        found = estimate(
            Weights(2),
            [torch.ones(4, 1)],
            self.loss,
            sampler=long(0.01),
            refinements={
                "steep": Refinement(reference=[torch.full((9, 1), 3.0)]),
                "one": Refinement("w", slices={"w": 1}, reference=[torch.full((9, 1), 3.0)]),
            },
        )
        assert near(found, exact(1.0, 1.0))
        assert near(found.refinements["steep"], exact(3.0, 3.0))
        assert near(found.refinements["one"], exact(3.0))
        assert found.refinements["steep"]["health"]["nbeta"] == NBETA

    def test_nbeta_by_default_is_the_main_one(self) -> None:
        config = settings(nbeta=None)
        others = {"more": Refinement(reference=[torch.ones(64, 1)])}
        found = estimate(Weights(2), [torch.ones(8, 1)], self.loss, sampler=config, refinements=others)
        assert found.refinements["more"]["health"]["nbeta"] == found["health"]["nbeta"] == 8 / math.log(8)

    def test_a_batch_that_is_too_large_for_it_says_whose(self) -> None:
        others = {"few": Refinement(reference=[torch.ones(2, 1)])}
        config = settings(batch_size=4)
        with pytest.raises(ValueError, match=r"refinements\['few'\]: .*`batch_size` to be at most the 2"):
            estimate(Weights(2), [torch.ones(8, 1)], self.loss, sampler=config, refinements=others)


class TestOtherLosses:
    @staticmethod
    def other(module: Weights, batch: torch.Tensor) -> torch.Tensor:
        return 2 * module.w.square().sum().expand(len(batch))

    def test_it_is_that_of_the_loss(self) -> None:
        loss_fn, refinements = Quadratic(torch.ones(2)), {"steep": Refinement(loss_fn=self.other)}
        found = estimate(Weights(2), TWO_SAMPLES, loss_fn, sampler=long(0.005), refinements=refinements)
        assert near(found, exact(1.0, 1.0))
        assert near(found.refinements["steep"], exact(4.0, 4.0))


def linear(*weights: float) -> nn.Linear:
    net = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([weights]))
    return net


class TestBehavioral:
    """Far from any minimum, where the loss of the data falls on every side."""

    reference = ((torch.eye(2) * 2**0.5, torch.full((2, 1), 30.0)),)

    @staticmethod
    def outputs(net: nn.Module, batch: Any) -> torch.Tensor:
        out: torch.Tensor = net(batch[0])
        return out

    def test_mse_is_half_the_curvature_of_the_function(self) -> None:
        # mean |f - f*|^2 of x = sqrt(2) e_i is |w - w*|^2: a curvature of 2 along both weights
        found = estimate(
            linear(1.0, -2.0),
            self.reference,
            squared_error,
            sampler=long(0.005),
            refinements={"function": Refinement(loss_fn=behavioral(self.outputs, "mse"))},
        )
        assert found["llc"]["mean"] < -10
        assert near(found.refinements["function"], exact(2.0, 2.0))
        assert found.refinements["function"]["llc"]["reference_loss"] == 0.0

    def test_kl_has_the_fisher_information(self) -> None:
        # one logit z against 0: KL(z* || z) is p(1 - p)(z - z*)^2 / 2 to second order, and z = w here
        net = linear(1.0)
        p = float(torch.tensor(1.0).sigmoid())

        def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([net(x), torch.zeros(len(x), 1)], dim=1)

        config = long(1e-3, nbeta=5000.0)
        llc = estimate(net, [torch.ones(4, 1)], behavioral(logits), sampler=config)["llc"]
        assert llc["reference_loss"] == 0.0
        assert near({"llc": llc}, exact(p * (1 - p), nbeta=5000.0))

    def test_positions_are_averaged_and_give_a_loss_each(self) -> None:
        generator = torch.Generator().manual_seed(0)
        here, there = torch.randn(2, 3, 5, 4, generator=generator)  # (B, T, V)
        loss = behavioral(lambda module, batch: module.out).at(_Fixed(here))(_Fixed(there), torch.zeros(3))
        expected = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=here), torch.distributions.Categorical(logits=there)
        )
        assert loss.shape == (3, 5)
        torch.testing.assert_close(loss, expected)

    @pytest.mark.parametrize("engine", ["sequential", "vectorized"])
    def test_targets_stay_where_training_was(self, engine: str) -> None:
        """Of a module whose outputs depend on buffers, and with minibatches: exactly 0 at w* in every batch."""
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        with torch.no_grad():
            net(torch.randn(16, 2, generator=torch.Generator().manual_seed(1)))  # averages of its own
        config = settings(engine=engine, num_draws=6, batch_size=2)
        llc = estimate(net, [torch.randn(8, 2)], behavioral(lambda net, x: net(x)), sampler=config)["llc"]
        assert llc["reference_loss"] == 0.0
        assert torch.equal(llc["loss_trace"][:, 0], torch.zeros(2, dtype=torch.float64))
        assert bool((llc["loss_trace"][:, 1:] > 0).all())

    def test_random_numbers_are_those_of_the_targets(self) -> None:
        """Global ones, as of a dropout that is always on, and those of a generator that the module holds."""

        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.own = nn.Linear(4, 3), torch.Generator().manual_seed(3)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                noise = torch.rand(len(x), 1, generator=self.own)
                out: torch.Tensor = nn.functional.dropout(self.layer(x), 0.5, training=True) * (1 + noise)
                return out

        torch.manual_seed(0)
        for batch_size in (None, 4):
            loss_fn, config = behavioral(lambda net, x: net(x), "mse"), settings(num_draws=5, batch_size=batch_size)
            llc = estimate(Noisy(), [torch.randn(16, 4)], loss_fn, sampler=config)["llc"]
            assert llc["reference_loss"] == 0.0
            assert float(llc["loss_trace"][:, 0].abs().max()) == 0.0

    def test_classes_that_are_masked_out_have_no_part(self) -> None:
        masked = torch.tensor([False, True, False])
        net = nn.Linear(2, 3)
        free = behavioral(lambda net, x: net(x)[:, ~masked])
        hidden = behavioral(lambda net, x: net(x).masked_fill(masked, -torch.inf))
        x = torch.randn(5, 2)
        found = [estimate(net, [x], loss_fn, sampler=settings(num_draws=5)) for loss_fn in (free, hidden)]
        torch.testing.assert_close(*(one["llc"]["loss_trace"] for one in found))

    @pytest.mark.parametrize("beside", [False, True])
    def test_ranks_have_the_buffers_of_the_first_in_their_targets(self, beside: bool) -> None:
        def measure(ranks: Any) -> Measurement:
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
            net[1].running_mean += 0 if ranks is None else ranks.rank  # they train on batches of their own
            loss_fn = behavioral(lambda net, x: net(x))
            refinements = RefinementSet({"function": Refinement(loss_fn=loss_fn)} if beside else None)
            main = (lambda net, x: net(x).square().mean(1)) if beside else loss_fn
            reference = draw_reference([torch.randn(8, 2, generator=torch.Generator().manual_seed(1))])
            return Estimator(reference, main, None, settings(), ranks=ranks, refinements=refinements).measure(net, 1)

        alone = measure(None)
        for found in on_ranks(2, measure):
            one, other = ((m.refinements["function"] if beside else m.results)["llc"] for m in (alone, found))
            assert torch.equal(one["loss_trace"], other["loss_trace"])

    def test_by_itself_it_says_where_it_belongs(self) -> None:
        with pytest.raises(RuntimeError, match="given as a `loss_fn`"):
            behavioral(lambda net, x: net(x))(linear(1.0), torch.ones(1, 1))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((3,), TypeError, "`outputs` to be a function"),
            ((len, "js"), ValueError, '"kl" or "mse", but got \'js\''),
        ],
    )
    def test_bad_arguments(self, arguments: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            behavioral(*arguments)

    @pytest.mark.parametrize(
        ("outputs", "message"),
        [(lambda net, x: 3.0, "floating-point tensor"), (lambda net, x: net(x)[:, 0], "logits")],
    )
    def test_bad_outputs(self, outputs: Any, message: str) -> None:
        with pytest.raises(Exception, match=message):
            estimate(linear(1.0), [torch.ones(4, 1)], behavioral(outputs), sampler=settings())


class _Fixed(nn.Module):
    def __init__(self, out: torch.Tensor) -> None:
        super().__init__()
        self.out = out


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


class TestBesideTheMainOne:
    """Nothing of the main posterior depends on who is measured beside it."""

    net = network()
    pairs = (torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(2)).unbind(),)

    def estimator(self, config: SamplerConfig, at_once: int | None = None, **refinements: Refinement) -> Estimator:
        observables = {"llc": LLC(), "kernel": LossKernel()}
        given = RefinementSet(refinements, at_once if refinements else None)
        reference = draw_reference(self.pairs)
        return Estimator(reference, squared_error, observables, config, persistent=True, refinements=given)

    @pytest.mark.parametrize("engine", ["sequential", "vectorized"])
    @pytest.mark.parametrize("batch_size", [None, 4])
    def test_its_draws_are_the_same_to_the_last_bit(self, engine: Any, batch_size: int | None) -> None:
        config = settings("auto", num_draws=12, num_burnin_steps=8, engine=engine, batch_size=batch_size)
        alone = self.estimator(config)
        beside = self.estimator(config, first=Refinement("0"), scaled=Refinement(loss_fn=_doubled))
        for step in (1, 2):  # cold and warm
            one, other = alone.measure(self.net, step), beside.measure(self.net, step)
            assert torch.equal(one["llc"]["loss_trace"], other["llc"]["loss_trace"])
            assert torch.equal(one["kernel"]["covariance"], other["kernel"]["covariance"])
            assert {k: v for k, v in one["health"].items() if v == v} == {
                k: v for k, v in other["health"].items() if v == v
            }

    def test_nor_does_a_refinement_depend_on_the_others(self) -> None:
        config = settings(num_draws=12)
        one = self.estimator(config, first=Refinement("0")).measure(self.net, 3)
        other = self.estimator(config, last=Refinement("2"), first=Refinement("0")).measure(self.net, 3)
        traces = [found.refinements["first"]["llc"]["loss_trace"] for found in (one, other)]
        assert torch.equal(*traces)

    def test_no_gradient_is_taken_below_the_lowest_layer_that_moves(self) -> None:
        asked = _Watching.asked
        asked.clear()
        net = nn.Sequential(nn.Linear(3, 4), _Watching(), nn.Linear(4, 3))
        config = settings(num_draws=3, engine="sequential")
        estimate(net, self.pairs, squared_error, sampler=config, refinements={"last": Refinement("2")})
        assert any(asked)  # the main posterior's
        last = [False] * (len(asked) - max(place for place, wanted in enumerate(asked) if wanted) - 1)
        assert len(last) >= config.num_chains * config.num_draws

    def test_its_steps_are_counted_and_expected(self) -> None:
        config = settings(num_draws=5, num_burnin_steps=4)
        estimator = self.estimator(config, first=Refinement("0"), last=Refinement("2"))
        expected = estimator.expected_steps
        assert estimator.measure(self.net, 1)["cost"]["sgld_steps"] == expected == 3 * 2 * 9

    def test_a_gradient_step_of_each_is_forecast_at_its_own_price(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half a second for a step of a part, and two for one of all; only those of the next measurement count."""

        def timed(objective: Objective, places: Any) -> tuple[float, float]:
            return 1.0, 2.0 if objective.fork.num_moving == whole else 0.5

        whole = sum(parameter.numel() for parameter in self.net.parameters())
        monkeypatch.setattr("slt_callbacks.measuring.timed_pass._timed", timed)
        config = settings(num_draws=5, num_burnin_steps=4)
        alone = self.estimator(config).time_pass(self.net)
        parts = {"first": Refinement("0"), "last": Refinement("2")}
        one, both = self.estimator(config, at_once=1, **parts), self.estimator(config, **parts)
        assert alone.seconds == 2.0
        assert one.time_pass(self.net).seconds == pytest.approx((2.0 + 0.5) / 2)
        found = both.time_pass(self.net)
        assert found.seconds == pytest.approx((2.0 + 0.5 + 0.5) / 3)
        assert found.seconds_for(3 * 18) == pytest.approx(alone.seconds_for(18) * (1 + 2 / 4), rel=0.01)
        assert found.pass_seconds == 2.0, "what an optimizer step is told by"

    def test_one_whose_loss_raises_is_forecast_to_cost_nothing(self) -> None:
        def broken(module: nn.Module, batch: Any) -> torch.Tensor:
            raise KeyError("labels")

        timed = self.estimator(settings(), bad=Refinement(loss_fn=broken)).time_pass(self.net)
        assert timed.seconds > 0
        assert timed.seconds == timed.pass_seconds

    def test_its_seconds_are_in_its_record(self) -> None:
        found = self.estimator(settings(), first=Refinement("0"), last=Refinement("2")).measure(self.net, 1)
        seconds = [record["cost"]["seconds"] for record in found.refinements.values()]
        assert min(seconds) > 0
        assert sum(seconds) < found["cost"]["seconds"]

    def test_one_that_raises_costs_its_own_numbers(self) -> None:
        def broken(module: nn.Module, batch: Any) -> torch.Tensor:
            raise KeyError("labels")

        estimator = self.estimator(settings(), bad=Refinement(loss_fn=broken), good=Refinement("2"))
        found = estimator.measure(self.net, 1)
        assert not found.failed
        assert "labels" in found.refinements["bad"]["error"]
        assert math.isnan(found.refinements["bad"]["llc"]["mean"])
        assert math.isfinite(found.refinements["good"]["llc"]["mean"])

    def test_memory_that_runs_out_in_one_is_no_matter_of_the_others(self) -> None:
        calls = {"main": 0, "hungry": 0}

        def main(module: nn.Module, batch: Any) -> torch.Tensor:
            calls["main"] += 1
            return squared_error(module, batch)

        def hungry(module: nn.Module, batch: Any) -> torch.Tensor:
            calls["hungry"] += 1
            if calls["hungry"] > 20:  # not while it is tried
                raise torch.OutOfMemoryError("none left")
            return squared_error(module, batch)

        def measured(**refinements: Refinement) -> Measurement:
            calls["main"] = 0
            given = RefinementSet(refinements)
            config = settings(num_draws=12, engine="sequential")
            return Estimator(draw_reference(self.pairs), main, None, config, refinements=given).measure(self.net, 1)

        alone, before = measured(), dict(calls)
        found = measured(hungry=Refinement(loss_fn=hungry), good=Refinement("2", loss_fn=squared_error))
        assert torch.equal(alone["llc"]["loss_trace"], found["llc"]["loss_trace"])
        assert calls["main"] == before["main"]
        assert "none left" in found.refinements["hungry"]["error"]
        assert math.isfinite(found.refinements["good"]["llc"]["mean"])

    def test_a_loss_that_looks_at_which_parameters_move_is_another_one_for_a_part(self) -> None:
        """Weight decay of what can be trained, written into the loss: compared with itself at w*, as for all else."""

        def decayed(module: Weights, batch: torch.Tensor) -> torch.Tensor:
            penalty = sum(p.square().sum() for p in module.parameters() if p.requires_grad)
            return (0.5 * (module.w - 3).square().sum() + penalty).expand(len(batch))

        class Two(Weights):
            def __init__(self) -> None:
                super().__init__(torch.ones(1))  # the minimum of the loss with its penalty
                self.far = nn.Parameter(torch.full((1,), 100.0))

        found = estimate(Two(), TWO_SAMPLES, decayed, sampler=long(0.01), refinements={"w": Refinement("w")})
        assert near(found.refinements["w"], exact(3.0))

    def test_a_generator_of_its_loss_is_put_back(self) -> None:
        own = torch.Generator().manual_seed(5)

        def noisy(module: nn.Module, batch: Any) -> torch.Tensor:
            return squared_error(module, batch) * (1 + torch.rand(1, generator=own))

        before = own.get_state()
        self.estimator(settings(), noisy=Refinement(loss_fn=noisy)).measure(self.net, 1)
        assert torch.equal(own.get_state(), before)

    def test_an_llc_of_ones_own_is_measured_of_the_parts_too(self) -> None:
        class Wider(LLC):
            def compute(self) -> dict[str, Any]:
                return super().compute() | {"twice": 2 * super().compute()["mean"]}

        reference, given = draw_reference(self.pairs), RefinementSet({"last": Refinement("2")})
        one = Estimator(reference, squared_error, {"llc": Wider()}, settings(), refinements=given)
        refined = one.measure(self.net, 1).refinements["last"]["llc"]
        assert refined["twice"] == 2 * refined["mean"]

    def test_where_the_main_one_fails_so_do_they(self) -> None:
        estimator = self.estimator(settings(), last=Refinement("2"))
        broken = network()
        broken.load_state_dict({name: value * math.nan for name, value in broken.state_dict().items()})
        found = estimator.measure(broken, 1)
        assert found.failed
        assert math.isnan(found.logged()["slt/llc/last/mean"])


class _Watching(nn.Module):
    """Notes whether what comes from below has a graph to go back through."""

    asked: ClassVar[list[bool]] = []  # of an instance it would be put back with each chain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(x.requires_grad)
        return x


def _doubled(module: nn.Module, batch: Any) -> torch.Tensor:
    return 2 * squared_error(module, batch)


class TestInTurn:
    def estimator(self, at_once: int) -> Estimator:
        refinements = {name: Refinement("w", slices={"w": place}) for place, name in enumerate("abc")}
        return Estimator(
            draw_reference(TWO_SAMPLES),
            Quadratic(torch.ones(3)),
            None,
            settings(num_draws=4, num_burnin_steps=4),
            persistent=True,
            refinements=RefinementSet(refinements, at_once),
        )

    def test_every_one_has_its_turn(self) -> None:
        estimator = self.estimator(2)
        taken = [list(estimator.measure(Weights(3), step).refinements) for step in range(1, 4)]
        assert taken == [["a", "b"], ["c", "a"], ["b", "c"]]

    def test_expected_steps_are_of_those_whose_turn_it_is(self) -> None:
        estimator = self.estimator(1)
        for step in range(1, 5):
            expected = estimator.expected_steps
            assert estimator.measure(Weights(3), step)["cost"]["sgld_steps"] == expected

    def test_a_resume_goes_on_with_the_turn_and_the_chains(self) -> None:
        whole, first = self.estimator(2), self.estimator(2)
        expected = [whole.measure(Weights(3), step) for step in (1, 2, 3)][2]
        first.measure(Weights(3), 1)
        first.measure(Weights(3), 2)
        second = self.estimator(2)
        assert second.load_state_dict(first.state_dict())
        found = second.measure(Weights(3), 3)
        assert list(found.refinements) == list(expected.refinements)
        for name, record in found.refinements.items():
            assert torch.equal(record["llc"]["loss_trace"], expected.refinements[name]["llc"]["loss_trace"])

    @pytest.mark.parametrize("dynamics", [SGLD(1e-3), LeimkuhlerMatthews(1e-3), SGHMC(1e-3)])
    def test_of_a_slice_only_what_moves_is_stored(self, dynamics: Any) -> None:
        """A head of a fused layer is a hundredth of it, and there may be a hundred heads."""
        config = settings(dynamics=dynamics, num_draws=4, num_burnin_steps=4)

        def estimator() -> Estimator:
            parts = RefinementSet({"three": Refinement("w", slices={"w": slice(10, 13)})})
            reference, loss_fn = draw_reference(TWO_SAMPLES), Quadratic(torch.ones(1000))
            return Estimator(reference, loss_fn, None, config, persistent=True, refinements=parts)

        one, other = estimator(), estimator()
        one.measure(Weights(1000), 1)
        vectors = 1 + len(dynamics.init(torch.zeros(1)))
        assert one.stored_bytes == config.num_chains * vectors * 4 * (1000 + 3)
        other.load_state_dict(one.state_dict())
        found, again = one.measure(Weights(1000), 2), other.measure(Weights(1000), 2)
        trace = found.refinements["three"]["llc"]["loss_trace"]
        assert torch.equal(trace, again.refinements["three"]["llc"]["loss_trace"])
        assert float(trace[:, 0].min()) > 0  # it goes on where it was, and not at w*

    def test_another_refinement_of_the_same_name_starts_afresh_and_says_so(self) -> None:
        first = self.estimator(3)
        first.measure(Weights(3), 1)
        refinements = {"a": Refinement("w", slices={"w": 2}), "new": Refinement("w")}
        second = Estimator(
            draw_reference(TWO_SAMPLES),
            Quadratic(torch.ones(3)),
            None,
            settings(num_draws=4, num_burnin_steps=4),
            persistent=True,
            refinements=RefinementSet(refinements),
        )
        with pytest.warns(UserWarning, match=r"refinements\['a'\] is another one than the checkpoint's \(`slices` was"):
            second.load_state_dict(first.state_dict())
        assert second.expected_steps == 2 * (8 + 8) + 2 * (4 + 4)  # of the main posterior alone chains are warm


class TestWhatIsTold:
    def test_long_indices_are_told_from_each_other(self) -> None:
        """What a checkpoint's chains are compared by; the `repr` of a long tensor leaves out its middle."""
        masks = torch.zeros(2, 64, 64, dtype=torch.bool)
        masks[0, 20:30], masks[1, 40:45] = True, True
        one, other = (Refinement("w", slices={"w": mask}).told() for mask in masks)
        assert one != other
        assert all(len(told["slices"]["w"]) < 100 for told in (one, other))

    def test_functions_are_named(self) -> None:
        told = Refinement(loss_fn=behavioral(TestBehavioral.outputs, "mse")).told()
        assert told["loss_fn"] == 'behavioral(TestBehavioral.outputs, "mse")'


class TestBadInput:
    @pytest.mark.parametrize(
        ("refinements", "error", "message"),
        [
            ([Refinement()], TypeError, "to be a mapping such as"),
            ({"a/b": Refinement()}, ValueError, "names without a slash, but got 'a/b'"),
            ({"": Refinement()}, ValueError, "names without a slash"),
            ({"a": "a.*"}, TypeError, r"`refinements\['a'\]` to be a Refinement, but got 'a.\*'"),
            ({"head": Refinement(), "Head ": Refinement()}, ValueError, "differ in more than case and spaces"),
            ({"none": Refinement("v.*")}, ValueError, r"refinements\['none'\]: .*matches none: there are w"),
            ({"out": Refinement("w", slices={"w": 7})}, ValueError, r"refinements\['out'\]: .*index of a tensor"),
            ({"other": Refinement("w", slices={"v": 0})}, ValueError, "`slices` to name selected parameters"),
            ({"empty": Refinement(reference=[])}, ValueError, r"refinements\['empty'\]: "),
            (
                {"pairs": Refinement(reference=[(torch.zeros(2, 1), torch.zeros(2, 1))])},
                ValueError,
                r"refinements\['pairs'\].*structure of the reference",
            ),
        ],
    )
    def test_it_is_refused(self, refinements: Any, error: type[Exception], message: str) -> None:
        loss_fn = Quadratic(torch.ones(2))
        with pytest.raises(error, match=message):
            estimate(Weights(2), TWO_SAMPLES, loss_fn, sampler=settings(), refinements=refinements)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"parameters": 3}, TypeError, "`parameters` to be a parameter's name"),
            ({"parameters": []}, ValueError, "at least one parameter"),
            ({"slices": [0]}, TypeError, "`slices` to be a dict"),
            ({"loss_fn": "mse"}, TypeError, "`loss_fn` to be a function"),
        ],
    )
    def test_so_are_arguments(self, arguments: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Refinement(**arguments)

    @pytest.mark.parametrize(
        ("at_once", "error"), [(0, ValueError), (3, ValueError), (1.0, TypeError), (True, TypeError)]
    )
    def test_so_is_how_many_at_once(self, at_once: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="refinements_at_once"):
            RefinementSet({"a": Refinement(), "b": Refinement()}, at_once)
