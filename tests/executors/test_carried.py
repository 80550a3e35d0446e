"""What travels to another process, bit for bit; what stays; and where it lies meanwhile."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from slt_callbacks.executors import slots as slots_module
from slt_callbacks.executors.carried import NotHere, carry, unpacked
from slt_callbacks.executors.numerics import Numerics
from slt_callbacks.executors.packing import Packing
from slt_callbacks.executors.slots import Slots, mapped
from slt_callbacks.losses.transfers import Transfers
from slt_callbacks.weights.shards import whole
from tests.executors.obedient import Obeyed, estimator
from tests.training import data


def there(module: nn.Module) -> Any:
    memory: list[torch.Tensor] = []

    def room(size: int) -> torch.Tensor:
        memory.append(torch.zeros(size, dtype=torch.uint8))
        return memory[0]

    end = carry(module, room)
    return unpacked(memory[0], end)


def test_shared_memory_goes_with_whoever_has_forgotten_to_close_it() -> None:
    forgotten = Slots()
    path = forgotten.take(4).path
    assert path.exists()
    del forgotten
    gc.collect()
    assert not path.parent.exists()


@pytest.fixture
def _one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_shards_of_one_process_travel_whole() -> None:
    from torch.distributed.fsdp import fully_shard

    live = fully_shard(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    plain = there(live)
    assert [type(one) for one in plain.parameters()] == [nn.Parameter] * 4
    for name, value in plain.state_dict().items():
        assert value.equal(whole(live.state_dict()[name])), name


def parametrized(module: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(module)


class Odd(nn.Module):
    """Weights and buffers of every kind, some of them shared."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Parameter(torch.randn(3, 5).to(torch.bfloat16))
        self.frozen = nn.Parameter(torch.randn(7), requires_grad=False)
        self.tied = self.frozen
        self.register_buffer("none_of", torch.zeros(0, 4))
        self.register_buffer("count", torch.tensor(3, dtype=torch.int64))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("again", self.flags)
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.kept = [torch.ones(2), "text"]
        self.generator = torch.Generator().manual_seed(5)
        self.train()


class TestAModule:
    @pytest.mark.parametrize("make", [Odd, lambda: nn.LSTM(3, 4)], ids=["odd", "LSTM"])
    def test_its_weights_and_buffers_are_the_same_bit_for_bit(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        live = make()
        copied = there(live)
        for name, tensor in live.state_dict().items():
            found = copied.state_dict()[name]
            assert found.dtype == tensor.dtype, name
            assert torch.equal(found.to_dense(), tensor.to_dense()), name
        assert [(n, p.requires_grad) for n, p in copied.named_parameters()] == [
            (n, p.requires_grad) for n, p in live.named_parameters()
        ]

    def test_what_is_one_stays_one_and_what_it_holds_comes_along(self) -> None:
        live = Odd()
        copied = there(live)
        assert copied.tied is copied.frozen
        assert copied.again is copied.flags
        assert copied.kept[1] == "text"
        assert torch.equal(copied.generator.get_state(), live.generator.get_state())
        assert not copied.training
        assert live.training

    def test_training_does_not_reach_it(self) -> None:
        live = Odd()
        before, copied = live.small.detach().clone(), there(live)
        with torch.no_grad():
            live.small.zero_()
            live.flags.zero_()
        assert torch.equal(copied.small, before)
        assert copied.flags.tolist() == [True, False, True]

    def test_data_stays_where_it_is(self) -> None:
        live = Obeyed()
        live.samples = data()
        live.loaders = [torch.utils.data.DataLoader(data())]
        copied = there(live)
        assert type(copied.samples) is NotHere
        for use in (len, iter, lambda one: one[0], lambda one: one.tensors):
            with pytest.raises(RuntimeError, match="it reads a TensorDataset that the module holds"):
                use(copied.samples)
        assert live.samples.tensors

    def test_what_refuses_to_be_pickled_says_so(self) -> None:
        with pytest.raises(
            TypeError, match=r"(?s)the module to be .*parametrized modules.*Leave out of it what refuses"
        ):
            Packing().check(estimator(), parametrized(Obeyed()))


class Hooked(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.samples, self.scale = data(), 255.0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch / self.scale


class Unhooked(pl.LightningDataModule):
    num_classes = 3


class Attached(pl.LightningModule):
    """As a fit leaves it."""

    def __init__(self, datamodule: Any, **values: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self._trainer = SimpleNamespace(datamodule=datamodule, **values)


class TestItsTrainer:
    def test_how_far_it_is_is_known_and_nothing_else(self) -> None:
        copied = there(Attached(None, global_step=7, current_epoch=2, strategy=threading.Lock()))
        assert (copied.trainer.global_step, copied.current_epoch) == (7, 2)
        with pytest.raises(RuntimeError, match=r"it asks for `trainer\.strategy`: pass a `loss_fn` that does not"):
            copied.trainer.strategy  # noqa: B018

    def test_the_transfer_hooks_of_a_data_module_travel_without_its_data(self) -> None:
        live = Attached(Hooked())
        live._trainer.datamodule.trainer = live._trainer
        copied = there(live)
        transfers = Transfers(copied, torch.device("cpu"))
        assert transfers(copied, torch.tensor([51.0])).tolist() == pytest.approx([0.2])
        assert type(copied.trainer.datamodule.samples) is NotHere
        assert live._trainer.datamodule.trainer is live._trainer

    def test_one_that_cannot_be_pickled_is_refused_where_it_is_needed(self) -> None:
        hooked, unhooked = Hooked(), Unhooked()
        hooked.lock = unhooked.lock = threading.Lock()  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="lock"):
            there(Attached(hooked))
        with pytest.raises(RuntimeError, match=r"it asks for `trainer\.datamodule`"):
            there(Attached(unhooked)).trainer.datamodule  # noqa: B018
        assert there(Attached(Unhooked())).trainer.datamodule.num_classes == 3


class TestSharedMemory:
    def test_it_lies_on_the_disk_where_memory_is_short(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        memory, disk = tmp_path / "memory", tmp_path / "disk"
        memory.mkdir(), disk.mkdir()
        monkeypatch.setattr(slots_module, "_IN_MEMORY", memory)
        monkeypatch.setattr(slots_module.tempfile, "gettempdir", lambda: str(disk))
        reserve = os.posix_fallocate

        def full(file: int, *where: int) -> None:
            if str(memory) in os.readlink(f"/proc/self/fd/{file}"):
                raise OSError(errno.ENOSPC, "no space left")
            reserve(file, *where)

        monkeypatch.setattr(os, "posix_fallocate", full)
        slots = Slots()
        slot = slots.take(1000)
        assert slot.path.is_relative_to(disk)
        assert len(mapped(slot.path)) >= 1000
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
        with pytest.raises(OSError, match="no space"):
            slots.take(10**6)
        slots.close()
        assert [*memory.iterdir(), *disk.iterdir()] == []

    def test_one_that_is_too_small_makes_room_for_a_larger_one(self) -> None:
        slots = Slots()
        small = slots.take(10)
        slots.give_back(small)
        large = slots.take(10_000)
        assert not small.path.exists()
        assert len(large.memory) >= 10_000
        slots.close()


def test_numerics_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Numerics.here(torch.get_num_threads())
    try:
        other = Numerics(1, torch.float64, "medium", True, True, True, False, False)
        other.apply()
        assert Numerics.here(torch.get_num_threads()) == other
    finally:
        before.apply()
    assert Numerics.here(torch.get_num_threads()) == before


def test_what_a_notebook_has_defined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    monkeypatch.setattr(notebook, "__spec__", None)
    kind = type("InACell", (Obeyed,), {"__module__": "__main__", "__qualname__": "InACell"})
    monkeypatch.setattr(notebook, "InACell", kind, raising=False)
    with pytest.raises(TypeError, match=r"the module to be .* its class was written in a notebook.*RayExecutor"):
        Packing().check(estimator(), kind())
