"""An alert is sent once a W&B run, though training goes on from before its event."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import wandb

from slt_callbacks import Alert, JumpEvent
from slt_callbacks.sinks.alerts import News, send_alert
from tests import ready
from tests.callbacks.test_watch import BACK_AT, JUMP_AT, Planted, there_and_back, watched
from tests.sinks.backend import fake_backend
from tests.sinks.test_online import environment
from tests.sinks.test_sinks import offline_logger, records
from tests.training import fit


class Tells:
    """A detector of a user's own, with news that nobody knows."""

    def update(self, step: int, value: float) -> list[Any]:
        return ["it begins", object()] if step == 15 else []


def trained(logger: Any, max_steps: int, ckpt_path: Path | None = None, **settings: Any) -> pl.Trainer:
    observed = watched(on_event=[Alert()], observables={"llc": Planted(there_and_back)}, **settings)
    checkpoint = None if ckpt_path is None else str(ckpt_path)
    return fit(observed, logger=logger, max_steps=max_steps, ckpt_path=checkpoint)


def alerts_of(logger: Any) -> list[tuple[str, str]]:
    return [(one["alert"]["title"], one["alert"]["text"]) for one in records(logger) if one["type"] == "alert"]


def jumps_of(logger: Any) -> list[str]:
    return [text.split(" ")[1] for title, text in alerts_of(logger) if title == "LLC jump"]


def in_a_process(folder: Path, environment: dict[str, str], text: str) -> None:
    """A run that is resumed, if it can be, sends one alert, always of the same news."""
    done = ready.run(["-m", "tests.sinks.alert_run", str(folder), text], ready.ROOT, environment, timeout=60)
    assert done.returncode == 0, done.stderr


class TestResumed:
    def test_from_before_an_event_the_run_does_not_send_it_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        own = {"detectors": {"slt/llc/reference_loss": Tells()}}
        trained(None, JUMP_AT - 2).save_checkpoint(tmp_path / "before.ckpt")
        trained(logger, JUMP_AT + 6, **own)
        with pytest.warns(UserWarning, match="start afresh: Tells"):
            trained(logger, BACK_AT + 6, tmp_path / "before.ckpt", **own)
        found = alerts_of(logger)
        assert [text.split(" ")[1] for title, text in found if title == "LLC jump"] == ["up", "down"]
        stages = [text.partition(" between")[2] for title, text in found if title == "New developmental stage"]
        assert len(stages) == len(set(stages)) > 0
        first, second = [text for title, text in found if title == "SLT event"]
        assert (first, second[:18]) == ("'it begins'", "<object object at ")

    def test_another_run_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ("first", "second"):
            logger = offline_logger(tmp_path / folder, monkeypatch)
            trained(logger, JUMP_AT + 6)
            assert jumps_of(logger) == ["up"]

    @pytest.mark.parametrize(("resume", "alerts"), [("allow", []), (None, ["one"])])
    def test_an_offline_run_of_another_process_is_known_by_its_folder(
        self, resume: str | None, alerts: list[str], tmp_path: Path
    ) -> None:
        # With a service of W&B's own: the one of this process takes the name for that of a run that goes on.
        own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        in_a_process(tmp_path, own | {"WANDB_MODE": "offline"}, "one")
        run = wandb.init(mode="offline", dir=str(tmp_path), id="same", resume=resume)
        logger = SimpleNamespace(experiment=run)
        for text, news in (("one", News("a jump", 3)), ("two", News("a jump", 4)), ("three", News("b jump", 3))):
            assert send_alert([logger], "title", text, news)
        assert [text for _, text in alerts_of(logger)] == [*alerts, "two", "three"]

    def test_an_online_run_of_another_process_is_known_by_its_summary(self, tmp_path: Path) -> None:
        with fake_backend() as backend:
            for text in ("first", "second"):
                in_a_process(tmp_path, environment(backend, tmp_path / text), text)
            assert [sent["text"] for sent in backend.sent("NotifyScriptableRunAlert")] == ["first"]
            backend.summary = None  # a run that cannot be resumed, for the server does not know it
            in_a_process(tmp_path, environment(backend, tmp_path / "third"), "third")
        assert [sent["text"] for sent in backend.sent("NotifyScriptableRunAlert")] == ["first", "third"]

    def test_a_run_remembers_it_in_its_summary(self, tmp_path: Path) -> None:
        run = wandb.init(mode="offline", dir=str(tmp_path))
        logger = SimpleNamespace(experiment=run)
        jump = JumpEvent(13, 13, 1, 5.0, 9.0, onset_step=12, onset_index=12, key="slt/llc/mean")
        for _ in range(2):
            Alert()(SimpleNamespace(loggers=[logger], is_global_zero=True, global_step=13), None, jump)  # type: ignore[arg-type]
        assert run.summary["slt/alerts"]["slt/llc/mean jump"] == [12]
        assert json.loads((Path(run.dir) / "slt-alerts.json").read_text()) == {"slt/llc/mean jump": [12]}
        assert len(alerts_of(logger)) == 1
