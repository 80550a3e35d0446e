"""The chains of one target, run to their end: every draw goes to the observables, every failure is taken back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from slt_callbacks.basics.plain import brief
from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.probes import Probe
from slt_callbacks.measuring.target import Target
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.sampler import Sampler
from slt_callbacks.sampling.verdict import Verdict

NOT_FINITE = "the loss or its gradient is not finite at the fork: has training diverged?"
OnSteps = Callable[[int], None]
"""Told how many gradient steps were just taken."""


@dataclass(frozen=True)
class Sampled:
    """What became of the chains.

    Attributes:
        curvature: k_max at the fork; NaN where it was not looked for.
        num_burnin_steps: Of the chain that took the most.
        sgld_steps: Gradient steps of all chains.
        error: Why there is no estimate, or None.
    """

    curvature: float = math.nan
    num_burnin_steps: int = 0
    sgld_steps: int = 0
    error: str | None = None


class SamplingRun:
    """One measurement's chains of one target.

    Args:
        target: The posterior, and what is remembered of it.
        panel: The observables that read its draws.
        config: Settings of the chains.
        exchange: The processes that share the chains.
        persistent: Whether chains keep where they end.
    """

    def __init__(
        self, target: Target, panel: Panel, config: SamplerConfig, exchange: Exchange, persistent: bool
    ) -> None:
        self._target = target
        self._panel = panel
        self._config = config
        self._exchange = exchange
        self._persistent = persistent

    def start(self, point: ReferencePoint, lenient: bool = False) -> None:
        """Begin the measurement of a fork; `lenient` as in `Panel.reset`."""
        self._panel.reset(point, lenient)
        self._target.health.reset(point)

    def fail(self, point: ReferencePoint, error: str) -> Sampled:
        """A measurement without a draw: the observables give what they have without one, and chains start afresh."""
        self._target.forget()
        self.start(point, lenient=True)
        self._end_chains(set(range(self._config.num_chains)))
        return Sampled(error=brief(error))

    def sample(
        self,
        objective: Objective,
        point: ReferencePoint,
        probes: Mapping[str, Probe],
        at_fork: Mapping[str, float],
        on_steps: OnSteps | None,
    ) -> Sampled:
        """Run the chains.

        Args:
            objective: The losses, its fork at w*.
            point: Of the fork.
            probes: What observables ask for.
            at_fork: Means of these losses at w*.
            on_steps: For a progress bar.
        """
        if not self._panel.reads_draws:  # nobody would look at a chain
            self.start(point)
            return Sampled()
        target = self._target
        curvature = target.find_curvature(objective, point.step)
        # A loss function may answer otherwise on another rank, and all must go on, or none.
        problems = self._exchange.gather(_problem_at_fork(point.loss, curvature, at_fork))
        if any(problems):
            return self.fail(point, next(problem for problem in problems if problem))
        pilot_steps = target.settle(objective, point.step, curvature)
        scout = target.scout(objective, point.step, curvature)
        sampler = Sampler(
            target.engine(objective),
            self._config,
            target.chains(objective, point.step),
            keep=self._persistent,
            reference_losses=self._panel.reference_losses,
            probes=probes,
            on_steps=on_steps,
            gather=self._exchange.gather,
            scout=scout,
        )
        self.start(replace(point, asked_at_fork=at_fork))
        verdict = Verdict(point.nbeta, objective.fork.num_moving, objective.at_fork, len(objective), at_fork)
        failed = self._read(sampler, verdict)
        steps, burn_ins = (self._exchange.gather(count) for count in (sampler.sgld_steps, sampler.num_burnin_steps))
        target.agree(scout)
        target.keep([chain for chain in sampler.chains if chain.index not in failed])
        error = self._fatal(failed)
        return Sampled(curvature, max(burn_ins), sum(steps) + pilot_steps, error)

    def _fatal(self, failed: set[int]) -> str | None:
        """Why there is no estimate, where no chain is left; an "auto" step may be smaller the next time."""
        if len(failed) < self._config.num_chains:
            return None
        self._target.stride.retreat()
        return f"all {len(failed)} chains diverged: try a smaller `step_size`, or a larger `localization`"

    def _read(self, sampler: Sampler, verdict: Verdict) -> set[int]:
        """Take in every draw; returns the chains that have failed."""
        failed: set[int] = set()
        for draws in self._all_draws(sampler):
            for draw in draws:
                verdict.update(draw)
                self._panel.update(draw)
                self._target.health.update(draw)
            bad = verdict.failed()
            self._end_chains(bad)
            failed |= bad
        return failed

    def _all_draws(self, sampler: Sampler) -> Iterator[Iterator[Draw]]:
        """The draws of every rank's chains, on every rank, in the order in which one process would see them."""
        own = (draws for _, draws in sampler.draws())
        if self._exchange.size == 1:
            yield from own
            return
        device = sampler.engine.objective.fork.device
        while True:
            group = next(own, None)
            mine = None if group is None else [draw.to(torch.device("cpu")) for draw in group]
            theirs = [draws for draws in self._exchange.gather(mine) if draws is not None]
            if not theirs:
                return
            for draws in theirs:
                yield (draw.to(device) for draw in draws)

    def _end_chains(self, failed: set[int]) -> None:
        self._panel.end_chains(failed)
        for chain in failed:
            self._target.health.discard(chain)


def _problem_at_fork(loss: float, curvature: float, probed: Mapping[str, float]) -> str | None:
    """Why no chain can start where these are the mean losses, those that an observable asks for by its key."""
    if not (math.isfinite(loss) and math.isfinite(curvature)):
        return NOT_FINITE
    bad = [key for key, value in probed.items() if not math.isfinite(value)]
    return f"a loss that {bad} asks for is not finite at the fork: look at its queries" if bad else None
