"""Faults made on purpose: each costs what it must, is told once, and training goes on."""

from __future__ import annotations

import gc
import math
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from slt_callbacks import (
    LLC,
    FileSink,
    Influence,
    LoggerSink,
    LossKernel,
    Measurement,
    MemorySink,
    RMSPropSGLD,
    SamplerConfig,
    WandbSink,
)
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


class TestPlacesThatFail:
    def test_a_folder_that_cannot_be_made_costs_the_pictures(self, tmp_path: Path, undisturbed: str) -> None:
        (tmp_path / "taken").write_text("a file where the folder should be")
        memory = MemorySink()
        watched = monitor(observables={"kernel": LossKernel()}, sinks=[FileSink(tmp_path / "taken"), memory])
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert len(memory.publications) == 3
        assert len([text for text in told if "FileSink.publish raised" in text]) == 1

    def test_a_full_disk_costs_the_pictures(self, undisturbed: str) -> None:
        memory = MemorySink()
        # Every write to it fails as on a full disk.
        sink = FileSink(Path("/dev/full") / "slt") if os.path.exists("/dev/full") else FileSink("/dev/null/slt")
        trainer, _ = fit_and_listen(monitor(observables={"kernel": LossKernel()}, sinks=[sink, memory]))
        assert fingerprint(trainer) == undisturbed
        assert len(memory.publications) == 3

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


class TestChains:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
    def test_one_chain_that_goes_wrong_is_counted_and_the_others_are_measured(self, bad: float) -> None:
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
        assert trainer.global_step == FINISHED_STEPS
        assert found["health"]["failed_chains"] == 1
        assert math.isfinite(found["llc"]["mean"])
        assert found["llc"]["per_chain"].isnan().tolist() == [False, True]

    def test_a_measurement_out_of_memory_is_tried_again_in_smaller_blocks_and_then_given_up(
        self, undisturbed: str
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
        most = 10
        watched = monitor(loss_fn=greedy)
        trainer, told = fit_and_listen(watched)
        assert fingerprint(trainer) == undisturbed
        assert all(one.failed for one in watched.history)
        assert len([text for text in told if "out of memory" in text]) == 1


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class TestNothingIsLeftBehind:
    @pytest.mark.slow
    @pytest.mark.parametrize("kernel", [False, True], ids=["llc", "llc, kernel and influence"])
    def test_memory_after_200_measurements_is_that_after_10(self, kernel: bool) -> None:
        more = {"kernel": LossKernel(), "influence": Influence(data(16))} if kernel else {}
        short = SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=2)
        watched = monitor(observables={"llc": LLC(), **more}, every_n_train_steps=1, sampler=short, num_samples=48)
        found: dict[int, int] = {}

        class Watches(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step in (10, 200):
                    gc.collect()
                    found[trainer.global_step] = resident()

        fit(watched, Watches(), max_steps=200)
        assert len(watched.history) == 200
        assert found[200] <= 1.01 * found[10]

    def test_old_matrices_leave_the_history_and_numbers_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        size = 48 * 48 * 8 * 3
        monkeypatch.setattr("slt_callbacks.callbacks.monitor._MOST_MATRIX_BYTES", 2 * size + 100)
        memory = MemorySink()
        watched = monitor(observables={"kernel": LossKernel()}, every_n_train_steps=1, sinks=[memory])
        fit(watched)
        assert ["covariance" in one["kernel"] for one in watched.history] == [False] * 4 + [True] * 2
        assert all(math.isfinite(one["kernel"]["trace"]) for one in watched.history)
        assert all("covariance" in publication.measurement["kernel"] for publication in memory.publications)

    def test_the_last_matrix_stays_however_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("slt_callbacks.callbacks.monitor._MOST_MATRIX_BYTES", 1)
        watched = monitor(observables={"kernel": LossKernel()})
        fit(watched)
        assert ["covariance" in one["kernel"] for one in watched.history] == [False, False, True]

    def test_no_thread_and_no_file_is_left_after_an_exception(self, tmp_path: Path) -> None:
        class Interrupt(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 3:
                    raise RuntimeError("stop")

        def run() -> None:
            watched = monitor(observables={"llc": LLC(), "kernel": LossKernel()}, sinks=[FileSink(tmp_path)])
            with pytest.raises(RuntimeError, match="stop"):
                fit(watched, Interrupt())

        run()  # what is loaded at first use is not the run's
        gc.collect()
        before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
        run()
        gc.collect()
        assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


class TestStopAnywhere:
    """Stopped after an epoch (Lightning's loaders begin an epoch anew) and resumed, the measurements are the same."""

    @staticmethod
    def train(watched: Any, epochs: int, folder: Path, checkpoint: str | None = None) -> str:
        """Train, and return the last checkpoint."""
        torch.manual_seed(0)
        kept = ModelCheckpoint(folder, save_on_train_epoch_end=True)
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[watched, kept], **{**QUIET, "enable_checkpointing": True})
        module = Regression()
        module.net[3] = torch.nn.Identity()  # dropout would draw anew after the resume
        trainer.fit(module, DataLoader(data(), 8), ckpt_path=checkpoint)
        return kept.best_model_path

    @pytest.mark.parametrize("stop", [1, 2])
    @pytest.mark.parametrize(
        "sampler",
        [
            SamplerConfig(num_chains=2, num_draws=20, num_burnin_steps=20),
            SamplerConfig(RMSPropSGLD(1e-4), num_chains=2, num_draws=20, num_burnin_steps=20, batch_size=16),
        ],
        ids=["SGLD", "RMSPropSGLD"],
    )
    def test_the_numbers_of_the_uninterrupted_run(self, stop: int, sampler: SamplerConfig, tmp_path: Path) -> None:
        def make() -> Any:
            kinds = {"llc": LLC(), "kernel": LossKernel(), "influence": Influence(data(4))}
            return monitor(observables=kinds, sampler=sampler, every_n_train_steps=3)

        whole, first, second = make(), make(), make()
        self.train(whole, 3, tmp_path / "whole")
        stopped = self.train(first, stop, tmp_path / "first")
        self.train(second, 3, tmp_path / "second", stopped)
        parts: list[Measurement] = [*first.history, *second.history]
        assert [one.step for one in parts] == [one.step for one in whole.history] == [3, 6, 9, 12, 15, 18]
        for expected, found in zip(whole.history, parts, strict=True):
            assert numbers(found) == numbers(expected)
        assert second.events == whole.events


def numbers(measurement: Measurement) -> dict[str, str]:
    """Every number but the times, NaN comparable."""
    return {key: repr(value) for key, value in measurement.scalars().items() if not key.startswith("cost/")}
