"""One posterior, and everything that is remembered of it from one measurement of a run to the next."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

import torch

from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.basics.rng import generator, seed_from
from slt_callbacks.losses.objective import Objective
from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.sampling.chains import Chain, make_chains, warm_round
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.dynamics import Dynamics, resolve_step_size
from slt_callbacks.sampling.engine import Engine
from slt_callbacks.sampling.engine_choice import EngineChoice
from slt_callbacks.sampling.memory import ChainMemory
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.step_sizes import BIASED

_T = TypeVar("_T")
_CURVATURE_STREAM = 201  # apart from the streams of the chains, which start at 0


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
        dynamics: In use: `config`'s, with "auto" resolved at the first measurement and then held.
        memory: Where the chains have ended.
        health: Diagnostics of the present chains.
        posterior: As given.

    Example:
        >>> from slt_callbacks.basics.ranks import Alone
        >>> config = SamplerConfig(num_chains=2, num_draws=5, num_burnin_steps=10)
        >>> target = Target(config, LocalPosterior(10.0, 1.0), seed=0, exchange=Exchange(Alone()))
        >>> target.expected_steps, target.dynamics.step_size
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
        self.dynamics: Dynamics = config.dynamics
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

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement in this process, if warm chains do not drift."""
        own = self._own(range(self._config.num_chains))
        warm = len(self.memory.past.keys() & set(own))
        return (len(own) - warm) * self._config.num_steps + warm * self.warm_steps

    @property
    def later_steps(self) -> int:
        """Gradient steps of a later measurement in this process, if its chains do not drift."""
        return self.num_chains * (self.warm_steps if self._persistent else self._config.num_steps)

    @property
    def num_chains(self) -> int:
        """Chains of this process."""
        return len(self._own(range(self._config.num_chains)))

    @property
    def warm_steps(self) -> int:
        """Gradient steps of a chain that goes on from the last measurement, if it does not drift."""
        return warm_round(self._config) + self._config.num_draw_steps

    @property
    def step_size(self) -> float | str:
        """The step in use, of whatever kind it was, as a float; "auto" before there is one."""
        step_size = self.dynamics.step_size
        return "auto" if step_size == "auto" else float(step_size)

    def step_bias(self, curvature: float) -> float:
        """Relative discretization bias at the largest curvature; NaN where it is unknown."""
        bias = getattr(self.dynamics, "step_bias", None)
        return float(bias(curvature)) if bias is not None and math.isfinite(curvature) else math.nan

    def find_curvature(self, objective: Objective, step: int) -> float:
        """k_max at the fork, from the direction that the last measurement found."""
        fork = objective.fork
        rng = generator(fork.device, self._seed, step, _CURVATURE_STREAM)
        if self._direction is not None and len(self._direction) != len(fork):
            self._direction = None  # parameters were frozen or added since
        start_from = None if self._direction is None else self._direction.to(fork.device)
        curvature, direction = largest_curvature(objective, self.posterior, rng, start_from)
        self._new_direction = direction if self._persistent else None
        return float(self._exchange.first(curvature))

    def settle(self, curvature: float) -> None:
        """A number for an "auto" step; one far too long or too short is halved or doubled, and chains begin anew."""
        self.dynamics = resolve_step_size(self.dynamics, curvature)
        if self._config.dynamics.step_size != "auto" or not is_dataclass(self.dynamics):
            return
        while self.step_bias(curvature) > BIASED.most:
            self._scale_step(0.5)
        if 0 < self.step_bias(curvature) < BIASED.least:  # 0: a flat loss without localization
            while self.step_bias(curvature) <= BIASED.aim / 2:
                self._scale_step(2.0)

    def engine(self, objective: Objective) -> Engine:
        """What moves this measurement's chains."""
        return self._engines.engine(objective, self.dynamics, self.posterior, self.num_chains, self._exchange.first)

    def seconds_at_once(self, objective: Objective) -> float:
        """As `EngineChoice.seconds_at_once`, of this process's chains."""
        return self._engines.seconds_at_once(objective, self.dynamics, self.posterior, self.num_chains)

    def chains(self, objective: Objective, step: int) -> list[Chain]:
        """This process's chains: new random numbers, and the places where the last ones ended."""
        fork = objective.fork
        self.memory.check(len(fork))
        self._num_parameters = fork.num_moving
        chains = self._own(make_chains(self._config, fork.device, self._seed, step, self.memory.past))
        self.memory.resume(chains, fork.device)
        return chains

    def keep(self, chains: Sequence[Chain]) -> None:
        """Remember the chains that have ended well, and no others, and where the curvature was largest.

        Not before the end: a measurement that is cut short is made again after a resume.
        """
        shared = self._persistent and self._exchange.size > 1
        self.memory.keep(chains, self._exchange.gather if shared else None, self._exchange.rank)
        self._direction = self._new_direction

    def forget(self) -> None:
        """Let the next measurement begin as the first."""
        self.memory.clear()
        self._direction = None

    def told(self, curvature: float, num_burnin_steps: int) -> dict[str, Any]:
        """Diagnostics of the chains, and the settings in force."""
        step_size = self.step_size
        return self.health.compute() | {
            "step_size": math.nan if isinstance(step_size, str) else step_size,
            "step_bias": self.step_bias(curvature),
            "num_burnin_steps": num_burnin_steps,
            "num_parameters": self._num_parameters or math.nan,
            "nbeta": self.posterior.nbeta,
            "localization": float(self.posterior.localization),
        }

    def state_dict(self, chains: bool = True) -> dict[str, Any]:
        """What a resumed run needs, in builtins and tensors on the CPU.

        Args:
            chains: Whether to include the chains' positions (chains x parameters).
        """
        direction = None if self._direction is None or not chains else self._direction.cpu()
        return {
            "step_size": self.step_size,
            "engine": self._engines.name,
            "direction": direction,
            "chains": self.memory.state_dict() if chains else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if self._config.dynamics.step_size == "auto" and state["step_size"] != "auto":
            self.dynamics = replace(self._config.dynamics, step_size=state["step_size"])  # type: ignore[type-var]
        if self._config.engine == "auto":
            self._engines.name = state.get("engine", "auto")
        if self._persistent:
            self._direction = state.get("direction")
            self.memory.load_state_dict(state["chains"])

    def _scale_step(self, factor: float) -> None:
        self.dynamics = replace(self.dynamics, step_size=float(self.dynamics.step_size) * factor)  # type: ignore[type-var]
        self.memory.clear()

    def _own(self, chains: Sequence[_T]) -> list[_T]:
        """Those that this process runs: every so many'th, so that ranks in order give chains in order."""
        return list(chains[self._exchange.rank :: self._exchange.size])
