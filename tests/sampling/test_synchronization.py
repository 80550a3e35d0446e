"""A GPU is kept busy only while the host never waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from slt_callbacks import LLC, SGLD, Influence, LossKernel, RMSPropSGLD
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.probes import Probe
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.chains import make_chains
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.sampler import Sampler
from slt_callbacks.sampling.sequential import SequentialEngine
from slt_callbacks.sampling.vectorized import VectorizedEngine
from slt_callbacks.sampling.verdict import Verdict
from slt_callbacks.weights.fork import Fork

WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
READS = ("cpu", "item", "tolist", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")

WHOLE = [torch.randn(8, 3)]
RAGGED = [torch.randn(5, 3), torch.randn(3, 4)]
STRINGS = [{"x": torch.randn(8, 3), "names": [f"n{i}" for i in range(8)]}]
SIZES: dict[str, Any] = {
    "whole": {},
    "minibatches": {"batch_size": 4},
    "blocks": {"block_size": 3},
    "minibatches in blocks": {"batch_size": 4, "block_size": 3},
    "ragged": {"reference": RAGGED},
    "ragged minibatches": {"reference": RAGGED, "batch_size": 4},
    "strings": {"reference": STRINGS, "batch_size": 4},
    "a mean": {"per_sample": False, "batch_size": 4},
    "a mean, samples at once": {"per_sample": False, "singles_at_once": True},
}
DYNAMICS = [SGLD(1e-4), RMSPropSGLD(1e-4)]


def loss_fn(module: nn.Module, batch: Any) -> torch.Tensor:
    x = batch["x"] if isinstance(batch, dict) else batch
    return module(x[:, :3]).square().mean(1)


def mean_loss(module: nn.Module, batch: Any) -> torch.Tensor:
    return loss_fn(module, batch).mean()


class Waits(TorchDispatchMode):
    """Counts the operators behind `.item()`, `if tensor:` and masks of numbers; they are the same on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in WAITING and args[0].is_floating_point()  # places of samples are kept on the host
        return func(*args, **(kwargs or {}))


class OnDevice(torch.Tensor):
    """Stands for what was moved to a GPU, and everything computed from it: notices when the host reads it."""

    reads: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        masked = name in ("__getitem__", "__setitem__") and _is_mask(args[1])
        if name in READS or masked:
            cls.reads.append(name)
        return super().__torch_function__(func, types, args, kwargs or {})


def _is_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


@contextmanager
def device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Tensors that `.to(device)` has moved are watched, and so is a `.to` that waits until they have arrived."""
    moved = torch.Tensor.to

    def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = moved(tensor, *args, **kwargs)
        if not any(isinstance(argument, (torch.device, str)) for argument in args):
            return result
        if not isinstance(tensor, OnDevice) and not kwargs.get("non_blocking"):
            OnDevice.reads.append("a blocking .to")
        return result.as_subclass(OnDevice)

    OnDevice.reads.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        yield OnDevice.reads


def problem(device: str = "cpu", reference: Any = WHOLE, batch_size: int | None = None, **options: Any) -> Objective:
    module, loss = nn.Linear(3, 1).to(device), loss_fn if options.get("per_sample", True) else mean_loss
    objective = Objective(Fork(module), loss, draw_reference(reference), batch_size=batch_size, **options)
    objective.measure_fork()
    return objective


def engine_for(kind: Any, objective: Objective, dynamics: Any) -> Any:
    return kind(objective, dynamics, LocalPosterior(nbeta=1.0, localization=1.0))


def take_steps(engine: Any, num_chains: int, num_steps: int = 5) -> None:
    objective = engine.objective
    chains = make_chains(SamplerConfig(num_chains=num_chains), objective.fork.device, seed=0, step=0)
    for group in engine.groups(chains):
        for halt in engine.advance(group, range(num_steps), keep=True):
            for point in halt.points:
                objective.excess(point.losses, point.samples)


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_an_sgld_step_never_waits_for_the_device(
    sizes: dict[str, Any], dynamics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device_of_its_own(monkeypatch) as reads:
        engine = engine_for(SequentialEngine, problem(**sizes), dynamics)
        reads.clear()
        with Waits() as waits:
            take_steps(engine, num_chains=1)
    assert (waits.count, reads) == (0, [])


@pytest.mark.parametrize("sizes", ["whole", "minibatches", "a mean"])
def test_a_step_of_all_chains_never_waits_for_the_device(sizes: str) -> None:
    engine = engine_for(VectorizedEngine, problem(**SIZES[sizes]), SGLD(1e-4))
    with Waits() as waits:
        take_steps(engine, num_chains=3)
    assert waits.count == 0


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_draws_and_what_observables_make_of_them_never_wait(
    sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = sizes.get("reference", WHOLE)
    with device_of_its_own(monkeypatch) as reads:
        objective = problem(**sizes)
        objects = {"llc": LLC(), "kernel": LossKernel(), "influence": Influence(queries)}
        options = {key: value for key, value in sizes.items() if key not in ("reference", "batch_size")}
        asked = Objective(objective.fork, objective.loss_fn, draw_reference(queries), **options)
        places = torch.tensor([len(asked), 0, 1]).to(objective.fork.device)  # two of the reference set, and one beside
        probes = {"all": Probe(asked), "influence": Probe(asked, places)}
        sampler, observables, verdict = sampling(objective, probes, objects)
        for _, draws in sampler.draws():
            reads.clear()  # what a chain begins and ends with is another matter
            with Waits() as waits:
                for draw in draws:
                    verdict.update(draw)
                    for observable in observables:
                        observable.update(draw)
            assert (waits.count, reads) == (0, [])
            assert verdict.failed() == set()


def sampling(objective: Objective, probes: dict[str, Probe], objects: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A run of two chains, what takes its draws, and the verdict on them."""
    config = SamplerConfig(SGLD(1e-4), num_chains=2, num_draws=6, num_burnin_steps=2)
    sampler = Sampler(
        engine_for(SequentialEngine, objective, config.dynamics),
        config,
        make_chains(config, objective.fork.device, seed=0, step=0),
        reference_losses=True,
        probes=probes,
    )
    point = ReferencePoint(0, 1.0, objective.at_fork, torch.arange(len(objective)), 1.0, 1.0, 2, 6)
    panel, health = Panel(objects), ChainHealth()
    panel.reset(point)
    health.reset(point)
    verdict = Verdict(1.0, len(objective.fork), objective.at_fork, len(objective), dict.fromkeys(probes, 1.0))
    return sampler, (panel, health), verdict


class TestWhatNotices:
    def test_the_counter_notices_an_item(self) -> None:
        with Waits() as waits:
            torch.ones(2).sum().item()
        assert waits.count == 1

    @pytest.mark.parametrize(
        "read",
        [
            lambda x: (x * 2).sum().item(),
            lambda x: x.long().tolist(),
            lambda x: bool(x.sum() > 0),
            lambda x: x[x > 0],
            lambda x: x.cpu(),
            lambda x: torch.arange(2).to(torch.device("cpu")),
        ],
    )
    def test_the_device_notices_a_read(self, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        with device_of_its_own(monkeypatch) as reads:
            on_device = torch.ones(2).to(torch.device("cpu"), non_blocking=True)
            assert reads == []
            read(on_device)
            assert len(reads) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    """CUDA itself says when it is waited for."""

    @staticmethod
    @contextmanager
    def no_waiting() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("dynamics", DYNAMICS)
    @pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
    @pytest.mark.parametrize("kind", [SequentialEngine, VectorizedEngine])
    def test_no_synchronization_in_a_step(self, kind: Any, sizes: dict[str, Any], dynamics: Any) -> None:
        if kind is VectorizedEngine and sizes.get("batch_size") and sizes.keys() & {"block_size", "reference"}:
            pytest.skip("minibatches of several shapes, or in blocks, run one by one")
        engine = engine_for(kind, problem("cuda", **sizes), dynamics)
        chains = make_chains(SamplerConfig(num_chains=1), engine.objective.fork.device, seed=0, step=0)
        steps = engine.advance(chains, range(5), keep=False)
        next(steps)  # the first step may load kernels
        with self.no_waiting():
            for _ in steps:
                pass

    @pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
    def test_no_synchronization_in_draws_and_observables(self, sizes: dict[str, Any]) -> None:
        objective = problem("cuda", **sizes)
        sampler, observables, verdict = sampling(objective, {}, {"llc": LLC(), "kernel": LossKernel()})
        for _, draws in sampler.draws():
            taken = [next(draws) for _ in range(2)]  # as above
            for draw in taken:
                verdict.update(draw)
                for observable in observables:
                    observable.update(draw)
            with self.no_waiting():
                for draw in draws:
                    verdict.update(draw)
                    for observable in observables:
                        observable.update(draw)
