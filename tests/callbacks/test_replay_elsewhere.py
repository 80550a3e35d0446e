"""Replay with checkpoints measured at once: cold chains, step order, resumable, a lost worker costs a retry."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from slt_callbacks import LLC, LossKernel, Measurement, replay_checkpoints
from slt_callbacks.executors.inline import InlineExecutor
from slt_callbacks.replay.command import main
from tests.digests import digest, files_in
from tests.executors.conftest import _within_its_time  # noqa: F401
from tests.executors.workers import elsewhere
from tests.training import QUICK, Regression, data, square_error

STEPS = (2, 4, 6, 8, 10)
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("saved")
    for step in STEPS:
        torch.manual_seed(step)
        torch.save(Regression().state_dict(), folder / f"step={step}.pt")
    return sorted(folder.glob("*.pt"))


def replayed(saved: list[Path], output: Path, executor: Any, **options: Any) -> list[Measurement]:
    settings = {"observables": {"llc": LLC(), "kernel": LossKernel()}, "sampler": QUICK, "progress": False} | options
    return replay_checkpoints(saved, Regression, data(), square_error, output=output, executor=executor, **settings)


def found(measurements: list[Measurement]) -> str:
    return digest([[one.step, one.results, one.error] for one in measurements])


@pytest.fixture(scope="module")
def whole(saved: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """What this process finds where each measurement stands alone."""
    folder = tmp_path_factory.mktemp("whole")
    measurements = replayed(saved, folder, InlineExecutor())
    assert [one.step for one in measurements] == list(STEPS)
    return found(measurements), files_in(folder)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_however_many_workers_the_numbers_and_the_files_are_the_same(
    num_workers: int, saved: list[Path], whole: tuple[str, Any], tmp_path: Path
) -> None:
    measurements = replayed(saved, tmp_path, elsewhere(num_workers=num_workers, max_pending=2, looks=2))
    assert (found(measurements), digest(files_in(tmp_path))) == (whole[0], digest(whole[1]))


def test_each_checkpoint_is_measured_as_if_it_were_the_only_one(saved: list[Path], tmp_path: Path) -> None:
    together = replayed(saved, tmp_path / "all", elsewhere(num_workers=2))
    for place, path in enumerate(saved):
        (alone,) = replayed([path], tmp_path / path.stem, None)
        (same,) = [one for one in together if one.step == alone.step]
        assert digest(same["llc"]) == digest(alone["llc"]), place


def test_called_again_it_goes_on(saved: list[Path], whole: tuple[str, Any], tmp_path: Path) -> None:
    first = [path for path in saved if path.stem in ("step=2", "step=4")]
    assert [one.step for one in replayed(first, tmp_path, elsewhere(num_workers=2))] == [2, 4]
    executor = elsewhere(num_workers=2)
    measurements = replayed(saved, tmp_path, executor)
    assert found(measurements) == whole[0]
    assert sorted(step for _, step in (told for told in executor._workers.told if told[0] in (0, 1))) == [6, 8, 10]


def test_a_lost_worker_costs_its_checkpoint_one_retry(
    saved: list[Path], whole: tuple[str, Any], tmp_path: Path
) -> None:
    executor = elsewhere(num_workers=2, loses=[1, 3])
    assert found(replayed(saved, tmp_path, executor)) == whole[0]
    assert executor._workers.told.count((0, 4)) + executor._workers.told.count((1, 4)) == 2


def test_a_checkpoint_that_ends_two_workers_has_failed(saved: list[Path], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="The measurement at step 4 failed: WorkerLostError"):
        measurements = replayed(saved, tmp_path, elsewhere(num_workers=2, loses=[1, 1]))
    assert [one.step for one in measurements if one.failed] == [4]
    assert len(measurements) == len(STEPS)


def test_chains_that_go_on_and_cold_ones_are_two_replays(saved: list[Path], tmp_path: Path) -> None:
    replayed(saved[:1], tmp_path, None)
    with pytest.raises(ValueError, match="`chains` was None and is cold: give another `output`"):
        replayed(saved, tmp_path, elsewhere())


def test_what_cannot_be_pickled_is_refused_before_a_worker_is_started(saved: list[Path], tmp_path: Path) -> None:
    executor = elsewhere()
    with pytest.raises(TypeError, match="Expected `loss_fn` to be something that another process can be given"):
        replay_checkpoints(
            saved,
            Regression,
            data(),
            lambda m, b: square_error(m, b),
            output=tmp_path,
            progress=False,
            executor=executor,
        )
    assert executor._workers.told == []
    with pytest.raises(TypeError, match="Expected `executor` to be an object with `open`"):
        replayed(saved, tmp_path, "ray")


class TestTheCommand:
    """The extra `cli`."""

    def arguments(self, saved: list[Path], output: Path) -> list[str]:
        paths = ["--module", "tests.training.Regression", "--reference", "tests.training.data"]
        quick = ["--num-chains", "2", "--num-draws", "8", "--num-burnin-steps", "4", "--no-progress"]
        quick += ["--dynamics", "SGLD", "--batch-size", "null", "--loss-fn", "tests.training.square_error"]
        return ["replay", *map(str, saved), *paths, *quick, "--output", str(output)]

    @pytest.fixture(autouse=True)
    def _extra(self) -> None:
        pytest.importorskip("jsonargparse", reason="the extra `cli` is not installed")

    def test_two_processes_find_what_this_one_finds(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = self.arguments(saved, tmp_path / "beside")
        assert main([*arguments, "--executor", "process", "--workers", "2"]) == 0
        assert "2 workers measure; the chains of each checkpoint start cold" in capsys.readouterr().out
        alone = replayed(saved, tmp_path / "here", InlineExecutor(), observables=None)
        rows = (tmp_path / "beside" / "measurements.csv").read_text().splitlines()
        names, first = rows[0].split(","), rows[1].split(",")
        assert [row.split(",")[names.index("slt/step")] for row in rows[1:]] == [str(step) for step in STEPS]
        assert float(first[names.index("slt/llc/mean")]) == alone[0]["llc"]["mean"]

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            (["--workers", "2"], "argument --workers: expected --executor with it, such as ray, but got 2 alone"),
            (["--executor", "dask"], "invalid choice: 'dask'"),
            (["--executor", "process", "--workers", "0"], "`num_workers` to be an integer of at least 1, but got 0"),
        ],
    )
    def test_wrong_options_are_refused(
        self, extra: list[str], message: str, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main([*self.arguments(saved, tmp_path), *extra])
        assert message in capsys.readouterr().err

    def test_without_ray_it_says_what_to_install(
        self, saved: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
        with pytest.raises(SystemExit):
            main([*self.arguments(saved, tmp_path), "--executor", "ray"])
        assert "pip install 'slt-callbacks[ray]'" in capsys.readouterr().err
