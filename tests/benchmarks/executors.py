"""Where one process is not enough: what training waits for beside a worker, and what two workers are worth."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import SGLD, ProcessExecutor, SamplerConfig, replay_checkpoints
from tests.benchmarks.budget import Timed
from tests.benchmarks.rows import Row, at_most

_WIDTH = 512  # 0.5 M weights
_CHECKPOINTS, _PAUSE = 12, 0.01  # seconds that a loss takes at least, whoever asks for it
_SAMPLER = SamplerConfig(SGLD(1e-6), num_chains=2, num_draws=20, num_burnin_steps=10, batch_size=None)


def rows(device: str = "cpu") -> Iterator[Row]:
    """On a GPU the worker has the same one; a replay is timed on the CPU alone."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    inline, beside = blocked(None, device), blocked(ProcessExecutor(max_pending=4), device)
    note = f"{1e3 * beside:.0f} ms instead of {1e3 * inline:.0f} ms for 4 measurements of a slow loss"
    yield at_most("training blocked, a process beside / inline", beside / inline, 0.25, "x", note)
    if device != "cpu":
        return
    with tempfile.TemporaryDirectory() as folder:
        one, two = (replayed(Path(folder), num_workers) for num_workers in (1, 2))
    note = f"{two:.1f} s instead of {one:.1f} s"
    yield at_most("replay of 12 checkpoints, 2 workers / 1", two / one, 0.7, "x", note)


def blocked(executor: Any, device: str) -> float:
    """Seconds that the steps of a run have waited for four measurements, without the wait for the last at its end."""
    torch.manual_seed(0)
    monitor = Timed(
        [data()], slow, sampler=_SAMPLER, every_n_train_steps=40, max_overhead=None, executor=executor, sinks=[]
    )
    trainer = pl.Trainer(
        max_steps=160,
        callbacks=[monitor],
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Net(), DataLoader(TensorDataset(*data()), 16))
    assert [one.failed for one in monitor.history] == [False] * 4
    return monitor.spent


def replayed(folder: Path, num_workers: int) -> float:
    """Seconds of a replay, without the start of the workers, which is told by a replay of two checkpoints."""
    taken = []
    for size in (2, 2 + _CHECKPOINTS):
        paths = []
        for step in range(size):
            torch.manual_seed(step)
            paths.append(folder / f"step={step}.pt")
            torch.save(Net().state_dict(), paths[-1])
        start = time.perf_counter()
        replay_checkpoints(
            paths,
            Net,
            [data()],
            slow,
            sampler=_SAMPLER,
            output=folder / f"{num_workers} {size}",
            executor=ProcessExecutor(num_workers=num_workers, max_pending=num_workers),
            progress=False,
        )
        taken.append(time.perf_counter() - start)
    return taken[1] - taken[0]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, _WIDTH, generator=generator), torch.randn(64, 1, generator=generator)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        time.sleep(_PAUSE)  # as long as on a device of its own
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def slow(module: Any, batch: Any) -> torch.Tensor:
    time.sleep(_PAUSE)
    return (module.net(batch[0]) - batch[1]).square().mean(1)
