"""Small problems with known answers, and the few lines that every test of the sampler would repeat."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.measuring.estimate import estimate
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.sampling.chains import Chain, make_chains
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.langevin import SGLD
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.sequential import SequentialEngine
from slt_callbacks.weights.fork import Fork

TWO_SAMPLES = [torch.zeros(2, 1)]
"""A reference set for losses that do not look at data."""


class Weights(nn.Module):
    """One vector of weights, at 0 unless told otherwise."""

    def __init__(self, values: torch.Tensor | int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(values) if isinstance(values, int) else values.clone())


class Quadratic:
    """``loss_fn``: sum of slope_i w_i + h_i w_i^2 / 2 + floor, the same for every sample."""

    def __init__(self, h: torch.Tensor, slope: torch.Tensor | float = 0.0, floor: float = 0.0) -> None:
        self.h, self.slope, self.floor = h, slope, floor

    def __call__(self, module: Any, batch: torch.Tensor) -> torch.Tensor:
        w = module.w
        h = self.h.to(w.dtype)
        return (self.slope * w + h * w.square() / 2).sum().add(self.floor).expand(len(batch))


def squared_error(module: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """``loss_fn`` of a regression, one loss a sample."""
    x, y = batch
    return (module(x) - y).square().flatten(1).sum(1) / 2


def settings(eps: float | str = 1e-3, **changes: Any) -> SamplerConfig:
    """A small, cheap SGLD configuration; `changes` go to `SamplerConfig`."""
    defaults: dict[str, Any] = {
        "nbeta": 10.0,
        "localization": 1.0,
        "num_chains": 2,
        "num_draws": 3,
        "num_burnin_steps": 0,
        "batch_size": None,
    }
    return SamplerConfig(**{"dynamics": SGLD(eps), **defaults, **changes})  # type: ignore[arg-type]


def llc(measurement: Measurement) -> float:
    """The number that most tests look at."""
    return float(measurement["llc"]["mean"])


def objective_for(
    module: nn.Module, loss_fn: Any, reference: Any = TWO_SAMPLES, batch_size: int | None = None, **options: Any
) -> Objective:
    """An objective around a fresh fork, its losses at w* measured."""
    objective = Objective(Fork(module), loss_fn, draw_reference(reference), batch_size=batch_size, **options)
    objective.measure_fork()
    return objective


def engine_for(objective: Objective, config: SamplerConfig) -> tuple[SequentialEngine, list[Chain]]:
    """The sequential engine and cold chains for `config`."""
    posterior = LocalPosterior(float(config.nbeta or 1.0), config.localization)
    engine = SequentialEngine(objective, config.dynamics, posterior)
    return engine, make_chains(config, objective.fork.device, seed=0, step=0)


class Everything(nn.Module):
    """Tied and frozen weights, normalization, dropout, a buffer, a lock, a generator and a hook, in mixed modes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.lock = threading.Lock()
        self.noise = torch.Generator().manual_seed(3)
        self.train()
        self.frozen.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x = self.tied(torch.tanh(self.embed(x))) + 0.01 * torch.randn(4, generator=self.noise)
        out: torch.Tensor = self.head(self.drop(self.norm(self.frozen(x))))
        return out


__all__ = [
    "TWO_SAMPLES",
    "Estimator",
    "Everything",
    "Quadratic",
    "Weights",
    "engine_for",
    "estimate",
    "llc",
    "objective_for",
    "settings",
    "squared_error",
]
