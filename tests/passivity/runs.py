"""One training run, and everything about it that a monitor must leave as it is."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from slt_callbacks import LLC, Alert, Influence, LossKernel, SamplerConfig, SLTMonitor
from tests.training import QUIET, Regression, data, square_error

SAMPLER = SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=2)


@dataclass(frozen=True)
class Case:
    """How a run is made; each part is called afresh for the run with and the run without the monitor.

    Attributes:
        module: Makes the LightningModule.
        loader: Makes the training loader.
        trainer: Arguments of the Trainer.
        callbacks: Makes other callbacks.
        monitor: Arguments of the monitor that differ from the usual ones.
        loss_fn: The monitor's.
        prepare: Called with the trainer, the module and the loader before `fit`, for a tuner.
        kernel: Whether LossKernel and Influence are measured beside the LLC.
        measures: Whether a measurement is to succeed; False: to fail; None: none is due.
        logger: Makes the logger from a folder; None for Lightning's CSVLogger, False for none.
    """

    module: Callable[[], pl.LightningModule] = Regression
    loader: Callable[[], Any] = lambda: DataLoader(data(), 8, shuffle=True)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[pl.Callback]] = list
    monitor: dict[str, Any] = field(default_factory=dict)
    loss_fn: Any = square_error
    prepare: Callable[[pl.Trainer, pl.LightningModule, Any], None] | None = None
    kernel: bool = True
    measures: bool | None = True
    logger: Any = None


class BatchOrder(pl.Callback):
    """A digest of every batch as it comes, with the global generators' states after its step."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        digest = hashlib.sha256()
        for leaf in batch if isinstance(batch, (list, tuple)) else [batch]:
            digest.update(leaf.detach().float().cpu().numpy().tobytes())
        self.seen.append(digest.hexdigest()[:12] + generators())


def generators() -> str:
    """A digest of every global generator."""
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    digest.update(repr(random.getstate()).encode())
    digest.update(repr(np.random.get_state()).encode())  # the global one is what is watched
    if torch.cuda.is_available():
        digest.update(torch.cuda.get_rng_state().numpy().tobytes())
    return digest.hexdigest()[:12]


def _digest(value: Any, digest: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, dict):
        for key, inner in value.items():
            digest.update(repr(key).encode())
            _digest(inner, digest)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _digest(inner, digest)
    else:
        digest.update(repr(value).encode())


def digest_of(value: Any) -> str:
    """Of tensors in builtins, bit for bit."""
    digest = hashlib.sha256()
    _digest(value, digest)
    return digest.hexdigest()[:12]


def run(case: Case, with_monitor: bool, folder: Path) -> tuple[dict[str, Any], SLTMonitor | None]:
    """Train once; returns everything that must not differ, by name, and the monitor."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # the global one is what is watched
    module, loader, order = case.module(), case.loader(), BatchOrder()
    logger = case.logger(folder) if case.logger else CSVLogger(folder) if case.logger is None else False
    watched = make_monitor(case) if with_monitor else None
    callbacks = [*case.callbacks(), order, *([] if watched is None else [watched])]
    settings = {"max_steps": 6, "log_every_n_steps": 1} | QUIET | {"logger": logger, "default_root_dir": folder}
    trainer = pl.Trainer(callbacks=callbacks, **{**settings, **case.trainer})  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.prepare is not None:
            case.prepare(trainer, module, loader)
        with contextlib.suppress(SystemExit):  # what Lightning makes of a KeyboardInterrupt
            trainer.fit(module, loader)
    return facts(trainer, module, order), watched


def make_monitor(case: Case) -> SLTMonitor:
    observables: dict[str, Any] = {"llc": LLC()}
    if case.kernel:
        observables |= {"kernel": LossKernel(), "influence": Influence(data(8), None, [i % 2 for i in range(8)])}
    settings: dict[str, Any] = {
        "reference": data(),
        "loss_fn": case.loss_fn,
        "observables": observables,
        "sampler": SAMPLER,
        "num_samples": 16,
        "max_overhead": None,
        "on_event": [Alert()],
    }
    if not {"every_n_train_steps", "every_n_epochs", "train_time_interval", "schedule"} & case.monitor.keys():
        settings["every_n_train_steps"] = 2
    return SLTMonitor(**(settings | case.monitor))


def facts(trainer: pl.Trainer, module: pl.LightningModule, order: BatchOrder) -> dict[str, Any]:
    return {
        "weights": digest_of(dict(module.named_parameters())),
        "gradients": digest_of([parameter.grad is None for parameter in module.parameters()]),
        "buffers": digest_of(dict(module.named_buffers())),
        "modes": digest_of([submodule.training for submodule in module.modules()]),
        "optimizers": digest_of([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": digest_of([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
        "scaler": digest_of(trainer.precision_plugin.state_dict()),
        "logged": digest_of(training_metrics(trainer)),
        "batches and generators": digest_of(order.seen),
        "generators at the end": generators(),
        "steps": trainer.global_step,
    }


def training_metrics(trainer: pl.Trainer) -> list[dict[str, str]]:
    """Every row of the CSVLogger's file without what the monitor has added."""
    rows: list[dict[str, str]] = []
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.save()
            with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
                rows += list(csv.DictReader(file))
    own = [{key: value for key, value in row.items() if value and not key.startswith("slt/")} for row in rows]
    return [dict(sorted(row.items())) for row in own if row.keys() - {"step", "epoch"}]


def compare(case: Case, folder: Path) -> tuple[list[str], SLTMonitor]:
    """Names of the facts that differ, and the monitor of the run that had one."""
    without, _ = run(case, False, folder / "without")
    having, watched = run(case, True, folder / "with")
    assert watched is not None
    return [name for name in without if without[name] != having[name]], watched
