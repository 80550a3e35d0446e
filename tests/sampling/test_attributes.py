"""What a module holds beside its weights: private in the fork, put back for every chain, or shared as data is."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import CatMetric

from slt_callbacks.losses.functions import LossFnError
from slt_callbacks.weights.fork import Fork
from tests.problems import estimate, llc, settings

X = torch.linspace(-1, 1, 24).view(6, 4)


@dataclass
class Record:
    values: list[torch.Tensor]


class Slotted:
    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []


class Keeps(nn.Linear):
    """Its training step keeps the loss, as Lightning's epoch hooks suggest."""

    def __init__(self, held: Any, keep: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__(4, 1)
        self.held, self.keep = held, keep

    def training_step(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self(x).square().mean()
        self.keep(self.held, loss)
        return loss


def append(values: Any, loss: torch.Tensor) -> None:
    values.append(loss)


# By name: what makes the container, what keeps a loss in it, and how many losses it holds.
CONTAINERS: dict[str, tuple[Callable[[], Any], Callable[[Any, torch.Tensor], Any], Callable[[Any], int]]] = {
    "list": (list, append, len),
    "deque": (lambda: deque(maxlen=100), append, len),
    "set": (set, set.add, len),
    "dict": (lambda: {"train": []}, lambda d, loss: append(d["train"], loss), lambda d: len(d["train"])),
    "defaultdict": (lambda: defaultdict(list), lambda d, loss: append(d["new"], loss), lambda d: len(d["new"])),
    "nested": (lambda: {"a": [(1, [])]}, lambda d, loss: append(d["a"][0][1], loss), lambda d: len(d["a"][0][1])),
    "dataclass": (lambda: Record([]), lambda r, loss: append(r.values, loss), lambda r: len(r.values)),
    "slots": (Slotted, lambda r, loss: append(r.values, loss), lambda r: len(r.values)),
    "beside a lock": (
        lambda: [threading.Lock(), [], (x for x in "generator")],
        lambda both, loss: append(both[1], loss),
        lambda both: len(both[1]),
    ),
    "array of objects": (
        lambda: np.array([[], None], dtype=object),
        lambda both, loss: append(both[0], loss),
        lambda both: len(both[0]),
    ),
    "metric": (CatMetric, CatMetric.update, lambda metric: len(metric.value)),
    "metric in a list": (
        lambda: [CatMetric()],
        lambda metrics, loss: metrics[0].update(loss),
        lambda metrics: len(metrics[0].value),
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_losses_that_a_training_step_keeps_are_those_of_training_alone(name: str) -> None:
    make, keep, count = CONTAINERS[name]
    torch.manual_seed(0)
    module = Keeps(make(), keep)
    for step in range(3):
        module.training_step(X, step)
    plain = Keeps(None, lambda held, loss: None)
    plain.load_state_dict(module.state_dict(), strict=False)
    found = [llc(estimate(net, [X], sampler=settings(1e-2, batch_size=3))) for net in (module, plain)]
    assert count(module.held) == 3
    assert found[0] == found[1] != 0
    assert count(Fork(module).module.held) == 3, "the copy holds what was there"


def test_a_loss_that_past_losses_weigh_is_that_of_the_fork_in_every_chain() -> None:
    seen: list[int] = []

    class Weighs(Keeps):
        def training_step(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
            seen.append(len(self.held))
            return super().training_step(x, batch_idx) * (1 + 0.1 * len(self.held) + torch.stack([*self.held]).mean())

    module = Weighs(deque(maxlen=100), lambda held, loss: held.append(loss.detach()))
    module.held.append(module(X).mean())
    with pytest.warns(UserWarning, match="it keeps something from call to call"):
        estimate(module, [X], sampler=settings(1e-3, num_draws=4, num_chains=2, engine="sequential"))
    assert seen[-4:] == seen[-8:-4] == [1, 2, 3, 4]
    assert len(module.held) == 1


def test_attributes_are_put_back_unless_they_are_kept() -> None:
    fork: Any = Fork(Keeps([], append))
    fork.module.trainer = "a stand-in"
    fork.reset()
    assert not hasattr(fork.module, "trainer")
    fork.module.trainer = "a stand-in"
    fork.keep_attributes()
    fork.module.held.append(1)
    fork.reset()
    assert (fork.module.trainer, fork.module.held) == ("a stand-in", [])


def test_losses_in_a_copy_carry_no_graph_and_their_values() -> None:
    module = Keeps([], append)
    loss = module.training_step(X, 0)
    copied: Any = Fork(module).module
    assert copied.held[0] == loss
    assert not copied.held[0].requires_grad
    assert module.held[0] is loss


def test_memory_does_not_grow_with_measurements() -> None:
    module = Keeps([], append)
    module.training_step(X, 0)
    forks = []
    for _ in range(3):
        fork = Fork(module)
        fork.module.training_step(X, 0)
        forks.append(weakref.ref(fork.module))
        del fork
    assert len(module.held) == 1
    gc.collect()
    assert [fork() for fork in forks] == [None] * 3


class Refuses:
    """Its copy raises, though all that it holds can be copied."""

    def __init__(self, module: nn.Module) -> None:
        self.items = [1]
        self.module = module

    def __deepcopy__(self, memo: Any) -> Any:
        raise ValueError("no copies")


class NotMade(list):  # type: ignore[type-arg]
    """It is taken apart, but not put together again."""

    def __init__(self, needed: int) -> None:
        self.needed = needed

    def __new__(cls, needed: int) -> NotMade:
        return super().__new__(cls)


def test_what_refuses_to_be_copied_is_shared_and_nothing_else() -> None:
    module: Any = Keeps([], append)
    module.kept = {"refuses": [Refuses(module)], "outs": [module(X).mean()], "module": module, "odd": NotMade(3)}
    fork: Any = Fork(module).module
    assert fork.kept["refuses"][0] is module.kept["refuses"][0]
    assert fork.kept["odd"] is module.kept["odd"]
    for name in ("refuses", "outs"):
        assert fork.kept[name] is not module.kept[name]
    assert fork.kept["module"] is fork


@pytest.mark.parametrize("kind", ["torch", "numpy", "legacy numpy", "python"])
def test_a_generator_is_private_wherever_it_is_held(kind: str) -> None:
    module: Any = nn.Linear(4, 1)
    made: dict[str, Any] = {
        "torch": torch.Generator(),
        "numpy": np.random.default_rng(0),
        "legacy numpy": np.random.RandomState(0),
        "python": random.Random(0),
    }
    module.noise = {"of": [made[kind]]}
    assert Fork(module).module.noise["of"][0] is not made[kind]


def test_an_iterator_that_cannot_be_copied_is_not_read_from() -> None:
    class Streams(nn.Linear):
        def training_step(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self(x + next(self.stream)).square().mean()

    module: Any = Streams(4, 1)
    module.stream = (float(number) for number in range(9))
    with pytest.raises(LossFnError, match=r"reads from an iterator that the module holds \(a generator\).*`loss_fn`"):
        estimate(module, [X], sampler=settings())
    assert next(module.stream) == 0
    module.stream = iter(DataLoader(TensorDataset(X)))
    with pytest.raises(LossFnError, match="SingleProcessDataLoaderIter"):
        estimate(module, [X], sampler=settings())
    assert len(list(module.stream)) == 6
    module.stream = iter([1.0] * 99)  # this one can be copied
    estimate(module, [X], sampler=settings())
    assert len(list(module.stream)) == 99


class Data(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.x = np.zeros(2**20)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(X))


@pytest.mark.parametrize("held", ["attribute", "list", "dict", "combined"])
def test_data_held_by_the_module_is_not_copied(held: str) -> None:
    module: Any = nn.Linear(4, 1)
    data = TensorDataset(torch.zeros(2**20))
    everything = [data, DataLoader(data), Data()]
    module.held = {
        "attribute": everything[2],
        "list": everything,
        "dict": {"all": (1, everything)},
        "combined": CombinedLoader([everything[1]]),
    }[held]
    tracemalloc.start()
    fork: Any = Fork(module).module
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    found = {
        "attribute": lambda net: [net.held],
        "list": lambda net: net.held,
        "dict": lambda net: net.held["all"][1],
        "combined": lambda net: net.held.flattened,
    }[held]
    assert all(one is other for one, other in zip(found(fork), found(module), strict=True))


def test_arrays_and_tensors_that_the_module_may_write_into_are_copied() -> None:
    module: Any = nn.Linear(4, 1)
    module.queue, module.table = [torch.zeros(3)], np.zeros(3)
    fork: Any = Fork(module).module
    fork.queue[0] += 1
    fork.table += 1
    assert module.queue[0].sum() == module.table.sum() == 0
