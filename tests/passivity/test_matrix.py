"""The matrix of `cases.py` and `others.py`, case by case; and that it would notice."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from slt_callbacks.weights.fork import Fork
from tests.passivity import __main__ as command
from tests.passivity.cases import CASES, Schedule
from tests.passivity.others import OTHERS
from tests.passivity.runs import Case, Comparison, compare, run
from tests.training import data

pytestmark = pytest.mark.filterwarnings("ignore")
SLOW = {"WandbLogger.watch", "torch.compile of a submodule"}


def params() -> list[Any]:
    return [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()]


@pytest.mark.parametrize("case", params())
def test_training_is_bit_identical(case: Case, tmp_path: Path) -> None:
    if case.needs_gpu:
        pytest.skip(case.needs_gpu)
    assert compare(case, tmp_path).problems == []


@pytest.mark.parametrize("comparing", OTHERS.values(), ids=OTHERS)
def test_training_started_otherwise_is_bit_identical(
    comparing: Callable[[Path], Comparison], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "YAML" in request.node.name:
        pytest.importorskip("jsonargparse", reason="the extra `cli` is not installed")
    assert comparing(tmp_path).problems == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("case", params())
def test_training_is_bit_identical_on_a_gpu(case: Case, tmp_path: Path) -> None:
    assert compare(case, tmp_path, "gpu").problems == []


def test_the_training_metrics_are_read_at_all(tmp_path: Path) -> None:
    run(Case(), False, tmp_path)
    (file,) = tmp_path.rglob("metrics.csv")
    assert file.read_text().count("\n") == 7, "a header and six steps"


def after_batches(do: Callable[[pl.Trainer, Any], Any]) -> Callable[[], list[pl.Callback]]:
    """A careless callback."""

    class Careless(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
            do(trainer, pl_module)

    return lambda: [Careless()]


@torch.no_grad()
def forwards(trainer: pl.Trainer, module: Any) -> None:
    """Looks at the live module in train mode, without a gradient and without a random number."""
    module.net[1](torch.ones(4, 8))


@torch.no_grad()
def nudges(trainer: pl.Trainer, module: Any) -> None:
    next(module.parameters()).mul_(1 + 1e-7)


class Reverses(pl.Callback):
    """Other batches from the same numbers of the same generators."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.train_dataloader.sampler.reverse()


def in_given_order() -> DataLoader[Any]:
    return DataLoader(data(), 8, sampler=list(range(48)))


@pytest.mark.parametrize(
    ("careless", "noticed", "case"),
    [
        (after_batches(lambda *_: torch.rand(())), {"weights", "generators", "generators at the end"}, {}),
        (after_batches(lambda *_: random.random()), {"generators", "generators at the end"}, {}),
        (after_batches(lambda *_: np.random.rand()), {"generators", "generators at the end"}, {}),
        (after_batches(forwards), {"buffers"}, {}),
        (after_batches(lambda _, module: module.eval()), {"modes"}, {}),
        (after_batches(nudges), {"weights", "optimizers"}, {}),
        (after_batches(lambda _, module: module.log("mine", 1.0)), {"logged"}, {}),
        (
            after_batches(lambda trainer, _: trainer.lr_scheduler_configs[0].scheduler.step()),
            {"schedulers", "weights", "optimizers"},
            {"module": Schedule},
        ),
        (lambda: [Reverses()], {"batches", "weights"}, {"loader": in_given_order}),
    ],
    ids=["torch", "random", "numpy", "a forward", "eval", "a nudge", "a metric", "a scheduler", "the order"],
)
def test_a_careless_callback_is_noticed(careless: Any, noticed: set[str], case: dict[str, Any], tmp_path: Path) -> None:
    plain = run(Case(**case), False, tmp_path / "plain").facts
    disturbed = run(Case(callbacks=careless, **case), False, tmp_path / "disturbed").facts
    different = {name for name in plain if plain[name] != disturbed[name]}
    assert noticed <= different
    assert not (case and "generators" in different), "the cause is another than a random number"


@pytest.mark.parametrize("name", ["BatchNorm and Dropout", "plug-ins that draw random numbers"])
def test_plug_ins_whose_random_numbers_were_not_isolated_are_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slt_callbacks.recording.guard.isolated_rng", lambda seed: nullcontext())
    assert "generators at the end" in compare(CASES[name], tmp_path).different


def test_frozen_parameters_that_were_shared_with_the_fork_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slt_callbacks.measuring.sharding.Fork", lambda module, *_: Fork(module))
    assert "weights" in compare(CASES["a frozen teacher that the training step moves"], tmp_path).different


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (Case(monitor={"schedule": lambda step: False}), "0 of 0 measurements succeeded"),
        (Case(measures=False), "6 of 6 measurements succeeded"),
        (Case(monitor={"detectors": {}}), "0 alerts for 6 events"),
        (Case(monitor={"sinks": []}), "no picture of the map and the stages"),
        (Case(expects={"validations": 1}), "validations: 0 instead of 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_comparison_that_says_nothing_is_noticed(case: Case, problem: str, tmp_path: Path) -> None:
    assert problem in compare(case, tmp_path).problems


def test_the_command_prints_a_line_a_case_and_fails_with_one_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(folder: Path) -> Comparison:
        raise OSError("no such file")

    cases = {"good": Case(), "skipped": Case(needs_gpu="too small"), "idle": Case(measures=False)}
    monkeypatch.setattr(command, "CASES", cases)
    monkeypatch.setattr(command, "OTHERS", {"other": partial(compare, Case()), "broken": breaks})
    monkeypatch.setattr("logging.disable", lambda level: None)  # it would last
    assert command.main([]) == 1
    good, skipped, idle, other, broken, summary = capsys.readouterr().out.splitlines()[-6:]
    for name, line in {"good": good, "other": other}.items():
        assert line.split()[:2] == [name, "identical"]
        assert "6 of 6 measurements" in line
    assert "skipped: too small" in skipped
    assert "6 of 6 measurements succeeded" in idle
    assert "OSError: no such file" in broken
    assert summary == "2 of 4 runs are bit-identical with and without the monitor; 1 skipped."
    monkeypatch.setattr(command, "CASES", {"good": Case()})
    monkeypatch.setattr(command, "OTHERS", {})
    assert command.main([]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_command_says_that_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--accelerator", "gpu"])
    assert "there is no GPU here" in capsys.readouterr().err
