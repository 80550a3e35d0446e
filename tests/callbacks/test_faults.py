"""Faults made on purpose: each costs what it must, is told once, and training goes on."""

from __future__ import annotations

import builtins
import contextlib
import gc
import io
import math
import os
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, XLAStrategy
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils.data import DataLoader

from slt_callbacks import (
    LLC,
    SGLD,
    FileSink,
    Influence,
    JumpEvent,
    LoggerSink,
    LossKernel,
    Measurement,
    MemorySink,
    RMSPropSGLD,
    SamplerConfig,
    SLTMonitor,
    WandbSink,
)
from slt_callbacks.basics.errors import Failure, RankFailedError
from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.arguments import Asked
from slt_callbacks.callbacks.trial import Trial
from tests import ready
from tests.passivity.runs import Fires
from tests.sinks.test_sinks import offline_logger
from tests.training import QUICK, QUIET, Regression, data, fingerprint, fit, monitor, square_error

FINISHED_STEPS = 6


def fit_and_listen(*callbacks: pl.Callback, **settings: Any) -> tuple[pl.Trainer, list[str]]:
    """Train, and return the trainer with every warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(*callbacks, **settings)
    return trainer, [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return fingerprint(fit())


class RaisesIn:
    """An observable that raises where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _maybe(self, where: str) -> None:
        if where == self.where:
            raise KeyError(f"in {where}")

    def reset(self, reference: Any) -> None:
        self._maybe("reset")

    def update(self, draw: Any) -> None:
        self._maybe("update")

    def compute(self) -> dict[str, Any]:
        self._maybe("compute")
        return {"value": 1.0}

    def images(self, result: Any) -> dict[str, Any]:
        self._maybe("images")
        return {}

    def state_dict(self) -> dict[str, Any]:
        self._maybe("state_dict")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to remember."""


class TestPluginsThatRaise:
    @pytest.mark.parametrize("where", ["reset", "update", "compute"])
    def test_an_observable_costs_its_measurements_and_one_warning(self, where: str, undisturbed: str) -> None:
        watched = monitor(observables={"llc": LLC(), "own": RaisesIn(where)})
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert [one.failed for one in watched.history] == [True] * 3
        assert len([text for text in told if f"in {where}" in text]) == 1

    def test_pictures_cost_themselves_alone(self, undisturbed: str) -> None:
        watched = monitor(observables={"llc": LLC(), "own": RaisesIn("images")})
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert not any(one.failed for one in watched.history)
        assert len([text for text in told if "pictures could not be made" in text]) == 1

    def test_a_detector_costs_its_events(self, undisturbed: str) -> None:
        class Detector:
            def update(self, step: int, value: float) -> None:
                raise ZeroDivisionError("no variance")

        memory = MemorySink()
        watched = monitor(detectors={"slt/llc/std": Detector()}, sinks=[memory])
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert len(memory.publications) == 3
        assert len([text for text in told if "no variance" in text]) == 1

    @pytest.mark.parametrize("method", ["open", "publish", "finish", "close"])
    def test_a_sink_costs_what_it_was_given(self, method: str, undisturbed: str) -> None:
        broken = MemorySink()

        def raises(*_: Any) -> None:
            raise OSError("disk full")

        setattr(broken, method, raises)
        good = MemorySink()
        trainer, told = fit_and_listen(monitor(sinks=[broken, good]))
        assert fingerprint(trainer) == undisturbed
        assert len(good.publications) == 3
        assert good.report is not None
        assert len([text for text in told if f"MemorySink.{method} raised OSError: disk full" in text]) == 1

    def test_a_schedule_that_raises_costs_the_steps_it_raises_at(self, undisturbed: str) -> None:
        def schedule(step: int) -> bool:
            if step in (2, 3):
                raise LookupError(f"no such step: {step}")
            return True

        watched = monitor(schedule=schedule)
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert [one.step for one in watched.history] == [0, 1, 4, 5, 6]
        assert len([text for text in told if "`schedule` raised LookupError: no such step" in text]) == 1

    def test_a_detector_whose_state_cannot_be_taken_costs_the_checkpoints_their_events(
        self, tmp_path: Path, undisturbed: str
    ) -> None:
        class Detector(Fires):
            updates = 0

            def update(self, step: int, value: float) -> JumpEvent:
                self.updates += 1
                return super().update(step, value)

            def state_dict(self) -> dict[str, Any]:
                if self.updates:
                    raise TypeError("cannot pickle it")
                return {}

        watched = monitor(detectors={"slt/llc/std": Detector()})
        kept = ModelCheckpoint(tmp_path, every_n_train_steps=2)
        trainer, told = fit_and_listen(watched, kept, enable_checkpointing=True)
        assert fingerprint(trainer) == undisturbed
        assert len(watched.events) == 3
        assert len([text for text in told if "raised TypeError: cannot pickle it" in text]) == 1
        resumed = monitor(detectors={"slt/llc/std": Detector()})
        fit(resumed, ckpt_path=kept.best_model_path, max_steps=8)
        assert [one.step for one in resumed.history] == [8]
        assert resumed.events == [JumpEvent(8, 8, 1, 1.0, 9.0, 8, 8, key="slt/llc/std")]

    def test_an_observable_whose_state_cannot_be_taken_costs_the_checkpoints_their_chains(
        self, tmp_path: Path, undisturbed: str
    ) -> None:
        watched = monitor(observables={"llc": LLC(), "own": RaisesIn("state_dict")})
        kept = ModelCheckpoint(tmp_path, every_n_train_steps=2)
        trainer, told = fit_and_listen(watched, kept, enable_checkpointing=True)
        assert fingerprint(trainer) == undisturbed
        assert len([text for text in told if "raised KeyError: 'in state_dict'" in text]) == 1
        resumed = monitor(observables={"llc": LLC(), "own": RaisesIn("nowhere")})
        fit(resumed, ckpt_path=kept.best_model_path, max_steps=8)
        assert [(one.step, one.failed) for one in resumed.history] == [(8, False)]

    @pytest.mark.parametrize("kinds", [1, 2])
    def test_measurements_that_fail_with_texts_of_their_own_are_one_warning_a_kind_and_counted(
        self, kinds: int, tmp_path: Path, undisturbed: str
    ) -> None:
        class Raises:
            calls = 0

            def __call__(self, module: Any, batch: Any) -> torch.Tensor:
                if len(batch[0]) < 48:  # the check before training
                    return square_error(module, batch)
                self.calls += 1
                raise (LookupError, ArithmeticError)[self.calls % kinds](f"at call {self.calls}")

        watched = monitor(loss_fn=Raises())
        kept = ModelCheckpoint(tmp_path, every_n_train_steps=6)
        trainer, told = fit_and_listen(watched, kept, enable_checkpointing=True)
        assert fingerprint(trainer) == undisturbed
        assert [one.error is not None and "at call" in one.error for one in watched.history] == [True] * 3
        assert len([text for text in told if "at call" in text]) == kinds
        assert [one["cost"]["failed"] for one in watched.history] == [1, 2, 3]
        resumed = monitor()
        fit(resumed, ckpt_path=kept.best_model_path, max_steps=8)
        assert [one["cost"]["failed"] for one in resumed.history] == [3], "those from before the resume are counted"

    def test_a_sink_that_raises_with_other_texts_is_one_warning(self, undisturbed: str) -> None:
        class Sink(MemorySink):
            def publish(self, publication: Any) -> None:
                raise OSError(f"at step {publication.measurement.step}")

        trainer, told = fit_and_listen(monitor(sinks=[Sink()]))
        assert fingerprint(trainer) == undisturbed
        assert [text for text in told if "at step" in text] == [
            "Sink.publish raised OSError: at step 2. Training goes on."
        ]

    def test_a_loss_function_that_writes_into_its_batch_spoils_nothing(self) -> None:
        def writes(module: Any, batch: Any) -> torch.Tensor:
            losses = square_error(module, [leaf.clone() for leaf in batch])
            if len(batch[0]) == 48:  # the check before training would refuse it
                batch[0].zero_()
            return losses

        spoiled, plain = monitor(loss_fn=writes), monitor()
        fit(spoiled)
        fit(plain)
        assert [numbers(one) for one in spoiled.history] == [numbers(one) for one in plain.history]


class TestProcessesThatDisagree:
    """The check before training, where one process fails; all of them get the same error."""

    class Estimator:
        def __init__(self, failure: Failure) -> None:
            self.failure = failure

        def check(self, module: Any) -> None:
            raise RankFailedError({1: self.failure})

    def test_a_loss_function_that_raises_is_a_warning_as_in_one_process(self) -> None:
        failing = self.Estimator(Failure("LossFnError: no such column", out_of_memory=False, in_loss_fn=True))
        with pytest.warns(UserWarning, match="Every measurement will fail.*rank 1: LossFnError: no such column"):
            Trial(Asked(loss_fn=square_error), Notices()).check(failing, Regression())  # type: ignore[arg-type]
        with pytest.raises(MisconfigurationException, match="rank 1: LossFnError: no such column"):
            Trial(Asked(), Notices()).check(failing, Regression())  # type: ignore[arg-type]

    def test_any_other_mistake_is_refused_as_in_one_process(self) -> None:
        failing = self.Estimator(Failure("ValueError: wrong shape", out_of_memory=False, in_loss_fn=False))
        with pytest.raises(MisconfigurationException, match="SLTMonitor: rank 1: ValueError: wrong shape"):
            Trial(Asked(loss_fn=square_error), Notices()).check(failing, Regression())  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, XLAStrategy])
    @pytest.mark.parametrize("whose", ["lightning", "a subclass", "pytorch_lightning"])
    def test_strategies_that_shard_or_rewrite_the_model_are_refused(self, kind: type[Any], whose: str) -> None:
        if whose == "a subclass":
            kind = type("Mine", (kind,), {})
        elif whose == "pytorch_lightning":
            kind = type(kind.__name__, (), {})  # it has classes of its own by these names
        trainer: Any = SimpleNamespace(strategy=object.__new__(kind), callbacks=[])
        with pytest.raises(
            MisconfigurationException, match=f"a model that {kind.__name__} shards or rewrites.*ModelParallel"
        ):
            monitor().setup(trainer, Regression(), "fit")


class TestModulesThatLogInTheirOwnWay:
    class Own(Regression):
        def log(self, name: str, value: Any) -> None:  # type: ignore[override]
            """Takes two arguments and no more."""

    def test_one_warning_and_everything_else_as_usual(self) -> None:
        memory = MemorySink()
        watched = monitor(sinks=[memory])
        torch.manual_seed(1)
        trainer, told = fit_and_listen(watched, module=self.Own())
        trained = fingerprint(trainer)
        assert [text for text in told if "Own.log raised TypeError" in text and "Training goes on" in text]
        assert len([text for text in told if "Own.log" in text]) == 1
        assert [one.error for one in watched.history] == [None] * 3
        assert len(memory.publications) == 3
        torch.manual_seed(1)
        assert fingerprint(fit(module=self.Own())) == trained


class TestPlacesThatFail:
    def test_a_folder_that_cannot_be_made_costs_the_pictures(self, tmp_path: Path, undisturbed: str) -> None:
        (tmp_path / "taken").write_text("a file where the folder should be")
        memory = MemorySink()
        watched = monitor(observables={"kernel": LossKernel()}, sinks=[FileSink(tmp_path / "taken"), memory])
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert len(memory.publications) == 3
        assert len([text for text in told if "FileSink.publish raised" in text]) == 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to lend")
    @pytest.mark.parametrize(
        ("full", "every", "methods"),
        [
            ("measurements", 2, ["publish", "finish"]),
            ("map", 2, ["publish"]),
            ("matrices", 2, ["publish"]),
            ("events.json", 1, ["publish", "finish"]),
            ("stages.png", 1, ["finish"]),
            ("report.html", 1, ["finish"]),
        ],
    )
    def test_a_full_disk_costs_what_was_to_be_written(
        self,
        full: str,
        every: int,
        methods: list[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        undisturbed: str,
    ) -> None:
        real, met = io.open, set()

        def opens(file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            if isinstance(file, (str, Path)) and full in Path(file).name and set(mode) & set("wax"):
                Path(file).touch()  # a full disk has room for a name
                met.add(Path(file).name)
                return real("/dev/full", mode, *arguments, **settings)
            return real(file, mode, *arguments, **settings)

        monkeypatch.setattr(io, "open", opens)
        monkeypatch.setattr(builtins, "open", opens)
        memory = MemorySink()
        watched = monitor(
            observables={"llc": LLC(), "kernel": LossKernel()},
            detectors={"slt/llc/std": Fires()},
            every_n_train_steps=every,
            sinks=[FileSink(tmp_path), memory],
        )
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert met
        assert len(memory.publications) == FINISHED_STEPS // every
        assert [text for text in told if "No space left on device" in text] == [
            f"FileSink.{method} raised OSError: [Errno 28] No space left on device. Training goes on."
            for method in methods
        ]

    def test_a_wandb_run_that_was_finished_in_mid_run_costs_the_rest_of_its_rows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: str
    ) -> None:
        class Finishes(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    wandb.finish()

        logger, memory = offline_logger(tmp_path, monkeypatch), MemorySink()
        watched = monitor(sinks=[WandbSink(), LoggerSink(), memory])
        trainer, told = fit_and_listen(watched, Finishes(), logger=logger, log_every_n_steps=1000)
        assert fingerprint(trainer) == undisturbed
        assert len(memory.publications) == 3
        assert len([text for text in told if "WandbSink.publish raised" in text]) == 1

    @pytest.mark.slow
    def test_a_wandb_service_that_is_killed_costs_the_rest_of_its_rows(self, tmp_path: Path, undisturbed: str) -> None:
        # In a process with a service of its own, because the tests of this one share theirs, and its address.
        own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        done = ready.run(["-m", "tests.callbacks.wandb_killed", str(tmp_path)], ready.ROOT, own, timeout=120)
        *told, found = done.stdout.splitlines()
        assert found == f"3 publications, {undisturbed}", done.stderr
        assert len([text for text in told if "WandbSink.publish raised" in text]) == 1


class TestChains:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
    def test_one_chain_that_goes_wrong_is_counted_and_the_others_are_measured(
        self, bad: float, undisturbed: str
    ) -> None:
        class Wrong:
            def __init__(self) -> None:
                self.calls = 0

            def __call__(self, module: Any, batch: Any) -> torch.Tensor:
                self.calls += 1
                return square_error(module, batch) * (bad if self.calls > limit else 1.0)

        counting = Wrong()
        limit = 10**9
        fit(monitor(loss_fn=counting, schedule=lambda step: step == 2))
        limit = counting.calls - 5  # in the last chain
        sampler = QUICK
        watched = monitor(loss_fn=Wrong(), schedule=lambda step: step == 2, sampler=sampler)
        trainer, _ = fit_and_listen(watched)
        (found,) = watched.history
        assert fingerprint(trainer) == undisturbed
        assert found["health"]["failed_chains"] == 1
        assert math.isfinite(found["llc"]["mean"])
        assert found["llc"]["per_chain"].isnan().tolist() == [False, True]

    def test_a_measurement_out_of_memory_is_tried_again_in_ever_smaller_blocks(
        self, undisturbed: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def greedy(module: Any, batch: Any) -> torch.Tensor:
            if len(batch[0]) > most:
                raise torch.OutOfMemoryError("out of memory")
            return square_error(module, batch)

        most = 24  # half of the reference
        watched = monitor(loss_fn=greedy)
        trainer, _ = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert not any(one.failed for one in watched.history)
        (said,) = [record for record in caplog.records if "out of memory" in record.message]
        assert said.levelname == "WARNING"
        assert "trying again with `block_size=8`" in said.message, "what training has memory for"
        caplog.clear()
        most = 2
        watched = monitor(loss_fn=greedy)
        trainer, _ = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert not any(one.failed for one in watched.history)
        assert len([record for record in caplog.records if "out of memory" in record.message]) == 3, "8, 4 and 2"

    def test_a_measurement_that_has_no_memory_for_a_single_sample_is_given_up(self, undisturbed: str) -> None:
        def greedy(module: Any, batch: Any) -> torch.Tensor:
            if len(batch[0]) != 2:  # of the check before training
                raise torch.OutOfMemoryError("out of memory")
            return square_error(module, batch)

        watched = monitor(loss_fn=greedy, num_samples=3)
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert all(one.failed for one in watched.history)
        assert len([text for text in told if "out of memory" in text]) == 1


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_tensors(*but: Measurement) -> int:
    """Bytes of all tensors there are, but for those that these measurements found."""
    gc.collect()
    found = [value for one in but for result in one.results.values() for value in result.values()]
    own = {value.untyped_storage().data_ptr() for value in found if isinstance(value, torch.Tensor)}
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    # Those that other tests have kept, from inside a vmap or as a wrong argument, may have no storage.
    alive = [tensor for tensor in tensors if not is_functorch_wrapped_tensor(tensor) and tensor.layout is torch.strided]
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
    return sum(size for place, size in sizes.items() if place not in own)


def left_open() -> tuple[int, int, int]:
    """Threads, files and child processes of this process."""
    gc.collect()
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return threading.active_count(), len(os.listdir("/proc/self/fd")), len(children)


class Megabyte(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 1), torch.nn.Flatten(0)
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9)


class Keeps(MemorySink):
    """A leak of 30 kB a measurement."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def publish(self, publication: Any) -> None:
        self.kept.append(torch.zeros(30_000, dtype=torch.uint8))


class TestNothingIsLeftBehind:
    SHORT = SamplerConfig(SGLD(), batch_size=None, num_chains=2, num_draws=4, num_burnin_steps=2)

    def watched_at(self, steps: tuple[int, ...], look: Any, module: Any = None, **settings: Any) -> dict[int, int]:
        """What `look` sees of the monitor when so many measurements are done."""
        watched = monitor(every_n_train_steps=1, sampler=self.SHORT, num_samples=48, **settings)
        found: dict[int, int] = {}

        class Watches(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step in steps:
                    found[trainer.global_step] = look(watched)

        fit(watched, Watches(), module=module, max_steps=max(steps))
        assert len(watched.history) == max(steps)
        return found

    @pytest.mark.slow
    @pytest.mark.parametrize("kernel", [False, True], ids=["llc", "llc, kernel and influence"])
    def test_memory_after_80_measurements_is_that_after_10(self, kernel: bool) -> None:
        def look(_: Any) -> int:
            gc.collect()
            return resident()

        more = {"kernel": LossKernel(), "influence": Influence(data(16))} if kernel else {}
        found = self.watched_at((10, 80), look, observables={"llc": LLC(), **more})
        assert found[80] <= 1.01 * found[10]

    def in_tensors_at(self, *steps: int, **settings: Any) -> list[int]:
        """Bytes of the run's tensors when so many measurements are done; those of other tests may still be there."""
        before = in_tensors()
        found = self.watched_at(steps, lambda watched: in_tensors(*watched.history), Megabyte(), **settings)
        return [found[step] - before for step in steps]

    @pytest.mark.slow
    def test_no_tensor_is_left_of_a_measurement(self) -> None:
        early, late = self.in_tensors_at(10, 50)
        assert early > 4 * 2**20, "weights, momenta and two chains"
        assert late <= 1.01 * early

    def test_a_leak_of_a_thirtieth_of_the_model_would_be_noticed(self) -> None:
        early, late = self.in_tensors_at(10, 20, sinks=[Keeps()])
        assert late > 1.01 * early

    def test_old_matrices_leave_the_history_and_numbers_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size = 48 * 48 * 8 * 3
        monkeypatch.setattr("slt_callbacks.callbacks.arguments.MOST_MATRIX_BYTES", 2 * size + 100)
        memory = MemorySink()
        watched = monitor(observables={"kernel": LossKernel()}, every_n_train_steps=1, sinks=[memory])
        fit(watched)
        assert ["covariance" in one["kernel"] for one in watched.history] == [False] * 4 + [True] * 2
        assert all(math.isfinite(one["kernel"]["trace"]) for one in watched.history)
        assert all("covariance" in publication.measurement["kernel"] for publication in memory.publications)

    def test_the_last_matrix_stays_however_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("slt_callbacks.callbacks.arguments.MOST_MATRIX_BYTES", 1)
        watched = monitor(observables={"kernel": LossKernel()})
        fit(watched)
        assert ["covariance" in one["kernel"] for one in watched.history] == [False, False, True]

    @pytest.mark.parametrize("where", ["between measurements", "in a measurement"])
    def test_no_thread_no_file_and_no_process_is_left_after_an_exception(
        self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Stop(BaseException):
            """No mere failure of the measurement."""

        class Stops(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 3 and where == "between measurements":
                    raise Stop

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            if len(batch[0]) == 48 and where == "in a measurement":
                raise Stop
            return square_error(module, batch)

        def run() -> None:
            watched = monitor(
                loss_fn=loss_fn,
                observables={"llc": LLC(), "kernel": LossKernel()},
                sinks=[FileSink(tmp_path), WandbSink(), LoggerSink()],
            )
            logger = offline_logger(tmp_path, monkeypatch)
            with pytest.raises(Stop):
                fit(watched, Stops(), logger=logger)
            logger.experiment.finish()  # the user's

        run()  # what is loaded at first use is not the run's
        before = left_open()
        run()
        assert left_open() == before


VARIANTS: dict[str, dict[str, Any]] = {
    "warm chains": {},
    "warm chains that wait on the CPU": {"store_chains": "cpu"},
    "cold chains": {"persistent_chains": False},
    "RMSPropSGLD on minibatches": {
        "sampler": SamplerConfig(RMSPropSGLD(1e-4), num_chains=2, num_draws=8, num_burnin_steps=8, batch_size=16)
    },
}


FIXED = replace(QUICK, dynamics=SGLD(1e-4))  # another step size would be a break as well


class CutShort:
    """Ctrl-C in a measurement, where told."""

    def __init__(self) -> None:
        self.calls_left = -1

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt
        return square_error(module, batch)


class TestStopAnywhere:
    """Stopped after any step and resumed, the measurements are those of the run that was not stopped.

    All batches are equal, because Lightning's loaders begin an interrupted epoch anew.
    """

    STEPS = 9

    @staticmethod
    def watcher(**settings: Any) -> tuple[SLTMonitor, list[int]]:
        """A monitor with a detector that always fires, and the steps of the events that were reacted to."""
        reacted: list[int] = []
        kinds = {"llc": LLC(), "kernel": LossKernel(), "influence": Influence(data(4))}
        shared: dict[str, Any] = {
            "observables": kinds,
            "detectors": {"slt/llc/std": Fires()},
            "on_event": [lambda trainer, module, event: reacted.append(event.step)],
        }
        return monitor(**(shared | settings)), reacted

    def train(self, watched: SLTMonitor, *callbacks: pl.Callback, checkpoint: Path | None = None) -> None:
        torch.manual_seed(0)
        settings = {**QUIET, "enable_checkpointing": True}
        trainer = pl.Trainer(max_steps=self.STEPS, callbacks=[watched, *callbacks], **settings)
        module = Regression()
        module.net[3] = torch.nn.Identity()  # dropout would draw anew after the resume
        equal = [data()[row % 8] for row in range(40)]
        with contextlib.suppress(SystemExit):  # what Lightning makes of a KeyboardInterrupt
            trainer.fit(module, DataLoader(equal, 8), ckpt_path=checkpoint)

    @pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
    def test_stopped_after_any_step(self, settings: dict[str, Any], tmp_path: Path) -> None:
        whole, reacted = self.watcher(**settings)
        self.train(whole, ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}"))
        assert [one.step for one in whole.history] == reacted == [2, 4, 6, 8]
        for stop in range(1, self.STEPS):
            again, reacted = self.watcher(**settings)
            self.train(again, checkpoint=tmp_path / f"step={stop}.ckpt")
            wanted = [one for one in whole.history if one.step > stop]
            assert list(map(numbers, again.history)) == list(map(numbers, wanted)), stop
            assert again.events == whole.events, stop
            assert reacted == [one.step for one in wanted], stop

    @pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
    def test_cut_short_in_a_measurement_it_is_made_by_the_resumed_run(
        self, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        whole, _ = self.watcher(**settings)
        self.train(whole)
        cutting = CutShort()

        class Cuts(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    cutting.calls_left = 10

        cut, reacted = self.watcher(**settings, loss_fn=cutting)
        self.train(cut, Cuts(), OnExceptionCheckpoint(tmp_path))
        assert [one.step for one in cut.history] == reacted == [2]
        again, reacted = self.watcher(**settings)
        self.train(again, checkpoint=tmp_path / "on_exception.ckpt")
        assert list(map(numbers, again.history)) == list(map(numbers, whole.history[1:]))
        assert again.events == whole.events
        assert reacted == [4, 6, 8]

    @pytest.mark.parametrize(
        ("settings", "breaks"),
        [
            ({}, 0),
            ({"sampler": replace(FIXED, nbeta=3.0)}, 1),
            ({"num_samples": 24}, 1),
            ({"reference": None, "num_samples": 8}, 1),
        ],
        ids=["the same", "another nbeta", "fewer samples", "the first batches"],
    )
    def test_a_resume_with_other_settings_is_a_break_for_the_detectors(
        self, settings: dict[str, Any], breaks: int, tmp_path: Path
    ) -> None:
        class Counts:
            def __init__(self) -> None:
                self.breaks = 0

            def update(self, step: int, value: float) -> None:
                """Finds nothing."""

            def mark_break(self) -> None:
                self.breaks += 1

        first, counts = monitor(sampler=FIXED), Counts()
        self.train(first, ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}"))
        again = monitor(**{"sampler": FIXED, "detectors": {"slt/llc/std": counts}, **settings})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.train(again, checkpoint=tmp_path / "step=4.ckpt")
        assert [one.step for one in again.history] == [6, 8]
        assert counts.breaks == breaks
        assert sum("not comparable" in str(warning.message) for warning in caught) == breaks


def numbers(measurement: Measurement) -> dict[str, str]:
    """Every number but the times, NaN comparable."""
    return {key: repr(value) for key, value in measurement.scalars().items() if not key.startswith("cost/")}
