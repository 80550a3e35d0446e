"""Replay: the measurements and the detection of a run that is over, from its checkpoints."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image

import slt_callbacks
from slt_callbacks import Estimator, JumpDetector, Measurement, SamplerConfig, replay_checkpoints
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.replay import source as source_module
from slt_callbacks.replay.command import main
from slt_callbacks.weights import checkpoints as checkpoints_module
from tests import ready
from tests.callbacks.replay_project import Oddity, Sized
from tests.callbacks.test_watch import JUMP_AT, Planted, table, watched
from tests.sinks.test_sinks import read_run
from tests.training import QUICK, Regression, data, fit, monitor, square_error

ROOT = Path(slt_callbacks.__file__).parents[1]
SETTINGS = ["--num-chains", "2", "--num-draws", "8", "--num-burnin-steps", "4", "--no-progress"]
SETTINGS += ["--dynamics", "SGLD", "--batch-size", "null"]
PATHS = ["--module", "tests.training.Regression", "--reference", "tests.training.data"]
SHORT = SamplerConfig(num_chains=1, num_draws=2, num_burnin_steps=0)
LOSS = ["--loss-fn", "tests.training.square_error"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Measurement]]:
    """Checkpoints of a run at steps 2, 4, 6 and 8, and what a monitor measured there while it trained."""
    folder = tmp_path_factory.mktemp("run")
    live = monitor()
    kept = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    fit(live, kept, max_steps=8, enable_checkpointing=True)
    return folder, live.history


@pytest.fixture
def saved(run: tuple[Path, list[Measurement]]) -> list[Path]:
    return sorted(run[0].glob("*.ckpt"))


@pytest.fixture
def whole(run: tuple[Path, list[Measurement]]) -> list[Measurement]:
    return run[1]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def replayed(paths: Any, **settings: Any) -> list[Measurement]:
    settings = {"loss_fn": square_error, "sampler": QUICK, "output": "out", "progress": False} | settings
    return replay_checkpoints(paths, settings.pop("module", Regression), settings.pop("reference", data()), **settings)


def command(*arguments: Any) -> int:
    return main(["replay", *PATHS, *LOSS, *SETTINGS, "--output", "out", *map(str, arguments)])


def assert_equal(found: list[Measurement], expected: list[Measurement]) -> None:
    assert [measurement.step for measurement in found] == [measurement.step for measurement in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.error == other.error
        for observable in ("llc", "health"):
            assert one[observable].keys() == other[observable].keys()
            for name, value in other[observable].items():
                same = torch.equal(torch.as_tensor(one[observable][name]), torch.as_tensor(value))
                assert same or (isinstance(value, float) and math.isnan(value)), (one.step, observable, name)


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def planted_checkpoints(folder: Path, steps: range) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"net-step={step}.pt" for step in steps]
    for path in paths:
        torch.save(Regression().state_dict(), path)
    return paths


class TestMeasurements:
    def test_they_are_those_of_the_monitor_at_the_same_steps(self, saved: list[Path], whole: list[Measurement]) -> None:
        assert len(whole) == 4
        assert_equal(replayed(saved), whole)

    def test_they_are_those_of_an_estimator_whose_chains_go_on(self, saved: list[Path]) -> None:
        estimator = Estimator(draw_reference(data()), square_error, None, QUICK, seed=5, persistent=True)
        expected = []
        for path, step in zip(saved, (2, 4, 6, 8), strict=True):
            module = Regression()
            module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
            expected.append(estimator.measure(module, step))
        found = replayed(saved, seed=5)
        assert_equal(found, expected)
        cold = Estimator(draw_reference(data()), square_error, None, QUICK, seed=5).measure(module, 8)
        assert cold["llc"]["mean"] != found[-1]["llc"]["mean"], "chains that begin anew give other numbers"

    def test_a_folder_or_files_in_any_order_are_measured_in_the_order_of_steps(
        self, saved: list[Path], whole: list[Measurement]
    ) -> None:
        assert_equal(replayed(saved[::-1]), whole)
        assert_equal(replayed([saved[0].parent], output="other"), whole)

    def test_state_dicts_with_the_step_in_their_names_and_arguments_given_will_do(self, tmp_path: Path) -> None:
        for step in (30, 4):
            torch.save(Sized(5).state_dict(), tmp_path / f"net_step={step}.pt")
        found = replayed(tmp_path.glob("*.pt"), module=Sized, init_args={"width": 5})
        assert [measurement.step for measurement in found] == [4, 30]
        assert all(math.isfinite(measurement["llc"]["mean"]) for measurement in found)

    def test_the_callers_random_numbers_are_left_alone(self, saved: list[Path]) -> None:
        before = torch.get_rng_state()
        replayed(saved[:1])
        assert torch.equal(torch.get_rng_state(), before)

    def test_every_setting_of_the_command_line_arrives(self, saved: list[Path]) -> None:
        settings = "--nbeta 3 --localization 7 --step-size 1e-4 --batch-size 16 --num-samples 20 --seed 4"
        project = "tests.callbacks.replay_project"
        more = ["--observables", f"{project}.two_observables", "--refinements", f"{project}.last_layer"]
        assert command(saved[0], *settings.split(), *more) == 0
        (row,) = rows("out/measurements.csv")
        named = {name: float(row[f"slt/health/{name}"]) for name in ("nbeta", "localization", "step_size")}
        assert named == {"nbeta": 3, "localization": 7, "step_size": 1e-4}
        assert row["slt/llc/mean"] == row["slt/again/mean"]
        assert row["slt/llc/last/mean"] == row["slt/again/last/mean"] != row["slt/llc/mean"]
        state = torch.load("out/state/state.pt", weights_only=True)["settings"]
        wanted = {"batch_size": 16, "seed": 4, "num_chains": 2, "num_draws": 8, "num_burnin_steps": 4}
        assert wanted.items() <= state.items()
        assert state["reference"].startswith("20 samples")


class TestOutput:
    def test_the_tables_hold_the_measurements_the_jump_and_the_stages(self, tmp_path: Path) -> None:
        live = watched()
        fit(live, max_steps=20)
        replayed(planted_checkpoints(tmp_path / "saved", range(1, 21)), observables={"llc": Planted()}, sampler=SHORT)
        table = rows("out/measurements.csv")
        assert [int(row["slt/step"]) for row in table] == list(range(1, 21))
        assert float(table[-1]["slt/llc/mean"]) == live.history[-1]["llc"]["mean"]
        assert [row["slt/jump"] for row in table].count("1") == 1
        events = json.loads(Path("out/events.json").read_text())
        (jump,) = [event for event in events if event["type"] == "JumpEvent"]
        assert (jump["onset_step"], jump["direction"]) == (JUMP_AT, 1)
        assert len(events) == len(live.events)
        stages = rows("out/stages.csv")
        changes = [boundary.rows() for boundary in live.changes]
        assert rows("out/changes.csv") == [{name: str(row[name]) for name in row} for one in changes for row in one]
        assert [event.get("changed_most") for event in events] == [
            getattr(event, "changed_most", None) for event in live.events
        ]
        assert [(row["type"], row["status"], int(row["start_step"])) for row in stages] == [
            (stage.type, "final", stage.start_step) for stage in live.stages
        ]
        with Image.open("out/stages.png") as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50

    def test_what_was_found_is_printed_and_in_the_tables_of_wandb(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        paths = planted_checkpoints(tmp_path / "saved", range(1, 21))
        observables = ["--observables", "tests.callbacks.replay_project.planted_llc"]
        assert command(*paths, *observables, "--wandb-project", "tests") == 0
        printed = capsys.readouterr().out.splitlines()
        assert f"Jump of slt/llc/mean up at step {JUMP_AT}" in printed
        number = r"-?\d\.\d+"
        assert re.fullmatch(rf"Stage 0: plateau, steps 1 to {JUMP_AT - 1}, from {number} to {number}", printed[-2])
        assert re.fullmatch(rf"Stage 1: plateau, steps {JUMP_AT} to 20, from {number} to {number}", printed[-1])
        (file,) = Path("out").glob("wandb/offline-run-*/run-*.wandb")
        last = [r["history"]["item"] for r in read_run(file) if r["type"] == "history"][-1]
        found = {
            kind: table(file.parent / "files" / last[f"slt/{kind}.path"]) for kind in ("events", "stages", "changes")
        }
        assert [(row["step"], row["name"]) for row in found["changes"]] == [(JUMP_AT, "LLC"), (JUMP_AT, "loss")]
        for kind in ("events", "stages"):  # at the announcement, and in the end
            assert found[kind][1]["changed_most"].startswith("LLC up 5.0 (z 4")
        assert [row["type"] for row in found["events"]] == ["JumpEvent", "StageEvent"]
        assert [row["onset_step"] for row in found["events"]] == [JUMP_AT, None]
        assert [(row["start_step"], row["end_step"]) for row in found["stages"]] == [(1, JUMP_AT - 1), (JUMP_AT, 20)]
        assert Path(file.parent / "files" / last["slt/figure.path"]).is_file()

    def test_wandb_gets_one_row_a_checkpoint_and_goes_on_in_the_same_run(
        self, saved: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        assert command(*saved[:2], "--wandb-project", "tests") == 0
        assert command(*saved, "--wandb-project", "tests") == 0
        files = sorted(Path("out").glob("wandb/offline-run-*/run-*.wandb"))
        steps, ids = [], set()
        for file in files:
            found = read_run(file)
            steps += [r["history"]["item"]["slt/step"] for r in found if r["type"] == "history"]
            ids |= {r["run"]["run_id"] for r in found if r["type"] == "run"}
        assert sorted(steps) == [2, 4, 6, 8]
        assert ids == {Path("out/state/wandb_run_id").read_text()}

    def test_a_progress_bar_counts_checkpoints(self, saved: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
        replayed(saved[:2], progress=True)
        shown = capsys.readouterr().err
        assert "Replay: 100%" in shown
        assert "2/2" in shown
        assert "Step 4" in shown


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that were loaded, in order."""
    names: list[str] = []
    real = checkpoints_module.load_module

    def counting(module: Any, path: Path, *rest: Any) -> Any:
        names.append(path.name)
        return real(module, path, *rest)

    monkeypatch.setattr(source_module, "load_module", counting)
    return names


class TestAveraging:
    def test_the_weights_that_training_goes_on_with_are_measured_and_not_their_average(self, tmp_path: Path) -> None:
        live, kept = monitor(), ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        fit(live, EMAWeightAveraging(decay=0.9), kept, enable_checkpointing=True)
        paths = sorted(tmp_path.glob("*.ckpt"))
        averaged = torch.load(paths[-1], weights_only=True)
        assert not torch.equal(averaged["state_dict"]["net.0.weight"], averaged["current_model_state"]["net.0.weight"])
        assert_equal(replayed(paths), live.history)


class TestResume:
    def test_a_finished_step_is_not_measured_again_and_the_rest_is_as_without_the_stop(
        self, saved: list[Path], whole: list[Measurement], loaded: list[str]
    ) -> None:
        replayed(saved[:2])
        assert_equal(replayed(saved), whole)
        assert loaded == [path.name for path in saved]
        assert len(rows("out/measurements.csv")) == 4
        assert_equal(replayed(saved), whole)
        assert len(loaded) == 4

    def test_stopped_in_a_transition_the_events_are_those_of_the_whole(self, tmp_path: Path) -> None:
        paths = planted_checkpoints(tmp_path / "saved", range(1, 21))
        planted: dict[str, Any] = {"observables": {"llc": Planted()}, "sampler": SHORT}
        replayed(paths, output="whole", **planted)
        assert "JumpEvent" in Path("whole/events.json").read_text()
        for stop in (JUMP_AT, JUMP_AT + 1):
            output = f"stopped at {stop}"
            replayed(paths[:stop], output=output, **planted)
            replayed(paths, output=output, **planted)
            for name in ("events.json", "stages.csv", "changes.csv"):
                assert Path(output, name).read_text() == Path("whole", name).read_text()

    def test_killed_in_the_middle_it_goes_on(self, saved: list[Path], whole: list[Measurement], tmp_path: Path) -> None:
        paths = ["--module", "tests.callbacks.replay_project.Killed", *PATHS[2:], *LOSS, *SETTINGS]
        arguments = ["replay", *map(str, saved), *paths, "--output", str(tmp_path / "out")]
        environment = {**os.environ, "KILLED_AT": "6", "OMP_NUM_THREADS": "1"}
        done = ready.run(["-m", "slt_callbacks", *arguments], ready.ROOT, environment, timeout=60)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert [row["slt/step"] for row in rows("out/measurements.csv")] == ["2", "4"]
        assert main(arguments) == 0
        assert [row["slt/step"] for row in rows("out/measurements.csv")] == ["2", "4", "6", "8"]
        for row, expected in zip(rows("out/measurements.csv"), whole, strict=True):
            assert float(row["slt/llc/mean"]) == expected["llc"]["mean"]

    def test_a_step_killed_while_it_is_written_is_not_finished(
        self, saved: list[Path], whole: list[Measurement], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.replace

        def full_disk(source: Any, target: Any) -> None:
            if Path(target).name == "state.pt" and Path("out/state/measurement-00000004.pt").is_file():
                raise OSError("No space left on device")
            real(source, target)

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            replayed(saved)
        monkeypatch.setattr(os, "replace", real)
        assert_equal(replayed(saved), whole)

    def test_other_settings_or_other_samples_are_refused(self, saved: list[Path]) -> None:
        replayed(saved[:1])
        with pytest.raises(ValueError, match=r"replay in out to go on .* `seed` was 0 and is 1: give another `output`"):
            replayed(saved, seed=1)
        with pytest.raises(ValueError, match=r"`reference` was 48 samples .* and is 40 samples"):
            replayed(saved, reference=data(40))
        changed = data()
        changed.tensors[0][3, 1] += 1
        with pytest.raises(ValueError, match=r"`reference` was 48 samples .* and is 48 samples"):
            replayed(saved, reference=changed)

    def test_other_detectors_see_what_was_measured_and_nothing_is_measured_again(
        self, tmp_path: Path, loaded: list[str]
    ) -> None:
        paths = planted_checkpoints(tmp_path / "saved", range(1, 21))
        planted: dict[str, Any] = {"observables": {"llc": Planted()}, "sampler": SHORT}
        blind = {"slt/llc/mean": JumpDetector(min_jump=1e9)}
        replayed(paths[:16], detectors=blind, **planted)
        assert "JumpEvent" not in Path("out/events.json").read_text()
        strict = {"slt/llc/mean": JumpDetector("strict")}
        replayed(paths[:16], detectors=strict, **planted)
        assert len(loaded) == 16
        (jump,) = [event for event in json.loads(Path("out/events.json").read_text()) if event["type"] == "JumpEvent"]
        assert (jump["onset_step"], jump["preset"]) == (JUMP_AT, "strict")
        assert [row["slt/jump"] for row in rows("out/measurements.csv")].count("1") == 1
        replayed(paths, detectors=strict, **planted)
        replayed(paths, detectors=strict, output="whole", **planted)
        for name in ("events.json", "stages.csv", "changes.csv"):
            assert Path("out", name).read_text() == Path("whole", name).read_text()

    def test_a_checkpoint_from_before_the_last_finished_one_is_left_out(self, saved: list[Path]) -> None:
        replayed([saved[0], saved[2]])
        with pytest.warns(
            UserWarning, match=r"step=4.ckpt is left out: step 4 lies before step 6, .* another `output`"
        ):
            found = replayed(saved)
        assert [measurement.step for measurement in found] == [2, 6, 8]


class TestBadInput:
    def test_a_broken_checkpoint_is_reported_and_the_others_are_measured(
        self, saved: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(saved[0].parent, "saved")
        broken, other = Path("saved/step=4.ckpt"), Path("saved/step=6.ckpt")
        broken.write_bytes(broken.read_bytes()[:500])
        torch.save({**torch.load(other, weights_only=True), "state_dict": {}}, other)
        assert command("saved") == 1
        told = capsys.readouterr().err
        assert "step=4.ckpt is left out: it cannot be read" in told
        assert "step=6.ckpt is left out: its weights do not fit the module" in told
        assert [row["slt/step"] for row in rows("out/measurements.csv")] == ["2", "8"]

    def test_weights_that_cannot_be_measured_give_a_row_of_nan(
        self, saved: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = torch.load(saved[1], weights_only=True)
        content["state_dict"]["net.0.weight"].fill_(math.nan)
        torch.save(content, "diverged.ckpt")
        assert command(saved[0], "diverged.ckpt", saved[2]) == 1
        table = rows("out/measurements.csv")
        assert [math.isnan(float(row["slt/llc/mean"])) for row in table] == [False, True, False]
        assert "not finite at the fork" in table[1]["error"]
        assert "The measurement at step 4 failed: the loss or its gradient" in capsys.readouterr().err

    def test_objects_in_a_checkpoint_are_read_only_when_it_is_trusted(self, saved: list[Path]) -> None:
        content = {**torch.load(saved[0], weights_only=True), "hyper_parameters": {}, "extra": Oddity()}
        torch.save(content, "odd.ckpt")
        with (
            pytest.warns(UserWarning, match="odd.ckpt is left out: it cannot be read as tensors .* `--trust`"),
            pytest.raises(ValueError, match="none of the 1 can be used"),
        ):
            replayed(["odd.ckpt"])
        (found,) = replayed(["odd.ckpt"], trust=True)
        assert found.step == 2

    def test_arguments_that_were_not_saved_are_asked_for(self) -> None:
        torch.save(Sized(5).state_dict(), "step=1.pt")
        with pytest.warns(UserWarning, match=r"step=1.pt is left out: the module cannot be made .* pass --init-args"):
            assert replayed(["step=1.pt"], module=Sized) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["gone.ckpt"], "Expected checkpoints that exist, but there is no file gone.ckpt"),
            (["empty"], "Expected empty to hold .ckpt files, but it has none"),
            (["plain.pt"], "none of the 1 can be used; the first: it holds no `global_step`, and its name no step"),
            (["list-step=1.pt"], r"it holds a list: save `module\.state_dict\(\)`"),
            (["a-step=3.pt", "b-step=3.pt"], "a-step=3.pt and b-step=3.pt are both of step 3: leave one out"),
            (["a-step=3.pt", "--module", "no_such.Net"], "--module .* no module to import in `no_such.Net`"),
            (["a-step=3.pt", "--module", "Regression"], "--module .* such as package.module.name"),
            (
                ["a-step=3.pt", "--module", "tests.training.Regresion"],
                "--module to name something in `tests.training`, but it has no `Regresion`: it has Regression,",
            ),
            (
                ["a-step=3.pt", "--module", "needy.Net"],
                "Importing `needy` for --module failed: No module named 'absent'",
            ),
            (
                ["a-step=3.pt", "--module", "tests.training.fit"],
                "`module` to be a class of LightningModule or nn.Module",
            ),
            (["a-step=3.pt", "--reference", "tests.training.QUIET"], "Expected `reference` to be a list of batches"),
            (["a-step=3.pt", "--num-samples", "99"], "Expected `num_samples` to be at most the 48 samples"),
            (["a-step=3.pt", "--num-draws", "0"], "Expected `num_draws` to be a positive integer, but got 0"),
            (["a-step=3.pt", "--step-size", "small"], "expected a number or \"auto\", but got 'small'"),
            (["a-step=3.pt", "--init-args", "{"], "expected JSON such as"),
            (["a-step=3.pt", "--init-args", "[1]"], r"expected a JSON object such as .*, but got '\[1\]'"),
            (["a-step=3.pt", "--loss", "tests.training.fingerprint"], "`loss_fn` raised"),
            (["a-step=3.pt", "--device", "abacus"], "Expected `device` to name a device such as"),
        ],
    )
    def test_the_message_says_what_to_write(
        self,
        arguments: list[str],
        message: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        Path("empty").mkdir()
        Path("needy.py").write_text("import absent\n")
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("plain.pt", "a-step=3.pt", "b-step=3.pt"):
            torch.save(Regression().state_dict(), name)
        torch.save([1], "list-step=1.pt")
        with pytest.raises(SystemExit, match="2"):
            main(["replay", *PATHS, *LOSS, *SETTINGS, "--output", "out", *arguments])
        told = " ".join(capsys.readouterr().err.split())
        assert re.search(message, told), told

    def test_an_empty_list_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Expected at least one checkpoint, but got none"):
            replayed([])

    def test_an_error_of_the_users_own_code_keeps_its_traceback(self, saved: list[Path]) -> None:
        with pytest.raises(ValueError, match="the disk with the data is not mounted"):
            command(saved[0], "--reference", "tests.callbacks.replay_project.raising")
