"""FSDP2 on two CPU processes: the numbers are those of the whole module, and training is as without the monitor."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks import sharded_run

PATIENCE = 240  # seconds until the run counts as hanging

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found; all fits run in the same two, whose start is what takes long."""
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "tests.callbacks.sharded_run"]
    started = [
        subprocess.Popen(
            [*command, str(rank), "2", port, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=PATIENCE)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(told)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_gathered_the_numbers_are_those_of_the_whole_module(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = sharded_run.gathered(1, tmp_path)
    for rank in ranks:
        of_rank = rank["gathered"]
        assert of_rank["errors"] == [None, None]
        assert (of_rank["steps"], of_rank["sgld_steps"]) == (alone["steps"], alone["sgld_steps"])
        for key in ("llc", "reference_loss", "refined", "trace"):
            assert of_rank[key] == pytest.approx(alone[key], rel=1e-4), key


def test_gathered_a_training_step_may_read_its_trainer(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = sharded_run.of_training_step(1, tmp_path)
    for rank in ranks:
        assert rank["of_training_step"]["errors"] == [None, None]
        assert rank["of_training_step"]["llc"] == pytest.approx(alone["llc"], rel=1e-4)


@pytest.mark.parametrize(("part", "without"), [("gathered", "plain"), ("of_training_step", "plain_of_training_step")])
def test_training_is_bit_identical(part: str, without: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank[part]["fingerprint"] == rank[without]["fingerprint"]
