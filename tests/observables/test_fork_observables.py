"""What is read at w* without chains: exact, put back afterwards, and free of SGLD steps where nobody else needs one."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torchmetrics import MeanMetric

from slt_callbacks import LLC, Estimator, JumpDetector, LossKernel, MemorySink, Metrics, TrajectoryPCA, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.observables.fork_view import ForkView
from tests.contracts import check_fork_observable
from tests.digests import digest
from tests.problems import Quadratic, Weights, settings, squared_error
from tests.training import Regression, data, fingerprint, fit, monitor, square_error


class DeadUnits:
    """The share of hidden units that no reference sample activates."""

    def inspect(self, fork: ForkView) -> dict[str, float]:
        outputs: list[torch.Tensor] = []
        for layer in fork.module.modules():
            if isinstance(layer, nn.ReLU):
                layer.register_forward_hook(lambda *passed: outputs.append(passed[-1].flatten(1)))
        for batch in fork.batches():
            fork.module(batch)
        return {"share": float((torch.cat(outputs) == 0).all(0).float().mean())}


class Sharpness:
    """Moves the fork, and does not put it back."""

    def inspect(self, fork: ForkView) -> dict[str, Any]:
        at_fork = fork.loss()
        with torch.no_grad():
            for parameter in fork.parameters:
                parameter.add_(1.0)
        return {"rise": fork.loss() - at_fork, "losses": fork.losses().detach(), "step": fork.point.step}


class Draws:
    """Draws from the global generator, as a user's own may."""

    def inspect(self, fork: ForkView) -> dict[str, float]:
        return {"number": float(torch.rand(()))}


class WritesBuffers:
    def inspect(self, fork: ForkView) -> dict[str, float]:
        for buffer in fork.module.buffers():
            buffer.add_(5)
        fork.module.extra = torch.zeros(3)
        return {"count": len(list(fork.module.buffers()))}


class Raises:
    def inspect(self, fork: ForkView) -> dict[str, float]:
        raise ValueError("no such layer")


class Both(LLC):
    """A statistic of draws that looks at the fork as well."""

    def inspect(self, fork: ForkView) -> dict[str, float]:
        return {"at_fork": fork.loss()}


OWN = torch.Generator().manual_seed(5)  # as the user's training may share with all of these


def drawn(generator: torch.Generator = OWN) -> float:
    return float(torch.rand((), generator=generator))


def noisy(module: Any, batch: list[torch.Tensor]) -> torch.Tensor:
    return module.net(batch[0]) + drawn()  # type: ignore[no-any-return]


class Noisy:
    """Has what it draws from for its own."""

    def __init__(self) -> None:
        self.generator = OWN

    def __call__(self, module: Any, batch: list[torch.Tensor]) -> torch.Tensor:
        return module.net(batch[0]) + torch.rand((), generator=self.generator)  # type: ignore[no-any-return]


class DrawsFromAFile:
    def inspect(self, fork: ForkView) -> dict[str, float]:
        return {"number": drawn()}


class Bootstraps(LLC):
    def compute(self) -> dict[str, Any]:
        return super().compute() | {"number": drawn()}


class Large(Dataset[Any]):
    """Six samples, and so many objects that whoever looks through all of them finds nothing else."""

    def __init__(self) -> None:
        self.rows = [[torch.full((3,), float(row)), torch.zeros(())] for row in range(5000)]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Metrics(MeanMetric(), noisy),
        lambda: Metrics(MeanMetric(), lambda module, batch: noisy(module, batch)),
        lambda: Metrics(MeanMetric(), Noisy(), data=Large()),
        lambda: TrajectoryPCA(data(6), partial(noisy)),
        lambda: TrajectoryPCA(Large(), Noisy()),
        lambda: TrajectoryPCA(data(6), lambda module, batch: batch[1], {"own": lambda batch: batch[1] + drawn()}),
        DrawsFromAFile,
        Bootstraps,
    ],
)
@pytest.mark.parametrize("verb", ["check", "measure"])
def test_a_generator_of_their_functions_is_put_back(make: Any, verb: str) -> None:
    own = torch.Generator()
    own.set_state(OWN.get_state())
    expected = drawn(own)
    one = Estimator(draw_reference(data(8)), square_error, {"own": make()}, settings(num_draws=2))
    before = OWN.get_state()
    getattr(one, verb)(Regression())
    assert drawn() == expected, "as if nothing had been drawn"
    OWN.set_state(before)


@pytest.mark.parametrize("observable", [DeadUnits(), Sharpness(), Draws()], ids=lambda one: type(one).__name__)
def test_they_keep_their_contract(observable: Any) -> None:
    check_fork_observable(observable)


class KeepsAGraph:
    def inspect(self, fork: ForkView) -> dict[str, Any]:
        return {"losses": fork.module(fork.batches()[0])}


class Counts:
    def __init__(self) -> None:
        self.calls = 0

    def inspect(self, fork: ForkView) -> dict[str, Any]:
        self.calls += 1
        return {"calls": self.calls}


@pytest.mark.parametrize(
    ("broken", "promise"), [(KeepsAGraph(), "carries no graph"), (Counts(), "the same fork"), (LLC(), "has `inspect`")]
)
def test_a_broken_one_is_found(broken: Any, promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_fork_observable(broken)


def test_the_share_of_dead_units_is_exact() -> None:
    module = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.copy_(torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0]))
    reference = [torch.randn(6, 2, generator=torch.Generator().manual_seed(0))]
    found = estimate(module, reference, lambda m, x: m(x).square()[:, 0], observables={"dead": DeadUnits()})
    assert found["dead"]["share"] == pytest.approx(0.4)


def test_a_moved_fork_is_read_where_it_stands() -> None:
    loss_fn = Quadratic(torch.tensor([1.0, 3.0]), floor=0.5)
    found = estimate(Weights(2), [torch.zeros(4, 1)], loss_fn, observables={"sharp": Sharpness()})
    assert found["sharp"]["rise"] == pytest.approx(2.0)
    assert found["sharp"]["losses"].tolist() == pytest.approx([2.5] * 4)


class TestBesideChains:
    def measured(self, observables: dict[str, Any]) -> Any:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        generator = torch.Generator().manual_seed(5)
        pairs = [(torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator))]
        config = settings(num_draws=10, num_burnin_steps=5)
        one = Estimator(draw_reference(pairs), squared_error, observables, config, persistent=True)
        return [one.measure(module, step) for step in (1, 2)]

    def test_the_draws_do_not_depend_on_what_is_read_at_the_fork(self) -> None:
        alone = self.measured({"llc": LLC(), "kernel": LossKernel()})
        curious = {"sharp": Sharpness(), "writes": WritesBuffers(), "draws": Draws()}
        beside = self.measured({**curious, "llc": LLC(), "kernel": LossKernel()})
        for one, other in zip(alone, beside, strict=True):
            for key in ("llc", "kernel", "health"):
                assert digest(one[key]) == digest(other[key])
            assert other["sharp"]["step"] == other.step

    def test_one_may_read_both(self) -> None:
        first, _ = self.measured({"llc": Both()})
        assert first["llc"]["at_fork"] == pytest.approx(first["llc"]["reference_loss"])
        assert math.isfinite(first["llc"]["mean"])

    def test_it_is_known_where_all_chains_have_failed(self) -> None:
        hopeless = lambda m, x: (-1e9 * m.w.square().sum()).expand(len(x))  # noqa: E731
        observables = {"llc": LLC(), "sharp": Sharpness()}
        with pytest.warns(UserWarning, match="diverged"):
            found = estimate(Weights(2), [torch.zeros(2, 1)], hopeless, observables=observables, sampler=settings(0.1))
        assert found.failed
        assert found["sharp"]["rise"] == pytest.approx(-2e9)

    def test_one_that_raises_costs_the_measurement_and_leaves_nothing_behind(self) -> None:
        torch.manual_seed(1)
        reference = draw_reference([(torch.ones(4, 3), torch.zeros(4, 1))])
        one = Estimator(reference, squared_error, {"sharp": Sharpness(), "bad": Raises()}, settings())
        failed = one.attempt(nn.Linear(3, 1), 4)
        assert failed.error == "ValueError: no such layer"
        assert math.isnan(failed["sharp"]["rise"])
        assert failed["bad"] == {}


class TestWithoutChains:
    def test_no_sgld_step_is_taken(self) -> None:
        def gradients(max_steps: int) -> int:
            calls: list[bool] = []

            def counted(module: Any, batch: Any) -> torch.Tensor:
                calls.append(torch.is_grad_enabled())
                return square_error(module, batch)

            detectors = {"slt/draws/number": JumpDetector()}
            watched = monitor(loss_fn=counted, observables={"draws": Draws()}, detectors=detectors)
            fit(watched, max_steps=max_steps)
            assert [one["cost"]["sgld_steps"] for one in watched.history] == [0] * (max_steps // 2)
            assert all(math.isfinite(one["draws"]["number"]) for one in watched.history)
            return sum(calls)

        assert gradients(2) == gradients(6)  # the check before training asks for some

    def test_training_is_as_without(self) -> None:
        plain = fingerprint(fit())
        observables = {"sharp": Sharpness(), "writes": WritesBuffers(), "draws": Draws()}
        assert fingerprint(fit(monitor(observables=observables))) == plain

    def test_its_random_numbers_depend_on_the_step_alone(self) -> None:
        def numbers() -> list[float]:
            watched = monitor(observables={"draws": Draws()})
            fit(watched)
            return [one["draws"]["number"] for one in watched.history]

        assert numbers() == numbers()
        assert len(set(numbers())) == 3

    def test_it_is_published_and_resumed_like_any_other(self, tmp_path: Any) -> None:
        sink = MemorySink()
        trainer = fit(monitor(observables={"draws": Draws()}, sinks=[sink]), max_steps=4)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert [one.scalars["slt/draws/number"] for one in sink.publications]
        again = monitor(observables={"draws": Draws()})
        fit(again, ckpt_path=str(tmp_path / "last.ckpt"), max_steps=6)
        assert [one.step for one in again.history] == [6]

    def test_hooks_stay_with_the_copy_of_the_observable(self) -> None:
        module = Regression()
        found = estimate(module, data(), square_error, observables={"dead": DeadUnitsOf()}, sampler=settings())
        assert 0 <= found["dead"]["share"] <= 1
        assert all(not layer._forward_hooks for layer in module.modules())


class DeadUnitsOf(DeadUnits):
    """Of a module that takes inputs alone."""

    def inspect(self, fork: ForkView) -> dict[str, float]:
        outputs: list[torch.Tensor] = []
        net: Any = fork.module.net
        net[2].register_forward_hook(lambda *passed: outputs.append(passed[-1]))
        for inputs, _ in fork.batches():
            net(inputs)
        return {"share": float((torch.cat(outputs) == 0).all(0).float().mean())}


@pytest.mark.parametrize("wrong", [object(), DeadUnits, "dead"])
def test_what_is_no_observable_of_either_kind_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="with `reset`, `update` and `compute`, or with `inspect`"):
        monitor(observables={"dead": wrong})


class Freezer:
    """Writes into every parameter that it finds, and into the batches."""

    def inspect(self, fork: ForkView) -> dict[str, float]:
        with torch.no_grad():
            for parameter in fork.module.parameters():
                parameter.zero_()
        for batch in fork.batches():
            for leaf in batch:
                leaf.mul_(0)
        return {}


class GradientNorm:
    def inspect(self, fork: ForkView) -> dict[str, float]:
        for inputs, targets in fork.batches():
            (fork.module(inputs) - targets).square().mean().backward()
        return {"norm": sum(float(p.grad.norm()) for p in fork.parameters if p.grad is not None)}


class TestNothingIsLeftBehind:
    def problem(self) -> tuple[nn.Module, list[Any]]:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        module[0].requires_grad_(False)
        return module, [(torch.randn(8, 3), torch.randn(8, 1))]

    def llc(self, observables: dict[str, Any]) -> float:
        module, reference = self.problem()
        before = [parameter.clone() for parameter in module.parameters()]
        found = estimate(
            module, reference, squared_error, observables={**observables, "llc": LLC()}, sampler=settings()
        )
        for parameter, value in zip(module.parameters(), before, strict=True):
            assert torch.equal(parameter, value)
        return float(found["llc"]["mean"])

    def test_neither_in_live_weights_nor_in_the_samples(self) -> None:
        assert self.llc({"freezer": Freezer()}) == self.llc({})

    def test_nor_in_gradients(self) -> None:
        module, reference = self.problem()
        twice = {"one": GradientNorm(), "two": GradientNorm()}
        found = estimate(module, reference, squared_error, observables=twice)
        assert found["one"]["norm"] == found["two"]["norm"] > 0
        assert self.llc(twice) == self.llc({})

    def test_a_reset_gives_a_new_copy(self) -> None:
        class Trains:
            def inspect(self, fork: ForkView) -> dict[str, float]:
                before = fork.module[1].running_mean.clone()  # type: ignore[index, union-attr, operator]
                fork.module.train()
                fork.module(fork.batches()[0][0])
                fork.reset()
                after = fork.module[1]  # type: ignore[index]
                return {"moved": float((after.running_mean - before).abs().max()), "training": after.training}  # type: ignore[union-attr, operator, dict-item]

        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        found = estimate(module, self.problem()[1], squared_error, observables={"trains": Trains()})
        assert found["trains"] == {"moved": 0.0, "training": False}


def test_samples_come_as_the_loss_gets_them() -> None:
    class Normalizes(Regression):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] / 100.0, batch[1]]

    class Largest:
        def inspect(self, fork: ForkView) -> dict[str, float]:
            return {"input": max(float(inputs.abs().max()) for inputs, _ in fork.batches())}

    watched = monitor(observables={"largest": Largest()})
    fit(watched, module=Normalizes())
    largest = float(data().tensors[0].abs().max())
    assert watched.history[0]["largest"]["input"] == pytest.approx(largest / 100)


def test_weights_that_have_diverged_are_a_failure_without_chains_too() -> None:
    class Diverges(Regression):
        diverged = False

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return square_error(module, batch) * (math.nan if module.diverged else 1.0)

    class Sets(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            pl_module.diverged = trainer.global_step > 2

    watched = monitor(loss_fn=loss_fn, observables={"draws": Draws()})
    with pytest.warns(UserWarning, match="has training diverged"):
        fit(Sets(), watched, module=Diverges())
    assert [one.failed for one in watched.history] == [False, True, True]
    assert [math.isnan(one["draws"]["number"]) for one in watched.history] == [False, True, True]
