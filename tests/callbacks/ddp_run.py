"""Run alone: train on CPU processes with the monitor in one of its moods, and write what each rank found.

python -m tests.callbacks.ddp_run STRATEGY DEVICES MOOD FOLDER
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from slt_callbacks import LLC, LossKernel, SamplerConfig, SLTMonitor, StopTraining
from tests.training import QUIET, Regression, data, monitor, square_error

CHAINS = SamplerConfig(num_chains=4, num_draws=16, num_burnin_steps=32, engine="sequential")


class LayerRegression(Regression):
    """BatchNorm's averages would differ from one process to two, and the comparison is of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = torch.nn.LayerNorm(8)
        self.net[3] = torch.nn.Identity()


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


class Fails:
    """A loss function that raises on rank 1 after so many calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.calls += 1
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1 and self.calls == 30:
            raise ValueError("corrupt sample")
        return square_error(module, batch)


class StopsAtOnce:
    """A detector that finds something at once."""

    def update(self, step: int, value: float) -> str:
        return "found"


def stop(trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
    trainer.should_stop = True


MOODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fails": {"loss_fn": Fails()},
    "seen": {"reference": None, "num_samples": 8},
    "stops": {"detectors": {"slt/llc/std": StopsAtOnce()}, "on_event": [stop, StopTraining()]},
}


def watch(mood: str) -> SLTMonitor:
    settings = {"sampler": CHAINS, "num_samples": 16, "observables": {"llc": LLC(), "kernel": LossKernel()}}
    return monitor(**(settings | MOODS[mood]))


def run(strategy: str, devices: int, mood: str, folder: Path) -> None:
    torch.manual_seed(0)
    module = LayerRegression() if mood == "plain" else Regression()
    watched = None if mood == "without" else watch(mood)
    trainer = pl.Trainer(
        max_steps=6,
        strategy=strategy,
        devices=devices,
        callbacks=[Report(folder), *([] if watched is None else [watched])],
        use_distributed_sampler=mood != "plain",  # the same batches on every rank: the weights of one process
        **QUIET,
    )
    trainer.fit(module, DataLoader(data(), 8))


class Report(pl.Callback):
    """Writes in the process itself: what ddp_spawn's processes find is lost with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watched = next((c for c in trainer.callbacks if isinstance(c, SLTMonitor)), None)
        history = [] if watched is None else watched.history
        weights = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        found = {
            "rank": trainer.global_rank,
            "global_step": trainer.global_step,
            "steps": [measurement.step for measurement in history],
            "llc": [number(measurement["llc"]["mean"]) for measurement in history],
            "trace": [number(measurement["kernel"]["trace"]) for measurement in history],
            "errors": [measurement.error for measurement in history],
            "sgld_steps": [measurement["cost"]["sgld_steps"] for measurement in history],
            "logged": number(float(trainer.callback_metrics.get("slt/llc/mean", math.nan))),
            "weights": weights.double().sum().item(),
        }
        # A file for each: lines that two processes print may run into one another.
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
