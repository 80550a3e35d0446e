"""LightningCLI: the monitor from a YAML file, with its settings and reactions."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import SGLD, Dynamics, RMSPropSGLD, SLTMonitor
from tests.training import MONITOR_YAML, Regression, data, square_error

pytest.importorskip("jsonargparse", reason="the extra `cli` is not installed")

TRAINER = """
trainer:
  max_steps: 4
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  default_root_dir: {folder}
  callbacks:
"""


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        return DataLoader(data(), 8)


class Rows(TensorDataset):
    def __init__(self, size: int = 48) -> None:
        super().__init__(*data(size).tensors)


class Loader(DataLoader):  # type: ignore[type-arg]
    def __init__(self, size: int = 48) -> None:
        super().__init__(data(size))


class Slower(SGLD):
    """One's own, known by its class alone."""


def unannotated(module, batch):  # type: ignore[no-untyped-def]
    return square_error(module, batch)


class Scaled:
    def __call__(self, module, batch):  # type: ignore[no-untyped-def]
        return 2 * square_error(module, batch)


def from_yaml(folder: Path, old: str = "", new: str = "") -> SLTMonitor:
    """Train as the file says, with one thing in it replaced by another."""
    assert old in MONITOR_YAML
    (folder / "run.yaml").write_text(TRAINER.format(folder=folder) + MONITOR_YAML.replace(old, new, 1))
    cli = LightningCLI(Regression, Data, args=["fit", "--config", str(folder / "run.yaml")], save_config_callback=None)
    (watched,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, SLTMonitor)]
    assert [measurement.step for measurement in watched.history] == [2, 4]
    assert not any(measurement.failed for measurement in watched.history)
    return watched


def test_a_yaml_file_is_enough(tmp_path: Path) -> None:
    assert from_yaml(tmp_path)._asked.sampler.dynamics == SGLD(1e-4)


@pytest.mark.parametrize(
    ("class_path", "init_args", "dynamics"),
    [
        ("slt_callbacks.RMSPropSGLD", "{step_size: 1.0e-4, decay: 0.9}", RMSPropSGLD(1e-4, decay=0.9)),
        (f"{__name__}.Slower", "{step_size: 1.0e-4}", Slower(1e-4)),
    ],
)
def test_any_dynamics_of_a_class_keeps_its_class_and_its_settings(
    tmp_path: Path, class_path: str, init_args: str, dynamics: Dynamics
) -> None:
    default = "class_path: slt_callbacks.SGLD\n              init_args:\n                step_size: 1.0e-4"
    watched = from_yaml(tmp_path, default, f"class_path: {class_path}\n              init_args: {init_args}")
    assert watched._asked.sampler.dynamics == dynamics


@pytest.mark.parametrize("kind", ["Rows", "Loader"])
def test_a_reference_may_be_a_class_with_arguments(tmp_path: Path, kind: str) -> None:
    reference = f"reference: {{class_path: {__name__}.{kind}, init_args: {{size: 20}}}}"
    watched = from_yaml(tmp_path, "reference: null", reference)
    assert watched._run.samples.estimator is not None
    assert watched._run.samples.estimator.reference.source_size == 20


@pytest.mark.parametrize("loss_fn", ["unannotated", "Scaled"])
def test_a_loss_need_not_say_what_it_returns(tmp_path: Path, loss_fn: str) -> None:
    watched = from_yaml(tmp_path, "tests.training.square_error", f"{__name__}.{loss_fn}")
    assert watched._asked.loss_fn is unannotated or isinstance(watched._asked.loss_fn, Scaled)
