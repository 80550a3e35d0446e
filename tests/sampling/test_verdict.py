"""Which chains have failed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.verdict import Verdict

NBETA, P, N = 10.0, 50, 4
HIGHEST = (1000 + 10 * P) / NBETA


def draw(chain: int = 0, excess: float = 0.0, reference: float | None = None, **queries: float) -> Draw:
    number = torch.tensor(excess)
    return Draw(
        chain,
        0,
        samples=None,
        losses=number,
        loss=number,
        excess=number,
        reference_losses=None if reference is None else torch.full((N,), 2.0 + reference),
        query_losses={key: torch.tensor([5.0 + value, 5.0]) for key, value in queries.items()},
    )


def verdict(at_fork: float = 2.0) -> Verdict:
    return Verdict(NBETA, P, torch.full((N,), at_fork), N, {"influence": 5.0})


@pytest.mark.parametrize(
    ("numbers", "fails"),
    [
        ({"excess": 0.99 * HIGHEST}, False),
        ({"excess": 1.01 * HIGHEST}, True),
        ({"excess": -9.99 * (HIGHEST + 2.0)}, False),
        ({"excess": -10.01 * (HIGHEST + 2.0)}, True),
        ({"excess": math.nan}, True),
        ({"excess": -math.inf}, True),
        ({"reference": 0.99 * N * HIGHEST}, False),
        ({"reference": 1.01 * N * HIGHEST}, True),
        ({"reference": math.inf}, True),
        ({"influence": 0.99 * N * HIGHEST * 2}, False),
        ({"influence": 1.01 * N * HIGHEST * 2}, True),
        ({"influence": -1e9}, True),
        ({"influence": math.nan}, True),
    ],
)
def test_bounds_are_where_they_are_said_to_be(numbers: dict[str, Any], fails: bool) -> None:
    judge = verdict()
    judge.update(draw(**numbers))
    assert judge.failed() == ({0} if fails else set())


def test_one_bad_draw_is_enough_and_the_next_group_begins_afresh() -> None:
    judge = verdict()
    for chain in (0, 1):
        for index in range(5):
            judge.update(draw(chain, math.nan if (chain, index) == (1, 2) else 0.1))
    assert judge.failed() == {1}
    judge.update(draw(2))
    assert judge.failed() == set()
    assert judge.failed() == set()


def test_a_loss_that_is_not_negative_may_always_fall_to_nothing() -> None:
    judge = verdict(at_fork=1e6)  # nbeta times the loss at w* is far beyond what the parameters alone would allow
    judge.update(draw(excess=-1e6))
    assert judge.failed() == set()
