"""One posterior, and everything that is remembered of it from one measurement of a run to the next."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.basics.rng import seed_from
from slt_callbacks.losses.objective import Objective
from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.sampling.chains import Chain, make_chains, warm_round
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.engine_choice import EngineChoice
from slt_callbacks.sampling.memory import ChainMemory
from slt_callbacks.sampling.pilot import Pilot, gradients_ahead
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.scout import Scout, curvature_places
from slt_callbacks.sampling.stride import Stride

if TYPE_CHECKING:
    from slt_callbacks.sampling.curvature import Stiffness
    from slt_callbacks.sampling.engine import Engine

_T = TypeVar("_T")
_CURVATURE_STREAM, _TURN_STREAM = 201, 206  # apart from the streams of the chains, which start at 0


class Target:
    """The main posterior, or one over fewer weights, other data or another loss.

    Args:
        config: Settings of the chains.
        posterior: nbeta and localization in force.
        seed: Of the run.
        exchange: The processes that share the chains.
        persistent: Whether chains go on from where the last measurement left them (memory: chains x parameters).
        on_cpu: Whether they wait there for the next measurement.
        name: "" for the main one. It enters the seed: no two targets draw the same noise.

    Attributes:
        name: As given.
        stride: How the chains move: `config`'s dynamics, with "auto" resolved.
        memory: Where the chains have ended.
        health: Diagnostics of the present chains.
        posterior: As given.

    Example:
        >>> from slt_callbacks.basics.ranks import Alone
        >>> config = SamplerConfig(num_chains=2, num_draws=5, num_burnin_steps=10)
        >>> target = Target(config, LocalPosterior(10.0, 1.0), seed=0, exchange=Exchange(Alone()))
        >>> target.expected_steps, target.stride.step_size
        (30, 'auto')
    """

    def __init__(
        self,
        config: SamplerConfig,
        posterior: LocalPosterior,
        seed: int,
        exchange: Exchange,
        persistent: bool = False,
        on_cpu: bool = False,
        name: str = "",
    ) -> None:
        self.name = name
        self.posterior = posterior
        self.stride = Stride(config, posterior)
        self.memory = ChainMemory(on_cpu)
        self.health = ChainHealth()
        self._config = config
        self._seed = seed_from(seed, zlib.crc32(name.encode())) if name else seed
        self._exchange = exchange
        self._persistent = persistent
        self._engines = EngineChoice(config)
        self._direction: torch.Tensor | None = None  # of the largest curvature at the last measurement
        self._new_direction: torch.Tensor | None = None  # at this one, which may yet be cut short
        self._num_parameters = 0
        self._ahead: Stiffness | None = None  # where a chain stands that is to go on
        self._acceptance = math.nan

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement in this process, if warm chains do not drift."""
        own = self._own(range(self._config.num_chains))
        warm = len(self.memory.past.keys() & set(own))
        return (len(own) - warm) * self.cold_steps + warm * self.warm_steps

    @property
    def later_steps(self) -> int:
        """Gradient steps of a later measurement in this process, if its chains do not drift."""
        return self.num_chains * (self.warm_steps if self._persistent else self.cold_steps)

    @property
    def num_chains(self) -> int:
        """Chains of this process."""
        return len(self._own(range(self._config.num_chains)))

    @property
    def cold_steps(self) -> int:
        """Gradient steps of a chain that begins at w*, if its step suits."""
        return self.stride.burn_in + self._config.num_draw_steps

    @property
    def warm_steps(self) -> int:
        """Gradient steps of a chain that goes on from the last measurement, if it does not drift."""
        return warm_round(self.stride.burn_in) + self._config.num_draw_steps

    def find_curvature(self, objective: Objective, step: int) -> float:
        """k_max at the fork, from the direction that the last measurement found.

        Where chains go on and their step may change without a bias, that where one of them stands, another one every
        time: it says more of the step, and costs less than both.
        """
        fork = objective.fork
        self.memory.check(len(fork), fork.moves())
        self._ahead = self._look_ahead(objective, step)
        self._new_direction = self._direction
        if self._ahead is not None:
            return self._ahead.curvature
        rng = fork.generator(self._seed, step, _CURVATURE_STREAM)
        if self._direction is not None and len(self._direction) != fork.num_here:
            self._direction = None  # parameters were frozen or added since
        start_from = None if self._direction is None else self.memory.whole(self._direction.to(fork.device))
        places = None if self.stride.is_biased else curvature_places(objective)
        curvature, direction = largest_curvature(objective, self.posterior, rng, start_from, places)
        self._new_direction = self.memory.moving(direction) if self._persistent else None
        return float(self._exchange.first(curvature))

    def settle(self, objective: Objective, step: int, curvature: float) -> int:
        """A number for an "auto" step; where one with a bias was far too long or too short, chains begin anew.

        Returns:
            Gradient steps that were taken to find it.
        """
        if self.stride.begin(curvature):
            self.memory.clear()
        if self._ahead is not None:
            self.stride.suits([self._ahead], llc=math.nan)
        elif self.stride.is_open:
            scout = self.scout(objective, step, curvature)
            return Pilot(scout, objective, self.posterior, self._seed, step, self._exchange.first).run()
        return 0

    def scout(self, objective: Objective, step: int, curvature: float) -> Scout:
        """What looks where this measurement's chains stand."""
        return Scout(self.stride, objective, self.posterior, self._seed, step, curvature, self._config.acceptance)

    def gradients_ahead(self, objective: Objective) -> int:
        """As `gradients_ahead` of the pilot."""
        return gradients_ahead(objective, self.stride)

    def engine(self, objective: Objective) -> Engine:
        """What moves this measurement's chains."""
        dynamics = self.stride.dynamics
        return self._engines.engine(objective, dynamics, self.posterior, self.num_chains, self._exchange.first)

    def seconds_at_once(self, objective: Objective) -> float:
        """As `EngineChoice.seconds_at_once`, of this process's chains."""
        return self._engines.seconds_at_once(objective, self.stride.dynamics, self.posterior, self.num_chains)

    def chains(self, objective: Objective, step: int) -> list[Chain]:
        """This process's chains: new random numbers, and the places where the last ones ended."""
        fork = objective.fork
        self._num_parameters = fork.num_moving
        made = make_chains(self._config, fork.device, self._seed, step, self.memory.past, fork.generator)
        chains = self._own(made)
        self.memory.resume(chains, fork.device)
        return chains

    def keep(self, chains: Sequence[Chain]) -> None:
        """Remember the chains that have ended well, and no others, and where the curvature was largest.

        Not before the end: a measurement that is cut short is made again after a resume.
        """
        shared = self._persistent and self._exchange.size > 1 and self._exchange.gate is None
        self.memory.keep(chains, self._exchange.gather if shared else None, self._exchange.rank)
        self.memory.only(self._exchange.common(set(self.memory.past)))
        self._direction = self._new_direction

    def forget(self) -> None:
        """Let the next measurement begin as the first."""
        self.memory.clear()
        self._direction = None
        self._acceptance = math.nan

    def agree(self, scout: Scout) -> None:
        """Share what the processes have seen of the chains, for the next measurement and for what is told."""
        everyone = [one for part in self._exchange.gather(self.stride.seen) for one in part]
        self.stride.finish(everyone, self.posterior.nbeta * self.health.excess)
        chains = [one for part in self._exchange.gather(list(scout.acceptances.values())) for one in part]
        self._acceptance = float(torch.tensor(chains, dtype=torch.float64, device="cpu").nanmean())

    def told(self, curvature: float, num_burnin_steps: int) -> dict[str, Any]:
        """Diagnostics of the chains, and the settings in force."""
        step_size = self.stride.step_size
        return self.health.compute() | {
            "step_size": math.nan if isinstance(step_size, str) else step_size,
            "step_bias": self.stride.step_bias(curvature),
            "stability": self.stride.stability,
            "step_gap": self.stride.gap(*(self.posterior.nbeta * half for half in self.health.halves)),
            "noise_bias": self.stride.noise_bias(self.posterior.nbeta * self.health.excess),
            "acceptance": self._acceptance,
            "num_burnin_steps": num_burnin_steps,
            "num_parameters": self._num_parameters or math.nan,
            "nbeta": self.posterior.nbeta,
            "localization": float(self.posterior.localization),
        }

    def state_dict(self, chains: bool = True) -> dict[str, Any]:
        """What a resumed run needs, in builtins and tensors on the CPU.

        Args:
            chains: Whether to include the chains' positions (chains x parameters). Those on shards stay out: a
                checkpoint holds what rank 0 has, and it has its own part alone.
        """
        chains = chains and self._exchange.gate is None
        direction = None if self._direction is None or not chains else self._direction.cpu()
        return {
            **self.stride.state_dict(),
            "engine": self._engines.name,
            "direction": direction,
            "chains": self.memory.state_dict() if chains else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.stride.load_state_dict(state)
        if self._config.engine == "auto":
            self._engines.name = state.get("engine", "auto")
        if self._persistent:
            self._direction = state.get("direction")
            self.memory.load_state_dict(state["chains"])

    def _look_ahead(self, objective: Objective, step: int) -> Stiffness | None:
        """What limits the step where a chain stands that is to go on; the same one on every rank, which all know it.

        None where no chain is, the step has a bias to keep, or the one whose turn it is does not stand anywhere.
        """
        past = sorted(self.memory.past) if self.stride.is_open and not self.stride.is_new else []
        chain = self._exchange.first(past[seed_from(self._seed, step, _TURN_STREAM) % len(past)] if past else None)
        if chain is None:
            return None
        found = None
        fork = objective.fork
        if chain in self.memory.past:
            fork.reset(self.memory.displacement(chain))
            scout = self.scout(objective, step, self.stride.last_curvature)
            found = scout.stiffness(chain, fork.position.clone())
        found = self._exchange.first(found)
        return found if found is not None and found.is_finite else None

    def _own(self, chains: Sequence[_T]) -> list[_T]:
        """Those that this process runs: every so many'th, so that ranks in order give chains in order."""
        return self._exchange.own(chains)
