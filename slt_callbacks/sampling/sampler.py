"""One SGLD run: burn-in, then draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slt_callbacks.losses.probes import Probe
from slt_callbacks.sampling.chains import Chain, warm_round
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.engine import Engine, Halt
from slt_callbacks.sampling.scout import Scout
from slt_callbacks.stats.diagnostics import drift

# Drift beyond three standard errors says that the chains are still moving; one stationary round in twenty does by
# chance, which costs another round and nothing else.
_DRIFTING = 3.0
# Steps of half of what is stable after which stiff directions have forgotten w*, and of burn-in after which it is worth
# a look how biased a step is.
_EARLY, _WORTH_A_LOOK = 4, 16


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass
class Sampler:
    """One SGLD run: burn-in, then draws. `draws` may be used once.

    Args:
        engine: What moves the chains.
        config: Settings; its dynamics has a number for its step size.
        chains: Cold ones (no displacement) burn in for the steps of a burn-in; warm ones as long as they drift.
        keep: Whether chains keep their final position (memory: chains x parameters).
        reference_losses: Whether draws carry the losses of the whole reference set.
        probes: Further samples whose losses draws carry, by key.
        on_steps: Told how many gradient steps were just taken, for a progress bar.
        gather: Values of every process that runs some of the chains: warm ones are judged together.
        scout: Knows the stride, and looks where chains stand whose step is nobody's to change. None: the burn-in is
            that of `config`.

    Attributes:
        num_burnin_steps: Burn-in steps of the chain that took the most, so far.
        sgld_steps: Gradient steps of all chains, so far.
    """

    engine: Engine
    config: SamplerConfig
    chains: Sequence[Chain]
    keep: bool = False
    reference_losses: bool = False
    probes: Mapping[str, Probe] = field(default_factory=dict)
    on_steps: Callable[[int], None] | None = None
    gather: Callable[[Any], list[Any]] = _alone
    scout: Scout | None = None
    num_burnin_steps: int = field(default=0, init=False)
    sgld_steps: int = field(default=0, init=False)

    def draws(self) -> Iterator[tuple[list[int], Iterator[Draw]]]:
        """Groups of chains one after the other: their indices, and their draws, to be used up before the next group.

        Yields:
            The indices of the chains that sample together, and a generator of their draws.
        """
        warm = [chain for chain in self.chains if chain.displacement is not None]
        if self._burn_in and any(self.gather(bool(warm))):
            self._burn_in_warm(warm)
        for group in self.engine.groups(self.chains):
            cold = any(chain.displacement is None for chain in group)
            yield [chain.index for chain in group], self._group_draws(group, self._burn_in if cold else 0)

    @property
    def _burn_in(self) -> int:
        """Steps of burn-in of a cold chain."""
        return self.config.most_burnin_steps if self.scout is None else self.scout.stride.burn_in

    def _group_draws(self, group: list[Chain], num_burnin_steps: int) -> Iterator[Draw]:
        objective = self.engine.objective
        self.num_burnin_steps = max(self.num_burnin_steps, num_burnin_steps)
        if self.scout is not None:
            self.engine.dynamics = self.scout.stride.dynamics
        num_steps = num_burnin_steps + self.config.num_draw_steps
        for step, halt in enumerate(self.engine.advance(group, range(num_steps), self.keep)):
            self._count(len(halt.points))
            if self.scout is not None:
                self._tell(self.scout, halt, step, num_burnin_steps)
            index, between = divmod(step - num_burnin_steps, self.config.num_steps_bw_draws)
            if index < 0 or between:
                continue
            if index == self.config.num_draws // 2 and self._shorter is not None:
                self.engine.dynamics = self._shorter
            reference = self._reference_losses(halt)
            probed = {key: probe.losses(halt.losses, reference) for key, probe in self.probes.items()}
            for place, point in enumerate(halt.points):
                yield Draw(
                    chain=point.chain,
                    index=index,
                    samples=point.samples,
                    losses=point.losses,
                    loss=point.losses.mean(),
                    excess=objective.excess(point.losses, point.samples),
                    reference_losses=reference[place] if reference else None,
                    query_losses={key: losses[place] for key, losses in probed.items()},
                )

    def _tell(self, scout: Scout, halt: Halt, step: int, num_burnin_steps: int) -> None:
        """The stride how long its steps are where chains stand, where it may only listen; and what a test would say."""
        stride = scout.stride
        if stride.looks and not stride.is_open:
            early = step == min(_EARLY, num_burnin_steps) and not stride.is_biased
            if (step == num_burnin_steps >= _WORTH_A_LOOK) or (early and step > 0):
                stride.suits(scout.look(halt), llc=math.nan)
        if step == num_burnin_steps:
            scout.test(halt)

    @property
    def _shorter(self) -> Dynamics | None:
        """What the second half of the draws is taken with, where half a step must give the same."""
        return None if self.scout is None else self.scout.stride.shorter

    def _reference_losses(self, halt: Halt) -> list[torch.Tensor]:
        """Those of every point, where an observable asks for them."""
        if not self.reference_losses:
            return []
        if self.engine.objective.per_sample and halt.points[0].samples is None:
            return [point.losses for point in halt.points]  # the SGLD step has just computed them
        return halt.losses(self.engine.objective)

    def _burn_in_warm(self, warm: list[Chain]) -> None:
        """Rounds until the chains, taken together, no longer drift; at most as long as a cold burn-in."""
        most = self._burn_in
        length, spent = warm_round(most), 0
        while spent < most:
            length = min(length, most - spent)  # a last round too short for the test (NaN) ends it as well
            own = [column.cpu() for group in self.engine.groups(warm) for column in self._round(group, length)]
            spent += length
            trace = torch.stack([column for part in self.gather(own) for column in part])
            trace = trace[trace.isfinite().all(dim=1)]  # a chain that failed is dropped by whoever reads the draws
            if not len(trace) or not abs(drift(trace)) > _DRIFTING:  # NaN: nothing moves
                break
        self.num_burnin_steps = max(self.num_burnin_steps, spent)

    def _round(self, group: list[Chain], num_steps: int) -> list[torch.Tensor]:
        objective = self.engine.objective
        rows = []
        for halt in self.engine.advance(group, range(num_steps), keep=True):
            self._count(len(halt.points))
            rows.append([objective.excess(point.losses, point.samples) for point in halt.points])
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _count(self, num_steps: int) -> None:
        self.sgld_steps += num_steps
        if self.on_steps is not None:
            self.on_steps(num_steps)
