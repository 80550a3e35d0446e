"""What a first minute shows: five lines, every default, a model as people train it; by a clock of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.budget import Timed, train
from tests.benchmarks.real_models import RECIPES, Recipe
from tests.benchmarks.rows import Row

_SECONDS, _WANTED = 66.0, 20


def rows() -> Iterator[Row]:
    """A minute each."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, recipe in RECIPES.items():
        yield from _run(name, recipe)


def _run(name: str, recipe: Recipe) -> Iterator[Row]:
    data = TensorDataset(*recipe.data())
    monitor = Timed(data, recipe.loss_fn, every_n_train_steps=50, sinks=[])
    training, steps = train(_Trained(recipe), DataLoader(data, 64, shuffle=True), monitor, _SECONDS)
    good = [one for one in monitor.history if not one.failed]
    share = monitor.spent / training
    seconds = [one["cost"]["seconds"] for one in good]
    note = (
        f"{training:.0f} s of training, {steps} steps; a measurement takes {min(seconds):.2f} to {max(seconds):.2f} s"
    )
    yield Row(f"a minute of {name}: share", 100 * share, "%", "10 +- 1", abs(share - 0.1) <= 0.01, note)
    agree = sum(one["health"]["rhat"] < 1.05 for one in good)
    note = f"R-hat < 1.05 in {agree}; {monitor.history[-1]['cost']['skipped']:.0f} left out"
    yield Row(f"a minute of {name}: measurements", len(good), "", f">= {_WANTED}", len(good) >= _WANTED, note)


class _Trained(pl.LightningModule):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.recipe = recipe.make(), recipe

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(inputs)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.recipe.loss_fn(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.recipe.lr)
