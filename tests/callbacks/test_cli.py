"""LightningCLI: the monitor from a YAML file, with its settings and reactions."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from slt_callbacks import SGLD, SLTMonitor
from tests.training import Regression, data

pytest.importorskip("jsonargparse", reason="the extra `cli` is not installed")

YAML = """
trainer:
  max_steps: 4
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: slt_callbacks.SLTMonitor
      init_args:
        reference: null
        loss_fn: tests.training.square_error
        num_samples: 16
        every_n_train_steps: 2
        max_overhead: null
        sampler:
          class_path: slt_callbacks.SamplerConfig
          init_args:
            num_chains: 2
            num_draws: 4
            num_burnin_steps: 2
            dynamics:
              class_path: slt_callbacks.SGLD
              init_args:
                step_size: 1.0e-4
        on_event:
          - class_path: slt_callbacks.Alert
"""


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        return DataLoader(data(), 8)


def test_a_yaml_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(YAML + f"  default_root_dir: {tmp_path}\n")
    cli = LightningCLI(
        Regression, Data, args=["fit", "--config", str(tmp_path / "run.yaml")], save_config_callback=None
    )
    (watched,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, SLTMonitor)]
    assert [measurement.step for measurement in watched.history] == [2, 4]
    assert isinstance(watched._sampler.dynamics, SGLD)
    assert not any(measurement.failed for measurement in watched.history)
