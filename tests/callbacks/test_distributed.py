"""Two CPU processes: the chains are split, the numbers are those of one, and nobody waits for ever."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 120  # seconds until a run counts as hanging


def ranks(strategy: str, devices: int, mood: str, folder: Path) -> list[dict[str, Any]]:
    folder = folder / f"{strategy}-{devices}-{mood}"
    folder.mkdir()
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
    assert [rank["weights"] for rank in found] == [rank["weights"] for rank in plain]


@pytest.mark.slow
def test_without_a_reference_the_first_batches_are_those_of_rank_0_and_a_stop_is_everybodys(tmp_path: Path) -> None:
    first, second = ranks("ddp", 2, "seen", tmp_path)
    assert first["steps"] == second["steps"] == [2, 4, 6]
    assert first["llc"] == second["llc"]
    assert None not in first["llc"]
    for rank in ranks("ddp", 2, "stops", tmp_path):
        assert rank["global_step"] == 2
