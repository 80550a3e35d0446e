"""An event at every measurement: what one costs does not grow with those before it, and texts stay short."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb

from slt_callbacks import LLC, Alert, FileSink, Measurement, WandbSink
from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.basics.notices import Notices
from slt_callbacks.observables.media import Media
from slt_callbacks.recording.events import FailureEvent, Found
from slt_callbacks.recording.guard import Guard
from slt_callbacks.recording.story import Story
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sinks import wandb as wandb_sink
from tests.problems import settings
from tests.sinks.test_sinks import offline_logger
from tests.test_estimate_engines import estimator, network

MANY = 400


class Tells:
    """Finds something every time."""

    def update(self, step: int, value: float) -> dict[str, int]:
        return {"seen": step}


def measurement(step: int) -> Measurement:
    matrices = {"kernel/correlation": torch.eye(2)}
    return Measurement(step, {"llc": {"mean": 1.0, "stderr": 0.1}}, media=Media(matrices=matrices))


def story(*sinks: Any, loggers: Any = ()) -> Story:
    found = Story(Watch({"slt/llc/mean": [Tells()]}, {"llc": LLC()}))
    found.open(sinks, list(loggers), {})
    return found


def test_tables_and_figures_are_told_ever_more_rarely_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    drawn: list[int] = []
    monkeypatch.setattr(wandb_sink, "_table", lambda rows: lengths.append(len(rows)) or 0)
    monkeypatch.setattr(wandb_sink, "report_figure", lambda report: drawn.append(len(report.rows)))
    refined: list[int] = []
    monkeypatch.setattr(wandb_sink, "refinement_report", lambda report: refined.append(len(report.rows)))
    monkeypatch.setattr(wandb_sink, "_log_matrices", lambda run, publication: None)
    told = story(WandbSink(), FileSink(tmp_path), loggers=[offline_logger(tmp_path, monkeypatch)])
    for step in range(1, MANY + 1):
        told.record(measurement(step), step)
    told.finish()
    told.close()
    events = [length for length in lengths if length]
    assert drawn[:16] == list(range(1, 17))
    assert drawn[-1] == MANY, "all of it at the end"
    assert len(drawn) < 16 + 18
    assert refined == drawn
    assert sum(events) < 6 * MANY, "a few rows written for each event"
    assert len(list(tmp_path.glob("matrices-*.npz"))) < 16 + 18


def test_a_row_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    row = Found.row

    def counted(self: Found) -> dict[str, Any]:
        nonlocal made
        made += 1
        return row(self)

    monkeypatch.setattr(Found, "row", counted)
    told = story()
    for step in range(1, MANY + 1):
        publication = told.record(measurement(step), step)
    assert len(publication.events) == MANY == made
    assert publication.events[-1] == {"key": "slt/llc/mean", "detected_at": MANY, "type": "dict", "seen": MANY}


class TestTexts:
    LONG = "x" * 100_000

    def test_of_an_alert(self, tmp_path: Path) -> None:
        sent: list[str] = []
        run = wandb.init(mode="disabled", dir=str(tmp_path))
        run.alert = lambda title, text, **_: sent.append(text)  # type: ignore[method-assign]
        trainer: Any = SimpleNamespace(
            loggers=[SimpleNamespace(experiment=run)], is_global_zero=True, global_step=3, callbacks=[]
        )
        for event in ({"picture": self.LONG}, FailureEvent(3, 3, f"ValueError: {self.LONG}, which is too much")):
            Alert()(trainer, None, event)
        assert [len(text) < 700 for text in sent] == [True, True]
        assert sent[0].endswith("... (a dict)")
        assert sent[1].endswith("which is too much"), "what to do stands at the end"

    def test_of_a_warning(self) -> None:
        told: list[str] = []

        class Fails:
            def publish(self) -> None:
                raise ValueError(TestTexts.LONG)

        Guard(Notices(told.append), seed=0)(Fails(), "publish")
        assert told[0].startswith("Fails.publish raised ValueError: xxx")
        assert told[0].endswith("xxx. Training goes on.")
        assert len(told[0]) <= 1500

    def test_of_a_failed_measurement(self) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            raise ValueError(self.LONG)

        with pytest.raises(LossFnError, match=r"`loss_fn` raised ValueError on .* xxx") as raised:
            estimator(settings(), loss_fn).measure(network(), 1)
        assert len(str(raised.value)) < 1500
        found = estimator(settings()).failed(1, f"ValueError: {self.LONG}")
        assert found.error is not None
        assert found.error.startswith("ValueError: xxx")
        assert len(found.error) == 500
