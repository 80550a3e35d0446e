"""Run alone, one process a rank: fits of a module that FSDP2 shards, one after the other in the same processes.

python -m tests.callbacks.sharded_run RANK SIZE PORT FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import LLC, LossKernel, Refinement, SamplerConfig, SLTMonitor
from tests.training import QUIET, data, monitor, square_error

CHAINS = SamplerConfig(num_chains=4, num_draws=16, num_burnin_steps=8, engine="sequential")


class Net(pl.LightningModule):
    """BatchNorm and Dropout, a frozen layer, and as many outputs as leave a rank without any of the last weights."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size
        self.net = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Linear(8, 1)
        )
        self.net[4].requires_grad_(False)

    def configure_model(self) -> None:
        if self.size > 1:
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for part in (self.net[0], self.net[4], self.net[5], self.net):
                fully_shard(part, mesh=mesh)

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return (self.net(inputs)[:, 0] - targets).square()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.per_sample_loss(batch).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


class Steps(Net):
    """Its loss is that of its training step."""

    per_sample_loss = None  # type: ignore[assignment]

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        assert self.trainer.max_steps > 0
        loss = square_error(self, [batch[0], batch[1][:, None]]).mean()
        self.log("train_loss", loss)
        return loss


def fit(kind: type[Net], size: int, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """Train a fresh, seeded module; every rank sees the same batches, as one process would."""
    torch.manual_seed(0)
    strategy = ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1) if size > 1 else "auto"
    path = settings.pop("ckpt_path", None)
    trainer = pl.Trainer(
        strategy=strategy,
        devices=size,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        **({"max_steps": 4} | QUIET | settings),
    )
    trainer.fit(kind(size), DataLoader(data(), 8, shuffle=True), ckpt_path=path)
    return trainer


def fingerprint(trainer: pl.Trainer) -> str:
    """A hash of what training has made of this rank's weights, buffers, optimizer states and generator."""
    module = trainer.lightning_module
    states = [value for optimizer in trainer.optimizers for one in optimizer.state.values() for value in one.values()]
    digest = hashlib.sha256()
    for tensor in (*module.parameters(), *module.buffers(), *states, torch.get_rng_state()):
        local = getattr(tensor, "to_local", lambda tensor=tensor: tensor)()
        digest.update(local.detach().numpy().tobytes())
    return digest.hexdigest()


def watch(**settings: Any) -> SLTMonitor:
    return monitor(**({"sampler": CHAINS, "num_samples": 16, "loss_fn": None} | settings))


def found(watched: SLTMonitor, trainer: pl.Trainer) -> dict[str, Any]:
    history = watched.history
    return {
        "steps": [one.step for one in history],
        "llc": [float(one["llc"]["mean"]) for one in history],
        "reference_loss": [float(one["llc"]["reference_loss"]) for one in history],
        "refined": [float(one.refinements["last"]["llc"]["mean"]) for one in history if "last" in one.refinements],
        "trace": [float(one["kernel"]["trace"]) for one in history if "kernel" in one.results],
        "rhat": [float(one["health"]["rhat"]) for one in history],
        "failed_chains": [int(one["health"]["failed_chains"]) for one in history],
        "errors": [one.error for one in history],
        "sgld_steps": [one["cost"]["sgld_steps"] for one in history],
        "fingerprint": fingerprint(trainer),
    }


def gathered(size: int, folder: Path) -> dict[str, Any]:
    """The default: losses of the module, a kernel, and a refinement over the last weights."""
    watched = watch(observables={"llc": LLC(), "kernel": LossKernel()}, refinements={"last": Refinement("net.5")})
    return found(watched, fit(Net, size, watched))


def of_training_step(size: int, folder: Path) -> dict[str, Any]:
    watched = watch()
    return found(watched, fit(Steps, size, watched))


def plain(size: int, folder: Path) -> dict[str, Any]:
    return {"fingerprint": fingerprint(fit(Net, size))}


def plain_of_training_step(size: int, folder: Path) -> dict[str, Any]:
    return {"fingerprint": fingerprint(fit(Steps, size))}


PARTS: list[Callable[[int, Path], dict[str, Any]]] = [plain, gathered, plain_of_training_step, of_training_step]


def run(rank: int, size: int, folder: Path) -> None:
    told: list[str] = []
    warnings.showwarning = lambda message, *_, **__: told.append(str(message))
    answers = {}
    for part in PARTS:
        answers[part.__name__] = part(size, folder) | {"warned": list(told)}
        told.clear()
    (folder / f"{rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    torch.set_num_threads(1)
    own, processes, port = (int(argument) for argument in sys.argv[1:4])
    os.environ |= {"LOCAL_RANK": str(own), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    run(own, processes, Path(sys.argv[4]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
