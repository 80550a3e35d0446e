"""Run alone, makes one process a rank: fits of a module that FSDP2 shards, one after the other in the same processes.

python -m tests.callbacks.sharded_run SIZE PORT FOLDER [PART ...]
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import (
    LLC,
    SGLD,
    LeimkuhlerMatthews,
    LossKernel,
    Refinement,
    SamplerConfig,
    SLTMonitor,
    behavioral,
)
from slt_callbacks.basics.gate import gate_of
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.measured import MeasuredLoss
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.acceptance import acceptance_at
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.weights.copies import private_copy
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.in_place import lent
from tests.training import QUIET, data, monitor, square_error

CHAINS = SamplerConfig(num_chains=4, num_draws=16, num_burnin_steps=8, engine="sequential")
FEW = SamplerConfig(LeimkuhlerMatthews(1e-3), num_chains=2, num_draws=4, num_burnin_steps=2)


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
            for part in (*self.parts(), self.net):
                fully_shard(part, mesh=mesh)

    def parts(self) -> list[nn.Module]:
        """Inside of the whole, what is gathered by itself."""
        return [self.net[0], self.net[4], self.net[5]]

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return (self.net(inputs)[:, 0] - targets).square()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.per_sample_loss(batch).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


class Whole(Net):
    """Gathered all at once: fewer exchanges, where it is about something else."""

    def parts(self) -> list[nn.Module]:
        return []


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


def in_place(size: int, folder: Path) -> dict[str, Any]:
    """The same as `gathered`, on the shards themselves."""
    settings = {"observables": {"llc": LLC(), "kernel": LossKernel()}, "refinements": {"last": Refinement("net.5")}}
    watched = watch(sharded="in_place", sampler=replace(FEW, dynamics=LeimkuhlerMatthews()), **settings)
    return found(watched, fit(Net, size, watched))


class Bowl(Whole):
    """A linear map that stays where it is best, under the loss of `distance`: its LLC is known."""

    def __init__(self, size: int = 1) -> None:
        super().__init__(size)
        self.net = nn.Sequential(nn.Linear(3, 5, bias=False))
        self.best = self.net[0].weight.detach().clone()  # no buffer: nobody is to move it

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return (self.net(batch[0]) - batch[0] @ self.best.T).square().sum(1) / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def known(size: int, folder: Path) -> dict[str, Any]:
    """What the LLC is to be is known."""
    chains = SamplerConfig(LeimkuhlerMatthews(), 20.0, 5.0, num_draws=200, num_burnin_steps=20, batch_size=None)
    watched = watch(sharded="in_place", sampler=chains, num_samples=48)
    trainer = fit(Bowl, size, watched, max_steps=2)
    (measurement,) = watched.history
    told = {"step_size": float(measurement["health"]["step_size"]), "stderr": float(measurement["llc"]["stderr"])}
    return found(watched, trainer) | told


def sums(size: int, folder: Path) -> dict[str, Any]:
    """What is summed over all weights, found on a whole copy, and on the shards of it."""
    module = fit(Bowl, size).lightning_module
    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    on_copy = _sums(Fork(private_copy(module)), module, start)
    rank = torch.distributed.get_rank()
    with lent(module, gate_of(size), rank) as borrowed:
        return {"copy": on_copy, "shards": _sums(borrowed.fork(), module, start.chunk(size)[rank])}


def _sums(fork: Fork, live: nn.Module, start: torch.Tensor) -> dict[str, Any]:
    posterior, along = LocalPosterior(20.0, 5.0), start.flatten()
    loss_fn = MeasuredLoss(lambda module, batch: module.per_sample_loss(batch), live, fork)
    objective = Objective(fork, loss_fn, draw_reference(data()))
    curvature, direction = largest_curvature(objective, posterior, fork.generator(0), along)
    position = fork.position + 0.1 * along
    return {
        "curvature": curvature,
        "length": float(fork.norm([direction])),
        "acceptance": acceptance_at(objective, posterior, position, 0.04, along.clone()),
        "num_moving": fork.num_moving,
        "noise": float(torch.randn((), generator=fork.generator(0, 1))),
    }


def diverges(size: int, folder: Path) -> dict[str, Any]:
    """Steps far too long."""
    watched = watch(sharded="in_place", sampler=replace(FEW, dynamics=SGLD(1e6)))
    return found(watched, fit(Whole, size, watched))


class AtCall:
    """A loss that does something on one rank at a certain call, before it asks the module, or after."""

    def __init__(self, call: int, what: Callable[[], None], rank: int = 1, after: bool = False) -> None:
        self.call, self.what, self.rank, self.after, self.calls = call, what, rank, after, 0

    def __call__(self, module: Net, batch: Any) -> torch.Tensor:
        self.calls += 1
        now = self.calls == self.call and torch.distributed.is_initialized()
        now = now and torch.distributed.get_rank() == self.rank
        if now and not self.after:
            self.what()
        losses = module.per_sample_loss(batch)
        if now and self.after:
            self.what()
        return losses


def complain() -> None:
    raise ValueError("corrupt sample")


def raises_before(size: int, folder: Path) -> dict[str, Any]:
    watched = watch(sharded="in_place", sampler=FEW, loss_fn=AtCall(34, complain))
    return found(watched, fit(Whole, size, watched))


def raises_after(size: int, folder: Path) -> dict[str, Any]:
    watched = watch(sharded="in_place", sampler=FEW, loss_fn=AtCall(22, complain, rank=0, after=True))
    return found(watched, fit(Whole, size, watched))


class Breaks(Net):
    """One of its layers raises on rank 1, in the middle of a forward pass, and in one of a chain."""

    calls = 0  # of the class: what an instance counts, a chain takes back

    def __init__(self, size: int = 1) -> None:
        super().__init__(size)
        self.net[4].register_forward_hook(self._break)

    def _break(self, *_: Any) -> None:
        Breaks.calls += not self.training
        if Breaks.calls == 34 and not self.training and torch.distributed.get_rank() == 1:
            complain()


def breaks(size: int, folder: Path) -> dict[str, Any]:
    watched = watch(sharded="in_place", sampler=FEW)
    return found(watched, fit(Breaks, size, watched))


class Strays(Net):
    """On rank 1 alone its loss asks a part of the module twice."""

    calls = 0

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        Strays.calls += not self.training
        losses = super().per_sample_loss(batch)
        if Strays.calls == 34 and not self.training and torch.distributed.get_rank() == 1:
            self.net[0](batch[0])
        return losses


def strays(size: int, folder: Path) -> dict[str, Any]:
    watched = watch(sharded="in_place", sampler=FEW)
    return found(watched, fit(Strays, size, watched))


def interrupted(size: int, folder: Path) -> dict[str, Any]:
    """Ctrl-C on one rank, in the middle of the first measurement, at step 2."""
    press = AtCall(34, lambda: os.kill(os.getpid(), signal.SIGINT))
    watched = watch(sharded="in_place", sampler=FEW, loss_fn=press)
    keep = Keep()
    try:
        fit(Whole, size, keep, watched)
    except BaseException as error:  # noqa: BLE001  # Lightning ends the process
        keep.told["ended"] = type(error).__name__
    assert signal.getsignal(signal.SIGINT) is not None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return keep.told | {"measured": len(watched.history)}


def until_step_2(size: int, folder: Path) -> dict[str, Any]:
    return {"fingerprint": fingerprint(fit(Whole, size, max_steps=2))}


class Keep(pl.Callback):
    """Looks at what is there when a run has ended in an exception."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.told = {"fingerprint": fingerprint(trainer), "raised": type(exception).__name__}


def resumed(size: int, folder: Path) -> dict[str, Any]:
    """From the checkpoint of step 2, whose chains are not in it."""
    saved = {"enable_checkpointing": True, "default_root_dir": str(folder / "resumed")}
    files = ModelCheckpoint(folder / "resumed", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    first = watch(sharded="in_place", sampler=FEW)
    whole = found(first, fit(Whole, size, first, files, **saved))
    path = str(folder / "resumed" / "step=2.ckpt")
    then = watch(sharded="in_place", sampler=FEW)
    without = fingerprint(fit(Whole, size, ckpt_path=path))
    return {"whole": whole, "without": without, **found(then, fit(Whole, size, then, ckpt_path=path))}


def refused(size: int, folder: Path) -> dict[str, Any]:
    """What cannot be done on shards is refused before training."""
    settings: dict[str, dict[str, Any]] = {
        "slices": {"refinements": {"row": Refinement("net.0", slices={"net.0.weight": 0})}},
        "behavioral": {"loss_fn": behavioral(lambda module, batch: module.net(batch[0]))},
        "fork": {"observables": {"llc": LLC(), "look": Looks()}},
        "vectorized": {"sampler": replace(CHAINS, engine="vectorized")},
    }
    told = {name: _refusal(Net, size, **one) for name, one in settings.items()}
    return {"told": told | {"training_step": _refusal(Steps, size)}}


class Looks:
    def inspect(self, view: Any) -> dict[str, float]:
        return {"loss": view.loss()}


def _refusal(kind: type[Net], size: int, **settings: Any) -> str:
    try:
        fit(kind, size, watch(sharded="in_place", **settings))
    except MisconfigurationException as error:
        return str(error)
    return "was not refused"


PARTS: list[Callable[[int, Path], dict[str, Any]]] = [
    *(plain, gathered, plain_of_training_step, of_training_step, in_place, known, sums, diverges),
    *(raises_before, raises_after, breaks, strays, until_step_2, resumed, refused, interrupted),
]


def run(rank: int, size: int, folder: Path, names: list[str]) -> None:
    told: list[str] = []
    warnings.showwarning = lambda message, *_, **__: told.append(str(message))
    answers = {}
    for part in [part for part in PARTS if part.__name__ in names or not names]:
        start = time.perf_counter()
        answers[part.__name__] = part(size, folder) | {"warned": list(told)}
        print(part.__name__, f"{time.perf_counter() - start:.2f} s", flush=True)
        told.clear()
    (folder / f"{rank}.json").write_text(json.dumps(answers))


def work(rank: int, size: int, port: str, folder: Path, names: list[str]) -> None:
    """What one process does."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run(rank, size, folder, names)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    size, port, folder, *names = sys.argv[1:]
    forks = multiprocessing.get_context("fork")  # nothing was done yet but imports, and these take seconds
    ranks = [forks.Process(target=work, args=(rank, int(size), port, Path(folder), names)) for rank in range(int(size))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))
