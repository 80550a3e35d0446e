"""The matrix of `cases.py`, case by case; and that it would notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from slt_callbacks import SLTMonitor
from tests.passivity.cases import CASES, interrupted
from tests.passivity.runs import Case, compare, run


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.filterwarnings("ignore")
def test_training_is_bit_identical(case: Case, tmp_path: Path) -> None:
    different, watched = compare(case, tmp_path)
    assert different == []
    assert watched.history
    if case.measures is not None:
        assert {not measurement.failed for measurement in watched.history} == {case.measures}


def test_the_training_metrics_are_read_at_all(tmp_path: Path) -> None:
    run(Case(), False, tmp_path)
    (file,) = tmp_path.rglob("metrics.csv")
    assert file.read_text().count("\n") == 7, "a header and six steps"


@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_in_the_middle_of_a_measurement_leaves_what_one_at_the_same_step_leaves(tmp_path: Path) -> None:
    with_monitor, without = interrupted()
    expected, _ = run(without, False, tmp_path / "without")
    found, watched = run(with_monitor, True, tmp_path / "with")
    assert expected["steps"] == 2
    # The metrics and the order of that very batch come after the callback that is interrupted.
    for name in ("weights", "buffers", "modes", "optimizers", "generators at the end", "steps"):
        assert found[name] == expected[name], name
    assert watched is not None
    assert watched.history == []


class Draws(pl.Callback):
    def on_train_batch_end(self, *_: Any) -> None:
        torch.rand(())


class Forwards(pl.Callback):
    """Looks at the live module in train mode, without a gradient and without a random number."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        with torch.no_grad():
            pl_module.net[1](torch.ones(4, 8))


class Evaluates(pl.Callback):
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.eval()


class Nudges(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        with torch.no_grad():
            next(pl_module.parameters()).mul_(1 + 1e-7)


class Logs(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        pl_module.log("mine", 1.0)


@pytest.mark.parametrize(
    ("careless", "noticed"),
    [
        (Draws, {"weights", "batches and generators", "generators at the end"}),
        (Forwards, {"buffers"}),
        (Evaluates, {"modes"}),
        (Nudges, {"weights", "optimizers"}),
        (Logs, {"logged"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore")
def test_a_careless_callback_is_noticed(careless: type[pl.Callback], noticed: set[str], tmp_path: Path) -> None:
    plain, _ = run(Case(), False, tmp_path / "plain")
    disturbed, _ = run(Case(callbacks=lambda: [careless()]), False, tmp_path / "disturbed")
    assert noticed <= {name for name in plain if plain[name] != disturbed[name]}


def test_a_monitor_that_did_not_isolate_its_random_numbers_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SLTMonitor, "_attempt", _disturbed(SLTMonitor._attempt))
    different, _ = compare(Case(), tmp_path)
    assert "generators at the end" in different


def _disturbed(attempt: Any) -> Any:
    def attempt_and_draw(*arguments: Any) -> Any:
        torch.rand(())
        return attempt(*arguments)

    return attempt_and_draw


def test_a_trainer_of_the_package_pytorch_lightning_works() -> None:
    code = (
        "import pytorch_lightning as other\n"
        "from slt_callbacks import SLTMonitor\n"
        "from tests.training import Regression, data, square_error\n"
        "from torch.utils.data import DataLoader\n"
        "import torch\n"
        "class Net(other.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Linear(3, 1)\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        return self.net(batch[0]).square().mean()\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), lr=0.1)\n"
        "monitor = SLTMonitor(data(), lambda m, b: m.net(b[0])[:, 0] ** 2, every_n_train_steps=2,\n"
        "                     max_overhead=None)\n"
        "trainer = other.Trainer(max_steps=4, callbacks=[monitor], logger=False, accelerator='cpu',\n"
        "                        enable_checkpointing=False, enable_progress_bar=False)\n"
        "trainer.fit(Net(), DataLoader(data(), 8))\n"
        "print('measured', len(monitor.history))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "measured 2" in done.stdout, done.stderr
