"""What a stranger's default measurement shows, on models as people train them, against chains twenty times as long."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from slt_callbacks import Estimator, LeimkuhlerMatthews, Measurement, SamplerConfig
from tests.benchmarks import real_models
from tests.benchmarks.real_models import Problem
from tests.benchmarks.rows import Row, at_most

# Of the long reference: half the step, and so many steps of every chain.
_BURN_IN, _DRAWS = 600, 2500
_GOOD_RHAT = 1.05


class Counted:
    """A loss function that counts the samples whose gradient it is asked for.

    Args:
        loss_fn: The function itself.
    """

    def __init__(self, loss_fn: Any) -> None:
        self.loss_fn, self.samples = loss_fn, 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.samples += len(batch[0]) if torch.is_grad_enabled() else 0
        losses: torch.Tensor = self.loss_fn(module, batch)
        return losses


@dataclass(frozen=True)
class Run:
    """A default measurement beside the truth.

    Attributes:
        name: Of the problem.
        found: By default.
        long: What counts as the truth.
        samples: Gradients of samples that the default took, in all.
    """

    name: str
    found: Measurement
    long: Measurement
    samples: int

    @property
    def error(self) -> float:
        """In percent."""
        return 100 * abs(self.found["llc"]["mean"] / self.long["llc"]["mean"] - 1)

    def line(self) -> str:
        """All of it."""
        found, long = self.found, self.long
        return (
            f"{self.name}: {found['llc']['mean']:.3g} +- {found['llc']['stderr']:.2g}, long "
            f"{long['llc']['mean']:.3g} +- {long['llc']['stderr']:.2g}, R-hat {found['health']['rhat']:.2f}, "
            f"{self.samples} gradients of samples"
        )


def rows() -> Iterator[Row]:
    """Two moments of five models; a quarter of an hour."""
    runs = []
    for problem in (problem for name in real_models.RECIPES for problem in real_models.trained(name)):
        runs.append(_run(problem))
        yield Row(f"  {runs[-1].name}", runs[-1].error, "%", note=runs[-1].line())
    good = sum(run.found["health"]["rhat"] < _GOOD_RHAT for run in runs)
    errors = [run.error for run in runs]
    note = f"of {len(runs)} runs; the long chains' standard error is {_median(_noise(runs)):.1f} % at the median"
    yield at_most("defaults: median error of the LLC", _median(errors), 5.0, "%", note)
    yield Row("defaults: runs with R-hat < 1.05", good, f"of {len(runs)}", ">= 9", good >= 9)
    yield at_most("defaults: most gradients of samples", max(run.samples for run in runs), 40_000, "")


def _run(problem: Problem) -> Run:
    counted = Counted(problem.loss_fn)
    config = SamplerConfig(engine="sequential")  # which asks for one chain at a time, so that samples can be counted
    found = Estimator(problem.reference, counted, None, config, seed=1).measure(problem.module, step=1)
    step_size = found["health"]["step_size"] / 2
    config = SamplerConfig(LeimkuhlerMatthews(step_size), num_draws=_DRAWS, num_burnin_steps=_BURN_IN)
    long = Estimator(problem.reference, problem.loss_fn, None, config, seed=2).measure(problem.module, step=1)
    return Run(problem.name, found, long, counted.samples)


def _noise(runs: list[Run]) -> Iterator[float]:
    return (100 * run.long["llc"]["stderr"] / abs(run.long["llc"]["mean"]) for run in runs)


def _median(values: Any) -> float:
    return float(statistics.median(values))
