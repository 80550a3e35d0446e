"""FSDP2 on two CPU processes: the numbers are those of the whole module, and training is as without the monitor."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ready
from tests.callbacks import sharded_run
from tests.processes import unseeded
from tests.training import data

PATIENCE = 240  # seconds until the run counts as hanging

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has found; all fits run in the same two, whose start is what takes long."""
    folder = tmp_path_factory.mktemp("sharded")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = ["-m", "tests.callbacks.sharded_run", "2", port, str(folder)]
    done = ready.run(arguments, ready.ROOT, unseeded(), PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
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


def test_in_place_the_loss_at_the_fork_is_that_of_the_whole_module(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        of_rank = rank["in_place"]
        assert (of_rank["errors"], of_rank["failed_chains"]) == ([None, None], [0, 0])
        assert of_rank["reference_loss"] == rank["gathered"]["reference_loss"]
        assert len(of_rank["refined"]) == len(of_rank["trace"]) == 2
    for key in ("llc", "refined", "trace", "sgld_steps"):
        assert ranks[0]["in_place"][key] == ranks[1]["in_place"][key], "all ranks go by what rank 0 has seen"


def test_in_place_the_llc_is_the_known_one(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """Of 15 weights at the bottom of a bowl, whose curvatures nbeta and localization turn into an LLC."""
    inputs = data().tensors[0].double()
    curvatures = torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs)).repeat(5)
    nbeta, localization = 20.0, 5.0
    llc = float((nbeta * curvatures / (2 * (nbeta * curvatures + localization))).sum())
    alone = sharded_run.known(1, tmp_path)
    for rank in ranks:
        known = rank["known"]
        assert known["llc"][0] == pytest.approx(llc, abs=4 * max(known["stderr"], 0.15))
        assert known["step_size"] == pytest.approx(alone["step_size"], rel=0.05)


def test_in_place_sums_over_the_weights_are_those_of_a_whole_copy(ranks: list[dict[str, Any]]) -> None:
    noise = {rank["sums"][on].pop("noise") for rank in ranks for on in ("copy", "shards")}
    assert len(noise) == 3, "that of the copy, and one of each rank's own"
    for rank in ranks:
        assert rank["sums"]["shards"] == pytest.approx(rank["sums"]["copy"], rel=1e-4)
        assert 0.1 < rank["sums"]["copy"]["acceptance"] < 1.0, "or a wrong one could look alike"


IN_PLACE = ["in_place", "diverges", "raises_before", "raises_after", "breaks", "strays"]


@pytest.mark.parametrize("part", IN_PLACE)
def test_weights_and_optimizer_states_are_bit_identical_whatever_chains_on_the_shards_meet(
    part: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        assert rank[part]["steps"] == [2, 4]
        assert rank[part]["fingerprint"] == rank["plain"]["fingerprint"]


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("raises_before", "RankFailedError: rank 1: ValueError: corrupt sample"),
        ("raises_after", "RankFailedError: rank 0: ValueError: corrupt sample"),
        ("breaks", "RankFailedError: rank 1: ValueError: corrupt sample"),
        ("strays", "RankFailedError: rank 0: OutOfStepError: another process has failed, or asked for something else"),
    ],
)
def test_what_one_rank_meets_costs_every_rank_one_measurement(
    part: str, error: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        first, second = rank[part]["errors"]
        assert first.startswith(error)
        assert second is None
        assert rank[part]["sgld_steps"] == [0, 12]


def test_where_all_chains_diverge_every_rank_says_so(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["diverges"]["failed_chains"] == [2, 2]
        assert all(error.startswith("all 2 chains diverged") for error in rank["diverges"]["errors"])


def test_ctrl_c_on_one_rank_ends_all_with_the_weights_of_the_step(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["interrupted"]["raised"] == "KeyboardInterrupt"
        assert rank["interrupted"]["measured"] == 0
        assert rank["interrupted"]["fingerprint"] == rank["until_step_2"]["fingerprint"]


def test_a_resumed_run_measures_what_is_left_with_chains_that_begin_anew(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        resumed = rank["resumed"]
        assert (resumed["steps"], resumed["errors"], resumed["sgld_steps"]) == ([4], [None], [12])
        assert resumed["fingerprint"] == resumed["without"]
        assert resumed["whole"]["fingerprint"] == rank["plain"]["fingerprint"]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("slices", "Expected whole parameters where chains run on shards"),
        ("behavioral", "Expected a loss of the batch where chains run on shards"),
        ("fork", "Expected observables of draws where chains run on shards"),
        ("vectorized", 'Expected `engine` to be "sequential" or "auto"'),
        ("training_step", "Expected a `loss_fn`, or a method `per_sample_loss"),
    ],
)
def test_what_shards_do_not_allow_is_refused_before_training(
    asked: str, answer: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        assert answer in rank["refused"]["told"][asked]
        assert 'sharded="gathered"' in rank["refused"]["told"][asked]
