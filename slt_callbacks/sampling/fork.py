"""A private copy of a module whose trainable parameters are views of one flat vector."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

# On a CPU a piece fits a core's cache, and PyTorch runs elementwise work of this size on the calling thread: no barrier
# to wait at while data loaders keep the other cores busy (measured: 100 times slower at 2**16 on a loaded machine).
_CPU_PIECE = 2**15
# On a GPU a launch costs microseconds, so pieces are a sixteenth of the vector, which bounds the temporaries, but never
# so small that launching takes longer than working.
_GPU_PIECES, _SMALLEST_GPU_PIECE = 16, 2**20


@dataclass(frozen=True)
class Piece:
    """A slice of the flat vector: some whole neighbouring parameters, or a part of one large parameter."""

    start: int
    stop: int
    members: tuple[int, ...]  # which parameters
    offset: int  # where the piece starts in its first member

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The piece of a flat tensor ``(..., P)``, as a view ``(..., n)``."""
        return flat[..., self.start : self.stop]

    def gather(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The piece of one flat vector a parameter: a view where it lies in one of them, else a copy."""
        if len(self.members) == 1:
            return vectors[self.members[0]][self.offset : self.offset + self.stop - self.start]
        return torch.cat([vectors[member] for member in self.members])


class Fork:
    """A private copy of `module` at its present weights, in eval mode, for a chain to move.

    The live module is read, never written: its parameters are the anchor w*, kept by reference, so a fork costs one
    vector of the size of the trainable parameters. Tied parameters stay tied; frozen ones are shared when they need no
    conversion, and never move. Half-precision weights become float32 (a bfloat16 weight swallows SGLD noise); a float64
    module stays float64.

    Args:
        module: Any module whose parameters exist. It must not be trained while the fork is in use.
        share_frozen: False gives the fork frozen parameters of its own, put back by `reset` like the buffers, for code
            that may write into them, as a training step does that keeps a running average. It costs their size, which
            in a model with low-rank adapters is nearly all of it.

    Attributes:
        module: The copy; its trainable parameters are views of `position`.
        position: The chain's weights, float32 or float64, shape ``(P,)``.
        parameters: The trainable parameters of `module`, views of `position`, in the order of `named_parameters`.
        anchor: The live parameters, detached and flat, in the same order.
        pieces: How to walk through `position` without a temporary of its size.

    Raises:
        ValueError: If nothing is trainable, or the trainable parameters lie on several devices.
        TypeError: If a trainable parameter is uninitialized, complex, on the meta device or sharded.

    Example:
        >>> live = nn.Linear(2, 1)
        >>> fork = Fork(live)
        >>> _ = fork.position.zero_()
        >>> fork.module.weight.tolist(), bool((live.weight != 0).all())
        ([[0.0, 0.0]], True)
    """

    def __init__(self, module: nn.Module, share_frozen: bool = True) -> None:
        live = _trainable(module)
        self.dtype = torch.float64 if any(parameter.dtype == torch.float64 for parameter in live) else torch.float32
        self.device = live[0].device
        self.anchor = [parameter.detach().flatten() for parameter in live]  # views, but for odd memory formats
        self.position = torch.empty(sum(p.numel() for p in live), dtype=self.dtype, device=self.device)
        self.parameters: list[torch.Tensor] = []
        start = 0
        for parameter in live:
            view = self.position[start : start + parameter.numel()].view(parameter.shape)
            self.parameters.append(nn.Parameter(view))
            start += parameter.numel()
        self.pieces = _pieces([parameter.numel() for parameter in live], self.device.type)
        replaced = dict(zip(map(id, live), self.parameters, strict=True))
        self._frozen: list[tuple[torch.Tensor, torch.Tensor]] = []  # the fork's own, and the live one
        for parameter in () if share_frozen else module.parameters():
            if not parameter.requires_grad:
                own = nn.Parameter(self._convert(parameter).clone(), requires_grad=False)
                self._frozen.append((own, parameter.detach()))
                replaced[id(parameter)] = own
        self.module = _copy_module(module, replaced, self._convert)
        self._buffers = [
            (owner, name, buffer.clone())
            for owner in self.module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self.reset()

    def __len__(self) -> int:
        """Number of trainable parameters P."""
        return len(self.position)

    @torch.no_grad()
    def reset(self, displacement: torch.Tensor | None = None) -> None:
        """Back to the anchor, plus `displacement` ``(P,)`` where one is given; all else as it was at the fork."""
        torch._foreach_copy_(torch.split(self.position, [len(part) for part in self.anchor]), self.anchor)
        if displacement is not None:
            self.position.add_(displacement.to(self.device))
        for owner, name, buffer in self._buffers:
            owner._buffers[name] = buffer.clone()
        for own, frozen in self._frozen:
            own.copy_(frozen)

    def buffers(self) -> list[torch.Tensor]:
        """The buffers as they were at the fork, those of the modules one after the other."""
        return [buffer for _, _, buffer in self._buffers]

    def set_buffers(self, values: Sequence[torch.Tensor]) -> None:
        """Let the fork begin with other `values`, in the order of `buffers`, from the next `reset` on."""
        self._buffers = [
            (owner, name, value.to(buffer.device))
            for (owner, name, buffer), value in zip(self._buffers, values, strict=True)
        ]

    def anchor_pieces(self) -> list[torch.Tensor]:
        """The anchor in the pieces and the precision of `position`: views of the live parameters where possible."""
        return [piece.gather(self.anchor).to(self.dtype) for piece in self.pieces]

    @torch.no_grad()
    def displacement(self) -> torch.Tensor:
        """``position - anchor`` as a new tensor, shape ``(P,)``."""
        moved = self.position.clone()
        for piece in self.pieces:
            piece.of(moved).sub_(piece.gather(self.anchor))
        return moved

    def _convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that does not move, in the precision of the chain."""
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        if half or (tensor.is_floating_point() and self.dtype == torch.float64):
            return tensor.detach().to(self.dtype)
        return tensor.detach()


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    live = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not live:
        raise ValueError(
            f"Expected {type(module).__name__} to have a trainable parameter, but every parameter has "
            "requires_grad=False or there are none: unfreeze what the chains should explore."
        )
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        problem = _problem(parameter)
        if problem:
            raise TypeError(f"Expected trainable parameters that SGLD can move, but `{name}` {problem}.")
    devices = {str(parameter.device) for parameter in live}
    if len(devices) > 1:
        raise ValueError(
            f"Expected all trainable parameters on one device, but found {sorted(devices)}: a model split over devices "
            "cannot be sampled."
        )
    return live


def _problem(parameter: nn.Parameter) -> str | None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "is uninitialized: run one batch through the lazy module first"
    if parameter.is_meta:
        return "is on the meta device: materialize the module first"
    if not parameter.is_floating_point():
        return f"has dtype {parameter.dtype}: only real floating-point parameters can be sampled"
    if type(parameter.data) is not torch.Tensor:
        return f"is a {type(parameter.data).__name__}: sharded and subclassed tensors cannot be sampled"
    return None


def _pieces(sizes: list[int], device_type: str) -> list[Piece]:
    limit = _CPU_PIECE if device_type == "cpu" else max(sum(sizes) // _GPU_PIECES, _SMALLEST_GPU_PIECE)
    pieces: list[Piece] = []
    members: list[int] = []
    start = position = 0

    def close() -> None:
        if members:
            pieces.append(Piece(start, position, tuple(members), 0))
            members.clear()

    for number, size in enumerate(sizes):
        if position + size - start > limit:
            close()
            start = position
        if size > limit:
            for offset in range(0, size, limit):
                stop = position + min(offset + limit, size)
                pieces.append(Piece(position + offset, stop, (number,), offset))
            position += size
            start = position
        else:
            members.append(number)
            position += size
    close()
    return pieces


def _copy_module(module: nn.Module, replaced: Mapping[int, torch.Tensor], convert: Any) -> nn.Module:
    """Deep copy with every parameter and buffer decided here, so that none is copied twice."""
    memo: dict[int, Any] = dict(replaced)
    for submodule in module.modules():
        for parameter in submodule._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(convert(parameter), requires_grad=False)
        for buffer in submodule._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = convert(buffer).clone()
        memo.update(_attributes_not_to_copy(submodule))
    forked: nn.Module
    try:
        forked = copy.deepcopy(module, dict(memo))
    except Exception:  # noqa: BLE001  # whatever an attribute's __deepcopy__ raises
        memo.update(_attributes_that_refuse(module, memo))
        forked = copy.deepcopy(module, dict(memo))
    for submodule in list(forked.modules()):
        _undo_compilation(submodule)
        _drop_watchers(submodule)
    return _uncompiled(forked).eval()


def _attributes_not_to_copy(submodule: nn.Module) -> Iterator[tuple[int, Any]]:
    for value in vars(submodule).values():
        if isinstance(value, torch.Tensor) and not value.is_leaf:
            yield id(value), value.detach().clone()  # weight_norm and pruning keep a computed weight as an attribute
        elif isinstance(value, torch.Generator):
            private = torch.Generator(device=value.device)
            private.set_state(value.get_state())
            yield id(value), private
        elif isinstance(value, (Dataset, DataLoader)):
            yield id(value), value  # data is read, and may be large


def _attributes_that_refuse(module: nn.Module, memo: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    """Locks, file handles, loggers: what cannot be copied is shared."""
    for submodule in module.modules():
        for name, value in vars(submodule).items():
            if name in ("_parameters", "_buffers", "_modules") or name.endswith("_hooks"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:  # noqa: BLE001  # whatever an attribute's __deepcopy__ raises
                yield id(value), value


def _undo_compilation(submodule: nn.Module) -> None:
    """A compiled callable closes over the live module, and would compile again for every fork."""
    submodule._compiled_call_impl = None
    for name in [name for name, value in vars(submodule).items() if _is_compiled(value)]:
        if hasattr(type(submodule), name) and not _is_wrapper(submodule):
            delattr(submodule, name)
    for name, child in list(submodule._modules.items()):  # `named_children` passes over a second name of one child
        if child is not None:
            setattr(submodule, name, _uncompiled(child))


def _uncompiled(module: nn.Module) -> nn.Module:
    return module._orig_mod if _is_wrapper(module) else module  # type: ignore[return-value]


def _is_wrapper(module: nn.Module) -> bool:
    # what torch.compile(module) returns; importing its class would load the whole compiler
    return isinstance(getattr(module, "_orig_mod", None), nn.Module)


def _is_compiled(value: object) -> bool:
    return callable(value) and hasattr(value, "_torchdynamo_orig_callable")


def _drop_watchers(submodule: nn.Module) -> None:
    """`wandb.watch` leaves hooks that would log the chain's weights as the model's."""
    hook_dicts: Iterable[Any] = (value for name, value in vars(submodule).items() if name.endswith("_hooks"))
    for hooks in hook_dicts:
        if isinstance(hooks, dict):
            for key in [
                key for key, hook in hooks.items() if str(getattr(hook, "__module__", "")).startswith("wandb.")
            ]:
                del hooks[key]


def twin_of(module: nn.Module) -> nn.Module:
    """A copy on the same weights and buffers: what a module keeps from inside vmap must not reach the chains."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return _copy_module(module, shared, lambda tensor: tensor)
