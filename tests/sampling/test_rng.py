"""Private randomness."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from slt_callbacks.basics.rng import generator, isolated_rng, seed_from


def test_different_keys_give_different_seeds() -> None:
    keys = [
        (),
        (0,),
        (0, 0),
        (0, 101),
        (0, 101, 0),
        (0, 101, 0, 0),
        (1, 0),
        (0, 1),
        (5, 1),
        (2**32 + 5,),
        (-1,),
        (-1, 0),
        (2**32 - 1, 2**32 - 1),
        (2**64 - 2,),
    ]
    assert len({seed_from(*key) for key in keys}) == len(keys)


def test_seeds_of_neighbouring_chains_and_steps_are_unrelated() -> None:
    numbers = torch.stack(
        [
            torch.randn(500, generator=generator(torch.device("cpu"), 0, step, chain, 0))
            for step in range(4)
            for chain in range(4)
        ]
    )
    correlation = torch.corrcoef(numbers) - torch.eye(16)
    assert float(correlation.abs().max()) < 5 / 500**0.5


def test_generator_repeats_itself() -> None:
    first, second = (torch.randn(5, generator=generator(torch.device("cpu"), 1, 2, 3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("raises", [False, True])
def test_isolated_rng_puts_every_global_generator_back(raises: bool) -> None:
    def states() -> tuple[bytes, str, object]:
        return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()

    before = states()
    try:
        with isolated_rng(3):
            inside = torch.rand(1).item(), np.random.rand(), random.random()
            if raises:
                raise KeyError
    except KeyError:
        assert raises
    assert states() == before
    torch.rand(7), np.random.rand(), random.random()  # the outside has no influence on the inside
    with isolated_rng(3):
        assert inside == (torch.rand(1).item(), np.random.rand(), random.random())


def test_isolated_rng_leaves_an_accelerator_that_nobody_uses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch remembers a seed for CUDA until CUDA is first used: training, started later, would draw from it.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    with isolated_rng(3):
        torch.rand(1)
    assert seeded == []
