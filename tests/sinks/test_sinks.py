import dataclasses
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from wandb.util import get_core_path

from slt_callbacks import LoggerSink, Measurement, MemorySink, Sink, WandbSink
from slt_callbacks.basics.errors import PartlyFailedError
from slt_callbacks.sinks.base import Publication

MEASUREMENT = Measurement(8, {"llc": {"mean": 1.5, "per_chain": [1, 2]}, "health": {"failed_chains": 0}})
PUBLICATION = Publication(MEASUREMENT, MEASUREMENT.logged(), log_step=7)


def offline_logger(path: Path, monkeypatch: pytest.MonkeyPatch) -> WandbLogger:
    monkeypatch.setenv("WANDB_MODE", "offline")  # WandbLogger sets it for the process: put back after the test
    monkeypatch.setenv("WANDB_SILENT", "true")
    return WandbLogger(project="tests", offline=True, save_dir=str(path))


def records(logger: WandbLogger) -> list[dict[str, Any]]:
    """Finish the run and read it back, one JSON object a record."""
    file = logger.experiment.settings.sync_file
    logger.experiment.finish()
    return read_run(file)


def read_run(file: str | Path) -> list[dict[str, Any]]:
    """An offline W&B run, one JSON object a record.

    By the program that ``wandb leet inspect`` calls, which is there sooner than the Python around it; that itself is
    what the test of the language model goes by.
    """
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(file)]
    # What the test environment says of W&B would decide what the reader prints.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    printed = subprocess.run(
        [*command, str(Path(file).parent)], check=True, capture_output=True, text=True, env=environment, timeout=60
    ).stdout
    return [json.loads(line) for line in printed.splitlines() if line.strip()]


@pytest.mark.parametrize("sink", [MemorySink(), LoggerSink(), WandbSink()], ids=lambda sink: type(sink).__name__)
def test_every_sink_opens_publishes_and_closes_without_a_logger(sink: Sink) -> None:
    assert isinstance(sink, Sink)
    sink.open([], {"seed": 0})
    sink.publish(PUBLICATION)
    sink.close()


def test_only_numbers_are_scalars_and_the_step_is_among_them() -> None:
    assert PUBLICATION.scalars == {"slt/step": 8, "slt/llc/mean": 1.5, "slt/health/failed_chains": 0}


def test_nan_is_a_number_that_is_published() -> None:
    assert math.isnan(Measurement(1, {"llc": {"mean": math.nan}}).logged()["slt/llc/mean"])


def test_the_csv_logger_gets_the_scalars_under_the_step_of_the_training_metrics(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    sink = LoggerSink()
    sink.open([logger], {})
    sink.publish(PUBLICATION)
    logger.save()
    header, row = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True)) == {
        "slt/health/failed_chains": "0",
        "slt/llc/mean": "1.5",
        "slt/step": "8",
        "step": "7",
    }


def test_a_wandb_run_holds_the_settings_the_step_metric_of_each_key_and_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = offline_logger(tmp_path, monkeypatch)
    for sink in (WandbSink(), LoggerSink()):  # the second must leave W&B to the first
        sink.open([logger], {"seed": 3})
        sink.publish(PUBLICATION)
        sink.close()
    assert wandb.run is not None, "the run is the user's to finish"
    found = records(logger)
    (row,) = [record["history"]["item"] for record in found if record["type"] == "history"]
    assert {key: value for key, value in row.items() if not key.startswith("_")} == {
        "slt/step": 8,
        "slt/llc/mean": 1.5,
        "slt/health/failed_chains": 0,
        "trainer/global_step": 7,
    }
    metrics = {record["metric"].get("name"): record["metric"] for record in found if record["type"] == "metric"}
    assert "step_metric" not in metrics["slt/step"]
    for key in ("slt/llc/mean", "slt/health/failed_chains"):
        assert metrics[key]["step_metric"] == "slt/step"
        assert metrics[key]["summary"] == {"last": True, "max": True}
    settings = [record["config"]["update"] for record in found if record["type"] == "config"]
    assert {"slt": {"seed": 3}} in settings


def test_numbers_survive_a_table_that_cannot_be_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = offline_logger(tmp_path, monkeypatch)
    sink = WandbSink()
    sink.open([logger], {})

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(wandb, "Table", unreachable)
    with pytest.raises(PartlyFailedError, match=r"^the W&B run .*: ConnectionError: no answer$"):
        sink.publish(dataclasses.replace(PUBLICATION, events=[{"step": 8}]))
    rows = [record["history"]["item"] for record in records(logger) if record["type"] == "history"]
    assert [row["slt/llc/mean"] for row in rows] == [1.5]
