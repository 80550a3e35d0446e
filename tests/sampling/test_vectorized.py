"""All chains at once draw what they draw one by one."""

from __future__ import annotations

import copy
import dataclasses
import logging
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from slt_callbacks import LLC, SGHMC, SGLD, SGNHT, Estimator, LeimkuhlerMatthews, RMSPropSGLD, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference

CONFIG = SamplerConfig(SGLD(1e-3), nbeta=20.0, num_chains=3, num_draws=6, num_burnin_steps=4, num_steps_bw_draws=2)


class Tied(nn.Module):
    """Tied weights, a frozen parameter, BatchNorm and Dropout, and an attention that vmap has to decompose."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.full((4,), 0.5), requires_grad=False)
        self.rest = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rest(self.second(torch.tanh(self.first(x))) * self.scale)
        x = x.unsqueeze(1).expand(-1, 3, -1)
        return nn.functional.scaled_dot_product_attention(x, x, x).sum((1, 2))


class Recorded:
    """Keeps what an observable can ask for."""

    reference_losses = True

    def reset(self, reference: Any) -> None:
        self.seen: list[torch.Tensor] = []

    def discard(self, chain: int) -> None:
        pass

    def update(self, draw: Any) -> None:
        self.seen.append(torch.cat([torch.tensor([draw.chain, draw.index]), draw.reference_losses]))

    def compute(self) -> dict[str, Any]:
        rows = sorted(self.seen, key=lambda row: (row[0].item(), row[1].item()))
        return {"rows": torch.stack(rows)}


def losses(module: nn.Module, batch: Any) -> torch.Tensor:
    return (module(batch["x"]) - batch["y"]).square()


def batches() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, generator=generator)
    return [{"x": x, "y": x.sum(1), "constant": torch.ones(7)}]


def both(config: SamplerConfig, **changes: Any) -> list[Any]:
    torch.manual_seed(0)
    module = Tied()
    options = {"loss_fn": losses, "observables": {"llc": LLC(), "all": Recorded()}} | changes
    return [
        estimate(
            copy.deepcopy(module),
            batches(),
            sampler=dataclasses.replace(config, engine=engine),
            **copy.deepcopy(options),
        )
        for engine in ("sequential", "vectorized")
    ]


DYNAMICS = [
    *(SGLD(1e-3), RMSPropSGLD(1e-3), SGLD("auto"), SGHMC(1e-3), SGNHT(1e-3)),
    *(LeimkuhlerMatthews(1e-3), LeimkuhlerMatthews()),
]


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("sizes", [{}, {"batch_size": 4}, {"block_size": 5}])
def test_the_draws_are_those_of_the_sequential_engine(dynamics: Any, sizes: dict[str, int]) -> None:
    one_by_one, at_once = both(dataclasses.replace(CONFIG, dynamics=dynamics, **sizes))
    for key, name in (("llc", "loss_trace"), ("llc", "per_chain"), ("all", "rows")):
        torch.testing.assert_close(at_once[key][name], one_by_one[key][name], rtol=1e-4, atol=1e-5)
    assert at_once["cost"]["sgld_steps"] == one_by_one["cost"]["sgld_steps"]


def test_a_scalar_loss_gives_the_same_draws() -> None:
    scalar = {"loss_fn": lambda module, batch: losses(module, batch).mean(), "observables": {"llc": LLC()}}
    one_by_one, at_once = both(dataclasses.replace(CONFIG, batch_size=4), **scalar)
    torch.testing.assert_close(at_once["llc"]["loss_trace"], one_by_one["llc"]["loss_trace"], rtol=1e-4, atol=1e-5)


def test_it_really_takes_the_chains_together() -> None:
    calls = 0

    def counted(module: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return losses(module, batch)

    found = {}
    for engine in ("sequential", "vectorized"):
        calls = 0
        estimate(Tied(), batches(), counted, sampler=dataclasses.replace(CONFIG, engine=engine))
        found[engine] = calls
    assert found["sequential"] - found["vectorized"] == 2 * CONFIG.num_steps - 1  # one more to try it


def test_warm_chains_and_their_preconditioner_go_on_alike() -> None:
    found = []
    for engine in ("sequential", "vectorized"):
        torch.manual_seed(0)
        module = Tied()
        config = dataclasses.replace(CONFIG, dynamics=RMSPropSGLD(1e-3), engine=engine, num_burnin_steps=20)
        estimator = Estimator(draw_reference(batches()), losses, None, config, persistent=True)
        estimator.measure(module, 1)
        found.append(estimator.measure(module, 2)["llc"]["loss_trace"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_one_failing_chain_is_dropped_and_the_others_stay() -> None:
    class Explosive(SGLD):
        def step(self, position: Any, gradient: Any, noise: Any, *rest: Any, **named: Any) -> None:
            super().step(position, gradient, noise, *rest, **named)
            if position.ndim == 2:
                position[1] = torch.nan

    config = dataclasses.replace(CONFIG, dynamics=Explosive(1e-3), engine="vectorized")
    measurement = estimate(Tied(), batches(), losses, sampler=config)
    assert measurement["llc"]["per_chain"].isnan().tolist() == [False, True, False]
    assert measurement["health"]["failed_chains"] == 1


def test_a_module_that_cannot_be_batched_runs_one_by_one_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def branching(module: nn.Module, batch: Any) -> torch.Tensor:
        values = losses(module, batch)
        return values if values.sum() > 0 else -values

    options = {"loss_fn": branching, "observables": {"llc": LLC()}}
    with caplog.at_level(logging.INFO, logger="slt_callbacks"):
        one_by_one, at_once = both(CONFIG, **options)
    assert torch.equal(at_once["llc"]["loss_trace"], one_by_one["llc"]["loss_trace"])
    messages = [record.message for record in caplog.records if "one by one" in record.message]
    assert len(messages) == 1
    assert "data-dependent" in messages[0]


class Checkpointed(nn.Module):
    """Computes a layer once more in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(lambda z: torch.tanh(self.first(z)), x, use_reentrant=False)
        return self.second(hidden)[:, 0]


class Penalized(nn.Module):
    """Its output has a gradient in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        out = self.net(x)[:, 0]
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + slope.square().sum(1)


class Tripled(torch.autograd.Function):
    """A gradient of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 3 * grad * ctx.saved_tensors[0]


class OwnGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Tripled.apply(self.net(x))[:, 0]


@pytest.mark.parametrize("kind", [Checkpointed, Penalized, OwnGradient])
@pytest.mark.parametrize("sizes", [{}, {"batch_size": 4}])
def test_modules_that_do_something_to_their_gradient_draw_the_same_or_go_one_by_one(
    kind: Any, sizes: dict[str, int]
) -> None:
    torch.manual_seed(0)
    module = kind()
    traces = [
        estimate(module, batches(), losses, sampler=dataclasses.replace(CONFIG, engine=engine, **sizes))
        for engine in ("sequential", "vectorized")
    ]
    torch.testing.assert_close(*(one["llc"]["loss_trace"] for one in traces), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 4}])
def test_a_loss_sees_which_parameters_move(sizes: dict[str, int]) -> None:
    """Weight decay of what can be trained, written into the loss."""

    def decayed(module: Any, batch: Any) -> torch.Tensor:
        decay = sum(p.square().sum() for p in module.parameters() if p.requires_grad)
        return losses(module, batch) + decay

    one_by_one, at_once = both(dataclasses.replace(CONFIG, **sizes), loss_fn=decayed)
    torch.testing.assert_close(at_once["llc"]["loss_trace"], one_by_one["llc"]["loss_trace"], rtol=1e-4, atol=1e-5)


class TestCompiledStep:
    CONFIG = dataclasses.replace(CONFIG, engine="vectorized", compile=True)

    @pytest.fixture
    def captures_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Everything of torch.compile but the C++ compiler, which takes half a minute."""
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    @pytest.mark.slow
    @pytest.mark.usefixtures("captures_alone")
    @pytest.mark.parametrize("sizes", [{}, {"batch_size": 4}])
    def test_it_is_captured_once_a_run_and_draws_the_same(self, sizes: dict[str, int]) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        module, found, graphs = Tied(), {}, []
        for compiled in (False, True):
            config = dataclasses.replace(self.CONFIG, compile=compiled, **sizes)
            estimator = Estimator(draw_reference(batches()), losses, None, config)
            found[compiled] = []
            for step in (1, 2, 3):
                found[compiled].append(estimator.measure(module, step)["llc"]["loss_trace"])
                graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)
        assert graphs[2] < graphs[3] == graphs[4] == graphs[5]

    @pytest.mark.slow
    @pytest.mark.usefixtures("captures_alone")
    def test_another_number_of_weights_is_compiled_as_well(self, caplog: pytest.LogCaptureFixture) -> None:
        """As a refinement has: torch.compile would leave it open, and BatchNorm's gradient needs to know it."""
        torch._dynamo.reset()
        torch.manual_seed(0)
        config = dataclasses.replace(self.CONFIG, num_draws=2, num_burnin_steps=0)
        with caplog.at_level(logging.INFO, logger="slt_callbacks"):
            for width in (3, 5):
                net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
                estimate(net, [torch.ones(6, 4)], lambda module, batch: module(batch).square().mean(1), sampler=config)
        assert not [record.message for record in caplog.records if "compiled" in record.message]

    def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def compile_nothing(function: Any, **options: Any) -> Any:
            def refuse(*arguments: Any) -> Any:
                raise RuntimeError("no compiler here\nand a long story")

            return refuse

        plain = Estimator(draw_reference(batches()), losses, None, dataclasses.replace(self.CONFIG, compile=False))
        monkeypatch.setattr(torch, "compile", compile_nothing)
        estimator = Estimator(draw_reference(batches()), losses, None, self.CONFIG)
        torch.manual_seed(0)
        module = Tied()
        with caplog.at_level(logging.INFO, logger="slt_callbacks"):
            for step in (1, 2):
                traces = [one.measure(module, step)["llc"]["loss_trace"] for one in (estimator, plain)]
                assert torch.equal(*traces)
        told = [record.message for record in caplog.records]
        assert told == ["The chains' step runs as it is, because it cannot be compiled: no compiler here"]

    @pytest.mark.slow
    def test_the_compiler_itself_makes_a_program_with_the_same_draws(self) -> None:
        torch.manual_seed(0)
        module = Tied()
        traces = [
            estimate(module, batches(), losses, sampler=dataclasses.replace(self.CONFIG, compile=compiled))
            for compiled in (True, False)
        ]
        torch.testing.assert_close(*(one["llc"]["loss_trace"] for one in traces), rtol=1e-4, atol=1e-5)
