"""Of several loggers, runs or sinks one fails: it is named once, and the others get theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger

from slt_callbacks import Alert, LoggerSink, MemorySink, WandbSink
from slt_callbacks.basics.errors import PartlyFailedError
from slt_callbacks.basics.notices import Notices
from slt_callbacks.observables.media import Media
from slt_callbacks.recording.events import FailureEvent
from slt_callbacks.recording.guard import Guard
from tests.callbacks.test_watch import planted, watched
from tests.sinks.test_rows import history
from tests.sinks.test_sinks import PUBLICATION, records
from tests.training import fit

EVENT = FailureEvent(8, 3, "all 4 chains diverged")


class Broken(CSVLogger):
    """A logger whose server takes none of our numbers."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if "slt/step" in metrics:
            raise ConnectionError(f"no answer at step {step}")


class OutOfReach(CSVLogger):
    """A logger that lost what it logs to."""

    @property
    def experiment(self) -> Any:
        raise ConnectionError("no such host")


class WandbLogger:
    """As the package pytorch_lightning has one: known by its name. Its run cannot be had."""

    @property
    def experiment(self) -> Any:
        raise ConnectionError("no such host")


@contextmanager
def heard() -> Iterator[list[str]]:
    """Every warning of ours, in the order they came."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(warning.message) for warning in caught if "Training goes on" in str(warning.message)]


def offline_run(folder: Path, name: str) -> Any:
    return wandb.init(mode="offline", dir=str(folder), name=name, reinit="create_new")


def loggers_of(*runs: Any) -> list[Any]:
    return [SimpleNamespace(experiment=run) for run in runs]


def trainer_of(*runs: Any) -> Any:
    return SimpleNamespace(loggers=loggers_of(*runs), is_global_zero=True, global_step=8)


class TestLoggers:
    def test_the_others_get_every_row_and_the_failing_ones_are_named_once(self, tmp_path: Path) -> None:
        first, second = Broken(tmp_path, "first"), Broken(tmp_path, "second", version=7)
        good = CSVLogger(tmp_path, "good")
        with heard() as texts:
            fit(watched(), logger=[first, good, second], max_steps=4)
        assert texts == [
            f"LoggerSink.publish raised ConnectionError for Broken {name}: no answer at step 0. Training goes on."
            for name in ("first/version_0", "second/version_7")
        ]
        header, *lines = (Path(good.log_dir) / "metrics.csv").read_text().splitlines()
        rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
        assert [float(row["slt/llc/mean"]) for row in rows if row["slt/llc/mean"]] == [planted(s) for s in range(1, 5)]

    def test_one_that_cannot_be_reached_costs_neither_sink_its_others(self, tmp_path: Path) -> None:
        out_of_reach, run = OutOfReach(tmp_path, "far"), offline_run(tmp_path, "near")
        good = CSVLogger(tmp_path, "good")
        loggers = [WandbLogger(), out_of_reach, good, *loggers_of(run)]
        texts: list[str] = []
        guard = Guard(Notices(texts.append), seed=0)
        for sink in (LoggerSink(), WandbSink()):
            assert guard(sink, "open", loggers, {"seed": 0})
            for _ in range(2):
                guard(sink, "publish", PUBLICATION)
            guard(sink, "close")
        assert texts == [
            "LoggerSink.publish raised ConnectionError for OutOfReach far/version_0: no such host. Training goes on.",
            "WandbSink.open raised ConnectionError for WandbLogger: no such host. Training goes on.",
        ]
        good.save()
        assert "slt/llc/mean" in (Path(good.log_dir) / "metrics.csv").read_text()
        assert [row["slt/llc/mean"] for row in history(SimpleNamespace(experiment=run))] == [1.5, 1.5]


class TestRuns:
    def test_the_others_get_every_row_and_the_matrices(self, tmp_path: Path) -> None:
        ended, good = (offline_run(tmp_path, name) for name in ("ended", "good"))
        sink = WandbSink()
        sink.open(loggers_of(ended, good), {})
        ended.finish()
        texts: list[str] = []
        guard = Guard(Notices(texts.append), seed=0)
        publication = replace(
            PUBLICATION,
            measurement=replace(PUBLICATION.measurement, media=Media(matrices={"kernel/correlation": torch.eye(2)})),
            events=[{"step": 8}],
        )
        for _ in range(2):
            assert guard(sink, "publish", publication)
        guard(sink, "close")
        (text,) = texts
        assert text.startswith("WandbSink.publish raised UsageError for the W&B run ended: Run ")
        found = records(SimpleNamespace(experiment=good))  # type: ignore[arg-type]
        rows = [one["history"]["item"] for one in found if one["type"] == "history"]
        assert [row["slt/llc/mean"] for row in rows] == [1.5, 1.5]
        assert [row["slt/events.nrows"] for row in rows] == [1, 1]
        artifacts = [one["artifact"]["type"] for one in found if one["type"] == "artifact"]
        assert artifacts.count("slt-matrices") == 2

    def test_an_alert_reaches_the_others(self, tmp_path: Path) -> None:
        ended, good = (offline_run(tmp_path, name) for name in ("ended", "good"))
        ended.finish()
        with pytest.raises(PartlyFailedError, match=r"^SimpleNamespace: UsageError: Run .* is finished"):
            Alert()(trainer_of(ended, good), None, EVENT)
        found = records(SimpleNamespace(experiment=good))  # type: ignore[arg-type]
        assert [one["alert"]["title"] for one in found if one["type"] == "alert"] == ["SLT sampling fails"]

    def test_an_alert_that_reaches_no_run_is_a_warning(self, tmp_path: Path) -> None:
        ended = offline_run(tmp_path, "ended")
        ended.finish()
        with (
            pytest.warns(UserWarning, match="SLT sampling fails: 3 measurements in a row up to step 8: all 4"),
            pytest.raises(PartlyFailedError, match="UsageError"),
        ):
            Alert()(trainer_of(ended), None, EVENT)


class TestSinksAndReactions:
    def test_two_sinks_of_one_class_are_two(self) -> None:
        sinks = [MemorySink() for _ in range(3)]

        def full(*_: Any) -> None:
            raise OSError("disk full")

        sinks[0].publish = sinks[2].publish = full  # type: ignore[method-assign]
        with heard() as texts:
            fit(watched(sinks=sinks), max_steps=3)
        assert texts == [
            "MemorySink.publish raised OSError: disk full. Training goes on.",
            "MemorySink (number 3).publish raised OSError: disk full. Training goes on.",
        ]
        assert [one.measurement.step for one in sinks[1].publications] == [1, 2, 3]

    def test_two_reactions_of_one_name_are_two(self) -> None:
        def made(text: str) -> Callable[..., None]:
            def webhook(trainer: pl.Trainer, module: pl.LightningModule, event: Any) -> None:
                raise OSError(text)

            return webhook

        with heard() as texts:
            fit(watched(on_event=[made("first"), made("second")]), max_steps=20)
        assert texts == [
            "webhook.__call__ raised OSError: first. Training goes on.",
            "webhook (number 2).__call__ raised OSError: second. Training goes on.",
        ]
