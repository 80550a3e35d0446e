"""Run alone: train on two CPU processes with and without the monitor, and write what each rank found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from tests.training import QUIET, Regression, data, monitor


def run(with_monitor: bool, folder: Path) -> None:
    torch.manual_seed(0)
    module, watched = Regression(), monitor(num_samples=16)
    callbacks = [watched] if with_monitor else []
    trainer = pl.Trainer(max_steps=4, strategy="ddp", devices=2, callbacks=callbacks, **QUIET)
    trainer.fit(module, DataLoader(data(), 4))
    weights = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    found = {
        "rank": trainer.global_rank,
        "steps": [measurement.step for measurement in watched.history],
        "llc": [measurement["llc"]["mean"] for measurement in watched.history],
        "logged": float(trainer.callback_metrics.get("slt/llc/mean", "nan")),
        "weights": weights.double().sum().item(),
    }
    # A file for each: lines that two processes print may run into one another.
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run(sys.argv[1] == "with", Path(sys.argv[2]))
