"""Two CPU processes: the chains are split, the numbers are those of one, and nobody waits for ever."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ready
from tests.callbacks import ddp_run
from tests.processes import unseeded

pytestmark = pytest.mark.slow

PATIENCE = 180  # seconds until the processes count as hanging
MOODS = ("plain", "without", "fails", "disagrees", "seen", "reacts", "cannot save")
Found = dict[str, Any]


def launched(strategy: str, folder: Path, *moods: str) -> None:
    """One run a mood, all in one pair of processes: these take most of the time to start."""
    arguments = ["-m", "tests.callbacks.ddp_run", strategy, "2", str(folder), *moods]
    done = ready.run(arguments, ready.ROOT, unseeded(), PATIENCE)
    assert done.returncode == 0, done.stderr


def ranks(folder: Path, mood: str, size: int = 2) -> list[Found]:
    return [json.loads((folder / mood / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One process: this one."""
    folder = tmp_path_factory.mktemp("alone")
    with warnings.catch_warnings():
        ddp_run.run("auto", 1, folder, "plain")
    (found,) = ranks(folder, "plain", 1)
    return found


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    (folder / "cannot save").mkdir()
    (folder / "cannot save" / "taken").write_text("a file where the folder should be")
    launched("ddp", folder, *MOODS)
    return folder


def check_that_two_find_what_one_finds(folder: Path, alone: Found) -> None:
    first, second = ranks(folder, "plain")
    assert first["steps"] == alone["steps"] == [2, 4, 6]
    for key in ("llc", "trace", "distance"):
        assert first[key] == second[key] == pytest.approx(alone[key], rel=1e-4)
    assert first["explained"] == second["explained"]
    assert first["explained"][0] is alone["explained"][0] is None, "a single row has no components"
    assert first["explained"][1:] == pytest.approx(alone["explained"][1:], rel=1e-4)
    assert first["logged"] == second["logged"] == pytest.approx(first["llc"][-1])
    assert first["sgld_steps"] == alone["sgld_steps"], "the steps of all ranks are counted"


def test_two_processes_find_what_one_finds(ddp: Path, alone: Found) -> None:
    check_that_two_find_what_one_finds(ddp, alone)


def test_two_spawned_processes_do_too(tmp_path: Path, alone: Found) -> None:
    launched("ddp_spawn", tmp_path, "plain")
    check_that_two_find_what_one_finds(tmp_path, alone)


def test_a_loss_that_raises_on_one_rank_costs_one_measurement_and_training_is_as_without_the_monitor(
    ddp: Path,
) -> None:
    found, plain = ranks(ddp, "fails"), ranks(ddp, "without")
    for rank in found:
        assert rank["steps"] == [2, 4, 6]
        assert rank["errors"] == ["RankFailedError: rank 1: ValueError: corrupt sample", None, None]
        assert rank["llc"][0] is None
        assert None not in rank["llc"][1:]
    assert found[0]["llc"] == found[1]["llc"]
    assert [rank["fingerprint"] for rank in found] == [rank["fingerprint"] for rank in plain]


def test_a_loss_that_answers_otherwise_on_one_rank_costs_one_measurement_and_nobody_waits(ddp: Path) -> None:
    found, plain = ranks(ddp, "disagrees"), ranks(ddp, "without")
    for rank in found:
        assert rank["steps"] == [2, 4, 6]
        assert "not finite at the fork" in rank["errors"][0]
        assert rank["errors"][1:] == [None, None]
    (told,) = [text for text in found[0]["warned"] if "Every measurement will fail until this is mended" in text]
    assert "rank 1: LossFnError: `loss_fn` raised ValueError" in told
    assert [rank["fingerprint"] for rank in found] == [rank["fingerprint"] for rank in plain]


def test_without_a_reference_the_first_batches_are_those_of_rank_0(ddp: Path) -> None:
    first, second = ranks(ddp, "seen")
    assert first["steps"] == second["steps"] == [2, 4, 6]
    assert first["llc"] == second["llc"]
    assert None not in first["llc"]


def test_an_alert_is_sent_once_the_weights_are_saved_once_and_a_stop_is_everybodys(ddp: Path) -> None:
    found = ranks(ddp, "reacts")
    assert [sum("(slt/llc/std) up by 5" in text for text in rank["warned"]) for rank in found] == [1, 0]
    (file,) = (ddp / "reacts" / "events").iterdir()
    assert (file.name, torch.load(file, weights_only=True)["global_step"]) == ("step=2-jump.ckpt", 2)
    assert [rank["global_step"] for rank in found] == [2, 2]


def test_a_checkpoint_that_cannot_be_written_leaves_no_rank_waiting(ddp: Path) -> None:
    found = ranks(ddp, "cannot save")
    assert [sum("SaveCheckpoint.__call__ raised" in text for text in rank["warned"]) for rank in found] == [1, 0]
    assert [rank["global_step"] for rank in found] == [6, 6]
    assert found[0]["steps"] == found[1]["steps"] == [2, 4, 6]
