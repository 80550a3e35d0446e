"""Run alone: train on CPU processes with the monitor in its moods, one after the other, and write what each rank found.

python -m tests.callbacks.ddp_run STRATEGY DEVICES FOLDER MOOD ...
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from slt_callbacks import (
    LLC,
    Alert,
    JumpEvent,
    LossKernel,
    SamplerConfig,
    SaveCheckpoint,
    SLTMonitor,
    StopTraining,
    TrajectoryPCA,
)
from tests.training import QUIET, Regression, data, fingerprint, monitor, square_error

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


class Disagrees:
    """On rank 1 alone: raises when it is first tried, and is NaN at the first fork; the batches of a fork are whole."""

    def __init__(self) -> None:
        self.tried = self.measured = 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        whole = len(batch[0]) == 16
        self.tried += not whole
        self.measured += whole
        other = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        if other and not whole and self.tried == 1:
            raise ValueError("no such column")
        return square_error(module, batch) * (math.nan if other and whole and self.measured == 1 else 1.0)


class JumpsAt:
    """A detector that finds a jump at a certain step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, step: int, value: float) -> JumpEvent | None:
        return JumpEvent(step, 1, 1, 5.0, 9.0, onset_step=step, onset_index=1) if step == self.step else None


def reacting(*reactions: Any) -> dict[str, Any]:
    return {"detectors": {"slt/llc/std": JumpsAt(2)}, "on_event": reactions}


def mooded(mood: str, folder: Path) -> dict[str, Any]:
    """The settings of a mood."""
    moods: dict[str, dict[str, Any]] = {
        "plain": {},
        "fails": {"loss_fn": Fails()},
        "disagrees": {"loss_fn": Disagrees()},
        "seen": {"reference": None, "num_samples": 8},
        "reacts": reacting(Alert(), SaveCheckpoint(folder / "events"), StopTraining()),
        "cannot save": reacting(SaveCheckpoint(folder / "taken" / "events")),
    }
    return moods[mood]


def outputs(module: Any, batch: Any) -> torch.Tensor:
    found: torch.Tensor = module.net(batch[0])
    return found


def watch(mood: str, folder: Path) -> SLTMonitor:
    zero: Any = {"zero": torch.zeros(6)}
    observables = {"llc": LLC(), "kernel": LossKernel(), "trajectory": TrajectoryPCA(data(6), outputs, zero)}
    settings = {"sampler": CHAINS, "num_samples": 16, "observables": observables}
    return monitor(**(settings | mooded(mood, folder)))


def collected_warnings() -> list[str]:
    """What is warned of in this process from now on, again where it was before."""
    told: list[str] = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_, **__: told.append(str(message))
    return told


def run(strategy: str, devices: int, folder: Path, mood: str) -> None:
    folder = folder / mood
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module = LayerRegression() if mood == "plain" else Regression()
    watched = None if mood == "without" else watch(mood, folder)
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
        self.warned = collected_warnings()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watched = next((c for c in trainer.callbacks if isinstance(c, SLTMonitor)), None)
        history = [] if watched is None else watched.history
        found = {
            "rank": trainer.global_rank,
            "global_step": trainer.global_step,
            "steps": [measurement.step for measurement in history],
            "llc": [number(measurement["llc"]["mean"]) for measurement in history],
            "trace": [number(measurement["kernel"]["trace"]) for measurement in history],
            "distance": [number(measurement["trajectory"].get("distance/zero", math.nan)) for measurement in history],
            "explained": [number(measurement["trajectory"].get("explained_1", math.nan)) for measurement in history],
            "errors": [measurement.error for measurement in history],
            "sgld_steps": [measurement["cost"]["sgld_steps"] for measurement in history],
            "logged": number(float(trainer.callback_metrics.get("slt/llc/mean", math.nan))),
            "fingerprint": fingerprint(trainer),
            "warned": self.warned,
        }
        # A file for each: lines that two processes print may run into one another.
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def number(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    torch.set_num_threads(1)
    strategy, devices, folder, *moods = sys.argv[1:]
    for mood in moods:
        run(strategy, int(devices), Path(folder), mood)
