"""One training run, and everything about it that a monitor must leave as it is."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader

from slt_callbacks import LLC, Alert, Influence, JumpEvent, LossKernel, SamplerConfig, SLTMonitor
from tests.sinks.test_sinks import records
from tests.training import QUIET, Regression, data, square_error

SAMPLER = SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=2)
STORY = 5  # measurements: fewer make no figure
ON_A_GPU: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "deterministic": True}


@dataclass(frozen=True)
class Case:
    """How a run is made; each part is called afresh for the run with and the run without the monitor.

    Attributes:
        module: Makes the LightningModule.
        loader: Makes the training loader; one that makes None leaves it to the module.
        validation: Makes the validation loader.
        trainer: Arguments of the Trainer.
        callbacks: Makes other callbacks.
        monitor: Arguments of the monitor that differ from the usual ones.
        loss_fn: The monitor's.
        prepare: Called with the trainer, the module and the loader before `fit`, for a tuner.
        measures: Whether the measurements are to succeed; False: to fail.
        logger: Makes the logger from a folder; None for Lightning's CSVLogger, False for none.
        files: Whether the monitor is to leave files.
        expects: Facts that must have this value, or the case is not what its name says.
        needs_gpu: Why it cannot be run on a CPU.
    """

    module: Callable[[], pl.LightningModule] = Regression
    loader: Callable[[], Any] = lambda: DataLoader(data(), 8, shuffle=True)
    validation: Callable[[], Any] = lambda: None
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[pl.Callback]] = list
    monitor: dict[str, Any] = field(default_factory=dict)
    loss_fn: Any = square_error
    prepare: Callable[[pl.Trainer, pl.LightningModule, Any], None] | None = None
    measures: bool = True
    logger: Any = None
    files: bool = True
    expects: dict[str, Any] = field(default_factory=dict)
    needs_gpu: str = ""


@dataclass(frozen=True)
class Run:
    """What a run leaves behind.

    Attributes:
        facts: Everything that must not differ, by name.
        watched: The monitor, or None.
        alerts: Alerts sent, as warnings or to W&B.
        pictures: Names of the pictures the monitor has left.
        peak: Most bytes that the GPU's allocator had given out at a time; 0 on a CPU.
    """

    facts: dict[str, Any]
    watched: SLTMonitor | None = None
    alerts: int = 0
    pictures: frozenset[str] = frozenset()
    peak: int = 0


@dataclass(frozen=True)
class Comparison:
    """Two runs that must not differ.

    Attributes:
        different: Names of the facts that differ.
        problems: All that is wrong, in words: these facts, and what should have happened and did not.
        without: The run without a monitor.
        having: The run with one.
    """

    different: list[str]
    problems: list[str]
    without: Run
    having: Run

    def line(self) -> str:
        """The comparison in a few words."""
        history = self.having.watched.history if self.having.watched else []
        good = sum(not measurement.failed for measurement in history)
        peaks = f", {self.without.peak / 2**20:.1f} -> {self.having.peak / 2**20:.1f} MiB" if self.having.peak else ""
        return f"{'; '.join(self.problems) or 'identical':<12} {good} of {len(history)} measurements{peaks}"


class Watcher(pl.Callback):
    """A digest of every batch as it comes and of the generators after its step, and how often there was validation."""

    def __init__(self) -> None:
        self.batches: list[str] = []
        self.generators: list[str] = []
        self.checks = self.validations = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(digest_of([leaf.float() for leaf in batch]))
        self.generators.append(generators())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.checks += trainer.sanity_checking
        self.validations += not trainer.sanity_checking


class Fires:
    """A detector of a user's own that finds a jump in every measurement, and draws random numbers over it."""

    def update(self, step: int, value: float) -> JumpEvent:
        draw_from_all()
        return JumpEvent(step, step, 1, 1.0, 9.0, step, step)


def is_alert(told: str) -> bool:
    """Whether a warning is what `Alert` makes of the jumps of `Fires`."""
    return told.startswith("Jump of a watched number: spread of the LLC over chains (slt/llc/std)")


def draw_from_all(*_: Any) -> None:
    """What a careless plug-in does; also a reaction to an event."""
    torch.rand(()), random.random(), np.random.rand()
    if torch.cuda.is_initialized():
        torch.rand((), device="cuda")


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


def seed_all() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # the global one is what is watched


def run(case: Case, with_monitor: bool, folder: Path, accelerator: str = "cpu") -> Run:
    """Train once."""
    seed_all()
    module, loader, validation, watcher = case.module(), case.loader(), case.validation(), Watcher()
    logger = case.logger(folder) if case.logger else CSVLogger(folder) if case.logger is None else False
    watched = make_monitor(case) if with_monitor else None
    settings = {"max_steps": 6, "log_every_n_steps": 1} | QUIET | {"logger": logger, "default_root_dir": folder}
    settings |= ON_A_GPU if accelerator == "gpu" else {}
    callbacks = [*case.callbacks(), watcher, *([] if watched is None else [watched])]
    trainer = pl.Trainer(callbacks=callbacks, **{**settings, **case.trainer})  # type: ignore[arg-type]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if case.prepare is not None:
                case.prepare(trainer, module, loader)
            with contextlib.suppress(SystemExit):  # what Lightning makes of a KeyboardInterrupt
                trainer.fit(module, loader, validation)
        finally:
            torch.use_deterministic_algorithms(False)  # a Trainer leaves the process so
    found = facts(trainer, module, watcher)
    kept = records(logger) if isinstance(logger, WandbLogger) else []
    return Run(
        found if not kept else found | {"logged": digest_of(wandb_numbers(kept))},
        watched,
        sum(is_alert(str(one.message)) for one in caught) + sum(record["type"] == "alert" for record in kept),
        frozenset(path.stem.partition("-")[0] for path in folder.rglob("*.png")),
        torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    )


def make_monitor(case: Case) -> SLTMonitor:
    observables: dict[str, Any] = {
        "llc": LLC(),
        "kernel": LossKernel(),
        "influence": Influence(data(8), None, [i % 2 for i in range(8)]),
    }
    settings: dict[str, Any] = {
        "reference": data(),
        "loss_fn": case.loss_fn,
        "observables": observables,
        "sampler": SAMPLER,
        "num_samples": 16,
        "max_overhead": None,
        "detectors": {"slt/llc/std": Fires()},
        "on_event": [Alert(), draw_from_all],
    }
    if not {"every_n_train_steps", "every_n_epochs", "train_time_interval", "schedule"} & case.monitor.keys():
        settings["every_n_train_steps"] = 1
    return SLTMonitor(**(settings | case.monitor))


def facts(trainer: pl.Trainer, module: pl.LightningModule, watcher: Watcher) -> dict[str, Any]:
    return {
        "weights": digest_of(dict(module.named_parameters())),
        "gradients": digest_of([parameter.grad is None for parameter in module.parameters()]),
        "buffers": digest_of(dict(module.named_buffers())),
        "modes": digest_of([submodule.training for submodule in module.modules()]),
        "optimizers": digest_of([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": digest_of([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
        "scaler": digest_of(trainer.precision_plugin.state_dict()),
        "logged": digest_of(training_metrics(trainer)),
        "batches": digest_of(watcher.batches),
        "generators": digest_of(watcher.generators),
        "generators at the end": generators(),
        "steps": trainer.global_step,
        "sanity checks": watcher.checks,
        "validations": watcher.validations,
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


def wandb_numbers(kept: list[dict[str, Any]]) -> list[tuple[int, str, Any]]:
    """Likewise of a W&B run: step, key and value of every metric and histogram, in whichever row.

    `wandb.watch` leaves its gradients for the row that is logged next, and that may be the monitor's, on the same step.
    """
    rows = [record["history"]["item"] for record in kept if record["type"] == "history"]
    return sorted(
        (row["trainer/global_step"], re.sub("graph_[0-9]+", "", key), value)  # it counts what it watches
        for row in rows
        for key, value in row.items()
        if not key.startswith(("slt/", "_", "trainer/"))
    )


def compare(case: Case, folder: Path, accelerator: str = "cpu") -> Comparison:
    """Train without and with the monitor, and see to it that the monitor did something."""
    without = run(case, False, folder / "without", accelerator)
    having = run(case, True, folder / "with", accelerator)
    return judge(without, having, case)


def judge(without: Run, having: Run, case: Case) -> Comparison:
    """What differs, and what did not happen that was to happen."""
    different = [name for name in without.facts if without.facts[name] != having.facts[name]]
    problems = [f"differs in {', '.join(different)}"] if different else []
    for name, wanted in case.expects.items():
        if having.facts[name] != wanted:
            problems.append(f"{name}: {having.facts[name]} instead of {wanted}")
    return Comparison(different, problems + idle(having, case), without, having)


def idle(having: Run, case: Case) -> list[str]:
    """Paths of the monitor that were not taken, so that the comparison says nothing of them."""
    history = having.watched.history if having.watched else []
    good = [measurement for measurement in history if not measurement.failed]
    told = []
    if not history or len(good) != case.measures * len(history):
        told.append(f"{len(good)} of {len(history)} measurements succeeded")
    if any(measurement["llc"]["mean"] == 0 for measurement in good):
        told.append("the chains did not move")
    if having.alerts < len(history):
        told.append(f"{having.alerts} alerts for {len(history)} events")
    wanted = ({"map"} if good else set()) | ({"stages"} if len(history) >= STORY else set())
    if case.files and wanted - having.pictures:
        told.append(f"no picture of the {' and the '.join(sorted(wanted - having.pictures))}")
    return told
