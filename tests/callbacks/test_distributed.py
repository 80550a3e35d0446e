"""Two CPU processes: the chains are split, the numbers are those of one, and nobody waits for ever."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PATIENCE = 120  # seconds until a run counts as hanging


def ranks(strategy: str, devices: int, mood: str, folder: Path) -> list[dict[str, Any]]:
    folder = folder / f"{strategy}-{devices}-{mood}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.callbacks.ddp_run", strategy, str(devices), mood, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_find_what_one_finds(strategy: str, tmp_path: Path) -> None:
    (alone,) = ranks("auto", 1, "plain", tmp_path)
    first, second = ranks(strategy, 2, "plain", tmp_path)
    assert first["steps"] == alone["steps"] == [2, 4, 6]
    for key in ("llc", "trace"):
        assert first[key] == second[key] == pytest.approx(alone[key], rel=1e-4)
    assert first["logged"] == second["logged"] == pytest.approx(first["llc"][-1])
    assert first["sgld_steps"] == alone["sgld_steps"], "the steps of all ranks are counted"


@pytest.mark.slow
def test_a_loss_that_raises_on_one_rank_costs_one_measurement_and_training_is_as_without_the_monitor(
    tmp_path: Path,
) -> None:
    found, plain = ranks("ddp", 2, "fails", tmp_path), ranks("ddp", 2, "without", tmp_path)
    for rank in found:
        assert rank["steps"] == [2, 4, 6]
        assert rank["errors"] == ["RankFailedError: rank 1: ValueError: corrupt sample", None, None]
        assert rank["llc"][0] is None
        assert None not in rank["llc"][1:]
    assert found[0]["llc"] == found[1]["llc"]
    assert [rank["fingerprint"] for rank in found] == [rank["fingerprint"] for rank in plain]


@pytest.mark.slow
def test_a_loss_that_answers_otherwise_on_one_rank_costs_one_measurement_and_nobody_waits(tmp_path: Path) -> None:
    found, plain = ranks("ddp", 2, "disagrees", tmp_path), ranks("ddp", 2, "without", tmp_path)
    for rank in found:
        assert rank["steps"] == [2, 4, 6]
        assert "not finite at the fork" in rank["errors"][0]
        assert rank["errors"][1:] == [None, None]
    (told,) = [text for text in found[0]["warned"] if "Every measurement will fail until this is mended" in text]
    assert "rank 1: LossFnError: `loss_fn` raised ValueError" in told
    assert [rank["fingerprint"] for rank in found] == [rank["fingerprint"] for rank in plain]


@pytest.mark.slow
def test_without_a_reference_the_first_batches_are_those_of_rank_0(tmp_path: Path) -> None:
    first, second = ranks("ddp", 2, "seen", tmp_path)
    assert first["steps"] == second["steps"] == [2, 4, 6]
    assert first["llc"] == second["llc"]
    assert None not in first["llc"]


@pytest.mark.slow
def test_an_alert_is_sent_once_the_weights_are_saved_once_and_a_stop_is_everybodys(tmp_path: Path) -> None:
    found = ranks("ddp", 2, "reacts", tmp_path)
    assert [sum("slt/llc/std up by 5" in text for text in rank["warned"]) for rank in found] == [1, 0]
    (file,) = (tmp_path / "ddp-2-reacts" / "events").iterdir()
    assert (file.name, torch.load(file, weights_only=True)["global_step"]) == ("step=2-jump.ckpt", 2)
    assert [rank["global_step"] for rank in found] == [2, 2]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_leaves_no_rank_waiting(tmp_path: Path) -> None:
    (tmp_path / "ddp-2-cannot save").mkdir()
    (tmp_path / "ddp-2-cannot save" / "taken").write_text("a file where the folder should be")
    found = ranks("ddp", 2, "cannot save", tmp_path)
    assert [sum("SaveCheckpoint.__call__ raised" in text for text in rank["warned"]) for rank in found] == [1, 0]
    assert [rank["global_step"] for rank in found] == [6, 6]
    assert found[0]["steps"] == found[1]["steps"] == [2, 4, 6]
