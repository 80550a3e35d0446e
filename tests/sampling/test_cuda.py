"""What only a GPU can show: other kernels, another allocator, and generators of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slt_callbacks import (
    LLC,
    SGLD,
    Influence,
    LeimkuhlerMatthews,
    LossKernel,
    RMSPropSGLD,
    SamplerConfig,
    Susceptibility,
)
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring.estimate import estimate
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.refinement import Refinement
from tests import oracles
from tests.benchmarks.models import Transformer, token_losses, token_rows
from tests.problems import TWO_SAMPLES, Weights, settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
QUICK = SamplerConfig(SGLD(1e-4), nbeta=20.0, num_chains=3, num_draws=6, num_burnin_steps=4, batch_size=8)
ENGINES: dict[str, dict[str, Any]] = {
    "vectorized": {"engine": "vectorized"},
    "compiled": {"engine": "vectorized", "compile": True},
}


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer(vocabulary=64, width=32, length=16).cuda()


def rows(number: int = 24) -> torch.Tensor:
    return token_rows(number, length=16, vocabulary=64)


class Dense(nn.Module):
    """Convolution, BatchNorm and Dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            *(nn.Dropout(0.5), nn.Linear(16, 3)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


def square_losses(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return module(batch).square().mean(1)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return Dense().cuda()


def images(number: int = 24) -> torch.Tensor:
    return torch.randn(number, 1, 6, 6, generator=torch.Generator().manual_seed(0))


PROBLEMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor], Any]] = {
    "attention": (transformer, rows, token_losses),
    "convolution": (convolutional, images, square_losses),
}


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("dynamics", [SGLD(1e-4), RMSPropSGLD(1e-4), LeimkuhlerMatthews(1e-4), LeimkuhlerMatthews()])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_all_chains_at_once_draw_what_they_draw_one_by_one(
    problem: str, engine: str, dynamics: Any, batch_size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    make, samples, loss = PROBLEMS[problem]
    config = replace(QUICK, dynamics=dynamics, batch_size=batch_size)
    with caplog.at_level("INFO", logger="slt_callbacks"):
        one_by_one, at_once = (
            estimate(make(), [samples()], loss, sampler=replace(config, **options))
            for options in ({"engine": "sequential"}, ENGINES[engine])
        )
    assert not [told for told in caplog.messages if "cannot be" in told]
    traces = [one["llc"]["loss_trace"] for one in (at_once, one_by_one)]
    torch.testing.assert_close(*traces, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_quadratic_gives_its_finite_length_expectation(engine: Any) -> None:
    h = torch.tensor([0.2, 1.0, 3.0, 0.0]).repeat(250)

    def loss(module: Any, batch: torch.Tensor) -> torch.Tensor:
        return (h.to(batch.device) * module.w.square() / 2).sum().expand(len(batch))

    config = settings(2e-3, nbeta=50.0, localization=5.0, num_draws=300, num_burnin_steps=0, engine=engine)
    found = estimate(Weights(len(h)).cuda(), TWO_SAMPLES, loss, sampler=config)["llc"]["mean"]
    exact = oracles.quadratic_llc(np.asarray(h), 50.0, 5.0, 2e-3, 300)
    assert abs(found - exact.mean) < 3 * exact.stderr(2)


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    one, same, other = (estimate(transformer(), [rows()], token_losses, sampler=QUICK, seed=s) for s in (0, 0, 1))
    torch.testing.assert_close(one["llc"]["loss_trace"], same["llc"]["loss_trace"], rtol=1e-5, atol=0)
    assert not torch.allclose(one["llc"]["loss_trace"], other["llc"]["loss_trace"], rtol=1e-5)


def test_every_kind_of_result_comes_back_on_the_cpu() -> None:
    observables = {
        "llc": LLC(),
        "kernel": LossKernel(),
        "influence": Influence([rows(4)]),
        "chi": Susceptibility(),
    }
    refinements = {"head": Refinement("head"), "others": Refinement(reference=[rows(8)])}
    found = estimate(
        transformer(), [rows()], token_losses, observables=observables, sampler=QUICK, refinements=refinements
    )
    assert not found.failed
    records = [found[key] for key in ("llc", "kernel", "influence", "chi", "health")]
    tensors = [value for record in records for value in record.values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert all(math.isfinite(found.refinements[name]["llc"]["mean"]) for name in refinements)


@pytest.mark.parametrize("store_chains", ["device", "cpu"])
def test_warm_chains_go_on_after_a_resume_on_another_device(store_chains: Any) -> None:
    module, reference = transformer(), draw_reference([rows()])

    def estimator() -> Estimator:
        return Estimator(reference, token_losses, None, QUICK, persistent=True, store_chains=store_chains)

    first, resumed = estimator(), estimator()
    first.measure(module, 1)
    state = copy.deepcopy(first.state_dict())
    resumed.load_state_dict(state)
    traces = [one.measure(module, 2)["llc"]["loss_trace"] for one in (first, resumed)]
    torch.testing.assert_close(*traces, rtol=1e-5, atol=0)
    moved = estimator()
    moved.load_state_dict(state)
    assert not moved.measure(copy.deepcopy(module).cpu(), 2).failed


@contextmanager
def memory_of(num_bytes: int) -> Iterator[None]:
    """No more than that for this process, beside what it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_where_memory_runs_out_smaller_blocks_are_taken() -> None:
    width, number = 2**15, 2**11

    class Wide(nn.Module):
        """A layer of one weight a unit, so that its activations, 256 MiB for all samples, are what takes memory."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x * self.scale).square().mean(1)

    module, samples = Wide().cuda(), torch.linspace(-1, 1, number)[:, None]
    config = replace(QUICK, batch_size=None, engine="sequential")
    losses = lambda net, x: net(x)  # noqa: E731
    free = estimate(module, [samples], losses, sampler=config)
    with memory_of(200 * 2**20):
        tight = Estimator(draw_reference([samples]), losses, None, config).measure(module)
    assert not tight.failed
    torch.testing.assert_close(tight["llc"]["loss_trace"], free["llc"]["loss_trace"], rtol=1e-4, atol=1e-6)


def test_compiled_steps_leave_the_generators_and_flags_of_training_alone() -> None:
    module = transformer()
    config = replace(QUICK, engine="vectorized", compile=True)

    def world() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            torch.cuda.get_rng_state().tolist(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
        ]

    before = world()
    estimate(module, [rows()], token_losses, sampler=config)
    assert world() == before
