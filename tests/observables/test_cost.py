"""What the kernel and the influence ask of the loss function on top of the LLC, counted in calls."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LLC, SGLD, Influence, LossKernel, SamplerConfig, estimate

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


@pytest.mark.parametrize("batch_size", [None, 8])
def test_the_llc_is_bit_identical_with_and_without_them(batch_size: int | None) -> None:
    queries = [torch.randn(5, 3, generator=torch.Generator().manual_seed(1))]
    alone, _ = measure({}, batch_size)
    both, _ = measure({"kernel": LossKernel(), "influence": Influence(queries)}, batch_size)
    assert alone["llc"].keys() == both["llc"].keys()
    for name, value in alone["llc"].items():
        found = both["llc"][name]
        assert found.equal(value) if isinstance(value, torch.Tensor) else found == value, name
