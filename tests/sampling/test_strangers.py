"""What an adversary's reading found: modules and losses that strangers write, each with its right value."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import SamplerConfig, estimate
from slt_callbacks.data.batches import num_rows
from slt_callbacks.losses.generators import own_generators
from slt_callbacks.losses.togetherness import structure
from slt_callbacks.weights.fork import Fork
from tests.problems import settings
from tests.training import Regression, fingerprint, fit, monitor

RNG = np.random.default_rng(0)


class DrawsFromItsFile(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) * float(1 + 0.1 * RNG.random())


def test_a_generator_of_the_modules_file_is_put_back() -> None:
    def trained(*callbacks: pl.Callback) -> str:
        torch.manual_seed(5)
        RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state
        return fingerprint(fit(*callbacks, module=DrawsFromItsFile()))

    assert trained(monitor(loss_fn=None)) == trained()


@pytest.mark.parametrize("layers", [50, 400, 700])
def test_a_closures_generator_is_found_beside_many_layers(layers: int) -> None:
    generator = torch.Generator()
    module = nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in range(layers)])
    assert own_generators(module, lambda m, x: torch.rand(3, generator=generator)) == [generator]


def collate_in_time(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(samples, dim=1)


class OverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w).square()


def test_a_sum_over_samples_in_time_first_batches_is_divided_by_the_samples() -> None:
    samples = list(torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0)))
    loader = DataLoader(samples, 3, collate_fn=collate_in_time)  # type: ignore[arg-type]

    def losses(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return module(batch).sum((0, 2)) if batch.ndim == 3 else module(batch).sum()  # type: ignore[no-any-return]

    mean = estimate(OverTime(), loader, lambda m, x: losses(m, x).mean(), sampler=settings())
    with pytest.warns(UserWarning, match="is divided by the number of samples"):
        summed = estimate(OverTime(), loader, lambda m, x: losses(m, x).sum(), sampler=settings())
    assert summed["llc"]["reference_loss"] == pytest.approx(mean["llc"]["reference_loss"])
    assert summed["llc"]["mean"] == pytest.approx(mean["llc"]["mean"], rel=1e-4)


def test_one_sample_with_a_loss_is_no_evidence_for_a_sum() -> None:
    assert structure([1.0, 0.0, 0.0], {(0, 1): 1.0, (1, 2): 0.0, (0, 2): 1.0}) == "mean"
    assert structure([1.0, 3.0, 0.0], {(0, 1): 4.0, (1, 2): 3.0, (0, 2): 1.0}) == "sum"


def test_a_gradient_penalty_is_measured() -> None:
    def penalized(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        inputs = batch.clone().requires_grad_()
        outputs = module(inputs)
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        return outputs.square()[:, 0] + slope.square().sum(1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    found = estimate(net, [torch.randn(8, 3)], penalized, sampler=settings())
    assert not found.failed
    assert found["llc"]["reference_loss"] > 0
    frozen = estimate(net, [torch.randn(8, 3)], penalized, sampler=SamplerConfig(settings(0.0).dynamics, nbeta=1.0))
    assert frozen["llc"]["mean"] == 0


def test_a_module_that_keeps_its_optimizers_is_measured() -> None:
    class Keeps(Regression):
        def on_train_start(self) -> None:
            self.kept = self.optimizers()

    watched = monitor()
    fit(watched, module=Keeps())
    assert [one.error for one in watched.history] == [None] * 3


def test_a_forks_dtype_is_the_one_of_its_weights() -> None:
    module = Regression().to(torch.bfloat16)
    assert module.dtype == torch.bfloat16
    assert Fork(module).module.dtype == torch.float32
    assert module.dtype == torch.bfloat16


def test_a_batch_of_each_of_several_loaders_counts_as_the_first() -> None:
    pair = [torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64)]
    other = [torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)]
    assert num_rows({"labelled": pair, "unlabelled": other}) == 6
    with pytest.raises(ValueError, match="or a batch of each of several loaders: give a DataLoader of the samples"):
        num_rows([pair, other])
