"""Whatever module, batch and settings `estimate` is given: healthy numbers, a failed measurement, or a clear error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from slt_callbacks import (
    LLC,
    SGLD,
    Influence,
    LeimkuhlerMatthews,
    LossKernel,
    Measurement,
    RMSPropSGLD,
    SamplerConfig,
    estimate,
)

WIDTH = 4


class TwoTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return out


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, 2),
    "no bias, one output": lambda: nn.Linear(WIDTH, 1, bias=False),
    "deep": lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 1)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten()),
    "batch norm": lambda: nn.Sequential(nn.Linear(WIDTH, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 2)),
    "tied": TwoTied,
    "partly frozen": lambda: nn.Sequential(nn.Linear(WIDTH, 3).requires_grad_(False), nn.Linear(3, 1)),
    "bfloat16": lambda: nn.Linear(WIDTH, 1).to(torch.bfloat16),
    "float64": lambda: nn.Linear(WIDTH, 1).double(),
}


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


# How a batch is made of inputs and targets, and taken apart.
STRUCTURES: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], Callable[[Any], tuple[Any, Any]]]] = {
    "tensor": (lambda x, y: torch.cat([x, y], 1), lambda batch: (batch[:, :-1], batch[:, -1:])),
    "tuple": (lambda x, y: (x, y), lambda batch: batch),
    "nested list": (lambda x, y: [[x], {"y": y}], lambda batch: (batch[0][0], batch[1]["y"])),
    "dict": (lambda x, y: {"x": x, "y": y, "split": "train"}, lambda batch: (batch["x"], batch["y"])),
    "dataclass": (Pair, lambda batch: (batch.x, batch.y)),
}


@dataclass(frozen=True)
class Problem:
    """Everything that `estimate` is asked about."""

    module: str = "linear"
    structure: str = "tuple"
    sizes: tuple[int, ...] = (6, 3)  # of the batches, the last one ragged
    bad: float | None = None  # one number of the data
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(num_draws=3, num_burnin_steps=2))
    reduction: str = "none"
    kernel: bool = False

    @property
    def num_samples(self) -> int:
        return sum(self.sizes)

    def reference(self) -> list[Any]:
        numbers = torch.Generator().manual_seed(3)
        make, _ = STRUCTURES[self.structure]
        x, y = (torch.randn(self.num_samples, width, generator=numbers) for width in (WIDTH, 1))
        if self.bad is not None:
            x[1, 2] = self.bad
        return [make(*parts) for parts in zip(x.split(self.sizes), y.split(self.sizes), strict=True)]

    def loss_fn(self, module: nn.Module, batch: Any) -> torch.Tensor:
        x, y = STRUCTURES[self.structure][1](batch)
        losses = (module(x) - y).square().flatten(1).mean(1)
        return losses.mean() if self.reduction == "mean" else losses

    def observables(self) -> dict[str, Any]:
        return {"llc": LLC(), "kernel": LossKernel(), "influence": Influence(self.reference())}

    def wrong(self) -> list[str]:
        """The arguments that cannot work."""
        config, size = self.sampler, None if self.sampler.batch_size == "auto" else self.sampler.batch_size
        nothing_to_derive_it_from = config.nbeta == config.localization == 0
        found = {
            "reference": self.bad is not None,
            "batch_size": size is not None and size > self.num_samples,
            "num_samples": size is not None and self.reduction == "mean" and self.num_samples % size > 0,
            "loss_fn": self.kernel and self.reduction == "mean",
            "step_size": config.dynamics.step_size == "auto" and nothing_to_derive_it_from,
        }
        return [name for name, cannot_work in found.items() if cannot_work]


STEP_SIZES = st.one_of(st.just("auto"), st.floats(-9, 8).map(lambda power: 10.0**power))
SAMPLERS = st.builds(
    SamplerConfig,
    dynamics=st.one_of(st.builds(kind, STEP_SIZES) for kind in (SGLD, RMSPropSGLD, LeimkuhlerMatthews)),
    nbeta=st.one_of(st.none(), st.just(0.0), st.floats(1e-3, 1e6)),
    localization=st.one_of(st.just(0.0), st.floats(1e-3, 1e4)),
    num_chains=st.integers(1, 3),
    num_draws=st.integers(1, 6),
    num_burnin_steps=st.one_of(st.integers(0, 4), st.just("auto")),
    num_steps_bw_draws=st.integers(1, 2),
    batch_size=st.one_of(st.none(), st.just("auto"), st.integers(1, 8)),
    block_size=st.one_of(st.none(), st.integers(1, 8)),
    engine=st.sampled_from(["auto", "sequential", "vectorized"]),
)
PROBLEMS = st.builds(
    Problem,
    module=st.sampled_from(list(MODULES)),
    structure=st.sampled_from(list(STRUCTURES)),
    sizes=st.sampled_from([(2,), (5,), (4, 4), (6, 3), (3, 3, 1)]),
    bad=st.sampled_from([None] * 8 + [math.nan, math.inf]),
    sampler=SAMPLERS,
    reduction=st.sampled_from(["none", "none", "mean"]),
    kernel=st.booleans(),
)


def measure(problem: Problem, module: nn.Module) -> tuple[Measurement, list[str]]:
    """The measurement, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = estimate(
            module,
            problem.reference(),
            problem.loss_fn,
            observables=problem.observables() if problem.kernel else None,
            sampler=problem.sampler,
        )
    return found, [str(warning.message) for warning in caught]


@settings(max_examples=50, deadline=None, derandomize=True)
@example(Problem(sampler=SamplerConfig(SGLD(1e8), num_draws=2, num_burnin_steps=0)))
@example(Problem(sampler=SamplerConfig(SGLD(1e-30), nbeta=0.0, localization=0.0, num_draws=2, num_burnin_steps=0)))
@example(Problem(bad=math.nan))
@example(Problem(sampler=SamplerConfig(num_chains=3, num_draws=1, batch_size=2, block_size=4, engine="vectorized")))
@example(Problem(sizes=(1,), sampler=SamplerConfig(nbeta=5.0, num_draws=2, num_burnin_steps=0)))
@given(problem=PROBLEMS)
def test_a_measurement_is_healthy_or_has_failed_or_an_error_names_the_argument(problem: Problem) -> None:
    torch.manual_seed(0)
    module = MODULES[problem.module]()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    wrong = problem.wrong()
    if wrong:
        with pytest.raises(ValueError, match="|".join(f"`{name}`" for name in wrong)):
            measure(problem, module)
    else:
        found, told = measure(problem, module)
        judge(found, told, problem.sampler)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def judge(found: Measurement, told: list[str], sampler: SamplerConfig) -> None:
    """Healthy, or failed; and never a number that is not finite, or beyond any sense, without a word."""
    health, llc = found["health"], found["llc"]
    chains = llc["per_chain"]
    assert int(chains.isnan().sum()) == health["failed_chains"]
    if found.failed:
        assert health["failed_chains"] in (0, sampler.num_chains)
        assert math.isnan(llc["mean"])
        assert len([text for text in told if f"The measurement failed: {found.error}" in text]) == 1
        return
    alive = sampler.num_chains - health["failed_chains"]
    assert alive > 0
    assert health["num_valid_draws"] == alive * sampler.num_draws
    for name in ("mean", "variance_llc", "reference_loss"):
        assert math.isfinite(llc[name]) or (name == "variance_llc" and sampler.num_draws == 1), name
    assert math.isfinite(llc["stderr"]) or alive == 1
    assert llc["loss_trace"].shape == (sampler.num_chains, sampler.num_draws)
    for key, name in (("kernel", "covariance"), ("influence", "bif")):
        if key in found.results and alive * sampler.num_draws > 1:
            matrix = found[key][name]
            assert bool(matrix.isfinite().all()) or sampler.num_draws == 1, key


GOOD: dict[str, Any] = {
    "module": nn.Linear(WIDTH, 1),
    "reference": Problem().reference(),
    "loss_fn": Problem().loss_fn,
    "sampler": SamplerConfig(num_draws=2, num_burnin_steps=0),
}
NUMBERS = st.one_of(st.integers(-3, 0), st.floats(allow_nan=True), st.text(max_size=3), st.booleans())
NO_OBJECTS = st.one_of(st.integers(), st.text(max_size=3), st.just({}), st.lists(st.integers(), max_size=2))
WRONG = st.one_of(
    st.tuples(st.just("module"), st.one_of(st.none(), NO_OBJECTS, st.just(nn.Linear))),
    st.tuples(st.just("reference"), st.one_of(st.none(), st.integers(), st.text(), st.just([]), st.just({}))),
    st.tuples(st.just("loss_fn"), NO_OBJECTS),
    st.tuples(st.just("sampler"), st.one_of(NO_OBJECTS, st.just({"num_chains": 2}), st.just(SamplerConfig))),
    st.tuples(st.just("num_samples"), st.one_of(NUMBERS, st.integers(10, 10**9))),
    st.tuples(st.just("seed"), st.one_of(st.none(), st.text(), st.floats(), st.booleans())),
    st.tuples(st.just("observables"), st.one_of(st.integers(), st.text(min_size=1), st.just([LLC()]))),
    st.tuples(st.just("observables"), st.dictionaries(st.text(min_size=1, max_size=3), NO_OBJECTS, min_size=1)),
    st.tuples(st.just("observables"), st.sampled_from([{"health": LLC()}, {"a/b": LLC()}, {1: LLC()}, {"x": LLC}])),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(wrong=WRONG)
def test_an_argument_of_the_wrong_kind_is_named(wrong: tuple[str, Any]) -> None:
    name, value = wrong
    with pytest.raises((TypeError, ValueError), match=rf"Expected .*`{name}"):
        estimate(**(GOOD | {name: value}))


def test_the_good_arguments_are_good() -> None:
    assert not estimate(**GOOD).failed


@pytest.mark.parametrize("name", ["num_chains", "num_draws", "num_burnin_steps", "batch_size", "block_size", "nbeta"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(value=st.one_of(st.integers(-9, -1), st.just(math.nan), st.text(max_size=3), st.booleans()))
def test_a_setting_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be "):
        replace(SamplerConfig(), **{name: value})
