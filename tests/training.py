"""Small Lightning runs that the tests of the upper floors share."""

from __future__ import annotations

import hashlib
import tempfile
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import SGLD, SamplerConfig, SLTMonitor

QUICK = SamplerConfig(SGLD(), batch_size=None, num_chains=2, num_draws=8, num_burnin_steps=4)
_FOLDER = tempfile.TemporaryDirectory()  # what runs without a logger leave behind
QUIET: dict[str, Any] = {
    "default_root_dir": _FOLDER.name,
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


MONITOR_YAML = """
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
"""A quick monitor among the callbacks of a LightningCLI's trainer; a test replaces what it is about."""


class Regression(pl.LightningModule):
    """BatchNorm and Dropout, which a careless monitor would disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1), nn.Flatten(0)
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        loss = (self.net(inputs) - targets).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def square_error(module: Regression, batch: list[torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    return (module.net(inputs) - targets).square()


def data(size: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(size, 3, generator=generator)
    return TensorDataset(inputs, inputs.prod(1))


def monitor(reference: Any = "data", **settings: Any) -> SLTMonitor:
    """A quick monitor; every trigger and setting may be given."""
    triggers = ("every_n_train_steps", "every_n_epochs", "train_time_interval", "schedule")
    if not any(trigger in settings for trigger in triggers):
        settings["every_n_train_steps"] = 2
    settings = {"loss_fn": square_error, "sampler": QUICK, "max_overhead": None} | settings
    return SLTMonitor(data() if isinstance(reference, str) else reference, **settings)


def fit(
    *callbacks: pl.Callback,
    module: pl.LightningModule | None = None,
    ckpt_path: str | None = None,
    batch_size: int = 8,
    **settings: Any,
) -> pl.Trainer:
    """Train a fresh, seeded module on the shuffled data."""
    torch.manual_seed(0)
    module = Regression() if module is None else module
    trainer = pl.Trainer(callbacks=list(callbacks), **({"max_steps": 6} | QUIET | settings))
    trainer.fit(module, DataLoader(data(), batch_size, shuffle=True), ckpt_path=ckpt_path)
    return trainer


def fingerprint(trainer: pl.Trainer) -> str:
    """A hash of everything training has made: weights, buffers, optimizers, and the state of the global generator."""
    digest = hashlib.sha256()
    for tensor in trainer.lightning_module.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    for optimizer in trainer.optimizers:
        for state in optimizer.state_dict()["state"].values():
            digest.update(b"".join(v.numpy().tobytes() for v in state.values() if isinstance(v, torch.Tensor)))
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()
