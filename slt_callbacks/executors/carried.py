"""A module on its way to another process: weights and buffers as bytes, the rest pickled without them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from slt_callbacks.basics.lightning_kinds import is_data_module
from slt_callbacks.losses.functions import overrides
from slt_callbacks.losses.transfers import HOOKS
from slt_callbacks.weights.copies import copy_module
from slt_callbacks.weights.shards import is_shard, whole

_ALIGNMENT = 64  # bytes: that of a cache line, and of any number
_PLAIN = (bool, int, float, str)
# What a loss may read of its trainer: numbers that say how far training is, as schedules of a loss weight do.
_OF_TRAINER = (
    *(
        "global_step",
        "current_epoch",
        "max_steps",
        "max_epochs",
        "min_steps",
        "min_epochs",
        "world_size",
        "global_rank",
    ),
    *("local_rank", "num_nodes", "num_devices", "is_global_zero", "accumulate_grad_batches", "num_training_batches"),
    *("training", "validating", "testing", "predicting", "sanity_checking", "fast_dev_run", "is_last_batch"),
)


@dataclass(frozen=True)
class Piece:
    """Where a weight or a buffer lies among the bytes, and what it is."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    is_parameter: bool
    requires_grad: bool


def carry(module: nn.Module, memory: Callable[[int], torch.Tensor], base: type = pickle.Pickler) -> int:
    """Write a module, at its present weights, where another process can read it.

    Args:
        module: The live one; read, never changed.
        memory: From a number of bytes to as many, uint8.
        base: The pickler: pickle's, or one that pickles by value.

    Returns:
        Where, among the bytes, the weights end and the rest begins.

    Raises:
        Exception: Whatever pickling the module raises.

    Example:
        >>> live, kept = nn.Linear(2, 1), []
        >>> end = carry(live, lambda size: kept.append(torch.zeros(size, dtype=torch.uint8)) or kept[0])
        >>> _ = torch.nn.init.constant_(live.weight, 7.0)
        >>> there = unpacked(kept[0], end)
        >>> there, bool((there.weight == 7.0).any())
        (Linear(in_features=2, out_features=1, bias=True), False)
    """
    tensors, pieces, end = _laid_out(module)
    stand_ins: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach(), requires_grad=piece.requires_grad)
        if piece.is_parameter
        else tensor.detach()
        for tensor, piece in zip(tensors, pieces, strict=True)
    }
    copied = copy_module(module, stand_ins, lambda tensor: tensor.detach())
    file = io.BytesIO()
    pickle.dump(pieces, file)
    places = {id(stand_in): place for place, stand_in in enumerate(stand_ins.values())}
    _pickler(base, file, places).dump((copied, _values_of(module, base)))
    rest = file.getbuffer()
    into = memory(end + len(rest))
    with torch.no_grad():
        for tensor, piece in zip(tensors, pieces, strict=True):
            _view(into, piece).copy_(whole(tensor) if is_shard(tensor) else tensor)
        into[end : end + len(rest)].copy_(torch.frombuffer(rest, dtype=torch.uint8))
    return end


def unpacked(memory: torch.Tensor, end: int, device: torch.device | str | None = None) -> nn.Module:
    """The module that `carry` has written, in eval mode.

    Args:
        memory: The bytes. Weights on the CPU stay in them.
        end: What `carry` has returned.
        device: Where weights and buffers are to be; None for the devices that they came from.

    Raises:
        Exception: Whatever unpickling raises, as where a class cannot be imported.
    """
    file = io.BytesIO(memory[end:].numpy().data)
    pieces = pickle.load(file)
    own = []
    for piece in pieces:
        tensor = _view(memory, piece).to(piece.device if device is None else device)
        own.append(nn.Parameter(tensor, requires_grad=piece.requires_grad) if piece.is_parameter else tensor)
    module: nn.Module
    module, values = _Unpickler(file, own).load()
    for part in module.modules():
        if values is not None and "_trainer" in vars(part):
            part._trainer = values
    return module if device is None else module.to(device)


class TrainerValues:
    """What another process knows of the trainer: the numbers that say how far training is, at the fork.

    Example:
        >>> TrainerValues({"current_epoch": 3}).current_epoch
        3
    """

    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            "Expected the loss to read no more of its trainer than plain numbers, such as `current_epoch`, where it is "
            f"measured in another process, but it asks for `trainer.{name}`: pass a `loss_fn` that does not, or leave "
            "`executor` out"
        )


class NotHere:
    """Stands for data that a module holds, which stays where it is: it may be large, and a loss needs its batch alone.

    Example:
        >>> len(NotHere("TensorDataset"))
        Traceback (most recent call last):
        RuntimeError: Expected the loss to need its batch alone where it is measured in another process, but it reads a
        TensorDataset that the module holds: pass a `loss_fn` that does not, or leave `executor` out
    """

    def __init__(self, name: str) -> None:
        self._slt_name = name

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __len__(self) -> int:
        self._refuse()

    def __getitem__(self, index: Any) -> Any:
        self._refuse()

    def __iter__(self) -> Any:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeError(
            "Expected the loss to need its batch alone where it is measured in another process, but it reads a "
            f"{self._slt_name} that the module holds: pass a `loss_fn` that does not, or leave `executor` out"
        )


def _laid_out(module: nn.Module) -> tuple[list[torch.Tensor], list[Piece], int]:
    """Every parameter and buffer once, where it is to lie, and where the last one ends."""
    tensors, pieces, end = [], [], 0
    seen: set[int] = set()
    parameters = {id(parameter) for parameter in module.parameters()}
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) in seen or tensor.layout != torch.strided:
            continue
        seen.add(id(tensor))
        is_parameter = id(tensor) in parameters
        tensors.append(tensor)
        pieces.append(
            Piece(end, tuple(tensor.shape), tensor.dtype, str(tensor.device), is_parameter, tensor.requires_grad)
        )
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return tensors, pieces, end


def _view(memory: torch.Tensor, piece: Piece) -> torch.Tensor:
    size = torch.Size(piece.shape).numel() * piece.dtype.itemsize
    return memory[piece.start : piece.start + size].view(piece.dtype).view(piece.shape)


def _values_of(module: nn.Module, base: type) -> TrainerValues | None:
    """Those of its trainer; None where it has none."""
    trainers = (getattr(part, "_trainer", None) for part in module.modules())
    trainer = next((trainer for trainer in trainers if trainer is not None), None)
    if trainer is None:
        return None
    values: dict[str, Any] = {}
    for name in _OF_TRAINER:
        try:
            value = getattr(trainer, name)
        except Exception:  # noqa: BLE001  # a property that needs what is not there yet
            continue
        if value is None or isinstance(value, _PLAIN):
            values[name] = value
    return TrainerValues(values | _data_module(trainer, base))


def _data_module(trainer: Any, base: type) -> dict[str, Any]:
    """The data module without its data, for its transfer hooks; left out where it cannot be pickled and has none."""
    live = getattr(trainer, "datamodule", None)
    if live is None:
        return {"datamodule": None}
    alone = copy.copy(live)
    alone.trainer = None
    kept = _Shell(alone)
    try:
        _pickler(base, io.BytesIO(), {}).dump(kept)
    except Exception:
        if any(overrides(type(live), name) for name in HOOKS):
            raise
        return {}
    return {"datamodule": kept}


class _Shell:
    """A data module in a wrapper, which tells it from one that a module holds among its data."""

    def __init__(self, data: Any) -> None:
        self.kind, self.state = type(data), dict(vars(data))

    def __reduce__(self) -> Any:
        return _opened, (self.kind, self.state)


def _opened(kind: type, state: dict[str, Any]) -> Any:
    data: Any = object.__new__(kind)
    vars(data).update(state)
    return data


def _pickler(base: type, file: io.BytesIO, places: dict[int, int]) -> Any:
    """Writes a number for each weight, and only the name of data."""

    class Pickler(base):  # type: ignore[misc]
        def persistent_id(self, value: Any) -> Any:
            place = places.get(id(value))
            if place is not None:
                return place
            if isinstance(value, (Dataset, DataLoader)) or (not isinstance(value, type) and is_data_module(value)):
                return type(value).__name__
            return None

    return Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: Any) -> Any:
        return self._tensors[pid] if isinstance(pid, int) else NotHere(pid)
