import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.engine import Point
from slt_callbacks.sampling.engine_choice import is_worth_it, time_ratio
from tests.problems import engine_for, objective_for, settings, squared_error


class Sleeper:
    """An engine whose every step takes so long."""

    def __init__(self, objective: Objective, seconds: float) -> None:
        self.objective, self.seconds, self.steps = objective, seconds, 0

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        return [list(chains)]

    def advance(self, group: list[Chain], steps: Iterable[object], keep: bool) -> Iterator[list[Point]]:
        for _ in steps:
            self.steps += 1
            time.sleep(self.seconds)
            yield []

    def probe(self, objective: Objective) -> list[torch.Tensor]:
        raise NotImplementedError


@pytest.fixture
def objective() -> Objective:
    return objective_for(nn.Linear(2, 1), squared_error, [(torch.ones(4, 2), torch.zeros(4, 1))])


def test_the_ratio_is_that_of_the_engines_and_each_takes_three_steps(objective: Objective) -> None:
    quick, slow = Sleeper(objective, 0.002), Sleeper(objective, 0.02)
    assert time_ratio(quick, slow, SamplerConfig()) < 0.5  # 0.1 but for the clock
    assert quick.steps == slow.steps == 3
    assert time_ratio(slow, quick, SamplerConfig()) > 2


def test_one_engine_against_itself_is_not_worth_a_change(objective: Objective) -> None:
    engine, _ = engine_for(objective, settings())
    assert not is_worth_it(time_ratio(Sleeper(objective, 0.005), Sleeper(objective, 0.005), settings()))
    assert time_ratio(engine, engine, settings()) > 0


def test_a_race_leaves_the_generators_of_the_chains_alone(objective: Objective) -> None:
    config = settings(num_chains=2)
    engine, chains = engine_for(objective, config)
    before: list[Any] = [chain.noise.get_state() for chain in chains]
    time_ratio(engine, engine, config)
    assert all(torch.equal(chain.noise.get_state(), state) for chain, state in zip(chains, before, strict=True))
