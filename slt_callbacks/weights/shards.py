"""Modules whose weights are shards (FSDP2, ``torch.distributed.fsdp.fully_shard``): known, and made whole."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed
from torch import nn

# What `fully_shard` leaves in a module, beside hooks.
_FLAGS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
_STATE = "__composable_api_state_key"
_PACKAGE = "torch.distributed.fsdp"
_REPLAY = "measure checkpoints with `replay`, saved whole by ModelParallelStrategy(save_distributed_checkpoint=False)"


def units(module: nn.Module) -> list[nn.Module]:
    """The parts that `fully_shard` was called on, each of which gathers and frees its weights as one."""
    kind = _unit_kind()
    return [] if kind is None else [part for part in module.modules() if isinstance(part, kind)]


def is_sharded(module: nn.Module) -> bool:
    """Whether this process has but a part of some weights.

    Example:
        >>> is_sharded(nn.Linear(2, 1))
        False
    """
    return bool(units(module)) or any(is_shard(parameter) for parameter in module.parameters())


def is_shard(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor: one of which every process has a part, or a copy."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)  # not imported: there is none
    return kind is not None and isinstance(tensor, kind)


def reshard(module: nn.Module) -> None:
    """Let the parameters of a module be its shards, as they are between a backward and the next forward pass.

    After a forward pass without a backward, as in validation, the outermost part stays whole, and what is written into
    its shards would go unseen.
    """
    for unit in units(module):
        unit.reshard()  # type: ignore[operator]


def check_shards(module: nn.Module) -> None:
    """Refuse weights that are split in a way that `fully_shard` alone does not make.

    Raises:
        TypeError: If so.
    """
    inside = {id(parameter) for unit in units(module) for parameter in unit.parameters()}
    for name, parameter in module.named_parameters():
        if not is_shard(parameter):
            continue
        places = [str(place) for place in parameter.placements if not place.is_replicate()]  # type: ignore[attr-defined]
        if id(parameter) not in inside or len(places) > 1:
            raise TypeError(
                "Expected weights that are sharded by `fully_shard` alone, but got tensor parallelism: "
                f"`{name}` is {', '.join(places) or 'replicated'} over {parameter.device_mesh}. Shard with "  # type: ignore[attr-defined]
                f"`fully_shard` only, or {_REPLAY}."
            )
        if parameter.device.type != parameter.device_mesh.device_type:  # type: ignore[attr-defined]
            raise TypeError(
                f"Expected sharded weights on the devices that compute with them, but `{name}` waits on "
                f"{parameter.device.type}: leave CPUOffloadPolicy out, or {_REPLAY}."
            )


def check_in_place(module: nn.Module) -> None:
    """Refuse a module whose shards chains cannot move.

    Raises:
        TypeError: If so.
    """
    check_shards(module)
    groups = _groups(module)
    if not groups or not hasattr(units(module)[0], "reset_iter_state"):
        raise TypeError(
            'Expected a torch whose FSDP2 can recover from an exception (2.13 can) with sharded="in_place", but got '
            f'{torch.__version__}: update torch, or pass sharded="gathered".'
        )
    for name, parameter in module.named_parameters():
        problem = _problem(parameter) if parameter.requires_grad else None
        if problem is not None:
            raise TypeError(
                f"Expected trainable parameters that chains can move on their shards, but `{name}` {problem}: pass "
                'sharded="gathered" if a whole copy of the weights fits a device.'
            )
    if not all(group.reduce_grads and group.gradient_divide_factor is None for group in groups):
        raise TypeError(
            "Expected FSDP2 to average gradients over the processes at every backward pass, which chains on shards "
            "rely on, but `set_requires_gradient_sync(False)` or `set_gradient_divide_factor` is in force: undo it "
            "before the measurement."
        )


def _problem(parameter: Any) -> str | None:
    if not is_shard(parameter):
        return "is not sharded"
    if parameter.device_mesh.ndim > 1:
        return f"is sharded and replicated, over {parameter.device_mesh}"
    if parameter.device_mesh.size() != torch.distributed.get_world_size():
        return f"is sharded over {parameter.device_mesh.size()} of {torch.distributed.get_world_size()} processes"
    if parameter.dtype not in (torch.float32, torch.float64):
        return f"is kept in {parameter.dtype}, which swallows the noise of a step"
    if getattr(parameter, "_post_accumulate_grad_hooks", None):
        return "has a hook that runs when its gradient is there, such as an optimizer's step"
    return None


def has_half_passes(module: nn.Module) -> bool:
    """Whether FSDP2 casts weights to half precision for the forward pass."""
    half = (torch.float16, torch.bfloat16)
    return any(group.mp_policy.param_dtype in half for group in _groups(module))


def local(tensor: Any) -> torch.Tensor:
    """This process's part of a sharded tensor, on the same memory."""
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local()
    return part


def reset_passes(module: nn.Module) -> None:
    """Let FSDP2 be as between two passes: an earlier one may have ended without a backward pass, or in an exception."""
    for unit in units(module):
        is_root = unit._get_fsdp_state()._is_root  # type: ignore[operator]  # None before the first pass
        if is_root:
            unit.reset_iter_state()  # type: ignore[operator]
        elif is_root is None:
            unit.reshard()  # type: ignore[operator]


@contextmanager
def gated(module: nn.Module, gate: Callable[[str], None]) -> Iterator[None]:
    """Let FSDP2 ask at a gate before whatever its processes wait for each other in."""
    before = [(group, group._all_gather_comm, group._reduce_scatter_comm) for group in _groups(module)]
    for group, gather, scatter in before:
        group._all_gather_comm = _Gated(gather, gate, "weights")
        group._reduce_scatter_comm = _Gated(scatter, gate, "gradients")
    try:
        yield
    finally:
        for group, gather, scatter in before:
            group._all_gather_comm, group._reduce_scatter_comm = gather, scatter


class _Gated:
    """One of FSDP2's two exchanges, behind a gate."""

    def __init__(self, comm: Any, gate: Callable[[str], None], what: str) -> None:
        self._comm, self._gate, self._what = comm, gate, what

    def allocate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        memory: torch.Tensor = self._comm.allocate(*args, **kwargs)
        return memory

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._gate(f"{self._what} {input_tensor.numel()}")
        return self._comm(output_tensor, input_tensor, *args, **kwargs)


def _groups(module: nn.Module) -> list[Any]:
    """The parameter groups of FSDP2, which has no public way to what they are set to."""
    states = (unit._get_fsdp_state() for unit in units(module))  # type: ignore[operator]
    return [group for state in dict.fromkeys(states) for group in getattr(state, "_fsdp_param_groups", ())]


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of all of a tensor; of a sharded one, all of whose processes have to ask together.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    if is_shard(tensor):
        gathered: torch.Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
        return gathered.clone() if gathered.data_ptr() == tensor.to_local().data_ptr() else gathered  # type: ignore[attr-defined]
    return tensor.detach().clone()


def empty_unit(unit: nn.Module) -> nn.Module:
    """An object of the class that a unit had before it was sharded, with nothing in it yet; see `own_state`."""
    kinds = type(unit).__mro__
    kind: Any = kinds[kinds.index(cast("type", _unit_kind())) + 1]
    empty: nn.Module = kind.__new__(kind)
    return empty


def own_state(unit: nn.Module) -> dict[str, Any]:
    """What a unit holds, as `copy.deepcopy` would take it, without what `fully_shard` has added."""
    state: dict[str, Any] = dict(unit.__reduce_ex__(4)[2])  # type: ignore[arg-type]
    gone = {key for hooks in _hooks(state) for key, hook in hooks.items() if _is_of_sharding(hook)}
    found = {}
    for name, value in state.items():
        if name.startswith(_STATE) or name in _FLAGS or _is_wrapped(value):
            continue
        if "_hooks" in name and isinstance(value, dict):
            value = type(value)((key, hook) for key, hook in value.items() if key not in gone)
        found[name] = value
    return found


def forget_sharding(part: nn.Module) -> None:
    """Drop from a private copy what `fully_shard` has left in the parts inside of a unit."""
    for name in _FLAGS:
        vars(part).pop(name, None)
    for hooks in _hooks(vars(part)):
        for key in [key for key, hook in hooks.items() if _is_of_sharding(hook)]:
            del hooks[key]


def _hooks(state: dict[str, Any]) -> Iterator[dict[Any, Any]]:
    return (value for name, value in state.items() if name.endswith("_hooks") and isinstance(value, dict))


def _is_of_sharding(hook: Any) -> bool:
    owner = type(getattr(hook, "__self__", None)).__module__
    return str(getattr(hook, "__module__", "")).startswith(_PACKAGE) or owner.startswith(_PACKAGE)


def _is_wrapped(value: Any) -> bool:
    """Whether it is a method as `register_fsdp_forward_method` leaves it, which has the name of the user's own."""
    code = getattr(getattr(value, "__func__", None), "__code__", None)
    return getattr(code, "co_qualname", "").partition(".")[0] == "register_fsdp_forward_method"


def _unit_kind() -> type | None:
    return getattr(sys.modules.get(_PACKAGE), "FSDPModule", None)
