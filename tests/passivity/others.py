"""Runs that are started in another way than the cases of `cases.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import LLC, LossKernel, SLTMonitor
from tests.passivity.cases import TRIED
from tests.passivity.runs import (
    Case,
    Comparison,
    Fires,
    Run,
    Watcher,
    facts,
    is_alert,
    judge,
    make_monitor,
    run,
    seed_all,
)
from tests.training import MONITOR_YAML, Regression, data, square_error

YAML = """
seed_everything: 0
trainer:
  max_steps: 6
  accelerator: cpu
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  default_root_dir: {folder}
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args:
      save_dir: {folder}
  callbacks:
    - class_path: tests.passivity.runs.Watcher
"""
MONITOR = (
    MONITOR_YAML.replace("slt_callbacks.SLTMonitor", "tests.passivity.others.Configured").replace(
        "every_n_train_steps: 2", "every_n_train_steps: 1"
    )
    + "          - tests.passivity.runs.draw_from_all\n"
)


class Configured(SLTMonitor):
    """jsonargparse takes no plug-ins that are known by their methods alone: they are given in a class of one's own."""

    def __init__(self, **settings: Any) -> None:
        kinds = {"llc": LLC(), "kernel": LossKernel()}
        super().__init__(observables=kinds, detectors={"slt/llc/std": Fires()}, **settings)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(), 8, shuffle=True)


def from_yaml(with_monitor: bool, folder: Path) -> Any:
    """Train as a YAML file says; returns the LightningCLI."""
    from lightning.pytorch.cli import LightningCLI

    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "run.yaml"
    config.write_text(YAML.format(folder=folder) + (MONITOR if with_monitor else ""))
    return LightningCLI(Regression, Data, args=["fit", "--config", str(config)], save_config_callback=None)


def with_pytorch_lightning(with_monitor: bool, folder: Path) -> Any:
    """Train with the package's twin, whose classes are others; returns the trainer."""
    import pytorch_lightning as twin

    class Net(twin.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1), nn.Flatten(0)
            )

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = square_error(self, batch).mean()
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    seed_all()
    trainer = twin.Trainer(
        max_steps=6,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        logger=CSVLogger(folder),
        callbacks=[Watcher(), *([make_monitor(Case())] if with_monitor else [])],
    )
    trainer.fit(Net(), DataLoader(data(), 8, shuffle=True))
    return trainer


def _as_run(trainer: Any, folder: Path, alerts: int) -> Run:
    watcher = next(callback for callback in trainer.callbacks if isinstance(callback, Watcher))
    watched = next((callback for callback in trainer.callbacks if isinstance(callback, SLTMonitor)), None)
    pictures = frozenset(path.stem.partition("-")[0] for path in folder.rglob("*.png"))
    return Run(facts(trainer, trainer.lightning_module, watcher), watched, alerts, pictures)


def _compared(train: Callable[[bool, Path], Any], folder: Path) -> Comparison:
    def once(with_monitor: bool, where: Path) -> Run:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = train(with_monitor, where)
        return _as_run(trainer, where, sum(is_alert(str(warning.message)) for warning in caught))

    return judge(once(False, folder / "without"), once(True, folder / "with"), Case())


def compare_from_yaml(folder: Path) -> Comparison:
    """LightningCLI, with and without the monitor in the file."""
    return _compared(lambda with_monitor, where: from_yaml(with_monitor, where).trainer, folder)


def compare_with_pytorch_lightning(folder: Path) -> Comparison:
    """A Trainer of the package pytorch_lightning."""
    return _compared(with_pytorch_lightning, folder)


class Interrupts:
    """Ctrl-C in the middle of the first measurement."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.calls += len(batch[0]) > TRIED
        if self.calls == 5:
            raise KeyboardInterrupt
        return square_error(module, batch)


class StopHere(pl.Callback):
    """Ends the run without the monitor where the interrupt ends the other."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            raise KeyboardInterrupt


def compare_interrupted(folder: Path) -> Comparison:
    """A run that is interrupted within a measurement, and one that ends at the same step without a monitor."""
    without = run(Case(callbacks=lambda: [StopHere()]), False, folder / "without")
    having = run(Case(loss_fn=Interrupts(), monitor={"every_n_train_steps": 2}), True, folder / "with")
    # The metrics and the digests of that very batch come after the callback that is interrupted.
    later = {"logged", "batches", "generators"}
    facts_of_both = without.facts.keys() - later
    different = [name for name in sorted(facts_of_both) if without.facts[name] != having.facts[name]]
    problems = [f"differs in {', '.join(different)}"] if different else []
    if without.facts["steps"] != 2 or having.watched is None or having.watched.history:
        problems.append("the measurement was not interrupted")
    return Comparison(different, problems, without, having)


OTHERS: dict[str, Callable[[Path], Comparison]] = {
    "an interrupt in the middle of a measurement": compare_interrupted,
    "LightningCLI from YAML": compare_from_yaml,
    "a Trainer of pytorch_lightning": compare_with_pytorch_lightning,
}
