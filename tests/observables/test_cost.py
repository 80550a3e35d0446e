"""What the kernel and the influence ask of the loss function on top of the LLC, counted in calls."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LLC, SGLD, Influence, LossKernel, SamplerConfig, estimate
from slt_callbacks.data.reference import ReferenceSet

SAMPLES, BLOCK, CHAINS, DRAWS = 24, 10, 3, 7


class Counting:
    """A loss function that knows how often it was called, with gradient and without, and on how many samples."""

    def __init__(self) -> None:
        self.with_grad: list[int] = []
        self.without: list[int] = []

    def __call__(self, module: Any, batch: torch.Tensor) -> torch.Tensor:
        (self.with_grad if torch.is_grad_enabled() else self.without).append(len(batch))
        return module(batch).square().mean(1)  # type: ignore[no-any-return]


def measure(observables: dict[str, Any], batch_size: int | None) -> tuple[Any, Counting]:
    torch.manual_seed(0)
    net, x, loss_fn = nn.Linear(3, 2), torch.randn(SAMPLES, 3), Counting()
    config = SamplerConfig(
        SGLD(1e-3),
        num_chains=CHAINS,
        num_draws=DRAWS,
        num_burnin_steps=4,
        batch_size=batch_size,
        block_size=None if batch_size is None else BLOCK,
        engine="sequential",
    )
    measurement = estimate(net, [x], loss_fn, observables={"llc": LLC()} | observables, sampler=config)
    return measurement, loss_fn


def test_the_kernel_of_a_full_batch_costs_no_forward_pass() -> None:
    _, alone = measure({}, None)
    _, both = measure({"kernel": LossKernel()}, None)
    assert both.with_grad == alone.with_grad
    assert both.without == alone.without
    assert len(alone.with_grad) >= CHAINS * DRAWS, "the counter counts"


@pytest.mark.parametrize("batch_size", [4, 8])
def test_with_minibatches_it_costs_one_pass_a_draw_in_blocks_and_without_gradient(batch_size: int) -> None:
    _, alone = measure({}, batch_size)
    _, both = measure({"kernel": LossKernel()}, batch_size)
    assert both.with_grad == alone.with_grad
    assert len(both.without) - len(alone.without) == CHAINS * DRAWS * math.ceil(SAMPLES / BLOCK)
    assert sum(both.without) - sum(alone.without) == CHAINS * DRAWS * SAMPLES


@pytest.mark.parametrize("batch_size", [None, 8])
def test_queries_cost_one_pass_a_draw_and_a_second_observable_of_the_same_losses_nothing(
    batch_size: int | None,
) -> None:
    queries = [torch.randn(5, 3, generator=torch.Generator().manual_seed(1))]
    _, kernel = measure({"kernel": LossKernel()}, batch_size)
    _, both = measure({"kernel": LossKernel(), "influence": Influence(queries)}, batch_size)
    assert both.with_grad == kernel.with_grad
    # two more at the most, however long the chains: does it take queries at all, and their losses at w*
    assert 0 <= len(both.without) - len(kernel.without) - CHAINS * DRAWS <= 2


def reference_and_more(order: list[int]) -> torch.Tensor:
    """Rows of the reference set of `measure`, and, from its size on, others."""
    torch.manual_seed(0)
    nn.Linear(3, 2)
    x = torch.cat([torch.randn(SAMPLES, 3), torch.randn(6, 3, generator=torch.Generator().manual_seed(1))])
    return x[order]


@pytest.mark.parametrize("batch_size", [None, 8])
def test_queries_that_are_reference_samples_cost_no_forward_pass(batch_size: int | None) -> None:
    _, kernel = measure({"kernel": LossKernel()}, batch_size)
    _, both = measure({"kernel": LossKernel(), "influence": Influence([reference_and_more([7, 0, 7, 23])])}, batch_size)
    assert both.with_grad == kernel.with_grad
    assert 0 <= len(both.without) - len(kernel.without) <= 1  # does it take queries at all
    _, mixed = measure({"kernel": LossKernel(), "influence": Influence([reference_and_more([7, 25, 0])])}, batch_size)
    assert sum(mixed.without) - sum(both.without) == CHAINS * DRAWS + 1, "one other sample, at w* and at every draw"


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("loss", ["one a sample", "a mean"])
def test_their_influence_is_what_it_is_with_samples_asked_about(
    batch_size: int | None, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [25, 7, 0, 24, 7, 23]

    def bif() -> torch.Tensor:
        observables = {"influence": Influence([reference_and_more(order)])}
        if loss == "one a sample":
            return measure(observables, batch_size)[0]["influence"]["bif"]  # type: ignore[no-any-return]
        net = MeanOnly()
        config = SamplerConfig(SGLD(1e-3), num_chains=2, num_draws=5, num_burnin_steps=0, batch_size=batch_size)
        x = reference_and_more(list(range(SAMPLES)))
        return estimate(net, [x], observables=observables, sampler=config)["influence"]["bif"]  # type: ignore[no-any-return]

    shared = bif()
    monkeypatch.setattr(ReferenceSet, "find", lambda _, samples: torch.full((len(samples),), -1))
    torch.testing.assert_close(shared, bif(), rtol=1e-4, atol=1e-9)
    assert shared.std(dim=0).min() > 1e-6, "no column is empty"
    assert shared[:, 1].equal(shared[:, 4])


class MeanOnly(nn.Linear):
    """A module whose loss comes as the mean of a batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(3, 2)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self(batch).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_size", [None, 8])
def test_the_llc_is_bit_identical_with_and_without_them(batch_size: int | None) -> None:
    queries = [torch.randn(5, 3, generator=torch.Generator().manual_seed(1))]
    alone, _ = measure({}, batch_size)
    both, _ = measure({"kernel": LossKernel(), "influence": Influence(queries)}, batch_size)
    assert alone["llc"].keys() == both["llc"].keys()
    for name, value in alone["llc"].items():
        found = both["llc"][name]
        assert found.equal(value) if isinstance(value, torch.Tensor) else found == value, name
