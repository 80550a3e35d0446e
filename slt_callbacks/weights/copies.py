"""Copies of a module: what is copied, what is shared, and what must not come along."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slt_callbacks.weights.attributes import Attributes
from slt_callbacks.weights.shards import check_shards, empty_unit, forget_sharding, own_state, reshard, units, whole


def copy_module(module: nn.Module, replaced: Mapping[int, torch.Tensor], convert: Any) -> nn.Module:
    """Deep copy with every parameter and buffer decided here, so that none is copied twice."""
    memo: dict[int, Any] = dict(replaced)
    for submodule in module.modules():
        for parameter in submodule._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(convert(parameter), requires_grad=False)
        for buffer in submodule._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = convert(buffer).clone()
    attributes = Attributes(module, memo)
    forked: nn.Module
    try:
        forked = _deep_copy(module, attributes.memo)
    except Exception:  # noqa: BLE001  # whatever an attribute's __deepcopy__ raises
        attributes.share_what_refuses()
        forked = _deep_copy(module, attributes.memo)
    for submodule in list(forked.modules()):
        _undo_compilation(submodule)
        _drop_watchers(submodule)
        forget_sharding(submodule)
    return _uncompiled(forked).eval()


def _deep_copy(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """A deep copy; of parts that are sharded, which refuse to be copied, what they were before that."""
    memo = dict(memo)
    sharded = [(unit, memo.setdefault(id(unit), empty_unit(unit))) for unit in units(module)]
    copied: nn.Module = copy.deepcopy(module, memo)
    for unit, empty in sharded:
        empty.__setstate__(copy.deepcopy(own_state(unit), memo))
    return copied


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
    for hooks in _hook_dicts(submodule):
        for key in [key for key, hook in hooks.items() if _is_watcher(hook)]:
            del hooks[key]


@contextmanager
def without_watchers(module: nn.Module) -> Iterator[None]:
    """Take the hooks of `wandb.watch` off a module, and put them back in their places."""
    before = [(hooks, dict(hooks)) for part in module.modules() for hooks in _hook_dicts(part)]
    watched = [(hooks, all_of_them) for hooks, all_of_them in before if any(map(_is_watcher, all_of_them.values()))]
    for part in module.modules():
        _drop_watchers(part)
    try:
        yield
    finally:
        for hooks, all_of_them in watched:
            hooks.clear()
            hooks.update(all_of_them)


def _hook_dicts(part: nn.Module) -> Iterator[dict[Any, Any]]:
    return (value for name, value in vars(part).items() if name.endswith("_hooks") and isinstance(value, dict))


def _is_watcher(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("wandb.")


def twin_of(module: nn.Module) -> nn.Module:
    """A copy on the same weights and buffers: what a module keeps from inside vmap must not reach the chains."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy_module(module, shared, lambda tensor: tensor)


def private_copy(module: nn.Module) -> nn.Module:
    """A copy on weights and buffers of its own, in eval mode: trainable and frozen parameters stay so, ties too.

    Of a module that is sharded (FSDP2) it is the whole one. All processes have to ask for it together.

    Raises:
        TypeError: If weights are split by more than `fully_shard`.
    """
    reshard(module)
    check_shards(module)
    own = {
        id(parameter): nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
        for parameter in module.parameters()
    }
    return copy_module(module, own, lambda tensor: tensor.detach())


def whole_copy(module: nn.Module) -> nn.Module:
    """A `private_copy` that stands for the live module: it knows the same trainer."""
    copied = private_copy(module)
    trainers = (getattr(part, "_trainer", None) for part in module.modules())
    trainer = next((trainer for trainer in trainers if trainer is not None), None)
    for part in copied.modules():
        if "_trainer" in vars(part):
            part._trainer = trainer  # type: ignore[assignment]
    return copied
