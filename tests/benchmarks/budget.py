"""Whether `max_overhead` is kept in a real run of more than a minute, by a clock of its own around the callback."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from slt_callbacks import SGLD, SamplerConfig, SLTMonitor
from tests.benchmarks.models import Transformer, token_losses, token_rows
from tests.benchmarks.rows import Row

_SECONDS, _LIMIT = 75.0, 0.05


def rows() -> list[Row]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    timed = Timed(
        [token_rows(64)],
        token_losses,
        # The first measurement always runs: it has to be small beside the 5 % of a run this short.
        sampler=SamplerConfig(SGLD(1e-5), num_chains=2, num_draws=16, num_burnin_steps=16, batch_size=4),
        every_n_train_steps=10,
        max_overhead=_LIMIT,
        sinks=[],
    )
    training, _ = train(_Language(), DataLoader(token_rows(4096), 16), timed, _SECONDS)
    share, told = timed.spent / training, timed.history[-1]["cost"]
    note = (
        f"{training:.0f} s of training, {len(timed.history)} measurements, {told['skipped']:.0f} skipped by then; "
        f"the monitor itself says {100 * told['overhead']:.2f} %"
    )
    kept = abs(share - _LIMIT) <= 0.01
    return [Row("overhead with max_overhead=0.05", 100 * share, "%", "5 +- 1", kept, note)]


def train(module: pl.LightningModule, loader: DataLoader[Any], timed: Timed, seconds: float) -> tuple[float, int]:
    """A run of so many seconds in all; returns those of training alone, and its steps."""
    trainer = pl.Trainer(
        max_time={"seconds": seconds},
        callbacks=[timed],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    return time.perf_counter() - start - timed.spent, trainer.global_step


class Timed(SLTMonitor):
    """A monitor, and the seconds that training has waited for it."""

    spent = 0.0

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        start = time.perf_counter()
        super().on_train_batch_end(*arguments, **named)
        self.spent += time.perf_counter() - start


class _Language(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Transformer()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.net(tokens)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return token_losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
