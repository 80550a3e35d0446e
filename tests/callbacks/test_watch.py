import csv
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from slt_callbacks import (
    LLC,
    SGLD,
    Alert,
    FileSink,
    JumpDetector,
    JumpEvent,
    LossKernel,
    Measurement,
    MemorySink,
    SamplerConfig,
    SaveCheckpoint,
    StageDetector,
    StageEvent,
    StopTraining,
    stage_figure,
)
from slt_callbacks.callbacks.reactions import describe, num_transitions
from slt_callbacks.recording.events import FailureEvent, StepSizeEvent
from slt_callbacks.recording.watch import Watch
from tests.sinks.test_sinks import offline_logger, records
from tests.training import fit, monitor

JUMP_AT, BACK_AT = 12, 24


def planted(step: int) -> float:
    """A flat series, a little noisy, with one jump."""
    return 5.0 * (step >= JUMP_AT) + 0.1 * math.sin(7.0 * step)


def there_and_back(step: int) -> float:
    return planted(step) - 5.0 * (step >= BACK_AT)


def flat(step: int) -> float:
    return 0.1 * math.sin(7.0 * step)


class Planted:
    """An observable that reports a planted series instead of a statistic of its draws."""

    def __init__(self, series: Callable[[int], float] = planted, name: str = "mean") -> None:
        self.series, self.name = series, name

    def reset(self, reference: Any) -> None:
        self.step = reference.step

    def update(self, draw: Any) -> None:
        pass

    def compute(self) -> dict[str, Any]:
        return {self.name: self.series(self.step), "stderr": 0.1, "reference_loss": 1.0 - 0.01 * self.step}


class PlantedLLC(LLC):
    """An LLC whose number is the planted one."""

    def reset(self, reference: Any) -> None:
        super().reset(reference)
        self.step = reference.step

    def compute(self) -> dict[str, Any]:
        return {**super().compute(), "mean": planted(self.step), "stderr": 0.1}


class Breaks:
    """A detector that raises from a certain step on."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def update(self, step: int, value: float) -> None:
        if step >= self.at:
            raise ZeroDivisionError("no variance")


@dataclass(frozen=True)
class Crossing:
    step: int
    by: tuple[float, ...]


class Once:
    """A detector with one event, of its own kind."""

    def update(self, step: int, value: float) -> str | None:
        return "it begins" if step == 10 else None


class EveryTenth:
    """A detector with events of its own kind: a dataclass, text, and something that is no builtin."""

    def update(self, step: int, value: float) -> list[Any]:
        return [Crossing(step, (1.0, 2.0)), f"at {step}", {"step": step}, len] if step % 10 == 0 else []


def watched(**settings: Any) -> Any:
    """A monitor of planted numbers: the draws do not matter."""
    short = SamplerConfig(SGLD(1e-4), batch_size=None, num_chains=1, num_draws=2, num_burnin_steps=0)
    default = {"observables": {"llc": Planted()}, "every_n_train_steps": 1, "sampler": short}
    return monitor(**(default | settings))


def unwritten(**settings: Any) -> Any:
    """As `watched`, of a story that is told in no file: figure and page take as long as training."""
    return watched(sinks=[], **settings)


def measured(step: int, **llc: float) -> Measurement:
    return Measurement(step, {"llc": llc, "health": {}})


def fed(watch: Watch, steps: range, series: Callable[[int], float] = planted) -> list[dict[str, float]]:
    """What is logged beside each step."""
    logged = []
    for step in steps:
        watch.update(measured(step, mean=series(step), stderr=0.1, reference_loss=1.0 - 0.01 * step))
        logged.append(watch.scalars())
    return logged


def directions(events: list[Any]) -> list[int]:
    return [event.direction for event in events if isinstance(event, JumpEvent)]


class TestWatch:
    def test_a_planted_jump_and_the_stages_around_it_are_found_while_training(self) -> None:
        found = unwritten()
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

    @pytest.mark.parametrize("wrong", [JumpDetector(), [JumpDetector()], []])
    def test_detectors_without_a_key_are_refused(self, wrong: Any) -> None:
        with pytest.raises(
            TypeError, match=r"`detectors` to be a dict by logged key.*: write \{\"slt/llc/mean\": Jump"
        ):
            watched(detectors=wrong)

    @pytest.mark.parametrize("key", ["llc/mean", "slt/lcc/mean", "slt/llc", 3])
    def test_a_key_that_is_never_logged_is_refused(self, key: Any) -> None:
        with pytest.raises(ValueError, match=rf"logged ones, slt/llc/\.\.\., slt/health/.* but got {key!r}"):
            monitor(detectors={key: JumpDetector()})

    @pytest.mark.parametrize("stop", [5, JUMP_AT, JUMP_AT + 1, JUMP_AT + 2, 20])
    def test_stopped_anywhere_and_resumed_the_events_are_those_of_the_whole(self, stop: int) -> None:
        whole, first, second = Watch(), Watch(), Watch()
        expected = fed(whole, range(1, 31))
        fed(first, range(1, stop + 1))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert fed(second, range(stop + 1, 31)) == expected[stop:]
        assert second.found == whole.found
        assert second.stages == whole.stages

    def test_the_logged_numbers_say_stage_jump_and_calibration(self) -> None:
        logged = fed(Watch(), range(1, 31))
        assert [row["slt/jump"] for row in logged].count(1) == 1
        assert logged[-1]["slt/stage"] == 1
        assert logged[-1]["slt/detection/phi"] > 0

    def test_the_stage_that_is_logged_is_the_number_of_boundaries_announced_and_not_withdrawn(self) -> None:
        generator = np.random.default_rng(0)
        quiet = generator.normal(0, 0.3, 40) + 2.0 * (np.arange(40) >= 25)
        values = np.concatenate([quiet, generator.normal(1, 5.0, 110)])  # beside this noise, the step of 2 is nothing
        watch = Watch()
        logged = fed(watch, range(150), lambda step: float(values[step]))
        told = [(found.detected_at, found.event.kind) for found in watch.found if isinstance(found.event, StageEvent)]
        assert {"announced", "withdrawn"} <= {kind for _, kind in told}
        for step, row in enumerate(logged):
            so_far = [kind for at, kind in told if at <= step]
            assert row["slt/stage"] == so_far.count("announced") - so_far.count("withdrawn")

    def test_a_detector_that_raises_costs_its_own_events_alone_and_is_reported_once(self) -> None:
        watch = Watch({"slt/llc/mean": Breaks(at=JUMP_AT + 1), "slt/llc/reference_loss": [Breaks(), EveryTenth()]})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logged = fed(watch, range(1, 31))
        assert [str(warning.message) for warning in caught] == [
            f"Breaks, the detector of {key}, raised ZeroDivisionError: no variance. Training goes on."
            for key in ("slt/llc/reference_loss", "slt/llc/mean")
        ]
        assert [row["slt/jump"] for row in logged].count(1) == 1
        assert directions([found.event for found in watch.found]) == [1]
        assert [found.event for found in watch.found].count("at 20") == 1

    def test_ones_own_detector_is_added_and_one_of_our_classes_takes_the_place_of_the_default(self) -> None:
        jumps, stages = "JumpDetector(sensitivity='default', min_jump=0.01)", "StageDetector()"
        assert Watch({"slt/llc/mean": Breaks()}).settings() == {"slt/llc/mean": [jumps, stages, "Breaks"]}
        strict = Watch({"slt/llc/mean": [JumpDetector("strict"), Breaks()]})
        assert strict.settings() == {"slt/llc/mean": [stages, jumps.replace("default", "strict"), "Breaks"]}

    def test_after_the_end_it_goes_on(self) -> None:
        watch, whole, young = Watch(), Watch(), Watch()
        fed(watch, range(1, 9))
        watch.finish()
        assert [stage.status for stage in watch.stages] == ["final"]
        fed(watch, range(9, 31))
        fed(whole, range(1, 31))
        assert watch.stages == whole.stages
        fed(young, range(1, 9))
        watch.finish()
        watch.load_state_dict(young.state_dict())
        assert watch.stages == young.stages

    def test_other_detectors_than_in_the_checkpoint_start_afresh_with_a_warning(self) -> None:
        first = Watch({"slt/llc/reference_loss": JumpDetector()})
        fed(first, range(1, 31))
        strict = JumpDetector("strict")
        second = Watch({"slt/llc/mean": strict, "slt/llc/reference_loss": StageDetector()})
        told = (
            r"start afresh: JumpDetector\(sensitivity='strict', min_jump=0.01\) on slt/llc/mean, StageDetector\(\) on"
        )
        with pytest.warns(UserWarning, match=told):
            second.load_state_dict(first.state_dict())
        assert second.found == first.found
        assert second.stages == first.stages, "the detector that is the same goes on"
        assert strict.sensitivity == "strict"
        assert math.isnan(strict.phi)

    def test_a_checkpoint_from_before_small_jumps_were_left_out_starts_afresh_with_a_warning(self) -> None:
        first, second = Watch(), Watch()
        fed(first, range(1, 31))
        before = json.loads(json.dumps(first.state_dict()).replace("min_jump=0.01", "min_jump=0.0"))
        with pytest.warns(UserWarning, match=r"start afresh: JumpDetector\(.*min_jump=0.01\) on slt/llc/mean\."):
            second.load_state_dict(before)
        assert second.found == first.found
        assert second.stages == first.stages

    def test_events_of_ones_own_survive_as_builtins_and_their_rows_as_they_were(self) -> None:
        first, second = (Watch({"slt/llc/reference_loss": EveryTenth()}) for _ in range(2))
        fed(first, range(1, 11), flat)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        crossing = {"type": "Crossing", "step": 10, "by": [1.0, 2.0]}
        assert [found.event for found in second.found] == [crossing, "at 10", {"step": 10}, repr(len)]
        at = {"key": "slt/llc/reference_loss", "detected_at": 10}
        rows = [at | crossing, at | {"type": "str", "event": "at 10"}, at | {"type": "dict", "step": 10}]
        assert [found.row() for found in second.found][:3] == [found.row() for found in first.found][:3] == rows


class TestWhatIsWatched:
    def test_a_jump_of_another_key_is_told_as_that_keys_and_not_as_the_llcs(self) -> None:
        seen: list[Any] = []
        sink = MemorySink()
        found = watched(
            observables={"llc": Planted(flat), "kernel": Planted(name="class_contrast")},
            detectors={"slt/kernel/class_contrast": JumpDetector()},
            on_event=[Alert(), lambda trainer, module, event: seen.append(event)],
            sinks=[sink],
        )
        told = r"Jump of a watched number: kernel's contrast of classes \(slt/kernel/class_contrast\) up by [45]"
        with pytest.warns(UserWarning, match=told):
            fit(found, max_steps=20)
        assert [(event.key, event.onset_step) for event in seen] == [("slt/kernel/class_contrast", JUMP_AT)]
        assert found.events == seen
        assert {one.scalars["slt/jump"] for one in sink.publications} == {0}
        assert {one.scalars["slt/stage"] for one in sink.publications} == {0}
        assert sink.report is not None
        assert [row["key"] for row in sink.report.rows] == ["slt/kernel/class_contrast"]
        labels = stage_figure(found.history, found.stages, found.events).axes[-1].get_legend_handles_labels()[1]
        assert not [label for label in labels if label.startswith("jump")]

    def test_the_first_llc_is_watched_whatever_its_key(self) -> None:
        sink = MemorySink()
        found = watched(observables={"kernel": LossKernel(), "finer": PlantedLLC(), "again": LLC()}, sinks=[sink])
        fit(found, max_steps=20)
        assert {event.key for event in found.events} == {"slt/finer/mean"}
        assert directions(found.events) == [1]
        assert [one.scalars["slt/jump"] for one in sink.publications].count(1) == 1
        assert sink.publications[-1].scalars["slt/stage"] == 1
        assert sink.publications[-1].scalars["slt/detection/phi"] > 0
        assert [stage.end_step for stage in found.stages] == [JUMP_AT - 1, 20]
        assert sink.report is not None
        assert sink.report.observable == "finer"

    def test_where_the_llc_is_not_watched_no_other_key_passes_for_it(self) -> None:
        watch = Watch({"slt/llc/mean": [], "slt/llc/reference_loss": [JumpDetector(), StageDetector()]})
        for step in range(1, 31):
            watch.update(measured(step, mean=0.0, reference_loss=planted(step)))
        assert directions([found.event for found in watch.found]) == [1]
        assert (watch.main, watch.stages, watch.scalars()) == (None, [], {})

    def test_reactions_without_anything_to_watch_are_pointed_out(self) -> None:
        with pytest.warns(UserWarning, match="`on_event` has nothing to react to .* no LLC is measured"):
            monitor(observables={"kernel": LossKernel()}, on_event=[Alert()])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            monitor(observables={"kernel": LossKernel()})
            monitor(
                observables={"kernel": LossKernel()},
                on_event=[Alert()],
                detectors={"slt/kernel/trace": JumpDetector()},
            )


class TestReactions:
    def test_every_reaction_gets_every_event_and_one_that_raises_does_not_end_training(self) -> None:
        seen: list[Any] = []

        def broken(*_: Any) -> None:
            raise RuntimeError("webhook is down")

        found = unwritten(on_event=[broken, lambda trainer, module, event: seen.append(event)])
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
        where = rf"between step {JUMP_AT} and {JUMP_AT + 1} \(z = "
        assert re.search(rf"LLC jump: slt/llc/mean up by [45]\.?\d* {where}", texts[0]), texts
        (text,) = [str(warning.message) for warning in caught if "New developmental stage" in str(warning.message)]
        told = rf"slt/llc/mean from plateau to plateau between step {JUMP_AT - 1} and {JUMP_AT}: -?0\.\d+ then, [45]"
        assert re.search(told, text), text
        assert re.search(r"now; changed most: LLC up [45]\.\d \(z \d+\)$", text), "the loss falls as it fell"

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
        files = Path(logger.save_dir) / "wandb" / "latest-run" / "files"
        assert table(files / tables[-1]["slt/events.path"]) == [
            {name: found.row().get(name) for name in EVENT_COLUMNS} for found in found_events._run.story._watch.found
        ]
        (changed,) = found_events.changes
        told = [asdict(stage) | {"changed_most": ""} for stage in found_events.stages]
        told[1]["changed_most"] = str(changed)
        assert table(files / tables[-1]["slt/stages.path"]) == told
        assert table(files / tables[-1]["slt/changes.path"]) == changed.rows()
        (news,) = [alert["text"] for alert in alerts if alert["title"] == "New developmental stage"]
        assert "; changed most: LLC up " in news
        (event,) = [event for event in found_events.events if isinstance(event, StageEvent)]
        assert news.endswith(event.changed_most)
        for row in tables:
            figure = files / row["slt/figure.path"]
            with Image.open(figure) as image:
                assert min(image.size) > 300
                assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50
        assert [row["slt/jump"] for row in rows if "slt/jump" in row].count(1) == 1

    def test_at_the_end_the_folder_holds_the_stages_the_events_and_their_figure(self, tmp_path: Path) -> None:
        found = watched()
        fit(found, max_steps=20, default_root_dir=tmp_path)
        assert {path.name for path in (tmp_path / "slt").iterdir()} == WRITTEN
        with (tmp_path / "slt" / "stages.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["type"], row["status"], int(row["start_step"])) for row in rows] == [
            (stage.type, "final", stage.start_step) for stage in found.stages
        ]
        events = json.loads((tmp_path / "slt" / "events.json").read_text())
        assert [event["direction"] for event in events if event["type"] == "JumpEvent"] == [1]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_interrupt_the_story_so_far_is_told(self, tmp_path: Path, error: type[BaseException]) -> None:
        class Stops(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
                if trainer.global_step == 20:
                    raise error

        sink = MemorySink()
        with pytest.raises((RuntimeError, SystemExit)):
            fit(watched(sinks=[sink, FileSink(tmp_path)]), Stops(), max_steps=30)
        assert sink.report is not None
        assert [stage.status for stage in sink.report.stages] == ["final", "final"]
        assert {path.name for path in tmp_path.iterdir()} == WRITTEN

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
        trainer = fit(unwritten(), max_steps=8)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        fit(watched(sinks=[memory]), max_steps=20, ckpt_path=str(tmp_path / "stopped.ckpt"))
        assert memory.report is not None
        assert [one.step for one in memory.report.history] == list(range(1, 21))
        assert [one["llc"]["mean"] for one in memory.report.history] == [planted(step) for step in range(1, 21)]
        assert all(stage.status == "final" for stage in memory.report.stages)
        whole = unwritten()
        fit(whole, max_steps=20)
        assert memory.report.changes == whole.changes != []

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
        found = unwritten(on_event=[reaction])
        fit(found, kept, max_steps=20, enable_checkpointing=True)
        (jump,) = [event for event in found.events if isinstance(event, JumpEvent)]
        files = {file.name for file in (tmp_path / "events").iterdir()}
        assert {f"step={jump.step}-jump.ckpt", "before-jump-step=10.ckpt"} <= files
        saved = torch.load(tmp_path / "events" / f"step={jump.step}-jump.ckpt", weights_only=True)
        assert saved["global_step"] == jump.step

    def test_the_step_in_a_checkpoint_counts_not_its_name(self, tmp_path: Path) -> None:
        names = {"filename": "weights-{step}", "auto_insert_metric_name": False}
        kept = ModelCheckpoint(tmp_path / "all", every_n_train_steps=1, save_top_k=-1, **names)
        (tmp_path / "all").mkdir()
        (tmp_path / "all" / "broken.ckpt").write_bytes(b"no checkpoint")
        fit(unwritten(on_event=[SaveCheckpoint(tmp_path / "events")]), kept, max_steps=20, enable_checkpointing=True)
        (before,) = (tmp_path / "events").glob("before-jump-*")
        assert torch.load(before, weights_only=True)["global_step"] == JUMP_AT - 1

    @pytest.mark.parametrize(
        ("filename", "name"),
        [("{epoch}/{step}", "before-jump-epoch=1-step=10.ckpt"), ("a/b/c-{step}", "before-jump-a-b-c-step=10.ckpt")],
    )
    def test_a_slash_in_the_name_of_a_checkpoint_makes_folders(self, filename: str, name: str, tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path / "all", every_n_train_steps=5, save_top_k=-1, filename=filename)
        fit(unwritten(on_event=[SaveCheckpoint(tmp_path / "events")]), kept, max_steps=20, enable_checkpointing=True)
        assert [file.name for file in (tmp_path / "events").glob("before-jump-*")] == [name]

    def test_the_checkpoints_of_another_lightning_are_found(self, tmp_path: Path) -> None:
        class Kept(pl.Callback):
            """As the class of ``pytorch_lightning`` is: of the same name, and no relative."""

            dirpath, monitor = str(tmp_path / "all"), None

            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                trainer.save_checkpoint(f"{self.dirpath}/{trainer.global_step}.ckpt")

        Kept.__name__ = "ModelCheckpoint"
        fit(unwritten(on_event=[SaveCheckpoint(tmp_path / "events")]), Kept(), max_steps=20)
        (before,) = (tmp_path / "events").glob("before-jump-*")
        assert torch.load(before, weights_only=True)["global_step"] == JUMP_AT - 1

    @pytest.mark.parametrize("folder", ["", "somewhere"])
    def test_copies_of_an_earlier_event_are_no_checkpoints_from_before(
        self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        tmp_path = tmp_path / folder
        kept = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        reaction = SaveCheckpoint(folder or tmp_path)
        found = unwritten(on_event=[reaction], observables={"llc": Planted(there_and_back)})
        fit(found, kept, max_steps=30, enable_checkpointing=True)
        names = {file.name for file in tmp_path.glob("before-*")}
        assert "before-jump-step=10.ckpt" in names
        assert not [name for name in names if name.count("before") > 1]

    def test_where_no_checkpoint_from_before_is_left_one_warning_says_so(self, tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path / "all", every_n_train_steps=1, save_top_k=1, filename="{step}")
        found = unwritten(on_event=[SaveCheckpoint(tmp_path / "events")], observables={"llc": Planted(there_and_back)})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(found, kept, max_steps=30, enable_checkpointing=True)
        told = [str(one.message) for one in caught if "none from before step" in str(one.message)]
        assert len(told) == 1
        assert "ModelCheckpoint(every_n_train_steps=..., save_top_k=-1)" in told[0]

    def test_a_folder_that_cannot_be_written_to_costs_the_checkpoints(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file where the folder should be")
        with pytest.warns(UserWarning, match=r"SaveCheckpoint.__call__ raised .* Training goes on"):
            trainer = fit(watched(on_event=[SaveCheckpoint(tmp_path / "taken")]), max_steps=20)
        assert trainer.global_step == 20

    def test_training_stops_after_the_nth_transition(self) -> None:
        trainer = fit(unwritten(on_event=[StopTraining()]), max_steps=30)
        assert trainer.global_step == JUMP_AT + 1
        with pytest.raises(ValueError, match="`after` to be a positive integer, but got 0"):
            StopTraining(after=0)

    @pytest.mark.parametrize("stop", [JUMP_AT + 1, 20])
    def test_a_jump_and_its_boundary_are_one_transition_which_a_resume_does_not_forget(
        self, tmp_path: Path, stop: int
    ) -> None:
        settings: dict[str, Any] = {"observables": {"llc": Planted(there_and_back)}, "sinks": []}
        first = watched(on_event=[StopTraining(after=2)], **settings)
        trainer = fit(first, max_steps=stop)
        assert trainer.global_step == stop
        assert directions(first.events) == [1]
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        second = watched(on_event=[StopTraining(after=2)], **settings)
        trainer = fit(second, max_steps=40, ckpt_path=str(tmp_path / "stopped.ckpt"))
        assert directions(second.events) == [1, -1]
        assert "announced" in [getattr(event, "kind", "") for event in second.events]
        assert trainer.global_step == BACK_AT + 1

    def test_a_boundary_counts_where_no_jump_is_near_and_it_was_not_withdrawn(self) -> None:
        jump = JumpEvent(13, 12, 1, 5.0, 9.0, onset_step=12, onset_index=11, key="slt/llc/mean")

        def boundary(kind: str, number: int, index: int, key: str = "slt/llc/mean") -> StageEvent:
            return StageEvent(kind, number, index, index + 1, key)

        assert num_transitions([jump, boundary("announced", 0, 11)]) == 1
        assert num_transitions([jump, boundary("announced", 0, 15)]) == 2
        assert num_transitions([jump, boundary("announced", 0, 11, "slt/kernel/trace")]) == 2
        assert num_transitions([boundary("announced", 0, 30), boundary("withdrawn", 0, 30)]) == 0
        assert num_transitions([boundary("announced", 0, 30), boundary("revised", 0, 31)]) == 1
        assert num_transitions([boundary("announced", 0, 30), "at 3", {"type": "Crossing"}]) == 3

    def test_a_spike_is_one_transition_and_its_return_is_told_as_such(self) -> None:
        jump = JumpEvent(13, 12, 1, 5.0, 9.0, onset_step=12, onset_index=11, key="slt/llc/mean")
        back = replace(jump, step=15, index=14, direction=-1, delta=-5.0, onset_step=14, onset_index=13, returns=True)
        assert num_transitions([jump, back]) == 1
        text = "slt/llc/mean down by 5 between step 14 and 15 (z = 9.0), back from the jump before"
        assert describe(back) == ("LLC jump", text)

    def test_what_is_watched_beside_the_llc_is_told_in_words(self) -> None:
        key = "slt/trajectory/distance/unigram"
        event = StageEvent("announced", 0, 6, 15, key, "plateau", "B", 10, 0.4678, 0.2661, "head1.1 up 0.16 (z 3.7)")
        text = f"distance to unigram ({key}) from B (down, loss down) to plateau between step 10 and 15: "
        text += "0.4678 then, 0.2661 now; changed most: head1.1 up 0.16 (z 3.7)"
        assert describe(event) == ("New stage of a watched number", text)
        jump = JumpEvent(13, 12, 1, 5.0, 9.0, onset_step=12, onset_index=11, key="slt/own/x")
        assert describe(jump) == (
            "Jump of a watched number",
            "own x (slt/own/x) up by 5 between step 12 and 13 (z = 9.0)",
        )

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

    @pytest.mark.parametrize("wrong", [Alert(), num_transitions, "alert", None])
    def test_a_reaction_that_is_in_no_list_is_refused(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"`on_event` to be a list of functions .*: write a list, such as \[Alert"):
            watched(on_event=wrong)

    @pytest.mark.parametrize("wrong", [MemorySink(), "memory"])
    def test_a_sink_that_is_in_no_list_is_refused(self, wrong: Any) -> None:
        with pytest.raises(TypeError, match=r"`sinks` to be a list of objects .*: write a list, such as \[MemorySink"):
            watched(sinks=wrong)

    def test_a_folder_that_is_no_path_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"`dirpath` to be the path of a folder, but got 3: write SaveCheckpoint"):
            SaveCheckpoint(3)  # type: ignore[arg-type]

    def test_an_event_of_ones_own_detector_keeps_the_weights_and_stops(self, tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path / "all", every_n_train_steps=4, save_top_k=-1, filename="{step}")
        found = unwritten(
            observables={"llc": Planted(flat)},
            detectors={"slt/llc/mean": Once()},
            on_event=[SaveCheckpoint(tmp_path / "events"), StopTraining()],
        )
        trainer = fit(found, kept, max_steps=20, enable_checkpointing=True)
        assert trainer.global_step == 10
        files = {file.name for file in (tmp_path / "events").iterdir()}
        assert files == {"step=10-event.ckpt", "before-event-step=8.ckpt"}

    @pytest.mark.parametrize("event", [FailureEvent(8, 3, "diverged"), StepSizeEvent(8, 2e-3, 1e-3)])
    def test_what_happens_to_the_sampler_is_no_transition(self, event: Any) -> None:
        trainer = pl.Trainer(barebones=True, accelerator="cpu")
        StopTraining()(trainer, pl.LightningModule(), event)
        assert not trainer.should_stop

    @pytest.mark.parametrize("stop", [JUMP_AT - 1, JUMP_AT, JUMP_AT + 1])
    def test_stopped_in_a_transition_and_resumed_everything_fires_once(self, tmp_path: Path, stop: int) -> None:
        fired: dict[str, list[Any]] = {"first": [], "second": [], "whole": []}

        def noting(name: str) -> Any:
            return watched(on_event=[lambda trainer, module, event: fired[name].append(event)], sinks=[])

        trainer = fit(noting("first"), max_steps=stop)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        second, whole = noting("second"), noting("whole")
        fit(second, max_steps=20, ckpt_path=str(tmp_path / "stopped.ckpt"))
        fit(whole, max_steps=20)
        assert len(fired["whole"]) > 1
        assert fired["first"] + fired["second"] == fired["whole"]
        assert second.events == whole.events
        assert second.stages == whole.stages


WRITTEN = {
    *("changes.csv", "events.json", "measurements.jsonl", "report.html", "settings.json", "stages.csv", "stages.png")
}
EVENT_COLUMNS = ["key", "detected_at", "type", *(JumpEvent.__dataclass_fields__ | StageEvent.__dataclass_fields__)]


def table(path: Path) -> list[dict[str, Any]]:
    """The rows of a W&B table."""
    content = json.loads(path.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
