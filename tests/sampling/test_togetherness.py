"""Losses that are sums, or that compare the samples of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LossKernel, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.measured import Manner, MeasuredLoss
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.rehearsal import Rehearsal
from slt_callbacks.weights.fork import Fork
from tests.problems import Estimator, llc, settings

X = torch.linspace(-1, 1, 60).view(20, 3) ** 3
SUM = "is the sum of their losses alone: it is divided by the number of samples"
COMPARES = "compares the samples of a batch with each other"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def squares(module: Any, x: torch.Tensor) -> torch.Tensor:
    return (module(x) - 1).square().mean(1)


def tokens(module: Any, x: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of a batch that are no padding: as many as the sample's weight says."""
    weights = 1 + torch.arange(3) * (x[:, :1] > 0)
    return ((module(x) - 1).square() * weights).sum() / weights.sum()


def similarities(z: torch.Tensor) -> torch.Tensor:
    z = nn.functional.normalize(z, dim=1)
    return z @ z.T / 0.5


def contrast(module: Any, x: torch.Tensor) -> torch.Tensor:
    """One loss a sample, with the others of the batch as what it is not."""
    return nn.functional.cross_entropy(similarities(module(x)), torch.arange(len(x)), reduction="none")


def normalized(module: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.batch_norm(module(x), None, None, training=True).mul(x).square().mean()


def triplet(module: Any, x: torch.Tensor) -> torch.Tensor:
    z = module(x)
    return nn.functional.triplet_margin_loss(z, z + 0.1, z.roll(1, 0), margin=1.0)


def manner(loss_fn: Any, size: int = 20, module: nn.Module | None = None) -> tuple[Manner, list[str]]:
    rehearsal = Rehearsal(Fork(module or network()), loss_fn, draw_reference([X[:size]]))
    rehearsal.samples()
    return rehearsal.loss.manner, rehearsal.remarks


@pytest.mark.parametrize("size", [2, 3, 20])
@pytest.mark.parametrize(
    ("loss_fn", "summed", "coupled"),
    [
        (squares, False, False),
        (lambda m, x: squares(m, x).mean(), False, False),
        (lambda m, x: squares(m, x).sum(), True, False),
        (lambda m, x: -squares(m, x).sum(), True, False),
        (tokens, False, False),
        (contrast, False, True),
        (lambda m, x: contrast(m, x).mean(), False, True),
        (triplet, False, True),
        (normalized, False, True),
        (lambda m, x: m(x).sum() * 0, False, False),
    ],
)
def test_a_mean_a_sum_and_a_comparison_are_told_apart(loss_fn: Any, summed: bool, coupled: bool, size: int) -> None:
    found, remarks = manner(loss_fn, size)
    assert (found.summed, found.coupled) == (summed, coupled)
    assert len(remarks) == summed + coupled
    assert all((SUM if summed else COMPARES) in remark for remark in remarks)


def test_a_mean_of_tokens_is_told_from_a_comparison_by_three_pairs() -> None:
    x = torch.tensor([[-0.9, 0.2, 0.1], [0.8, 0.3, -0.5], [0.1, 0.6, 0.6]])
    rehearsal = Rehearsal(Fork(network()), tokens, draw_reference([x]))
    rehearsal.samples()
    assert not rehearsal.loss.manner.coupled


@pytest.mark.parametrize("summed", [True, False])
def test_a_sum_of_noisy_losses_is_told_from_their_mean(summed: bool) -> None:
    def noisy(module: Any, x: torch.Tensor) -> torch.Tensor:
        losses = squares(module, x) + 0.3 * torch.rand(len(x))
        return losses.sum() if summed else losses.mean()

    assert manner(noisy)[0] == Manner(per_sample=False, summed=summed)


def test_noisy_losses_that_compare_samples_are_found_by_another_neighbour() -> None:
    def noisy(module: Any, x: torch.Tensor) -> torch.Tensor:
        return contrast(module, x + torch.rand_like(x))

    assert manner(noisy)[0].coupled
    assert not manner(lambda m, x: squares(m, x + torch.rand_like(x)))[0].coupled


@pytest.mark.parametrize("block_size", [None, 7])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_sum_gives_the_numbers_of_the_mean(block_size: int | None, batch_size: int | None) -> None:
    config = settings(1e-2, batch_size=batch_size, block_size=block_size, num_draws=6)
    mean = estimate(network().double(), [X], lambda m, x: squares(m, x).mean(), sampler=config)
    with pytest.warns(UserWarning, match=SUM):
        summed = estimate(network().double(), [X], lambda m, x: squares(m, x).sum(), sampler=config)
    assert llc(summed) == pytest.approx(llc(mean), rel=1e-9)
    assert summed["llc"]["reference_loss"] == pytest.approx(mean["llc"]["reference_loss"], rel=1e-9)


def test_a_sum_in_a_training_step_has_the_kernel_of_the_mean() -> None:
    class Summing(nn.Linear):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return squares(self, batch).sum()

    torch.manual_seed(0)
    module, observables = Summing(3, 3), {"kernel": LossKernel()}
    config = settings(1e-2, engine="sequential")
    with pytest.warns(UserWarning, match=SUM):
        summed = estimate(module, [X], observables=observables, sampler=config)
    mean = estimate(module, [X], squares, observables={"kernel": LossKernel()}, sampler=config)
    torch.testing.assert_close(summed["kernel"]["covariance"], mean["kernel"]["covariance"], rtol=1e-3, atol=1e-9)


# Losses that compare samples


def in_batches_of(size: int, loss_fn: Any, module: nn.Module, x: torch.Tensor = X) -> float:
    return float(torch.stack([loss_fn(module, part).mean() for part in x.split(size)]).mean().detach())


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize(
    ("options", "size"), [({}, 20), ({"block_size": 4}, 4), ({"batch_size": 5}, 5), ({"together": 10}, 10)]
)
def test_the_loss_of_a_comparison_is_that_of_batches_of_the_trained_size(
    per_sample: bool, options: dict[str, int], size: int
) -> None:
    module, together = network(), options.get("together")
    batches: Any = {name: value for name, value in options.items() if name != "together"}

    def loss_fn(module: Any, x: torch.Tensor) -> torch.Tensor:
        return contrast(module, x) if per_sample else contrast(module, x).mean()

    one = Estimator(draw_reference([X]), loss_fn, None, settings(**batches), together=together)
    with pytest.warns(UserWarning, match=COMPARES):
        found = one.measure(module)
    expected = in_batches_of(size, contrast, module)
    assert found["llc"]["reference_loss"] == pytest.approx(expected, rel=1e-5)
    assert len({round(in_batches_of(n, contrast, module), 3) for n in (4, 5, 10, 20)}) == 4


def test_blocks_of_a_comparison_are_of_one_size_where_that_can_be() -> None:
    module = network()
    loss = MeasuredLoss(contrast, module, fork := Fork(module), Manner(coupled=True), together=6)
    objective = Objective(fork, loss, draw_reference([X]))
    assert [len(where) for _, where in objective.batches()] == [5, 5, 5, 5]


@pytest.mark.parametrize("per_sample", [True, False])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_where_nothing_moves_a_comparison_has_an_llc_of_exactly_0(per_sample: bool, batch_size: int | None) -> None:
    def loss_fn(module: Any, x: torch.Tensor) -> torch.Tensor:
        return contrast(module, x) if per_sample else contrast(module, x).mean()

    config = settings(1e-30, batch_size=batch_size)
    with pytest.warns(UserWarning, match=COMPARES):
        assert llc(estimate(network(), [X], loss_fn, sampler=config)) == 0


def test_a_kernel_of_a_comparison_is_warned_about() -> None:
    class Contrasting(nn.Linear):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return contrast(self, batch).mean()

    with pytest.warns(UserWarning, match=r"A loss kernel and influences.* say little of such a loss"):
        estimate(Contrasting(3, 3), [X], observables={"kernel": LossKernel()}, sampler=settings())


def test_a_kernel_of_a_loss_that_takes_no_single_sample_is_refused() -> None:
    class Normalized(nn.Linear):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return normalized(self, batch)

    with pytest.raises(ValueError, match=r"Expected the loss to take a batch of one.*one loss a sample"):
        estimate(Normalized(3, 3), [X], observables={"kernel": LossKernel()}, sampler=settings())


# Other ways to another loss


def test_a_loss_that_is_another_without_gradient_is_always_taken_with() -> None:
    class Fast(nn.Module):
        """Rounds where no gradient is asked for, as a quantized shortcut would."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(x)
            return out if torch.is_grad_enabled() else (out * 4).round() / 4

    def loss_fn(module: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = module(x).square()[:, 0]
        return out

    module = Fast()
    for batch_size in (None, 5):
        found = estimate(module, [X], loss_fn, sampler=settings(1e-30, batch_size=batch_size))
        assert llc(found) == 0
        assert found["llc"]["reference_loss"] == pytest.approx(float(loss_fn(module, X).mean().detach()), rel=1e-6)
    loss = MeasuredLoss(loss_fn, module, fork := Fork(module), Manner(with_gradient=True))
    with torch.no_grad():
        assert not loss(fork.module, X).requires_grad, "no graph is kept"
