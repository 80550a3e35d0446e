"""A chain that goes ahead of the others, where a step is new, to find how long it may be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from slt_callbacks.basics.rng import generator
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.curvature import COLD_ITERATIONS, NOISE_PAIRS, WARM_ITERATIONS
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.scout import Scout, curvature_places
from slt_callbacks.sampling.sequential import SequentialEngine
from slt_callbacks.sampling.stride import LEAST_BURN_IN, Stride

_PILOT_STREAM, _MINIBATCH_STREAM = 208, 209  # apart from the streams of the chains, which start at 0
_INDEX = -1
# Steps of half of what is stable after which stiff directions have forgotten w*: one far too long shows, and has not
# yet carried the chain away.
_EARLY = 4
# A step that was shortened is looked at again; the fourth look is the last, whatever it finds, for steps are dear.
_MOST_LOOKS = 4
# Steps before a look whose losses tell what the LLC will be like.
_LATELY = 32
# A pilot that is carried away all the same begins again, with a step of an eighth each time.
_MOST_STARTS = 3


class Pilot:
    """Takes the steps of a cold chain, looks where it stands, and has the step shortened until it suits.

    It goes alone, before any draw, so that the step of a measurement is one for all chains, engines and processes.
    Nobody reads its losses.

    Args:
        scout: Looks; its stride is changed.
        objective: The losses.
        posterior: The target.
        seed: Of the run.
        step: Training step of the fork.
        share: The value of the first process, on all of them.
    """

    def __init__(
        self,
        scout: Scout,
        objective: Objective,
        posterior: LocalPosterior,
        seed: int,
        step: int,
        share: Callable[[Any], Any],
    ) -> None:
        self._scout, self._objective, self._posterior, self._share = scout, objective, posterior, share
        self._key = (seed, step, _INDEX)

    def run(self) -> int:
        """Go ahead; only as far as the first look where the step is not new and suits. Returns the steps taken."""
        brief, taken = not self._scout.stride.is_new, 0
        for start in range(_MOST_STARTS):
            steps, arrived = self._go(start, brief)
            taken += steps
            if arrived:
                break
            self._scout.stride.retreat()
        return taken

    def _go(self, start: int, brief: bool) -> tuple[int, bool]:
        """Steps taken, and whether the chain has stayed where losses are finite."""
        stride, objective = self._scout.stride, self._objective
        end = max(stride.burn_in, _EARLY)
        next_look, looks, lately = min(_EARLY, end), 0, list[torch.Tensor]()
        engine = SequentialEngine(objective, stride.dynamics, self._posterior)
        for taken, halt in enumerate(engine.advance([self._chain(start)], itertools.count(), keep=False)):
            if taken < next_look:
                lately.append(objective.excess(halt.points[0].losses, halt.points[0].samples))
                continue
            looks, is_end = looks + 1, taken == end
            found, excess = self._share((self._scout.look(halt), float(torch.stack(lately[-_LATELY:]).mean())))
            if not all(one.is_finite for one in found):
                return taken, False
            suits = stride.suits(found, self._posterior.nbeta * excess if is_end else math.nan)
            if looks == _MOST_LOOKS or (suits and (is_end or brief)):
                return taken, True
            engine.dynamics = stride.dynamics
            # Stiff directions, where the steps were too long, forget at once.
            end = taken + LEAST_BURN_IN if is_end else max(end, stride.burn_in)
            next_look = end if suits or is_end else min(taken + _EARLY, end)
        raise AssertionError  # the steps have no end

    def _chain(self, start: int) -> Chain:
        return Chain(
            _INDEX,
            self._objective.fork.generator(*self._key, start, _PILOT_STREAM),
            generator(torch.device("cpu"), *self._key, start, _MINIBATCH_STREAM),
        )


def gradients_ahead(objective: Objective, stride: Stride) -> int:
    """Samples whose gradients a first measurement takes before its chains, if its step suits at once.

    Args:
        objective: The losses.
        stride: With a pilot, if its step is open.
    """
    size = objective.batch_size or len(objective)
    if not stride.is_open:
        return 2 * COLD_ITERATIONS * size
    places = curvature_places(objective)
    whole = len(objective) if places is None else len(places)
    look = 2 * NOISE_PAIRS * size + 2 * WARM_ITERATIONS * whole
    return 2 * COLD_ITERATIONS * whole + stride.burn_in * size + 2 * look
