import csv
import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from slt_callbacks import (
    Alert,
    JumpDetector,
    JumpEvent,
    Measurement,
    MemorySink,
    SaveCheckpoint,
    StageEvent,
    StopTraining,
)
from slt_callbacks.callbacks.watch import FailureEvent, Watch
from tests.sinks.test_sinks import offline_logger, records
from tests.training import fit, monitor

JUMP_AT = 12


def planted(step: int) -> float:
    """A flat series, a little noisy, with one jump."""
    return 5.0 * (step >= JUMP_AT) + 0.1 * math.sin(7.0 * step)


class Planted:
    """An observable that reports the planted series instead of a statistic of its draws."""

    def reset(self, reference: Any) -> None:
        self.step = reference.step

    def update(self, draw: Any) -> None:
        pass

    def compute(self) -> dict[str, Any]:
        return {"mean": planted(self.step), "stderr": 0.1, "reference_loss": 1.0 - 0.01 * self.step}


def watched(**settings: Any) -> Any:
    return monitor(observables={"llc": Planted()}, every_n_train_steps=1, **settings)


def measured(step: int, **llc: float) -> Measurement:
    return Measurement(step, {"llc": llc, "health": {}})


def directions(events: list[Any]) -> list[int]:
    return [event.direction for event in events if isinstance(event, JumpEvent)]


class TestWatch:
    def test_a_planted_jump_and_the_stages_around_it_are_found_while_training(self) -> None:
        found = watched()
        fit(found, max_steps=30)
        (jump,) = [event for event in found.events if isinstance(event, JumpEvent)]
        assert jump.direction == 1
        assert jump.onset_step == JUMP_AT
        assert jump.delta == pytest.approx(5.0, abs=0.3)
        assert jump.step <= JUMP_AT + 3
        announced = [event.step for event in found.events if getattr(event, "kind", "") == "announced"]
        assert announced
        assert all(abs(step - JUMP_AT) <= 2 for step in announced)
        assert [stage.status for stage in found.stages] == ["final"] * len(found.stages)
        assert found.stages[-1].end_step == 30

    def test_a_failed_measurement_is_a_missing_point_not_an_event(self) -> None:
        watch = Watch()
        for step in range(1, 40):
            value = math.nan if step % 7 == 0 else 3.0 + 0.1 * math.sin(7.0 * step)
            error = "gone" if step % 7 == 0 else None
            watch.update(Measurement(step, {"llc": {"mean": value, "stderr": 0.1}, "health": {}}, error))
        assert watch.found == []

    def test_three_failures_in_a_row_are_reported_once_as_the_samplers(self) -> None:
        watch = Watch()
        for step in range(1, 8):
            watch.update(Measurement(step, {"llc": {"mean": math.nan}, "health": {}}, "all diverged"))
        assert [found.event for found in watch.found] == [FailureEvent(3, 3, "all diverged")]

    def test_any_logged_key_can_be_watched_beside_the_default(self) -> None:
        watch = Watch({"slt/llc/reference_loss": JumpDetector()})
        for step in range(1, 30):
            watch.update(measured(step, mean=1.0 + 0.1 * math.sin(3.0 * step), reference_loss=-planted(step)))
        jumps = [found for found in watch.found if isinstance(found.event, JumpEvent)]
        assert [(found.key, found.event.direction) for found in jumps] == [("slt/llc/reference_loss", -1)]

    def test_an_empty_list_switches_the_default_off(self) -> None:
        watch = Watch({"slt/llc/mean": []})
        for step in range(1, 30):
            watch.update(measured(step, mean=planted(step)))
        assert watch.found == []
        assert watch.scalars() == {}

    def test_a_detector_of_ones_own_gets_the_keywords_it_names(self) -> None:
        class AboveLoss:
            def update(self, step: int, value: float, loss: float) -> str | None:
                return f"at {step}" if value > loss else None

        watch = Watch({"slt/llc/mean": AboveLoss()})
        for step in range(1, 4):
            watch.update(measured(step, mean=float(step), reference_loss=2.5))
        assert [found.event for found in watch.found] == ["at 3"]

    def test_what_cannot_watch_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"`detectors\['slt/llc/mean'\]` to be an object with `update`, but got 5"):
            Watch({"slt/llc/mean": 5})  # type: ignore[dict-item]

    @pytest.mark.parametrize("key", ["llc/mean", "slt/lcc/mean", "slt/llc"])
    def test_a_key_that_is_never_logged_is_refused(self, key: str) -> None:
        with pytest.raises(ValueError, match=rf"logged ones, slt/llc/\.\.\., slt/health/.* but got '{key}'"):
            monitor(detectors={key: JumpDetector()})

    @pytest.mark.parametrize("stop", [5, JUMP_AT, JUMP_AT + 1, JUMP_AT + 2, 20])
    def test_stopped_anywhere_and_resumed_the_events_are_those_of_the_whole(self, stop: int) -> None:
        whole, first, second = Watch(), Watch(), Watch()
        for step in range(1, 31):
            whole.update(measured(step, mean=planted(step), stderr=0.1, reference_loss=1.0 - 0.01 * step))
        for step in range(1, stop + 1):
            first.update(measured(step, mean=planted(step), stderr=0.1, reference_loss=1.0 - 0.01 * step))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for step in range(stop + 1, 31):
            second.update(measured(step, mean=planted(step), stderr=0.1, reference_loss=1.0 - 0.01 * step))
        assert second.found == whole.found
        assert second.stages == whole.stages

    def test_the_logged_numbers_say_stage_jump_and_calibration(self) -> None:
        watch = Watch()
        logged = []
        for step in range(1, 31):
            watch.update(measured(step, mean=planted(step), stderr=0.1))
            logged.append(watch.scalars())
        assert [row["slt/jump"] for row in logged].count(1) == 1
        assert logged[-1]["slt/stage"] >= 1
        assert logged[-1]["slt/detection/phi"] > 0


class TestReactions:
    def test_every_reaction_gets_every_event_and_one_that_raises_does_not_end_training(self) -> None:
        seen: list[Any] = []

        def broken(*_: Any) -> None:
            raise RuntimeError("webhook is down")

        found = watched(on_event=[broken, lambda trainer, module, event: seen.append(event)])
        with pytest.warns(UserWarning, match="broken.__call__ raised RuntimeError: webhook is down. Training goes on"):
            trainer = fit(found, max_steps=20)
        assert trainer.global_step == 20
        assert seen == found.events != []

    def test_without_wandb_an_alert_is_a_warning_with_the_numbers(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(watched(on_event=[Alert()]), max_steps=20)
        texts = [str(warning.message) for warning in caught if "LLC jump" in str(warning.message)]
        assert len(texts) == 1
        assert re.search(rf"LLC jump: up by [45]\.?\d* between step {JUMP_AT} and {JUMP_AT + 1}", texts[0]), texts

    def test_an_alert_and_the_tables_reach_the_wandb_run_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        found_events = watched(on_event=[Alert()])
        fit(found_events, max_steps=20, logger=logger)
        found = records(logger)
        alerts = [record["alert"] for record in found if record["type"] == "alert"]
        assert [alert["title"] for alert in alerts].count("LLC jump") == 1
        rows = [record["history"]["item"] for record in found if record["type"] == "history"]
        tables = [row for row in rows if row.get("slt/events._type") == "table-file"]
        assert tables[-1]["slt/events.nrows"] == len(found_events.events)
        assert all(row["slt/stages._type"] == "table-file" for row in tables)
        assert all(row["slt/figure._type"] == "image-file" for row in tables)
        assert all("slt/llc/mean" in row for row in tables[:-1]), "a story is told with its measurement"
        assert "slt/llc/mean" not in tables[-1], "and once more when the stages are final"
        assert sum("slt/llc/mean" in row for row in rows) == 20, "one row a measurement"
        for row in tables:
            figure = Path(logger.save_dir) / "wandb" / "latest-run" / "files" / row["slt/figure.path"]
            with Image.open(figure) as image:
                assert min(image.size) > 300
                assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50
        assert [row["slt/jump"] for row in rows if "slt/jump" in row].count(1) == 1

    def test_at_the_end_the_folder_holds_the_stages_the_events_and_their_figure(self, tmp_path: Path) -> None:
        found = watched()
        fit(found, max_steps=20, default_root_dir=tmp_path)
        assert sorted(path.name for path in (tmp_path / "slt").iterdir()) == ["events.json", "stages.csv", "stages.png"]
        with (tmp_path / "slt" / "stages.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["type"], row["status"], int(row["start_step"])) for row in rows] == [
            (stage.type, "final", stage.start_step) for stage in found.stages
        ]
        events = json.loads((tmp_path / "slt" / "events.json").read_text())
        assert [event["direction"] for event in events if event["type"] == "JumpEvent"] == [1]

    @pytest.mark.parametrize("settings", [{"barebones": True}, {"fast_dev_run": True}])
    def test_a_run_that_leaves_nothing_behind_is_told_in_no_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        clear = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"))
        fit(watched(), max_steps=20, **clear, default_root_dir=tmp_path, **settings)
        assert not (tmp_path / "slt").exists()

    def test_after_a_resume_the_story_is_that_of_the_whole_run(self, tmp_path: Path) -> None:
        memory = MemorySink()
        trainer = fit(watched(), max_steps=8)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        fit(watched(sinks=[memory]), max_steps=20, ckpt_path=str(tmp_path / "stopped.ckpt"))
        assert memory.report is not None
        assert [one.step for one in memory.report.history] == list(range(1, 21))
        assert [one["llc"]["mean"] for one in memory.report.history] == [planted(step) for step in range(1, 21)]
        assert all(stage.status == "final" for stage in memory.report.stages)

    def test_a_story_that_cannot_be_drawn_costs_one_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(report: Any) -> None:
            raise ValueError("no fonts")

        monkeypatch.setattr("slt_callbacks.sinks.files.report_figure", broken)
        with pytest.warns(UserWarning, match="FileSink.finish raised ValueError: no fonts. Training goes on"):
            fit(watched(), max_steps=20, default_root_dir=tmp_path)
        assert (tmp_path / "slt" / "stages.csv").exists(), "the tables need no figure"

    def test_the_weights_at_a_jump_and_the_last_ones_before_it_are_kept(self, tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path / "all", every_n_train_steps=5, save_top_k=-1, filename="{step}")
        reaction = SaveCheckpoint(tmp_path / "events")
        found = watched(on_event=[reaction])
        fit(found, kept, max_steps=20, enable_checkpointing=True)
        (jump,) = [event for event in found.events if isinstance(event, JumpEvent)]
        files = {file.name for file in (tmp_path / "events").iterdir()}
        assert {f"step={jump.step}-jump.ckpt", "before-jump-step=10.ckpt"} <= files
        saved = torch.load(tmp_path / "events" / f"step={jump.step}-jump.ckpt", weights_only=True)
        assert saved["global_step"] == jump.step

    def test_training_stops_after_the_nth_piece_of_news(self) -> None:
        trainer = fit(watched(on_event=[StopTraining()]), max_steps=30)
        assert JUMP_AT < trainer.global_step < 20
        with pytest.raises(ValueError, match="`after` to be a positive integer, but got 0"):
            StopTraining(after=0)

    def test_a_withdrawn_boundary_is_no_news(self) -> None:
        trainer = pl.Trainer(barebones=True, accelerator="cpu")
        StopTraining()(trainer, None, StageEvent("withdrawn", 0, 3, 30))  # type: ignore[arg-type]
        assert not trainer.should_stop
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Alert()(trainer, None, StageEvent("revised", 0, 3, 30))

    def test_what_cannot_react_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"`on_event` to hold functions .* but got 'alert'"):
            watched(on_event=["alert"])

    def test_nothing_fires_twice_after_a_resume(self, tmp_path: Path) -> None:
        first = watched()
        trainer = fit(first, max_steps=16)
        assert directions(first.events) == [1]
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        fired: list[Any] = []
        second = watched(on_event=[lambda trainer, module, event: fired.append(event)])
        fit(second, max_steps=30, ckpt_path=str(tmp_path / "stopped.ckpt"))
        whole = watched()
        fit(whole, max_steps=30)
        assert directions(fired) == []
        assert second.events == whole.events
        assert second.stages == whole.stages
