"""Before the first number: what the line says, and a first measurement that would be a silent hour."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import SGLD, Estimator, Influence, LossKernel, SamplerConfig, SLTMonitor
from slt_callbacks.basics.durations import duration
from slt_callbacks.callbacks.budget import LONG_SECONDS, Budget
from slt_callbacks.callbacks.loaders import planned_steps
from slt_callbacks.callbacks.prospect import Plan, Prospect, Weights
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.functions import name_of_loss
from slt_callbacks.measuring.timed_pass import TimedPass
from slt_callbacks.sampling.engine_choice import EngineChoice
from tests.callbacks.test_budget import Clock, spend
from tests.callbacks.test_faults import fit_and_listen
from tests.problems import settings, squared_error
from tests.training import QUICK, QUIET, Regression, data, fit, monitor, square_error


def lines(caplog: pytest.LogCaptureFixture, *callbacks: pl.Callback, **options: Any) -> list[str]:
    """What a fit has said before its first number."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(*callbacks, **options)
    return [record.getMessage() for record in caplog.records if "SLTMonitor: measuring" in record.getMessage()]


class WithLosses(Regression):
    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        return square_error(self, batch)


class TestTheLine:
    def test_a_fit_says_it_once_before_the_first_batch(self, caplog: pytest.LogCaptureFixture) -> None:
        class Listens(pl.Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                heard.append(sum("SLTMonitor: measuring" in message for message in caplog.messages))

        heard: list[int] = []
        (told,) = lines(caplog, monitor(), Listens())
        assert heard == [1] * 6
        torch.manual_seed(0)
        loss = float(square_error(Regression().eval(), list(data().tensors)).mean().detach())
        assert f"measuring `square_error` (one loss a sample, now {loss:.4g}) on 48 samples" in told
        assert "in batches of [Tensor[48, 3], Tensor[48]]; chains move all 57 parameters." in told
        assert "2 chains of SGLD(step_size='auto'), each with a burn-in of 4 steps and 8 draws: 24 gradient" in told
        assert re.search(r"24 gradient steps of [\d.]+ m?s, about [\d.]+ m?s each\. With `max_overhead=None` tr", told)
        assert told.endswith("training waits for all 3 of them.")

    def test_a_training_step_takes_as_long_as_the_pass_whatever_a_step_of_the_chains_takes_on_average(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That may be less: some chains move the last layer alone, and others go all at once."""
        timed = TimedPass(1.0, True, "Tensor[4]", size=4, seconds=1.0, more_passes=0.0, pass_seconds=6.0)
        plans: list[Plan] = []

        def plan(*of: Any) -> Plan:
            plans.append(Plan(*of))
            return plans[-1]

        monkeypatch.setattr(Estimator, "time_pass", lambda self, module: timed)
        monkeypatch.setattr("slt_callbacks.callbacks.trial.Plan", plan)
        fit(monitor(), batch_size=8)
        assert [one.seconds_per_step for one in plans] == [12.0]

    @pytest.mark.parametrize(
        ("module", "options", "said"),
        [
            (Regression, {"loss_fn": None}, "`Regression.training_step` (one loss a batch, now"),
            (WithLosses, {"loss_fn": None}, "`WithLosses.per_sample_loss` (one loss a sample, now"),
            (Regression, {"num_samples": 20}, "on 20 of 48 samples in batches of [Tensor[20, 3], Tensor[20]]"),
            (Regression, {"sampler": replace(QUICK, batch_size=6)}, "on 48 samples in batches of [Tensor[6, 3]"),
            (Regression, {"sampler": replace(QUICK, block_size=20)}, "of [Tensor[20, 3], Tensor[20]] and 1 other"),
            (Regression, {"reference": [list(data().tensors)] * 2}, "on 96 samples in batches of [Tensor[96, 3]"),
            (Regression, {"every_n_train_steps": 7}, "None is due in the 6 steps of this fit."),
            (Regression, {"sampler": replace(QUICK, num_steps_bw_draws=3)}, "8 draws, 3 steps apart: 52 gradient"),
        ],
    )
    def test_a_mistake_shows_in_it(
        self, module: Any, options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        (told,) = lines(caplog, monitor(**options), module=module())
        assert said in told

    def test_what_is_frozen_is_named(self, caplog: pytest.LogCaptureFixture) -> None:
        module = Regression()
        module.net[0].requires_grad_(False)
        (told,) = lines(caplog, monitor(), module=module)
        assert "chains move 25 of 57 parameters, for the others are frozen, such as `net.0.weight`." in told

    def test_without_a_reference_it_comes_with_the_batches(self, caplog: pytest.LogCaptureFixture) -> None:
        class Listens(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                heard.append(sum("SLTMonitor: measuring" in message for message in caplog.messages))

        heard: list[int] = []
        (told,) = lines(caplog, monitor(None, num_samples=20), Listens())
        assert heard == [0, 0, 1, 1, 1, 1], "eight samples a batch"
        assert "on 20 samples in batches of [Tensor[20, 3], Tensor[20]]" in told

    def test_a_loss_that_raises_leaves_out_what_is_not_known(self, caplog: pytest.LogCaptureFixture) -> None:
        def raises(module: Any, batch: Any) -> torch.Tensor:
            raise RuntimeError("no such column")

        for reference in ("data", None):
            with pytest.warns(UserWarning, match="no such column"):
                (told,) = lines(caplog, monitor(reference, loss_fn=raises, num_samples=16))
            assert "`raises` on 16" in told
            assert told.endswith("8 draws: 24 gradient steps.")

    def test_a_run_that_tries_every_line_once_says_it_of_shortened_chains(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        (told,) = lines(caplog, monitor(max_overhead=0.1), fast_dev_run=True, max_steps=-1)
        assert told.endswith("burn-in of 1 steps and 2 draws: 6 gradient steps, shortened for `fast_dev_run`.")

    def test_without_chains_no_step_is_promised(self, caplog: pytest.LogCaptureFixture) -> None:
        class Norm:
            def inspect(self, fork: Any) -> dict[str, float]:
                return {"norm": 1.0}

        (told,) = lines(caplog, monitor(observables={"norm": Norm()}))
        assert told.endswith("No observable asks for chains: no gradient step is taken.")

    def test_where_training_does_not_wait_no_budget_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        class Elsewhere:
            def open(self, estimator: Any) -> None: ...
            def submit(self, snapshot: Any) -> None: ...
            def poll(self) -> list[Any]:
                return []

            def drain(self, timeout: float | None = None) -> list[Any]:
                return []

            def close(self) -> None: ...

        with pytest.warns(UserWarning, match="never given back"):
            (told,) = lines(caplog, monitor(executor=Elsewhere(), max_overhead=0.1))
        assert told.endswith("each.")


class Multiplied:
    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        return square_error(module, batch)


@pytest.mark.parametrize(
    ("loss_fn", "name"),
    [
        (square_error, "square_error"),
        (functools.partial(square_error), "square_error"),
        (Multiplied(), "Multiplied"),
        (nn.functional.mse_loss, "mse_loss"),
    ],
)
def test_a_loss_has_the_name_that_its_user_gave_it(loss_fn: Any, name: str) -> None:
    def own(module: Any, batch: Any) -> None: ...

    assert name_of_loss(loss_fn, nn.Linear(1, 1)) == name
    assert name_of_loss(own, nn.Linear(1, 1)) == "own"
    told = name_of_loss(lambda module, batch: None, nn.Linear(1, 1))
    assert re.fullmatch(r"<lambda> in line \d+ of test_prospect.py", told)


def slow(seconds: float = 4.8, **changes: Any) -> Prospect:
    """1000 gradient steps of 4.8 seconds, but for what is changed."""
    per_sample = bool(changes.pop("per_sample", True))
    plain = {"dynamics": SGLD(), "num_draws": 50, "num_burnin_steps": 200, "batch_size": None}
    config = SamplerConfig(**(plain | changes))
    steps, size = config.num_chains * config.num_steps, int(config.batch_size or 256)  # type: ignore[arg-type]
    timed = TimedPass(1.0, per_sample, f"Tensor[{size}]", size, seconds, more_passes=16.0)
    return Prospect("loss", 256, None, Weights(10), config, steps, steps // 3, timed=timed)


class TestHowMany:
    @pytest.mark.parametrize(
        ("plan", "said"),
        [
            (Plan(1000, 10, 10.0), "`max_overhead=0.1` allows all 100 that are due."),  # 1000 s, and each takes 3.4
            (Plan(1000, 10, 1.0), "allows about 27 of the 100 that are due."),  # 100 s: 10.16 and 26 of 3.38
            (Plan(1000, 10, None), "allows one in every 34 s of training."),
            (Plan(None, 10, 1.0), "allows one in every 34 s of training."),
            (Plan(1000, None, 1.0), "allows one in every 34 s of training."),
            (Plan(9, 10, 1.0), "None is due in the 9 steps of this fit."),
        ],
    )
    def test_the_budget_s_share_of_what_is_due(self, plan: Plan, said: str) -> None:
        assert slow(0.01).line(0.1, plan).endswith(said)

    def test_without_a_limit_training_waits(self) -> None:
        assert slow().line(None, Plan(1000, 10, 1.0)).endswith("training waits for all 100 of them.")
        assert "about 1 h 21 min the first time and 27 min 4 s from then on." in slow().line(None, Plan())
        assert slow().line(None, Plan()).endswith("training waits for each of them.")

    def test_a_first_one_that_does_not_fit_is_told_when_it_will(self) -> None:
        assert slow().line(0.1, Plan()).endswith("allows the first when 13 h 33 min of training pay for it.")
        assert slow().line(0.1, Plan(1000, 10, 1.0)).endswith("allows none of the 100 that are due.")

    def test_processes_share_the_steps(self) -> None:
        told = replace(slow(0.01), num_steps=500, num_processes=2).line(0.1, Plan())
        assert "1000 gradient steps in 2 processes of 10 ms, about 5.2 s the first time" in told


class TestAdvice:
    @pytest.mark.parametrize("seconds", [0.08, 0.2, 0.3])
    @pytest.mark.parametrize("batch_size", [None, 128])
    @pytest.mark.parametrize("per_sample", [True, False])
    def test_each_setting_that_is_named_fits(self, seconds: float, batch_size: int | None, per_sample: bool) -> None:
        prospect = slow(seconds, batch_size=batch_size, per_sample=per_sample)
        assert prospect.timed is not None
        advice = dict(re.findall(r"(\w+)=(\d+)", prospect.advice(LONG_SECONDS)))
        if "num_draws" in advice:
            draws, burn_in = int(advice["num_draws"]), int(advice["num_burnin_steps"])
            assert draws >= 16
            assert prospect.timed.seconds_for(4 * (burn_in + draws)) <= LONG_SECONDS
        fewer = int(advice["batch_size"])
        assert prospect.first_seconds * fewer / (batch_size or 256) <= LONG_SECONDS
        assert per_sample or 256 % fewer == 0
        assert ("num_samples" in advice) == (batch_size is None)

    def test_the_warning_names_them(self) -> None:
        told = slow(0.12).too_long(0.1, 60.0)
        assert told.startswith(
            "The first measurement would take about 2 min 2 s (1000 gradient steps of 120 ms), and `max_overhead=0.1` "
            "allows it 1 min: it is left out"
        )
        assert "(20 min 19 s in all). Give `num_draws=24, num_burnin_steps=96`, `batch_size=125`, `num_samples=" in told
        assert told.endswith("or `max_overhead=None` to have it anyway.")

    def test_where_no_setting_helps_alone_all_of_them_may(self) -> None:
        assert "fewer draws and steps of burn-in together with a smaller `batch_size`" in slow(100.0).too_long(0.1, 60)


class TestBudgetOfTheFirst:
    def made(self, first_pace: float) -> tuple[Budget, Clock]:
        clock = Clock()
        budget = Budget(0.1, clock)
        budget.first_pace = first_pace
        budget.start()
        return budget, clock

    def test_a_minute_is_always_free(self) -> None:
        budget, _ = self.made(0.06)
        assert budget.allows({"": 1000})
        assert not budget.allows({"": 1001})

    def test_a_longer_one_waits_until_training_has_paid(self) -> None:
        budget, clock = self.made(0.1)
        clock.now = 999.0
        assert not budget.allows({"": 1000})
        clock.now = 1000.0
        assert budget.allows({"": 1000})

    def test_a_fit_of_known_length_pays_beforehand(self) -> None:
        budget, _ = self.made(0.1)
        assert not budget.allows({"": 1000}, run_seconds=999.0)
        assert budget.allows({"": 1000}, run_seconds=1000.0)

    def test_what_the_first_took_decides_from_then_on(self) -> None:
        budget, clock = self.made(10.0)
        clock.now = 100.0
        spend(budget, 1.0, steps=100)  # it was quick
        assert budget.allows({"": 100})
        assert not budget.is_long(100)

    def test_what_has_failed_is_paid_for_too(self) -> None:
        budget, clock = self.made(0.1)
        clock.now = 1050.0
        spend(budget, 50.0, steps=0)
        assert not budget.allows({"": 1000}), "50 and 100 of 1000"
        clock.now = 1550.0
        assert budget.allows({"": 1000})

    def test_without_a_limit_it_runs(self) -> None:
        budget = Budget(None)
        budget.first_pace = 1e9
        assert budget.allows({"": 1000})


@pytest.fixture
def sluggish(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient passes that say they took five seconds: 24 steps and the curvature's passes make 3 min 20 s."""
    monkeypatch.setattr("slt_callbacks.measuring.timed_pass._timed", lambda *_: (1.0, 5.0))


def too_long(told: list[str]) -> list[str]:
    return [text for text in told if "The first measurement would take about 3 min 22 s" in text]


@pytest.mark.usefixtures("sluggish")
class TestASilentHour:
    def test_it_is_left_out_and_counted_with_one_warning(self) -> None:
        watched = monitor(max_overhead=0.1)
        trainer, told = fit_and_listen(watched)
        assert trainer.global_step == 6
        assert watched.history == []
        assert watched.state_dict()["skipped"] == 3
        (warned,) = too_long(told)
        assert "Give `batch_size=14`, or `max_overhead=None` to have it anyway." in warned

    def test_before_training_too(self) -> None:
        watched = monitor(max_overhead=0.1, schedule=lambda step: step == 0)
        _, told = fit_and_listen(watched)
        assert watched.history == []
        assert len(too_long(told)) == 1

    def test_without_a_limit_it_runs_and_the_line_says_how_long(self, caplog: pytest.LogCaptureFixture) -> None:
        watched = monitor()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (told,) = lines(caplog, watched)
        assert [one.step for one in watched.history] == [2, 4, 6]
        assert too_long([str(one.message) for one in caught]) == []
        assert "24 gradient steps of 5 s, about 3 min 22 s each. With `max_overhead=None` training waits for" in told

    @pytest.mark.parametrize(("max_steps", "measured"), [(10**9, True), (-1, False)])
    def test_a_fit_that_is_known_to_be_long_has_it_as_soon_as_a_step_has_been_timed(
        self, max_steps: int, measured: bool
    ) -> None:
        class Stops(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                trainer.should_stop = trainer.global_step >= 4

        watched = monitor(max_overhead=0.1, schedule=lambda step: step in (0, 2))
        _, told = fit_and_listen(watched, Stops(), max_steps=max_steps, max_epochs=-1, min_steps=1)
        assert [one.step for one in watched.history] == [2] * measured
        assert len(too_long(told)) == 1, "of step 0, where no step had been timed"

    def test_elsewhere_training_does_not_wait_for_it(self) -> None:
        class InTheProcess:
            def open(self, estimator: Any) -> None:
                self.estimator, self.found = estimator, []  # type: ignore[var-annotated]

            def submit(self, snapshot: Any) -> None:
                self.found.append(self.estimator.attempt(snapshot.module, snapshot.step))

            def poll(self) -> list[Any]:
                found, self.found = self.found, []
                return found

            def drain(self, timeout: float | None = None) -> list[Any]:
                return self.poll()

            def close(self) -> None: ...

        watched = monitor(max_overhead=0.1, executor=InTheProcess())
        _, told = fit_and_listen(watched)
        assert watched.history[0].step == 2
        assert too_long(told) == []

    def test_the_next_fit_is_looked_at_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        watched = monitor(max_overhead=0.1)
        fit_and_listen(watched)
        monkeypatch.setattr("slt_callbacks.measuring.timed_pass._timed", lambda *_: (1.0, 0.001))
        fit_and_listen(watched)
        assert watched.history[0].step == 2


class TestTimedPass:
    def estimator(self, config: SamplerConfig, observables: Any = None) -> Estimator:
        generator = torch.Generator().manual_seed(5)
        pairs = [(torch.randn(12, 3, generator=generator), torch.randn(12, 1, generator=generator))]
        return Estimator(draw_reference(pairs), squared_error, observables, config)

    def test_it_leaves_the_module_and_the_random_numbers_alone(self) -> None:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
        one, other = self.estimator(settings(num_draws=20)), self.estimator(settings(num_draws=20))
        before = torch.get_rng_state(), module.weight.detach().clone()
        timed = one.time_pass(module)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert torch.equal(module.weight, before[1])
        assert module.weight.grad is None
        assert (timed.per_sample, timed.size, timed.batches) == (True, 12, "(Tensor[12, 3], Tensor[12, 1])")
        first, second = one.measure(module, 1), other.measure(module, 1)
        assert timed.loss == pytest.approx(first["llc"]["reference_loss"])
        assert torch.equal(first["llc"]["loss_trace"], second["llc"]["loss_trace"])

    @pytest.mark.parametrize(
        ("changes", "observables", "forwards"),
        [
            ({}, None, 12),
            ({}, {"kernel": LossKernel()}, 12),  # the step has their losses
            ({"batch_size": 4}, {"kernel": LossKernel()}, 12 + 2 * 20 * 12),
            ({}, {"i": Influence([(torch.ones(5, 3), torch.ones(5, 1))])}, 12 + 2 * 20 * 5),
        ],
    )
    def test_what_observables_ask_for_is_counted(self, changes: Any, observables: Any, forwards: int) -> None:
        one = self.estimator(settings(num_draws=20, **changes), observables)
        size = changes.get("batch_size", 12)
        assert one.time_pass(nn.Linear(3, 1)).more_passes == pytest.approx(16 + forwards / size / 3)

    def test_one_pass_is_enough_where_it_is_quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = self.passes(monkeypatch, [0.001, 0.001])
        assert self.estimator(settings(num_draws=20)).time_pass(nn.Linear(3, 1)).seconds == 0.001
        assert len(taken) == 1

    def test_a_first_pass_that_was_slow_to_begin_is_taken_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = self.passes(monkeypatch, [1.0, 0.001])
        assert self.estimator(settings(num_draws=20)).time_pass(nn.Linear(3, 1)).seconds == 0.001
        assert len(taken) == 2

    @pytest.mark.parametrize(("at_once", "seconds"), [(0.2, 0.05), (2.0, 0.4)])
    def test_chains_that_go_at_once_share_a_step(
        self, at_once: float, seconds: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.passes(monkeypatch, [0.4, 0.4])
        monkeypatch.setattr(EngineChoice, "seconds_at_once", lambda *_: at_once)
        one = self.estimator(settings(num_chains=4, num_draws=20))
        assert one.time_pass(nn.Linear(3, 1)).seconds == seconds

    @pytest.mark.parametrize(
        ("changes", "possible"),
        [
            ({"engine": "vectorized"}, True),
            ({"engine": "auto"}, False),  # too short for a race
            ({"engine": "auto", "num_burnin_steps": 100}, True),
            ({"engine": "sequential", "num_burnin_steps": 100}, False),
        ],
    )
    def test_only_an_engine_that_may_be_chosen_is_timed(
        self, changes: Any, possible: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.passes(monkeypatch, [0.9] * 2)
        one = self.estimator(settings(num_draws=20, **changes))
        assert (one.time_pass(nn.Linear(3, 1)).seconds < 0.9) == possible

    def test_a_loss_that_cannot_be_batched_goes_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def branching(module: Any, batch: Any) -> torch.Tensor:
            losses = squared_error(module, batch)
            return losses if losses.sum() > -1 else -losses

        self.passes(monkeypatch, [0.9] * 2)
        config = settings(num_draws=20, engine="vectorized")
        one = Estimator(draw_reference([(torch.ones(4, 3), torch.ones(4, 1))]), branching, None, config)
        assert one.time_pass(nn.Linear(3, 1)).seconds == 0.9

    @staticmethod
    def passes(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> list[float]:
        taken: list[float] = []

        def timed(*_: Any) -> tuple[float, float]:
            taken.append(seconds[len(taken)])
            return 1.0, taken[-1]

        monkeypatch.setattr("slt_callbacks.measuring.timed_pass._timed", timed)
        return taken


class TestPlannedSteps:
    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({"max_steps": 5}, 5),
            ({"max_epochs": 2, "max_steps": -1}, 12),
            ({"max_epochs": 2, "max_steps": -1, "accumulate_grad_batches": 3}, 4),
            ({"max_epochs": -1, "max_steps": -1}, None),
        ],
    )
    def test_they_are_those_of_the_trainer(self, options: dict[str, Any], steps: int | None) -> None:
        class Asks(pl.Callback):
            def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
                found.append(planned_steps(trainer))
                trainer.should_stop = True

        found: list[int | None] = []
        fit(Asks(), min_steps=0, **options)
        assert found == [steps]

    def test_a_stream_has_no_length(self) -> None:
        assert planned_steps(SimpleNamespace(estimated_stepping_batches=-1)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0004, "0.4 ms"),
        (0.999, "1 s"),
        (59.6, "1 min"),
        (3599.9, "1 h"),
        (86399, "1 day"),
        (200000, "2 days 8 h"),
    ],
)
def test_spans_are_rounded_into_the_next_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_long_fit_of_a_quick_model_is_measured_as_ever() -> None:
    watched = SLTMonitor(data(), square_error, sampler=QUICK, every_n_train_steps=2)
    pl.Trainer(max_steps=2, callbacks=[watched], **QUIET).fit(Regression(), DataLoader(data(), 8))
    assert [one.step for one in watched.history] == [2]
