"""Which engine moves the chains of a run: the one that was named, or the faster in a race of a few steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import make_chains
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.engine import Engine
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.sequential import SequentialEngine
from slt_callbacks.sampling.vectorized import VectorizedEngine, chain_gradients

_log = logging.getLogger(__name__)

# Short chains are over before a race between engines would pay for itself (it takes six steps a chain).
SHORTEST_RACE = 100
_LAPS = 2
# All chains at once take the memory of all chains: worth it where a third is saved. A margin so wide also keeps the
# noise of the clock from making two runs choose differently.
_CLEARLY_FASTER = 0.67


class EngineChoice:
    """Decides at the first measurement of a run, and keeps what was compiled for the others.

    Args:
        config: Its `engine` and `compile`, and how many and how long the chains are.

    Attributes:
        name: "auto" until a race has decided, then "sequential" or "vectorized".

    Example:
        >>> EngineChoice(SamplerConfig(engine="sequential")).name
        'sequential'
    """

    def __init__(self, config: SamplerConfig) -> None:
        self.name: str = config.engine
        self._config = config
        # Its module is an argument, and torch.compile keeps what it compiled for it: forks of one module share it. A
        # program for each shape: with sizes left open, some gradients within vmap (BatchNorm's) cannot be compiled.
        self._program = torch.compile(chain_gradients, dynamic=False) if config.compile else chain_gradients

    def engine(
        self,
        objective: Objective,
        dynamics: Dynamics,
        posterior: LocalPosterior,
        num_chains: int,
        agree: Callable[[str], str],
    ) -> Engine:
        """The engine for one measurement.

        Args:
            objective: The losses.
            dynamics: With a number for its step size.
            posterior: The target.
            num_chains: Chains of this process.
            agree: Of the names that the processes found, the one that all take.
        """
        sequential = SequentialEngine(objective, dynamics, posterior)
        if self.name == "sequential" or objective.fork.in_place:
            return sequential
        if self._program is not chain_gradients:
            self._try_compiled(VectorizedEngine(objective, dynamics, posterior, self._program), num_chains)
        vectorized = VectorizedEngine(objective, dynamics, posterior, self._program)
        if self.name == "auto":
            self.name = agree(self._faster(vectorized, sequential))
        elif self._config.engine == "vectorized" and (reason := _refusal(vectorized, max(num_chains, 1))):
            self.name = "sequential"
            _log.info("The chains run one by one, because this module cannot be vectorized: %s", reason)
        return vectorized if self.name == "vectorized" else sequential

    def seconds_at_once(
        self, objective: Objective, dynamics: Dynamics, posterior: LocalPosterior, num_chains: int
    ) -> float:
        """What the gradients of all chains take in one program; infinite where they will go one by one.

        Args:
            objective: The losses.
            dynamics: As `engine` takes it; its step size does not matter.
            posterior: The target.
            num_chains: Chains of this process.
        """
        short = self._config.num_chains < 2 or self._config.num_steps < SHORTEST_RACE
        if self.name == "sequential" or objective.fork.in_place or (self.name == "auto" and short):
            return math.inf
        engine = VectorizedEngine(objective, dynamics, posterior)
        if _refusal(engine, num_chains):
            return math.inf
        start = time.perf_counter()
        engine.try_step(num_chains)
        if objective.fork.device.type == "cuda":
            torch.cuda.synchronize(objective.fork.device)
        return time.perf_counter() - start

    def _try_compiled(self, vectorized: VectorizedEngine, num_chains: int) -> None:
        if reason := _refusal(vectorized, num_chains):
            self._program = chain_gradients
            _log.info("The chains' step runs as it is, because it cannot be compiled: %s", reason)

    def _faster(self, vectorized: Engine, sequential: Engine) -> str:
        """Name of the faster engine, where the chains are many and long enough for that to matter."""
        if self._config.num_chains < 2 or self._config.num_steps < SHORTEST_RACE:
            return "sequential"
        try:
            ratio = time_ratio(vectorized, sequential, self._config)
        except Exception as error:  # noqa: BLE001  # as below; the memory of all chains may be lacking as well
            _log.debug("The chains run one by one: %s", error)
            return "sequential"
        _log.info("All chains at once take %.2f times the time of one by one.", ratio)
        return "vectorized" if is_worth_it(ratio) else "sequential"


def _refusal(engine: VectorizedEngine, num_chains: int) -> str | None:
    """Why the engine cannot take a step with this module, in a line; None where it can."""
    try:
        engine.try_step(num_chains)
    except Exception as error:  # noqa: BLE001  # vmap and the compiler meet the user's code, and refuse in many ways
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def time_ratio(engine: Engine, than: Engine, config: SamplerConfig) -> float:
    """Seconds for a step of all chains with `engine`, as a share of those with `than`.

    Throwaway chains take one step to warm up and a few timed ones, in turn; the best lap of each counts.

    Args:
        engine: With the same objective as `than`.
        than: What it is compared with.
        config: Says how many chains.

    Raises:
        Exception: Whatever stepping raises.
    """
    times: dict[int, list[float]] = {0: [], 1: []}
    for lap in range(_LAPS + 1):
        for place, runner in enumerate((engine, than)):
            device = runner.objective.fork.device
            chains = make_chains(config, device, seed=0, step=lap)
            start = time.perf_counter()
            for group in runner.groups(chains):
                for _ in runner.advance(group, range(1), keep=False):
                    pass
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if lap:
                times[place].append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


def is_worth_it(ratio: float) -> bool:
    """Whether so small a share of the time is worth the memory of all chains at once."""
    return ratio < _CLEARLY_FASTER
