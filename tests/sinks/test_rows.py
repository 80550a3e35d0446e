"""Beside a user's own `run.log`: every row of theirs is kept, and every row of ours."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import wandb

from slt_callbacks import WandbSink
from slt_callbacks.sinks.rows import Rows
from tests.callbacks.test_watch import Planted, flat, planted, watched
from tests.sinks.test_sinks import offline_logger, records
from tests.training import fit

STEPS = 20


def history(logger: Any) -> list[dict[str, Any]]:
    """The rows of a run, which is ended."""
    return [record["history"]["item"] for record in records(logger) if record["type"] == "history"]


def ours(rows: list[dict[str, Any]]) -> dict[int, float]:
    """The measurements among the rows, each once."""
    found = [(row["slt/step"], row["slt/llc/mean"]) for row in rows if "slt/llc/mean" in row]
    assert len(dict(found)) == len(found), "one row a measurement"
    return dict(found)


class Logs(pl.Callback):
    """A user's callback that writes a row of its own, under a step of its own."""

    def __init__(
        self, step_of: Callable[[pl.Trainer], int] = lambda trainer: trainer.global_step, every: int = 1
    ) -> None:
        self.step_of, self.every = step_of, every

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            trainer.logger.experiment.log({"theirs": trainer.global_step}, step=self.step_of(trainer))


class LogsEpochs(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.logger.experiment.log({"theirs": trainer.current_epoch}, step=trainer.current_epoch)


def uneventful(**settings: Any) -> Any:
    """A monitor whose numbers hold no event, and which writes to W&B alone: no story is drawn on the way."""
    return watched(**({"observables": {"llc": Planted(flat)}, "sinks": [WandbSink()]} | settings))


class TestARunWithAUserOfItsOwn:
    @pytest.mark.parametrize(
        ("theirs_every", "ours_every", "lightnings_every", "first"),
        [
            (1, 1, 1000, "theirs"),
            (1, 1, 1000, "ours"),
            (1, 2, 1000, "theirs"),
            (5, 1, 1000, "ours"),
            (10, 1, 3, "theirs"),
            (4, 2, 1, "ours"),
        ],
    )
    def test_every_row_is_kept(
        self,
        theirs_every: int,
        ours_every: int,
        lightnings_every: int,
        first: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        monitor, series = (watched, planted) if theirs_every == ours_every else (uneventful, flat)
        callbacks = [Logs(every=theirs_every), monitor(every_n_train_steps=ours_every)]
        settings = {"logger": logger, "max_steps": STEPS, "log_every_n_steps": lightnings_every}
        fit(*(callbacks if first == "theirs" else callbacks[::-1]), **settings)
        rows = history(logger)
        kept = [row["theirs"] for row in rows if "theirs" in row]
        assert kept == list(range(theirs_every, STEPS + 1, theirs_every))
        assert ours(rows) == {step: series(step) for step in range(ours_every, STEPS + 1, ours_every)}
        lightnings = [row["trainer/global_step"] for row in rows if "train_loss" in row]
        assert lightnings == list(range(lightnings_every - 1, STEPS, lightnings_every))

    def test_under_steps_that_are_theirs_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        samples = Logs(lambda trainer: 64 * trainer.global_step, every=9)  # far ahead, and seldom
        fit(samples, uneventful(), logger=logger, max_steps=STEPS)
        rows = history(logger)
        assert [row["_step"] for row in rows if "theirs" in row] == [64 * 9, 64 * 18]
        assert ours(rows) == {step: flat(step) for step in range(1, STEPS + 1)}

    def test_under_the_epoch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        fit(LogsEpochs(), uneventful(every_n_train_steps=None, every_n_epochs=1), logger=logger, max_steps=24)
        rows = history(logger)
        assert [row["theirs"] for row in rows if "theirs" in row] == [0, 1, 2, 3]
        assert list(ours(rows)) == [6, 12, 18, 24]

    def test_after_the_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        trainer = fit(Logs(), uneventful(), logger=logger, max_steps=STEPS)
        logger.experiment.log({"last": 1.0}, step=trainer.global_step)
        rows = history(logger)
        assert [row["_step"] for row in rows if "last" in row] == [STEPS]
        assert list(ours(rows)) == list(range(1, STEPS + 1))


class TestARunOfOursAlone:
    @pytest.mark.parametrize("every", [1, 3])
    def test_every_measurement_is_a_row_with_its_step(
        self, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        fit(
            uneventful(schedule=lambda step: step % every == 0, every_n_train_steps=None),
            logger=logger,
            max_steps=STEPS,
        )
        rows = history(logger)
        expected = range(0, STEPS + 1, every)
        assert ours(rows) == {step: flat(step) for step in expected}
        assert all(row.keys() >= {"slt/step", "trainer/global_step"} for row in rows), "no row is empty"
        assert len(rows) == len(expected)

    def test_a_name_with_a_star_costs_no_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        rows = Rows(logger.experiment)
        rows.add({"slt/step": 3, "slt/own/L* of w*": 1.5, "slt/own/w*": 2.5, "slt/own/plain": 3.5}, 3)
        rows.close(3)
        kept = [{key: row[key] for key in row if key.startswith("slt/")} for row in history(logger)]
        assert kept == [{"slt/step": 3, "slt/own/L* of w*": 1.5, "slt/own/w*": 2.5, "slt/own/plain": 3.5}]

    def test_a_name_with_a_dot_has_the_same_axis(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = offline_logger(tmp_path, monkeypatch).experiment
        rows, names = Rows(run), ("slt/llc/head/mean", "slt/llc/blocks.0.attn.h1/mean")
        for step in (3, 4):
            rows.add({"slt/step": step} | dict.fromkeys(names, 1.5 - step), step)
        rows.close(5)
        assert [dict(run.summary[name]) for name in names] == [{"last": -2.5, "max": -1.5}] * 2
        run.finish()

    def test_the_last_one_survives_an_exception(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stops(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 7:
                    raise RuntimeError("stop")

        logger = offline_logger(tmp_path, monkeypatch)
        with pytest.raises(RuntimeError, match="stop"):
            fit(uneventful(), Stops(), logger=logger, max_steps=STEPS)
        assert list(ours(history(logger))) == list(range(1, 8))

    def test_a_second_fit_overwrites_nothing_of_the_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        for series in (flat, lambda step: 100.0 + step):
            fit(uneventful(observables={"llc": Planted(series)}), logger=logger, max_steps=4)
        found = [row["slt/llc/mean"] for row in history(logger) if "slt/llc/mean" in row]
        assert found == [flat(step) for step in range(1, 5)] + [101.0, 102.0, 103.0, 104.0]

    def test_two_loggers_of_one_run_are_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        again = offline_logger(tmp_path, monkeypatch)
        with pytest.warns(UserWarning, match="will reuse this run"):
            assert logger.experiment is again.experiment
        fit(uneventful(), logger=[logger, again], max_steps=4)
        assert list(ours(history(logger))) == [1, 2, 3, 4]


class Counter:
    """What W&B does with rows, as `test_it_is_as_w_and_b_does` shows: one is open, under a counter."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(mode="offline")
        self.step = 0
        self.open: dict[str, Any] = {}
        self.written: list[dict[str, Any]] = []

    def define_metric(self, *_: Any, **__: Any) -> None:
        """No axes."""

    def log(self, row: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        if step is not None and step < self.step:
            return
        if step is not None and step > self.step:
            self.finish(step)
        self.open |= row
        if commit or (commit is None and step is None):
            self.written.append({**self.open, "_step": self.step})
            self.open, self.step = {}, self.step + 1

    def finish(self, step: int = 0) -> None:
        if self.open:
            self.written.append({**self.open, "_step": self.step})
        self.open, self.step = {}, step


def interleaved(run: Any, seed: int, ours_every: int | None, lightnings_every: int = 1000) -> list[int]:
    """A run in which others write at random, all under the training step; returns the steps of our rows."""
    draws, given = random.Random(seed), []
    rows, share = Rows(run), draws.random()
    for step in range(1, 60):
        for who in draws.sample(["theirs", "ours", "theirs too"], 3):
            if who != "ours" and draws.random() < share:
                run.log({who: step}, step=step)
            elif who == "ours" and ours_every is not None and step % ours_every == 0:
                rows.add({"slt/step": step}, step)
                given.append(step)
        if step % lightnings_every == 0:
            run.log({"lightning": step})
            run.log({"validation": step})
    rows.close(59)
    run.log({"last": 59}, step=59)
    return given


class TestWhateverTheOrder:
    def test_it_is_as_w_and_b_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_SILENT", "true")
        run = wandb.init(mode="offline", dir=str(tmp_path))
        counter = Counter()
        for seed in range(4):
            for one in (run, counter):
                interleaved(one, seed, ours_every=1, lightnings_every=7)
        counter.finish()
        rows = history(SimpleNamespace(experiment=run))
        assert [
            {key: row[key] for key in row if key not in ("_timestamp", "_runtime")} for row in rows
        ] == counter.written

    @pytest.mark.parametrize(("ours_every", "lightnings_every"), [(1, 1000), (3, 1000), (6, 10), (20, 2)])
    def test_ours_are_kept_and_theirs_as_without_us(self, ours_every: int, lightnings_every: int) -> None:
        for seed in range(100):
            without, beside = Counter(), Counter()
            interleaved(without, seed, None, lightnings_every)
            given = interleaved(beside, seed, ours_every, lightnings_every)
            for run in (without, beside):
                run.finish()
            for name in ("theirs", "theirs too", "lightning", "validation", "last"):
                wanted, kept = ({row[name] for row in run.written if name in row} for run in (without, beside))
                assert kept >= wanted, (name, seed)
            assert [row["slt/step"] for row in beside.written if "slt/step" in row] == given, "in order, none twice"

    def test_processes_that_share_a_run_have_no_counter(self) -> None:
        class Shared(Counter):
            settings = SimpleNamespace(mode="shared")

            def __init__(self) -> None:
                self.open, self.written = {}, []

            @property
            def step(self) -> int:
                raise RuntimeError("shared mode has no step")

            def log(self, row: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
                assert (step, commit) == (None, None)
                self.written.append(row)

        run: Any = Shared()
        rows = Rows(run)
        for step in (1, 2, 3):
            rows.add({"slt/step": step}, step)
        rows.close(3)
        assert run.written == [{"slt/step": 1}, {"slt/step": 2}, {"slt/step": 3}]
