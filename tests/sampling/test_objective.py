"""Losses and gradients on the reference set: blocks, minibatches, pairing."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from tests.problems import Weights, objective_for, squared_error

X = torch.linspace(-1, 1, 30).view(10, 3).double() ** 2
Y = torch.linspace(2, 0, 10).view(10, 1).double()
RAGGED = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])]


def scalar_error(module: Any, batch: Any) -> torch.Tensor:
    return squared_error(module, batch).mean()


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1).double()


def by_hand(module: nn.Module, rows: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    losses = squared_error(module, (X[rows], Y[rows]))
    return losses.detach(), list(torch.autograd.grad(losses.mean(), list(module.parameters())))


@pytest.mark.parametrize("block_size", [None, 1, 3, 100])
@pytest.mark.parametrize("rows", [None, [3, 9, 0, 5]])
@pytest.mark.parametrize("loss_fn", [squared_error, scalar_error])
def test_blocks_change_neither_losses_nor_the_gradient_of_their_mean(
    block_size: int | None, rows: list[int] | None, loss_fn: Any
) -> None:
    module = linear()
    per_sample = loss_fn is squared_error
    objective = objective_for(module, loss_fn, RAGGED, block_size=block_size, per_sample=per_sample)
    places = None if rows is None else torch.tensor(rows)
    losses, gradient = by_hand(module, torch.arange(10) if places is None else places)
    found, slopes = objective.losses_and_gradient(places)
    torch.testing.assert_close(found, losses if per_sample else losses.mean())
    torch.testing.assert_close(objective.losses(places), losses if per_sample else losses.mean())
    torch.testing.assert_close(slopes, [part.flatten() for part in gradient])
    assert all(parameter.grad is None for parameter in objective.fork.parameters)


def test_samples_of_two_shapes_are_one_mean() -> None:
    class Sum(Weights):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w * x.flatten(1).sum(1)

    batches = [torch.rand(3, 2).double(), torch.rand(5, 4).double(), torch.rand(2, 2).double()]
    module = Sum(torch.tensor([2.0], dtype=torch.float64))
    objective = objective_for(module, lambda m, x: m(x), batches)
    expected = torch.cat([2 * batch.sum(1) for batch in batches])
    losses, (gradient,) = objective.losses_and_gradient()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, expected.mean()[None] / 2)


def test_a_parameter_without_part_in_the_loss_has_gradient_zero() -> None:
    module = nn.ModuleDict({"unused": nn.Linear(2, 2), "used": nn.Linear(3, 1)}).double()
    objective = objective_for(module, lambda m, batch: squared_error(m["used"], batch), RAGGED)
    gradients = objective.losses_and_gradient()[1]
    assert [float(gradient.abs().sum()) for gradient in gradients[:2]] == [0, 0]
    assert all(float(gradient.abs().sum()) > 0 for gradient in gradients[2:])


def test_excess_compares_with_the_same_samples_at_the_fork() -> None:
    objective = objective_for(linear(), squared_error, RAGGED, batch_size=4)
    at_fork = objective.at_fork.clone()
    objective.fork.position.add_(1.0)
    rows = torch.tensor([7, 2, 5, 0])
    losses = objective.losses(rows)
    assert float(objective.excess(losses, rows)) == pytest.approx(float((losses - at_fork[rows]).mean()), rel=1e-12)
    everything = objective.losses()
    assert float(objective.excess(everything, None)) == pytest.approx(float((everything - at_fork).mean()), rel=1e-12)


def test_excess_of_scalar_losses_compares_with_the_same_minibatch() -> None:
    objective = objective_for(linear(), scalar_error, RAGGED, batch_size=5, per_sample=False)
    for places in islice(objective.minibatches(torch.Generator().manual_seed(0)), 6):
        assert places is not None
        assert float(objective.excess(objective.losses(places), places)) == pytest.approx(0.0, abs=1e-15)


def test_minibatches_use_every_sample_once_an_epoch_and_are_reshuffled() -> None:
    objective = objective_for(linear(), squared_error, RAGGED, batch_size=5)
    batches = [
        batch for batch in islice(objective.minibatches(torch.Generator().manual_seed(0)), 40) if batch is not None
    ]
    epochs = [torch.cat(batches[i : i + 2]) for i in range(0, 40, 2)]
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 15


def test_a_remainder_waits_for_the_next_shuffle() -> None:
    objective = objective_for(linear(), squared_error, RAGGED, batch_size=4)
    batches = [
        batch for batch in islice(objective.minibatches(torch.Generator().manual_seed(0)), 400) if batch is not None
    ]
    assert {len(batch) for batch in batches} == {4}
    for i in range(0, 400, 2):
        assert len(set(torch.cat(batches[i : i + 2]).tolist())) == 8
    counts = torch.cat(batches).bincount()
    # 200 epochs keep each sample with probability 0.8: 160 +- 6.
    assert float((counts - 160).abs().max()) < 4 * (200 * 0.8 * 0.2) ** 0.5


def test_minibatches_of_scalar_losses_are_fixed_and_their_order_is_shuffled() -> None:
    objective = objective_for(linear(), scalar_error, RAGGED, batch_size=2, per_sample=False)
    batches = [
        tuple(b.tolist()) for b in islice(objective.minibatches(torch.Generator().manual_seed(0)), 20) if b is not None
    ]
    assert set(batches) == {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)}
    assert all(len(set(batches[i : i + 5])) == 5 for i in range(0, 20, 5))
    assert len({tuple(batches[i : i + 5]) for i in range(0, 20, 5)}) > 1


@pytest.mark.parametrize("batch_size", [None, 10])
def test_the_whole_set_is_no_minibatch(batch_size: int | None) -> None:
    objective = objective_for(linear(), squared_error, RAGGED, batch_size=batch_size)
    assert list(islice(objective.minibatches(torch.Generator()), 3)) == [None] * 3


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("rows", [None, [3, 9, 0, 5]])
def test_a_mean_is_asked_about_one_sample_at_a_time(
    at_once: bool, block_size: int | None, rows: list[int] | None
) -> None:
    module = linear()
    objective = objective_for(
        module, scalar_error, RAGGED, per_sample=False, block_size=block_size, singles_at_once=at_once
    )
    objective.fork.position.add_(0.5)  # it follows the fork
    places = None if rows is None else torch.tensor(rows)
    expected, _ = by_hand(objective.fork.module, torch.arange(10) if places is None else places)
    torch.testing.assert_close(objective.sample_losses(places), expected)


def test_a_batch_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected `batch_size` to be at most the 10 reference samples, but got 11"):
        objective_for(linear(), squared_error, RAGGED, batch_size=11)
    with pytest.raises(ValueError, match=r"Expected `num_samples` to be a multiple of `batch_size`.*got 10 and 3"):
        objective_for(linear(), scalar_error, RAGGED, batch_size=3, per_sample=False)
