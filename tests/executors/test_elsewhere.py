"""What waits, what is under way, what is lost and when it is given back, whoever measures."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from slt_callbacks import LLC, Alert, Estimator, LossKernel, MemorySink, Metrics, Refinement, TrajectoryPCA
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.detection.jumps import JumpEvent
from slt_callbacks.executors.elsewhere import Elsewhere
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.weights.snapshot import Snapshot
from tests.contracts import check_executor
from tests.digests import digest
from tests.executors.test_executors import everything, told, told_inline
from tests.executors.workers import FakeWorkers, elsewhere
from tests.problems import settings, squared_error
from tests.training import QUICK, QUIET, Regression, data, fingerprint, fit, monitor, square_error

AFRESH = "; another is started, whose chains begin afresh"
pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|resuming from a checkpoint)")


def estimator(**options: Any) -> Estimator:
    reference = draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))])
    return Estimator(reference, squared_error, None, settings(), persistent=True, **options)


def opened(**options: Any) -> Any:
    executor = elsewhere(**options)
    executor.open(estimator())
    return executor


def net(step: int = 0) -> nn.Linear:
    """The same one every time."""
    made = nn.Linear(2, 1)
    nn.init.constant_(made.weight, 1.0 + step)
    nn.init.constant_(made.bias, 0.5)
    return made


def predictions(module: Any, batch: list[torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.net(batch[0])
    return found


def saving(path: Path) -> pl.Callback:
    """Writes a checkpoint between two measurements."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.save_checkpoint(path)

    return Saves()


class Secretive(LLC):
    def state_dict(self) -> Any:
        raise RuntimeError("I do not tell")


def gathering(**more: Any) -> Estimator:
    """What remembers more than its chains."""
    observables = {"llc": LLC(), "path": TrajectoryPCA([torch.eye(2)]), **more}
    reference = draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))])
    return Estimator(reference, squared_error, observables, settings("auto"), persistent=True)


class TestTheOrder:
    @pytest.mark.parametrize("looks", [1, 3])
    def test_it_keeps_the_contract_of_executors(self, looks: int) -> None:
        check_executor(elsewhere(looks=looks, max_pending=2))

    def test_what_one_worker_finishes_first_waits_for_what_came_before(self) -> None:
        executor = opened(num_workers=2, max_pending=4, looks=10**9)
        fake = executor._workers
        for step in (1, 2, 3):
            executor.submit(Snapshot(step, net()))
        assert executor.poll() == []
        fake.seen[1] = fake.looks  # the second worker is through, the first is not
        assert executor.poll() == []
        assert [told for told in fake.told if told[0] != "start"] == [(0, 1), (1, 2), (1, 3)]
        fake.looks = 1
        assert [one.step for one in executor.drain()] == [1, 2, 3]

    def test_no_more_wait_than_may(self) -> None:
        executor = opened(looks=4, max_pending=1)
        for step in range(6):
            executor.submit(Snapshot(step, net()))  # waits where it has to
        assert executor._workers.most_loads == 2
        assert [one.step for one in executor.drain()] == list(range(6))
        assert executor._workers.loads == 0
        assert executor.pending == 0

    @pytest.mark.parametrize("max_pending", [0, 1, 3])
    def test_it_is_full_when_as_many_wait_as_may(self, max_pending: int) -> None:
        executor = opened(looks=10**9, max_pending=max_pending)
        taken = 0
        while not executor.full:
            executor.submit(Snapshot(taken, net()))
            taken += 1
        assert taken == 1 + max_pending

    def test_a_drain_that_runs_out_of_time_may_be_asked_again(self) -> None:
        executor = opened(looks=10**9)
        executor.submit(Snapshot(1, net()))
        start = time.monotonic()
        assert executor.drain(0.05) == []
        assert 0.05 <= time.monotonic() - start < 5
        executor._workers.looks = 1
        assert [one.step for one in executor.drain(5.0)] == [1]

    def test_opened_again_it_gives_nothing_of_what_was_before(self) -> None:
        executor = opened(looks=10**9)
        executor.submit(Snapshot(1, net()))
        executor.open(estimator())
        assert executor._workers.told[-2:] == ["close", ("start", 0)]
        assert executor.pending == 0

    def test_it_has_to_be_opened(self) -> None:
        with pytest.raises(RuntimeError, match="Expected `open\\(estimator\\)` before `submit`"):
            elsewhere().submit(Snapshot(1, net()))
        with pytest.raises(RuntimeError, match="Expected `open\\(estimator\\)` before `state_dict`"):
            elsewhere().state_dict()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_workers": 0}, "`num_workers` to be an integer of at least 1, but got 0"),
            ({"max_pending": -1}, "`max_pending` to be an integer of at least 0, but got -1"),
            ({"max_pending": 1.5}, "`max_pending` to be an integer of at least 0, but got 1.5"),
            ({"end_timeout": 0}, "`end_timeout` to be a positive number of seconds or None, but got 0"),
            ({"end_timeout": "soon"}, "`end_timeout` to be a positive number of seconds or None, but got 'soon'"),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"Expected {message}"):
            Elsewhere(FakeWorkers(), **({"num_workers": 1, "max_pending": 1} | options))


class TestLosses:
    def test_a_worker_that_ends_costs_its_fork_and_its_chains(self) -> None:
        executor = opened(loses=[1], max_pending=4)
        found = []
        for step in (1, 2, 3, 4):
            executor.submit(Snapshot(step, net()))
            found += executor.drain()
        assert [one.failed for one in found] == [False, True, False, False]
        assert found[1].error == f"WorkerLostError: it was ended{AFRESH}"
        assert math.isnan(found[1]["llc"]["mean"])
        afresh = estimator()
        for one in found[2:]:  # the fourth goes on from the third
            assert one["llc"]["mean"] == afresh.measure(net(), one.step)["llc"]["mean"]

    def test_what_observables_have_gathered_goes_on_in_the_next(self) -> None:
        """A path over the run, and the step that "auto" stands for; the chains begin afresh."""
        executor = elsewhere(loses=[2])
        executor.open(gathering())
        found = []
        for step in range(1, 6):
            executor.submit(Snapshot(step, net(step)))
            found += executor.drain()
        first, second = gathering(), gathering()
        expected = [first.measure(net(step), step) for step in (1, 2)]
        second.load_state_dict(first.state_dict(chains=False))
        expected += [second.failed(3, found[2].error or ""), *(second.measure(net(step), step) for step in (4, 5))]
        assert found[2].error == f"WorkerLostError: it was ended{AFRESH}"
        assert digest([one.results for one in found]) == digest([one.results for one in expected])
        assert found[4].results["path"]["steps"].tolist() == [1, 2, 4, 5]

    def test_one_that_cannot_say_what_it_has_gathered_begins_afresh(self) -> None:
        executor = elsewhere(loses=[1])
        executor.open(gathering(secretive=Secretive()))
        found = []
        for step in (1, 2, 3):
            executor.submit(Snapshot(step, net(step)))
            found += executor.drain()
        assert [one.failed for one in found] == [False, True, False]
        assert "; another is started, whose chains and observables begin afresh" in (found[1].error or "")
        assert found[2].results["path"]["steps"].tolist() == [3]

    def test_one_that_ends_twice_in_a_row_is_not_started_again(self) -> None:
        executor = opened(loses=[0, 1], max_pending=4, looks=3)
        for step in (1, 2, 3):
            executor.submit(Snapshot(step, net()))
        errors = [one.error for one in executor.drain()]
        assert errors[1:] == [
            "WorkerLostError: it was ended; it is not started again",
            "WorkerLostError: it was ended; none is left",
        ]
        with pytest.raises(RuntimeError, match="No worker is left, after 2 in a row were lost"):
            executor.submit(Snapshot(4, net()))
        assert executor._workers.told.count(("start", 0)) == 2
        assert executor._workers.loads == 0

    def test_between_two_losses_a_success_counts(self) -> None:
        executor = opened(loses=[0, 2], max_pending=4)
        found = []
        for step in range(4):
            executor.submit(Snapshot(step, net()))
            found += executor.drain()
        assert [one.failed for one in found] == [True, False, True, False]

    def test_one_that_cannot_be_started_again_says_why(self) -> None:
        executor = opened(loses=[0], no_more=True, max_pending=2, looks=3)
        for step in (1, 2):
            executor.submit(Snapshot(step, net()))
        assert "another could not be started: OSError: no memory; none is left" in executor.drain()[1].error

    def test_where_each_measurement_stands_alone_nothing_is_lost(self) -> None:
        executor = elsewhere(loses=[1, 2], num_workers=2, max_pending=4)
        executor.open(Apart(estimator()))
        for step in range(5):
            executor.submit(Snapshot(step, net()))
        found = executor.drain()
        assert [one.step for one in found] == list(range(5))
        apart = Apart(estimator())
        assert [one["llc"]["mean"] for one in found] == [apart.measure(net(), k)["llc"]["mean"] for k in range(5)]

    def test_a_fork_that_ends_every_worker_is_given_up(self) -> None:
        executor = elsewhere(loses=[1, 1], num_workers=2, max_pending=4)
        executor.open(Apart(estimator()))
        for step in range(5):
            executor.submit(Snapshot(step, net()))
        found = executor.drain()
        assert [one.failed for one in found] == [False, True, False, False, False]
        assert "begin afresh" not in found[1].error


def test_a_measurement_apart_copies_no_samples() -> None:
    samples, reference = draw_reference([torch.ones(4, 2)]), draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))])
    behavior = Metrics({"mean": MeanMetric()}, lambda module, batch: module(batch), data=samples)
    apart = Apart(Estimator(reference, squared_error, {"behavior": behavior}))
    assert apart.twin()._panel.members[0].samples is samples


class TestStates:
    def test_it_is_that_of_what_was_given_back_last(self) -> None:
        executor, alone = opened(max_pending=3), estimator()
        executor.submit(Snapshot(1, net()))
        assert digest(executor.state_dict()) == digest(alone.state_dict()), "nothing has been given back"
        executor.drain()
        alone.measure(net(), 1)
        expected = digest(alone.state_dict()), digest(alone.state_dict(chains=False))
        assert (digest(executor.state_dict()), digest(executor.state_dict(chains=False))) == expected
        executor.submit(Snapshot(2, net()))
        executor._advance(0.0)  # it is measured, and not yet given back
        assert (digest(executor.state_dict()), digest(executor.state_dict(chains=False))) == expected
        executor.drain()
        assert digest(executor.state_dict()) != expected[0]

    def test_after_a_loss_there_are_no_chains(self) -> None:
        executor = opened(loses=[1], max_pending=3)
        for step in (1, 2):
            executor.submit(Snapshot(step, net()))
            executor.drain()
        assert executor.state_dict()["chains"] == {}

    def test_at_the_end_the_estimator_knows_what_the_worker_knew(self) -> None:
        executor, mine, alone = elsewhere(), estimator(), estimator()
        executor.open(mine)
        for step in (1, 2):
            executor.submit(Snapshot(step, net()))
            executor.drain()
            alone.measure(net(), step)
        executor.close()
        assert digest(mine.state_dict()) == digest(alone.state_dict())
        assert mine.measure(net(), 3)["llc"]["mean"] == alone.measure(net(), 3)["llc"]["mean"]

    def test_one_that_nobody_can_give_ends_the_run_all_the_same(self) -> None:
        executor, mine = elsewhere(), estimator()
        mine.measure(net(), 0)
        executor.open(mine)
        executor.submit(Snapshot(1, net()))
        executor.drain()
        executor._workers.workers[0]._states = {}
        with pytest.raises(KeyError):
            executor.close()
        assert executor._workers.told[-1] == "close"
        assert mine.state_dict()["chains"] == {}, "they would be of the fit before"


class TestInAFit:
    @pytest.mark.parametrize("persistent", [True, False])
    @pytest.mark.parametrize("looks", [1, 4, 10**9])
    def test_nothing_that_is_logged_differs_from_inline_but_the_moment(self, persistent: bool, looks: int) -> None:
        class ToTheEnd(FakeWorkers):
            def ready(self, numbers: Any, timeout: float) -> list[int]:
                return super().ready(numbers, timeout) if timeout == 0 else list(numbers)

        inline, trained = told_inline(persistent)
        executor = Elsewhere(ToTheEnd(looks), 1, max_pending=4)
        there, also_trained = told(executor, persistent_chains=persistent)
        assert digest(there) == digest(inline)
        assert also_trained == trained

    def test_refinements_in_turn_are_the_same(self) -> None:
        def found(executor: Any) -> str:
            refinements = {"first": Refinement("net.0"), "last": Refinement("net.4")}
            live = monitor(refinements=refinements, refinements_at_once=1, executor=executor)
            fit(live, max_steps=8)
            return digest([[one.step, one.results, one.refinements] for one in live.history])

        assert found(elsewhere(looks=3, max_pending=3)) == found(None)

    def test_with_a_limit_what_finds_no_place_is_skipped_and_counted(self) -> None:
        watched = monitor(executor=elsewhere(looks=10**9), max_overhead=1e9, every_n_train_steps=1)
        watched._asked.executor.end_timeout = 0.2
        with pytest.warns(UserWarning, match=r"not finished 0 s after training had ended \(`end_timeout`\)"):
            fit(watched, max_steps=6)
        assert [one.step for one in watched.history] == [1, 2], "one is measured, and one waits"
        assert watched.state_dict()["skipped"] == 4

    def test_without_one_training_waits(self) -> None:
        watched = monitor(executor=elsewhere(looks=5), max_overhead=None, every_n_train_steps=1)
        fit(watched, max_steps=6)
        assert [one.step for one in watched.history] == [1, 2, 3, 4, 5, 6]
        assert watched.state_dict()["skipped"] == 0
        assert watched._asked.executor._workers.most_loads == 2

    def test_a_checkpoint_in_the_middle_goes_on_as_if_it_had_not_stopped(self, tmp_path: Path) -> None:
        def resumed(make: Any) -> str:
            fit(monitor(observables=everything(), executor=make()), saving(tmp_path / "five.ckpt"))
            watched = monitor(observables=everything(), executor=make())
            fit(watched, ckpt_path=str(tmp_path / "five.ckpt"), max_steps=10)
            assert [one.step for one in watched.history] == [6, 8, 10]
            return digest([watched.history[0].results, watched.history[-1].results])

        assert resumed(elsewhere) == resumed(lambda: None)

    def test_what_is_not_finished_when_one_is_written_is_counted(self, tmp_path: Path) -> None:
        fit(monitor(executor=elsewhere(looks=3)), saving(tmp_path / "five.ckpt"))
        watched = monitor(executor=elsewhere())
        fit(watched, ckpt_path=str(tmp_path / "five.ckpt"), max_steps=10)
        assert [one.step for one in watched.history] == [6, 8, 10], "the weights of step 4 are gone"
        assert watched.history[-1]["cost"]["skipped"] == 1

    def test_a_lost_worker_is_one_warning_and_one_failed_measurement(self) -> None:
        watched = monitor(executor=elsewhere(loses=[1]))
        with pytest.warns(UserWarning, match=AFRESH) as caught:
            trainer = fit(watched)
        assert len([one for one in caught if "WorkerLostError" in str(one.message)]) == 1
        assert [one.failed for one in watched.history] == [False, True, False]
        assert trainer.global_step == 6

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_what_is_lost_is_a_whole_row_of_nan(self, num_workers: int) -> None:
        """Of what has been read at the weights, too, of which nobody here knows the names."""
        behavior = Metrics({"mean": MeanMetric()}, predictions, data=[list(data(6).tensors)])
        observables = {"llc": LLC(), "behavior": behavior, "path": TrajectoryPCA(data(6), predictions)}
        sink, loses = MemorySink(), [1] * num_workers  # one that stands alone is tried twice
        executor = elsewhere(loses=loses, num_workers=num_workers)
        with pytest.warns(UserWarning, match="WorkerLostError"):
            fit(monitor(executor=executor, observables=observables, sinks=[sink]))
        first, lost, last = (one.scalars for one in sink.publications)
        assert first.keys() == lost.keys() == last.keys()
        told = [key for key in lost if key.startswith(("slt/behavior/", "slt/path/", "slt/llc/"))]
        assert {"slt/behavior/mean", "slt/path/speed", "slt/llc/mean"} <= set(told)
        assert all(math.isnan(lost[key]) for key in told)

    def test_one_that_breaks_lets_the_run_end(self) -> None:
        class Breaks(FakeWorkers):
            def ready(self, numbers: Any, timeout: float) -> list[int]:
                raise KeyError("68")

        watched = monitor(executor=Elsewhere(Breaks(), 1, max_pending=3))
        with pytest.warns(UserWarning, match="drain raised KeyError: '68'. Training goes on"):
            fit(watched)
        assert {one.error for one in watched.history} <= {"it was never given back"}

    def test_a_wait_for_its_state_is_paid_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a worker in the middle of a measurement, half a minute by a clock that stands still otherwise."""
        now = [0.0]

        class Slow(FakeWorkers):
            def state(self, *asked: Any) -> dict[str, Any]:
                now[0] += 30.0
                return super().state(*asked)

        monkeypatch.setattr("slt_callbacks.callbacks.run.time", SimpleNamespace(perf_counter=lambda: now[0]))
        watched = monitor(executor=Elsewhere(Slow(), 1, max_pending=3), max_overhead=1.0)
        fit(watched, saving(tmp_path / "five.ckpt"))
        assert [one.step for one in watched.history] == [2, 4], "the third does not fit any more"
        assert watched.state_dict()["skipped"] == 1
        free = monitor(executor=Elsewhere(Slow(), 1, max_pending=3), max_overhead=None)
        fit(free, saving(tmp_path / "also.ckpt"))
        assert [one["cost"]["overhead"] > 0 for one in free.history] == [False, False, True]

    def test_the_next_fit_of_the_same_trainer_goes_on_warm(self) -> None:
        def histories(executor: Any) -> str:
            torch.manual_seed(0)
            watched, module = monitor(executor=executor), Regression()
            trainer = pl.Trainer(callbacks=[watched], **({"max_steps": 4} | QUIET))
            trainer.fit(module, DataLoader(data(), 8))
            trainer.fit_loop.epoch_loop.max_steps = 8
            trainer.fit(module, DataLoader(data(), 8))
            return digest([[one.step, one.results] for one in watched.history])

        assert histories(elsewhere(looks=2, max_pending=3)) == histories(None)

    def test_the_line_on_the_cost_knows_of_the_chains_there(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="lightning.pytorch"):
            fit(monitor(executor=elsewhere()), max_steps=6)
        line = next(one.getMessage() for one in caplog.records if "the first measurement took" in one.getMessage())
        assert "Persistent chains take 456 B" in line
        assert "one worker can" in line

    def test_several_workers_say_that_measurements_stand_alone(self, caplog: pytest.LogCaptureFixture) -> None:
        def alone() -> list[float]:
            sink = MemorySink()
            watched = monitor(executor=elsewhere(num_workers=2, max_pending=2), sinks=[sink])
            with caplog.at_level("INFO", logger="lightning.pytorch"):
                fit(watched)
            assert sink.config["persistent_chains"] is False
            return [one["llc"]["mean"] for one in watched.history]

        cold = monitor(persistent_chains=False)
        fit(cold)
        assert alone() == alone()
        assert alone()[0] == cold.history[0]["llc"]["mean"]
        assert any("each measurement stands alone" in one.getMessage() for one in caplog.records)

    def test_several_workers_begin_at_the_weights_after_a_resume_too(self, tmp_path: Path) -> None:
        fit(monitor(), saving(tmp_path / "five.ckpt"))
        resumed = monitor(executor=elsewhere(num_workers=2, max_pending=2))
        fit(resumed, ckpt_path=str(tmp_path / "five.ckpt"), max_steps=8)
        cold = monitor(persistent_chains=False)
        fit(cold, ckpt_path=str(tmp_path / "five.ckpt"), max_steps=6)
        assert resumed.history[0].step == cold.history[0].step == 6
        assert resumed.history[0]["health"]["num_burnin_steps"] == QUICK.num_burnin_steps
        assert resumed.state_dict()["estimator"]["chains"] == {}

    def test_an_alert_says_when_the_fork_was(self) -> None:
        class Jumps:
            def update(self, step: int, value: float) -> JumpEvent:
                return JumpEvent(step, step, 1, 1.0, 9.0, step, step)

        watched = monitor(executor=elsewhere(looks=3), detectors={"slt/llc/std": Jumps()}, on_event=[Alert()])
        with pytest.warns(
            UserWarning, match=r"between step 2 and 2.*told at step [34]: it was measured beside training"
        ):
            fit(watched)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss_fn": lambda module, batch: square_error(module, batch)}, r"Expected `loss_fn` to be something"),
            ({"observables": {"own": type("Own", (LLC,), {})()}}, r"Expected `observables\['own'\]` to be something"),
            (
                {"refinements": {"own": Refinement(loss_fn=lambda module, batch: square_error(module, batch))}},
                r"Expected `refinements\['own'\]` to be something",
            ),
        ],
        ids=["loss_fn", "observables", "refinements"],
    )
    def test_what_cannot_be_pickled_is_refused_before_training(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(MisconfigurationException, match=f"{message}.*Define it at the top of a module, or measure"):
            fit(monitor(executor=elsewhere(), **options))

    def test_so_is_a_module_that_cannot(self) -> None:
        class Local(Regression):
            pass

        with pytest.raises(MisconfigurationException, match=r"Expected the module to be .*RayExecutor"):
            fit(monitor(executor=elsewhere()), module=Local())

    def test_so_is_one_that_cannot_be_read_there(self) -> None:
        with pytest.raises(MisconfigurationException, match=r"the module .*unpickling it raised OSError: gone"):
            fit(monitor(executor=elsewhere()), module=Unreadable())

    def test_while_training_it_costs_the_measurements_alone(self) -> None:
        watched = monitor(reference=None, num_samples=16, executor=elsewhere())
        with pytest.warns(UserWarning, match="Nothing is measured in this fit. Expected the module"):
            assert fit(watched, module=Unreadable()).global_step == 6

    def test_and_a_loss_that_reads_what_stays_here(self) -> None:
        with pytest.raises(MisconfigurationException, match=r"it asks for `trainer\.(strategy|optimizers)`"):
            fit(monitor(loss_fn=None, executor=elsewhere()), module=ReadsOptimizer())
        with pytest.raises(MisconfigurationException, match="reads a TensorDataset that the module holds"):
            fit(monitor(loss_fn=None, executor=elsewhere()), module=ReadsItsData())

    def test_with_batches_for_a_reference_the_fit_goes_on_without(self) -> None:
        watched = monitor(reference=None, loss_fn=lambda module, batch: square_error(module, batch), num_samples=16)
        watched._asked.executor = elsewhere()
        with pytest.warns(UserWarning, match="Nothing is measured in this fit. Expected `loss_fn`"):
            fit(watched)
        assert watched.history == []


def _gone() -> None:
    raise OSError("gone")


class Handle:
    def __reduce__(self) -> Any:
        return _gone, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Unreadable(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.handle = Handle()


class ReadsOptimizer(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * self.trainer.optimizers[0].param_groups[0]["lr"]


class ReadsItsData(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.samples = data()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * len(self.samples)


class Anneals(Regression):
    """Its loss depends on how far training is."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.current_epoch + self.trainer.global_step)


def test_a_loss_may_read_how_far_training_is() -> None:
    def found(executor: Any) -> str:
        live = monitor(loss_fn=None, executor=executor, observables={"llc": LLC(), "kernel": LossKernel()})
        torch.manual_seed(0)
        fit(live, module=Anneals(), max_steps=8)
        return digest([[one.step, one.results, one.error] for one in live.history])

    assert found(elsewhere(looks=2)) == found(None)


def test_the_settings_are_those_of_the_quick_monitor() -> None:
    """What the cost line above says is of these."""
    assert QUICK.num_chains * sum(p.numel() for p in Regression().parameters()) * 4 == 456
    assert fingerprint(fit(max_steps=1))
