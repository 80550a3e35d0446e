"""The contracts hold for what is shipped and for a user's own, and break for what breaks them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.observables.influence import Influence
from slt_callbacks.observables.llc import LLC
from slt_callbacks.observables.loss_kernel import LossKernel
from slt_callbacks.sampling.averaged import LeimkuhlerMatthews
from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
from slt_callbacks.sampling.underdamped import SGHMC, SGNHT
from tests.contracts import check_dynamics, check_observable


@dataclass(frozen=True)
class Descent:
    """A user's own: gradient descent without noise."""

    step_size: float

    def init(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def step(
        self, position: Any, gradient: Any, noise: Any, anchor: Any, posterior: Any, state: Any, sgld_step: int
    ) -> None:
        position.sub_(posterior.gradient(gradient, position, anchor), alpha=self.step_size)


class LargestExcess:
    """A user's own, without `discard`."""

    def reset(self, reference: Any) -> None:
        self.largest = -math.inf

    def update(self, draw: Any) -> None:
        self.largest = max(self.largest, float(draw.excess))

    def compute(self) -> dict[str, float]:
        return {"largest": self.largest}


@pytest.mark.parametrize(
    "dynamics",
    [
        SGLD(1e-2),
        SGLD(0.0),
        RMSPropSGLD(1e-2),
        RMSPropSGLD(1e-2, 0.5, 2.0),
        LeimkuhlerMatthews(1e-2),
        SGHMC(1e-2),
        SGHMC(0.0, 1.0),
        SGNHT(1e-2),
        SGNHT(1e-2, 0.9),
        Descent(0.1),
    ],
    ids=repr,
)
def test_dynamics_keep_their_contract(dynamics: Any) -> None:
    check_dynamics(dynamics)


OBSERVABLES = [
    LLC(),
    ChainHealth(),
    LossKernel([0, 1, 0, 1, 1, 2]),
    LossKernel(per_token=True),
    Influence([torch.zeros(4, 1)], [0, 1, 0, 1, 1, 2], ["a", "b", "a", "b"]),
    LargestExcess(),
]


@pytest.mark.parametrize("observable", OBSERVABLES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("per_sample", [True, False])
def test_observables_keep_their_contract(observable: Any, per_sample: bool) -> None:
    check_observable(observable, per_sample)


class Normalized(Descent):
    def step(self, position: Any, gradient: Any, **others: Any) -> None:
        super().step(position=position, gradient=gradient / gradient.norm(), **others)


class UsesGlobalNoise(Descent):
    def step(self, position: Any, **others: Any) -> None:
        super().step(position=position, **others)
        position.add_(torch.randn_like(position))


class SpoilsTheGradient(Descent):
    def step(self, gradient: Any, **others: Any) -> None:
        super().step(gradient=gradient, **others)
        gradient.zero_()


class OutOfPlace(Descent):
    def step(self, position: Any, **others: Any) -> Any:
        return position + 1


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Normalized, "pieces give what the whole gives"),
        (UsesGlobalNoise, "same inputs, same step"),
        (SpoilsTheGradient, "leaves the gradient"),
        (OutOfPlace, "moves in place and returns None"),
        (lambda _: SGLD(), "number|real number"),
    ],
)
def test_a_broken_dynamics_is_found(broken: Any, promise: str) -> None:
    with pytest.raises((AssertionError, TypeError), match=promise):
        check_dynamics(broken(0.1))


class Forgetful(LargestExcess):
    def discard(self, chain: int) -> None:
        """Takes nothing back."""


class Sticky(LargestExcess):
    largest = -math.inf

    def reset(self, reference: Any) -> None:
        self.largest += 1


class Hoarder(LargestExcess):
    """Compares with a measurement that a checkpoint knows nothing of."""

    last = 0.0

    def compute(self) -> dict[str, float]:
        return {"shift": self.largest - self.last}

    def reset(self, reference: Any) -> None:
        self.last = getattr(self, "largest", 0.0)
        super().reset(reference)

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes nothing."""


class Counting(LargestExcess):
    def compute(self) -> dict[str, float]:
        self.largest += 1
        return {"largest": self.largest}


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Forgetful, "`discard` takes back every draw"),
        (Sticky, "`reset` forgets everything"),
        (Hoarder, "`reset` forgets everything"),
        (Counting, "`compute` changes nothing"),
    ],
)
def test_a_broken_observable_is_found(broken: Any, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_observable(broken())
