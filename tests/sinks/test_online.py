"""Online W&B against a small server of our own: what is logged, and the alert, really leave the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import ready
from tests.callbacks.test_watch import BACK_AT, JUMP_AT
from tests.sinks.backend import ENTITY, Backend, fake_backend
from tests.sinks.online_run import STEPS


def environment(backend: Backend, folder: Path) -> dict[str, str]:
    """That of this process, with everything W&B would read or write pointed to the test."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    places = {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    return {
        **kept,
        **places,
        "HOME": str(folder),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": backend.url,
        "WANDB_MODE": "online",
        "WANDB_SILENT": "true",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    """What the server was sent by one run whose LLC jumps up and, within seconds, down."""
    with fake_backend() as backend:
        folder = tmp_path_factory.mktemp("online")
        arguments = ["-m", "tests.sinks.online_run", str(folder)]
        done = ready.run(arguments, ready.ROOT, environment(backend, folder), timeout=60)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Training goes on" not in output, output  # what the monitor says where a sink or a reaction raises
    return backend


def test_each_alert_leaves_the_process_once_and_while_it_trains(run: Backend) -> None:
    alerts = [sent for sent in run.sent("NotifyScriptableRunAlert") if sent["title"] == "LLC jump"]
    assert len(alerts) == 2
    for alert, direction, at in zip(alerts, ("up", "down"), (JUMP_AT, BACK_AT), strict=True):
        assert alert["severity"] == "WARN"
        assert alert["waitDuration"] < 1000, "milliseconds in which the server drops another of this title"
        assert (alert["entityName"], alert["projectName"]) == (ENTITY, "tests")
        assert f"slt/llc/mean {direction} by" in alert["text"]
        assert f"between step {at} and {at + 1}" in alert["text"]
    assert run.log.index("NotifyScriptableRunAlert") < run.log.index("fit_over")


def test_every_measurement_arrives_as_one_row_with_its_step(run: Backend) -> None:
    rows = [row for row in run.history if "slt/step" in row]
    assert [row["slt/step"] for row in rows] == list(range(1, STEPS + 1))
    assert all({"slt/llc/mean", "slt/cost/seconds", "trainer/global_step"} <= row.keys() for row in rows)
    assert rows[JUMP_AT]["slt/llc/mean"] > 4 > rows[JUMP_AT - 3]["slt/llc/mean"]
    assert [row["slt/jump"] for row in rows if "slt/jump" in row].count(1) == 1
    tables = [row["slt/step"] for row in rows if row.get("slt/events", {}).get("_type") == "table-file"]
    assert tables, "an event brings the tables"
    assert tables[0] == JUMP_AT + 1


def test_the_monitor_leaves_the_run_open_for_its_user(run: Backend) -> None:
    assert run.log.count("complete") == 1
    assert run.log.index("fit_over") < run.log.index("complete")
    assert any("after the fit" in row for row in run.history)
