"""The matrix: every way of training, measuring and failing that is promised to leave training as it is.

LLC, kernel, influence, detection and an alert are on in every case.

* Data: shuffled or not, with and without workers, the reference as dataset, shuffled DataLoader, list, function or
  none.
* Models: BatchNorm and Dropout, buffers that `forward` changes, tied, frozen and low-rank weights, a teacher that
  follows, parametrizations, weight_norm, a compiled submodule.
* Training: accumulation, gradient clipping, schedules, two optimizers by hand, weight averaging beside it, bf16-mixed,
  bf16-true, 64-true (16-mixed on a GPU), validation and sanity checks, `overfit_batches`, `limit_train_batches`,
  `fast_dev_run`, `barebones`, a search for learning rate or batch size before, `WandbLogger.watch`, LightningCLI from
  YAML.
* Measuring: before training, at steps, at epoch ends; warm and cold chains, every engine; a loss function that raises,
  returns NaN, changes its input or draws random numbers; a chain that diverges; Ctrl-C in the middle of a measurement;
  plug-ins that draw random numbers.
"""

from __future__ import annotations

import importlib.util
import random
from collections import deque
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanSquaredError, MetricCollection, R2Score

from slt_callbacks import (
    LLC,
    SGLD,
    Compressibility,
    MemorySink,
    Metrics,
    ProcessExecutor,
    RayExecutor,
    Refinement,
    RMSPropSGLD,
    SamplerConfig,
    Susceptibility,
    TrajectoryPCA,
    behavioral,
)
from tests.passivity.runs import Case, draw_from_all
from tests.training import Regression, data, square_error


# ------------------------------------------------------------------------------------------------------------- modules
class Schedule(Regression):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


class Scored(Regression):
    """Logs an object of torchmetrics, over epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.score = MeanSquaredError()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        self.score(self.net(inputs), targets)
        self.log("score", self.score, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Manual(Regression):
    """Two optimizers in turn, with noise on the inputs from the global generators."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        inputs, targets = batch
        inputs = inputs + 0.1 * torch.randn_like(inputs) + 0.01 * random.random() + 0.01 * np.random.rand()
        for optimizer in self.optimizers():
            loss = (self.net(inputs) - targets).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        half = [list(layer.parameters()) for layer in (self.net[0], self.net[4])]
        return [torch.optim.SGD(half[0], lr=0.05), torch.optim.Adam(half[1], lr=0.01)]


class Tied(Regression):
    def __init__(self) -> None:
        super().__init__()
        second = nn.Linear(8, 8)
        first = nn.Linear(8, 8)
        second.weight = first.weight
        self.net.insert(2, first)
        self.net.insert(3, second)


class Adapter(nn.Module):
    """A frozen layer with a small trainable correction."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Linear(frozen.in_features, 2, bias=False)
        self.up = nn.Linear(2, frozen.out_features, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        corrected: torch.Tensor = self.frozen(inputs) + self.up(self.down(inputs))
        return corrected


class LowRank(Regression):
    """Only the adapter can be trained: chains that do not move it do not move."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.net[0] = Adapter(self.net[0])
        self.net[0].down.requires_grad_(True)
        self.net[0].up.requires_grad_(True)


class Validated(Regression):
    """Logs a loss of the validation, with noise on the inputs from the global generator."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        self.log("val_loss", (self.net(inputs + torch.randn_like(inputs)) - targets).square().mean())


class Teacher(Regression):
    """Its training step lets a frozen average of the weights follow them, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(3, 8).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net[0].parameters(), strict=True):
                slow.data.mul_(0.9).add_(fast, alpha=0.1)
        drift = (self.teacher(batch[0]) - self.net[0](batch[0])).square().mean()
        return super().training_step(batch, batch_idx) + 0.1 * drift


class Parametrized(Regression):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.net[0])
        parametrize.register_parametrization(self.net[4], "bias", nn.Tanh())


class OldWeightNorm(Regression):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self.net[0])


class Counting(Regression):
    """A buffer that every forward changes, and that the loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.net.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return out * (1 + 0.01 * self.calls)


class TiedAndCounting(Tied, Counting):
    """Both."""


class CompiledPart(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.net[0] = torch.compile(self.net[0], backend="aot_eager")


class Keeps(Regression):
    """Keeps its losses, which weigh the next one, as a balance of several losses does."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {"lately": deque(maxlen=100)}
        self.outs: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.outs.append(loss)
        self.kept["lately"].append(loss)
        return loss * (1 + 0.1 * torch.stack([*self.kept["lately"]]).mean().detach())


class OwnLosses(Regression):
    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        return square_error(self, batch)


class RandomDropoutLoss(Regression):
    """Its training step, which is all there is, logs and draws random numbers."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        loss = (self.net(inputs + 0.1 * torch.randn_like(inputs)) - targets).square().mean()
        self.log("train_loss", loss)
        return loss


# ------------------------------------------------------------------------------------------------------ loss functions
def raises(module: Any, batch: Any) -> torch.Tensor:
    raise RuntimeError("no such column")


TRIED = 8  # samples: the check before training tries fewer of them at a time


def nan_later(module: Any, batch: Any) -> torch.Tensor:
    """Finite while it is checked, NaN afterwards."""
    losses = square_error(module, batch)
    return losses * (torch.nan if len(losses) > TRIED else 1.0)


def mutates(module: Any, batch: Any) -> torch.Tensor:
    """Spoils what it is given, but only where the check before training does not see it."""
    inputs, targets = batch
    if len(inputs) > TRIED:
        inputs.mul_(0.9)
    return square_error(module, (inputs, targets))


def draws(module: Any, batch: Any) -> torch.Tensor:
    noise = torch.rand(()) + random.random() + np.random.rand()
    return square_error(module, batch) * (1 + 0.01 * noise)


class Draws(MemorySink):
    """A sink, and an observable with a picture, that draw random numbers wherever they are called."""

    def open(self, *_: Any) -> None:
        draw_from_all()

    reset = update = publish = finish = close = draw_from_all  # type: ignore[assignment]

    def compute(self) -> dict[str, Any]:
        draw_from_all()
        return {"value": 1.0}

    def images(self, result: Any) -> dict[str, Any]:
        draw_from_all()
        return {}


def random_steps(step: int) -> bool:
    """A schedule."""
    draw_from_all()
    return step > 0


# -------------------------------------------------------------------------------------------------------------- others
def wandb_watching(folder: Path) -> WandbLogger:
    return WandbLogger(project="tests", offline=True, save_dir=str(folder))


def watch_gradients(trainer: pl.Trainer, module: pl.LightningModule, loader: Any) -> None:
    trainer.logger.watch(module, log="all", log_freq=1)  # type: ignore[union-attr]


def find_batch_size(trainer: pl.Trainer, module: pl.LightningModule, loader: Any) -> None:
    Tuner(trainer).scale_batch_size(module, steps_per_trial=1, max_trials=2, init_val=4)


def find_learning_rate(trainer: pl.Trainer, module: pl.LightningModule, loader: Any) -> None:
    Tuner(trainer).lr_find(module, loader, num_training=4, update_attr=False)


class Tunable(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 4

    def train_dataloader(self) -> Any:
        return DataLoader(data(), self.batch_size, shuffle=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def in_batches() -> list[Any]:
    return list(DataLoader(data(), 8))


class Augmented(Dataset[Any]):
    """Its transform owns a generator, as those of augmentation libraries do."""

    newest: Augmented

    def __init__(self) -> None:
        self.samples, self.transforms = data(), [np.random.default_rng(0).normal]
        Augmented.newest = self

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        x, y = self.samples[index]
        return x + 0.1 * float(self.transforms[0]()), y


METRIC = MeanSquaredError()


def at_the_fork() -> dict[str, Any]:
    """What is read without chains, beside the LLC; one of the metrics belongs to the module, which goes on using it."""
    predict = lambda module, batch: (module.net(batch[0]), batch[1])  # noqa: E731
    metrics = {"mse": METRIC, "mean": MetricCollection({"r2": R2Score()})}
    return {
        "observables": {
            "llc": LLC(),
            "behavior": Metrics(metrics, predict),
            "own": Metrics(METRIC, predict, data(10)),
            "compressibility": Compressibility(),
        }
    }


class Evaluated(Regression):
    """Logs a metric that it keeps over the run, the one that the monitor was given."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = METRIC
        METRIC.reset()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        with torch.no_grad():
            self.metric.update(self.net(batch[0]), batch[1])
        self.log("mse_so_far", self.metric.compute())
        self.log("updates", float(self.metric.update_count))
        return super().training_step(batch, batch_idx)


def refined() -> dict[str, Any]:
    """Fewer weights, other data and another loss beside the main posterior."""
    observables = {"llc": LLC(), "chi": Susceptibility()}
    refinements = {
        "last": Refinement("net.4", slices={"net.4.weight": (0, slice(4))}),
        "others": Refinement(reference=in_batches()),
        "function": Refinement(loss_fn=behavioral(lambda module, batch: module.net(batch[0])[:, None], "mse")),
    }
    return {"observables": observables, "refinements": refinements}


def outputs(module: Any, batch: Any) -> torch.Tensor:
    """Of a careless user: draws random numbers, and writes into what it is given."""
    draw_from_all()
    found: torch.Tensor = module.net(batch[0].mul_(0.9))
    return found[:, None] + 0.01 * torch.rand(())


def trajectory() -> TrajectoryPCA:
    """On training samples themselves, beside a predictor that draws random numbers."""
    references: Any = {"own": lambda batch: torch.rand(len(batch[0]), 1)}
    return TrajectoryPCA(in_batches()[:2], outputs, references)


HAS_RAY = importlib.util.find_spec("ray") is not None
DIVERGES = SamplerConfig(SGLD(1e6), num_chains=2, num_draws=4, num_burnin_steps=2)
PRECONDITIONED = SamplerConfig(RMSPropSGLD(1e-4), num_chains=2, num_draws=4, num_burnin_steps=2, batch_size=4)
VECTORIZED = SamplerConfig(SGLD(1e-4), num_chains=2, num_draws=4, num_burnin_steps=2, engine="vectorized")
COMPILED = replace(VECTORIZED, compile=True)
LONG = SamplerConfig(num_chains=2, num_draws=20, num_burnin_steps=90)  # long enough for the engines to race

CASES: dict[str, Case] = {
    # how the model is trained
    "BatchNorm and Dropout": Case(),
    "unshuffled loader": Case(loader=lambda: DataLoader(data(), 8)),
    "shuffled loader with workers": Case(loader=lambda: DataLoader(data(), 8, shuffle=True, num_workers=1)),
    "accumulation of 3": Case(trainer={"accumulate_grad_batches": 3, "max_steps": 4}),
    "manual optimization, two optimizers": Case(module=Manual),
    "gradient clipping": Case(trainer={"gradient_clip_val": 0.1}),
    "learning-rate schedule": Case(module=Schedule, callbacks=lambda: [LearningRateMonitor()]),
    "averaged weights beside it": Case(callbacks=lambda: [EMAWeightAveraging(decay=0.9)]),
    "16-mixed": Case(trainer={"precision": "16-mixed"}, needs_gpu="float16 has no autocast and no scaler on a CPU"),
    "bf16-mixed": Case(trainer={"precision": "bf16-mixed"}),
    "bf16-true": Case(trainer={"precision": "bf16-true"}),
    "64-true": Case(trainer={"precision": "64-true"}),
    "several epochs with validation": Case(
        module=Validated,
        validation=lambda: DataLoader(data(8), 4),
        trainer={"max_epochs": 2, "max_steps": -1, "num_sanity_val_steps": 2},
        expects={"sanity checks": 1, "validations": 2},
    ),
    "overfit_batches": Case(trainer={"overfit_batches": 2}),
    "limit_train_batches": Case(trainer={"limit_train_batches": 3}),
    "fast_dev_run": Case(trainer={"fast_dev_run": True}, logger=False, files=False),
    "barebones": Case(
        trainer={
            "barebones": True,
            "logger": None,
            "enable_progress_bar": None,
            "enable_model_summary": None,
            "enable_checkpointing": None,
            "log_every_n_steps": None,
        },
        logger=False,
        files=False,
    ),
    "a search for the learning rate before": Case(module=Tunable, prepare=find_learning_rate),
    "a search for the batch size before": Case(module=Tunable, loader=lambda: None, prepare=find_batch_size),
    # what the model is
    "torch.compile of a submodule": Case(module=CompiledPart),
    "tied weights": Case(module=Tied),
    "frozen and low-rank parameters": Case(module=LowRank),
    "parametrizations": Case(module=Parametrized),
    "weight_norm as a hook": Case(module=OldWeightNorm),
    "a buffer that forward changes": Case(module=Counting),
    "a frozen teacher that the training step moves": Case(module=Teacher, loss_fn=None),
    "losses that are kept and weigh the next": Case(module=Keeps, loss_fn=None),
    "WandbLogger.watch": Case(logger=wandb_watching, prepare=watch_gradients),
    # what is measured
    "reference: shuffled DataLoader": Case(monitor={"reference": DataLoader(data(), 4, shuffle=True)}),
    "reference: list of batches": Case(monitor={"reference": in_batches()}),
    "reference: function": Case(monitor={"reference": data}),
    "reference: the first batches": Case(monitor={"reference": None}),
    "reference: the training data, augmented": Case(
        loader=lambda: DataLoader(Augmented(), 8, shuffle=True), monitor={"reference": lambda: Augmented.newest}
    ),
    "per_sample_loss of the module": Case(module=OwnLosses, loss_fn=None),
    "the training step of the module": Case(module=RandomDropoutLoss, loss_fn=None),
    "RMSPropSGLD on minibatches": Case(monitor={"sampler": PRECONDITIONED}),
    "vectorized chains": Case(monitor={"sampler": VECTORIZED}),
    "vectorized chains, compiled": Case(
        monitor={"sampler": COMPILED}, needs_gpu="a C++ compiler takes half a minute over it"
    ),
    "a race between the engines": Case(monitor={"sampler": LONG}),
    "cold chains": Case(monitor={"persistent_chains": False}),
    "refinements, and a susceptibility to them": Case(monitor=refined()),
    "refinements of the training step of the module": Case(
        module=RandomDropoutLoss, loss_fn=None, monitor={"refinements": {"last": Refinement("net.4")}}
    ),
    "refinements with vectorized chains, in turn": Case(
        monitor=refined() | {"sampler": VECTORIZED, "refinements_at_once": 1}
    ),
    "a trajectory of outputs beside the LLC": Case(monitor={"observables": {"llc": LLC(), "path": trajectory()}}),
    "metrics, one of them the module's own, and compressibility": Case(
        module=Evaluated, monitor=at_the_fork(), files=False
    ),
    "compressibility of tied weights, with a buffer that forward changes": Case(
        module=TiedAndCounting, monitor={"observables": {"llc": LLC(), "bits": Compressibility(0.01)}}, files=False
    ),
    "plug-ins that draw random numbers": Case(
        monitor={"observables": {"llc": LLC(), "own": Draws()}, "sinks": [Draws()], "schedule": random_steps},
        files=False,
    ),
    "a metric of one's own to compare, summed over the epoch": Case(
        module=Scored,
        trainer={"max_epochs": 2, "max_steps": -1},
        monitor={"every_n_epochs": 1, "also_compare": ["score", "train_loss"]},
    ),
    # where
    "measured in a process beside": Case(monitor={"executor": ProcessExecutor()}),
    **({"measured on Ray": Case(monitor={"executor": RayExecutor(address="local")})} if HAS_RAY else {}),
    # when
    "before training and after it": Case(monitor={"schedule": lambda step: step in (0, 1, 6)}),
    "at the end of epochs": Case(trainer={"max_epochs": 2, "max_steps": -1}, monitor={"every_n_epochs": 1}),
    "by the clock": Case(monitor={"train_time_interval": timedelta(microseconds=1)}),
    # what goes wrong
    "a loss function that raises": Case(loss_fn=raises, measures=False),
    "a loss function that returns NaN": Case(loss_fn=nan_later, measures=False),
    "a loss function that changes its input": Case(loss_fn=mutates),
    "a loss function that draws random numbers": Case(loss_fn=draws),
    "chains that diverge": Case(monitor={"sampler": DIVERGES}, measures=False),
}
