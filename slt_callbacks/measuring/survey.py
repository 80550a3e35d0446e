"""One posterior, surveyed: from the live module through its own losses and chains to what its observables find."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from slt_callbacks.measuring.preparation import Preparation, means_at_fork
from slt_callbacks.measuring.sampling_run import NOT_FINITE, SamplingRun
from slt_callbacks.measuring.timed_pass import time_pass
from slt_callbacks.observables.base import ReferencePoint

if TYPE_CHECKING:
    from torch import nn

    from slt_callbacks.basics.ranks import Exchange
    from slt_callbacks.losses.objective import Objective
    from slt_callbacks.measuring.sampling_run import OnSteps, Sampled
    from slt_callbacks.measuring.target import Target
    from slt_callbacks.measuring.timed_pass import TimedPass
    from slt_callbacks.observables.panel import Panel
    from slt_callbacks.sampling.config import SamplerConfig


class Survey:
    """The main posterior, or one over fewer weights, other data or another loss.

    Args:
        target: The posterior, and what is remembered of it.
        preparation: Makes its losses.
        panel: The observables that read its draws.
        config: Settings of the chains.
        exchange: The processes that share the chains.
        persistent: Whether chains keep where they end.

    Attributes:
        target: As given.
        preparation: As given.
        panel: As given.
    """

    def __init__(
        self,
        target: Target,
        preparation: Preparation,
        panel: Panel,
        config: SamplerConfig,
        exchange: Exchange,
        persistent: bool,
    ) -> None:
        self.target = target
        self.preparation = preparation
        self.panel = panel
        self._config = config
        self._exchange = exchange
        self._run = SamplingRun(target, panel, config, exchange, persistent)

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement in this process, if warm chains do not drift."""
        return self.target.expected_steps if self.panel.reads_draws else 0

    @property
    def later_steps(self) -> int:
        """Gradient steps of a later measurement in this process, if its chains do not drift."""
        return self.target.later_steps if self.panel.reads_draws else 0

    def check(self, module: nn.Module, seed: int) -> None:
        """Fork, try the loss, and let observables of the fork refuse what they cannot read.

        Args:
            module: The live one.
            seed: As `measure` takes it.

        Raises:
            TypeError: As `Preparation.objective` and `Panel.inspect`.
            ValueError: Likewise.
        """
        objective = self.preparation.objective(module)
        self.panel.inspect(objective, self._point(0, math.nan, torch.empty(0, device="cpu")), seed, rehearsal=True)

    def measure(self, module: nn.Module, step: int, seed: int, on_steps: OnSteps | None) -> Sampled:
        """Fork, losses at w*, what is read there, chains.

        Args:
            module: The live one.
            step: Training step of the fork.
            seed: Of the random numbers that an observable of the fork may draw.
            on_steps: For a progress bar.

        Raises:
            Exception: Whatever the loss function raises, and as `Preparation.objective`.
        """
        objective = self.preparation.objective(module)
        loss = float(objective.measure_fork())
        losses = objective.at_fork if objective.per_sample else torch.empty(0, device="cpu")
        point = self._point(step, loss, losses)
        if not all(self._exchange.gather(math.isfinite(loss))):
            return self.fail(step, NOT_FINITE)
        probes = self.preparation.probes(objective)
        means = means_at_fork(objective, probes)
        self.panel.inspect(objective, point, seed)
        return self._run.sample(objective, point, probes, means, on_steps)

    def fail(self, step: int, error: str) -> Sampled:
        """A measurement that gives nothing; chains start afresh after it."""
        self.panel.forget_fork()
        return self._run.fail(self._point(step, math.nan, torch.empty(0, device="cpu")), error)

    def results(self, sampled: Sampled) -> dict[str, dict[str, Any]]:
        """What the observables have found, by key, and the chains' health."""
        results = self.panel.compute(lenient=sampled.error is not None)
        results["health"] = self.target.told(sampled.curvature, sampled.num_burnin_steps)
        return results

    def time_pass(self, module: nn.Module, num_steps: int, at_once: bool = True) -> TimedPass:
        """Fork, and take a gradient pass.

        Args:
            module: The live one.
            num_steps: Gradient steps of the first measurement, of all posteriors.
            at_once: Whether to look, where that is long, how quick the chains are when they go all at once.

        Raises:
            Exception: Whatever the loss function raises, and as `Preparation.objective`.
        """
        objective, target = self.preparation.objective(module), self.target
        more = target.gradients_ahead(objective) if self.panel.reads_draws else 0
        look = partial(target.seconds_at_once, objective) if at_once else lambda: math.inf
        share = self._exchange.first if objective.fork.in_place else None
        return time_pass(objective, num_steps, target.num_chains, more, self.samples_a_draw(objective), look, share)

    def samples_a_draw(self, objective: Objective) -> int:
        """Samples whose losses are asked for in all, at w* and at the draws, beside those of the SGLD steps."""
        draws = self.target.num_chains * self._config.num_draws if self.panel.reads_draws else 0
        at_fork = len(objective) + self.panel.samples_at_fork(len(objective))
        return at_fork + draws * self.preparation.samples_a_draw(objective)

    def _point(self, step: int, loss: float, losses: torch.Tensor) -> ReferencePoint:
        posterior = self.target.posterior
        return ReferencePoint(
            step=step,
            loss=loss,
            losses=losses,
            indices=self.preparation.reference.indices,
            nbeta=posterior.nbeta,
            localization=posterior.localization,
            num_chains=self._config.num_chains,
            num_draws=self._config.num_draws,
        )
