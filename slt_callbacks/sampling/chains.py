"""Chains: one SGLD run as a generator of draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from slt_callbacks.basics.rng import generator
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import State

_NOISE_STREAM, _MINIBATCH_STREAM = 0, 1
# A warm burn-in goes in rounds of a fifth of the cold one, and never of fewer steps than the drift test can read.
_WARM_ROUNDS, _SHORTEST_ROUND = 5, 16


@dataclass
class Chain:
    """One chain between two calls of an engine.

    Attributes:
        index: From 0.
        noise: Generator of the noise, on the device of the fork.
        minibatches: Generator of the minibatches, on the CPU.
        displacement: ``w - w*``, shape ``(P,)``; None at the fork itself.
        state: State of the dynamics; None before the first step.
        sgld_step: Steps that `state` has seen.
    """

    index: int
    noise: torch.Generator
    minibatches: torch.Generator
    displacement: torch.Tensor | None = None
    state: State | None = None
    sgld_step: int = 0


def warm_round(most: int) -> int:
    """Steps of one round of burn-in for chains that start where the last measurement ended.

    Args:
        most: Steps of burn-in of a cold chain.
    """
    return min(most, max(most // _WARM_ROUNDS, _SHORTEST_ROUND))


def make_chains(
    config: SamplerConfig,
    device: torch.device,
    seed: int,
    step: int,
    past: Mapping[int, int] | None = None,
    noise: Callable[..., torch.Generator] | None = None,
) -> list[Chain]:
    """Cold chains with generators of their own, seeded from (seed, training step of the fork, chain).

    Args:
        config: Says how many.
        device: Of the fork.
        seed: Of the run.
        step: Training step of the fork.
        past: By chain, SGLD steps of those that will go on. It is part of their seed: the noise that has brought a
            chain where it is would, given once more at the same training step, carry it away.
        noise: From such a key to the generator of a chain's noise; None for one on `device`.
    """
    keys = [
        (seed, step, index, *((past[index],) if past and index in past else ())) for index in range(config.num_chains)
    ]
    noise = partial(generator, device) if noise is None else noise
    return [
        Chain(index, noise(*key, _NOISE_STREAM), generator(torch.device("cpu"), *key, _MINIBATCH_STREAM))
        for index, key in enumerate(keys)
    ]
