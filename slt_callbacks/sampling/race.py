"""Which engine is faster here: a few steps of each."""

from __future__ import annotations

import time

import torch

from slt_callbacks.sampling.chains import Engine, make_chains
from slt_callbacks.sampling.config import SamplerConfig

# Short chains are over before a race between engines would pay for itself (it takes six steps a chain).
SHORTEST_RACE = 100
_LAPS = 2
# All chains at once take the memory of all chains: worth it where a third is saved. A margin so wide also keeps the
# noise of the clock from making two runs choose differently.
_CLEARLY_FASTER = 0.67


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
                for _ in runner.advance(group, 1, keep=False):
                    pass
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if lap:
                times[place].append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])


def is_worth_it(ratio: float) -> bool:
    """Whether so small a share of the time is worth the memory of all chains at once."""
    return ratio < _CLEARLY_FASTER
