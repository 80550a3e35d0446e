"""Where a measurement runs changes nothing of it but the moment."""

from __future__ import annotations

import functools
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import LLC, Estimator, Influence, LossKernel, Measurement, MemorySink
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.executors.base import Executor
from slt_callbacks.executors.inline import InlineExecutor
from slt_callbacks.weights.snapshot import Snapshot
from tests.contracts import check_executor
from tests.digests import digest
from tests.problems import settings, squared_error
from tests.training import QUIET, Regression, data, fingerprint, fit, monitor, square_error


class InAThread:
    """Measures in a thread, which training waits for; what is found is handed over at the next batch."""

    def open(self, estimator: Estimator) -> None:
        self.estimator, self.threads = estimator, ThreadPoolExecutor(1)
        self.waiting: list[Future[Measurement]] = []
        self.seen: set[int] = set()
        self.fresh = False

    def submit(self, snapshot: Snapshot) -> None:
        kept = snapshot.captured()

        def work() -> Measurement:
            self.seen.add(threading.get_ident())
            return self.estimator.attempt(kept.module, kept.step)

        self.waiting.append(self.threads.submit(work))
        self.waiting[-1].exception()  # the global generators belong to the process: one at a time
        self.fresh = True

    def poll(self) -> list[Measurement]:
        if self.fresh:
            self.fresh = False
            return []
        return self.drain()

    def drain(self, timeout: float | None = None) -> list[Measurement]:
        done, self.waiting = self.waiting, []
        return [future.result(timeout) for future in done]

    def close(self) -> None:
        self.threads.shutdown()


class AtTheEnd:
    """Keeps copies, and measures when training is over."""

    def open(self, estimator: Estimator) -> None:
        self.estimator, self.kept = estimator, list[Snapshot]()

    def submit(self, snapshot: Snapshot) -> None:
        self.kept.append(snapshot.captured())

    def poll(self) -> list[Measurement]:
        return []

    def drain(self, timeout: float | None = None) -> list[Measurement]:
        kept, self.kept = self.kept, []
        return [self.estimator.attempt(one.module, one.step) for one in kept]

    def close(self) -> None:
        self.kept = []


def everything() -> dict[str, Any]:
    labels = [row % 3 for row in range(48)]
    return {"llc": LLC(), "kernel": LossKernel(labels), "influence": Influence(data(6), labels)}


def told(executor: Any, callbacks: Any = (), **options: Any) -> tuple[list[Any], str]:
    """What sinks were given, and what training has made."""
    sink = MemorySink()
    live = monitor(observables=everything(), sinks=[sink], executor=executor, **options)
    trainer = fit(live, *callbacks, max_steps=9)
    content = [[one.scalars, one.log_step, one.events, one.matrices, one.tables] for one in sink.publications]
    for one, shown in zip(content, sink.publications, strict=True):
        one.append({key: [picture.matrix, picture.caption] for key, picture in shown.pictures.items()})
    assert live.history[-1].step == 8
    return [*content, live.events, [one.scalars() for one in live.history]], fingerprint(trainer)


@functools.cache
def told_inline(persistent: bool = True) -> tuple[list[Any], str]:
    """The same in the training process, once for all who compare with it."""
    return told(None, persistent_chains=persistent)


@pytest.mark.parametrize("executor", [InAThread(), AtTheEnd()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("persistent", [True, False])
def test_nothing_that_is_logged_differs_from_inline_but_the_moment(executor: Any, persistent: bool) -> None:
    inline, trained = told_inline(persistent)
    elsewhere, also_trained = told(executor, persistent_chains=persistent)
    assert digest(elsewhere) == digest(inline)
    assert also_trained == trained
    if isinstance(executor, InAThread):
        assert executor.seen
        assert threading.get_ident() not in executor.seen


def test_lightning_hears_of_it_when_it_is_there() -> None:
    seen: list[tuple[int, float]] = []
    watched = monitor(executor=InAThread())

    class Looks(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append((trainer.global_step, float(trainer.callback_metrics.get("slt/step", math.nan))))

    fit(watched, Looks(), max_steps=5)
    assert [step for step, known in seen if known == 2] == [3, 4]
    assert [step for step, known in seen if known == 4] == [5]


@pytest.mark.parametrize("executor", [InlineExecutor(), InAThread(), AtTheEnd()], ids=lambda one: type(one).__name__)
def test_executors_keep_their_contract(executor: Any) -> None:
    check_executor(executor)


class Refuses(AtTheEnd):
    def submit(self, snapshot: Snapshot) -> None:
        raise OSError("no worker")


class CannotBegin(AtTheEnd):
    def open(self, estimator: Estimator) -> None:
        raise OSError("no worker")


class Invents(AtTheEnd):
    def poll(self) -> list[Measurement]:
        return [Measurement(77, {"llc": {"mean": 1.0}, "cost": {"seconds": 0.0, "sgld_steps": 0}})]


class Loses(AtTheEnd):
    def drain(self, timeout: float | None = None) -> list[Measurement]:
        raise TimeoutError("gone")


class TestFaults:
    def test_one_that_takes_nothing_costs_measurements_and_not_the_run(self) -> None:
        watched = monitor(executor=Refuses())
        with pytest.warns(UserWarning, match="no worker") as caught:
            fit(watched)
        assert watched.history == []
        assert watched.state_dict()["skipped"] == 3
        assert [str(one.message) for one in caught if "no worker" in str(one.message)] == [
            "Refuses.submit raised OSError: no worker. Training goes on."
        ]

    def test_one_that_cannot_begin_lets_the_run_go_on_without(self) -> None:
        watched = monitor(executor=CannotBegin())
        with pytest.warns(UserWarning, match="CannotBegin.open raised OSError: no worker. Training goes on"):
            fit(watched)
        assert watched.history == []

    def test_it_is_refused_where_several_processes_share_the_chains(self) -> None:
        trainer: Any = SimpleNamespace(strategy=object(), callbacks=[], world_size=2, global_step=0)
        with pytest.raises(MisconfigurationException, match=r"Expected `executor=None` with 2 processes.*got AtTheEnd"):
            monitor(executor=AtTheEnd()).setup(trainer, Regression(), "fit")

    def test_what_nobody_asked_for_is_left_out(self) -> None:
        watched = monitor(executor=Invents())
        with pytest.warns(UserWarning, match="A measurement of step 77, for which nobody asked"):
            fit(watched)
        assert [one.step for one in watched.history] == [2, 4, 6]

    def test_one_whose_rest_is_lost_lets_the_run_end(self) -> None:
        watched = monitor(executor=Loses())
        with pytest.warns(UserWarning, match="drain raised TimeoutError: gone. Training goes on"):
            fit(watched)
        assert [(one.step, one.error) for one in watched.history] == [(k, "it was never given back") for k in (2, 4, 6)]
        assert watched.state_dict()["begun"] is None

    def test_what_was_pending_at_an_exception_does_not_haunt_the_next_fit(self) -> None:
        class Stops(pl.Callback):
            stop = True

            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 5 and self.stop:
                    raise RuntimeError("stop")

        watched, stops, module = monitor(executor=AtTheEnd()), Stops(), Regression()
        trainer = pl.Trainer(callbacks=[watched, stops], **({"max_steps": 8} | QUIET))
        with pytest.raises(RuntimeError, match="stop"):
            trainer.fit(module, DataLoader(data(), 8))
        stops.stop = False
        trainer.fit(module, DataLoader(data(), 8))
        assert [one.step for one in watched.history] == [6, 8]
        assert watched.state_dict()["begun"] is None

    def test_a_checkpoint_counts_what_is_pending_and_cannot_be_made_again(self, tmp_path: Any) -> None:
        watched = monitor(executor=AtTheEnd())

        class Saves(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 4:
                    trainer.save_checkpoint(tmp_path / "four.ckpt")

        fit(watched, Saves())
        resumed = monitor()
        fit(resumed, ckpt_path=str(tmp_path / "four.ckpt"))
        assert [one.step for one in resumed.history] == [4, 6]
        assert resumed.history[-1]["cost"]["skipped"] == 1

    def test_its_time_counts_before_it_has_given_anything_back(self) -> None:
        watched = monitor(executor=AtTheEnd(), max_overhead=1e-9)
        fit(watched)
        assert [one.step for one in watched.history] == [2]
        assert watched.state_dict()["skipped"] == 2

    @pytest.mark.parametrize("executor", [InAThread(), AtTheEnd()], ids=lambda one: type(one).__name__)
    def test_an_exception_closes_it(self, executor: Any) -> None:
        class Stops(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step == 3:
                    raise RuntimeError("stop")

        threads = threading.active_count()
        with pytest.raises(RuntimeError, match="stop"):
            fit(monitor(executor=executor), Stops())
        assert threading.active_count() == threads

    def test_something_else_than_an_executor_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"Expected `executor` to be an object with `open`, `submit`.*got 'inline'"):
            monitor(executor="inline")


class TestInline:
    def test_it_needs_something_to_measure_with(self) -> None:
        with pytest.raises(RuntimeError, match="Expected `open\\(estimator\\)` before `submit`"):
            InlineExecutor().submit(Snapshot(1, nn.Linear(1, 1)))

    def test_progress_is_told_what_is_measured_and_every_step(self) -> None:
        told: list[Any] = []

        class Line:
            def __enter__(self) -> Any:
                return told.append

            def __exit__(self, *_: Any) -> None:
                told.append("end")

        def progress(snapshot: Snapshot, total: int) -> Any:
            told.append((snapshot.step, total))
            return Line()

        executor = InlineExecutor(progress)
        reference = draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))])
        executor.open(Estimator(reference, squared_error, None, settings()))
        executor.submit(Snapshot(5, nn.Linear(2, 1)))
        assert told == [(5, 6), 1, 1, 1, 1, 1, 1, "end"]


def test_the_protocol_knows_them() -> None:
    assert all(isinstance(one, Executor) for one in (InlineExecutor(), InAThread(), AtTheEnd()))
    assert not isinstance(LLC(), Executor)


class TestTheSameTrainerGoesOn:
    """Inline, where nothing is ever pending."""

    def test_a_step_that_is_trained_again_is_measured_again(self, tmp_path: Any) -> None:
        watched, module = monitor(), Regression()
        trainer = pl.Trainer(callbacks=[watched], **({"max_steps": 6} | QUIET))

        class Saves(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 5:
                    trainer.save_checkpoint(tmp_path / "five.ckpt")

        trainer.callbacks.append(Saves())
        trainer.fit(module, DataLoader(data(), 8))
        assert [one.step for one in watched.history] == [2, 4, 6]
        trainer.fit_loop.epoch_loop.max_steps = 8
        trainer.fit(module, DataLoader(data(), 8), ckpt_path=str(tmp_path / "five.ckpt"))
        assert [one.step for one in watched.history] == [6, 8]

    def test_a_measurement_cut_short_is_made_when_training_goes_on(self) -> None:
        stopped = []

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            if watched.history and not stopped:
                stopped.append(1)
                raise KeyboardInterrupt
            return square_error(module, batch)

        watched, module = monitor(loss_fn=loss_fn), Regression()
        trainer = pl.Trainer(callbacks=[watched], **({"max_steps": 6} | QUIET))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(module, DataLoader(data(), 8))
        trainer.should_stop = False
        trainer.fit(module, DataLoader(data(), 8))
        assert [one.step for one in watched.history] == [2, 4, 6]


def test_a_bar_that_breaks_is_the_reason_in_the_record() -> None:
    def broken(snapshot: Snapshot, total: int) -> Any:
        raise OSError("no terminal")

    executor = InlineExecutor(broken)
    reference = draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))])
    executor.open(Estimator(reference, squared_error, None, settings()))
    executor.submit(Snapshot(5, nn.Linear(2, 1)))
    assert [one.error for one in executor.poll()] == ["OSError: no terminal"]
