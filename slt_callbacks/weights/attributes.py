"""What a module holds beside weights and buffers: lists, metrics, generators, data, locks."""

from __future__ import annotations

import copy
import copyreg
import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from types import MethodType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from slt_callbacks.basics.lightning_kinds import is_data_module
from slt_callbacks.basics.reach import has_parts, parts_of_container, reachable
from slt_callbacks.weights.shards import own_state, units

_CONTAINERS = frozenset((list, tuple, dict, set, OrderedDict))  # most of what there is


class Attributes:
    """Decides what a deep copy of a module does with everything it can reach.

    Args:
        module: The module.
        memo: What is decided already, by `id`.

    Attributes:
        memo: By `id`, what stands for an object in the copy. Tensors with a graph are detached, generators are private,
            data is shared, for it is read and may be large, and so is what cannot be copied (locks, file handles). All
            else, the containers around these included, is left to `copy.deepcopy`.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.outs = [net(torch.ones(1, 2))]
        >>> copied = copy.deepcopy(net, Attributes(net, {}).memo)
        >>> copied.outs is net.outs, copied.outs[0].requires_grad, bool(copied.outs[0] == net.outs[0])
        (False, False, True)
    """

    def __init__(self, module: nn.Module, memo: Mapping[int, Any]) -> None:
        self.memo = dict(memo)
        self._module = module
        self._units = {id(unit) for unit in units(module)}
        # The memo knows objects by their `id`: those that `__getstate__` has made for the occasion must not go.
        self._found = list(reachable(module, self._parts))

    def share_what_refuses(self) -> None:
        """After a deep copy that raised: share the objects whose copying raises, whatever it does."""
        own = {id(submodule) for submodule in self._module.modules()}
        above = {id(self._module): self._module}  # an object that knows its module is not to answer for the rest of it
        for value in reversed(self._found):  # what an object holds comes after it
            if id(value) in self.memo or id(value) in own or parts_of_container(value) or not has_parts(value):
                continue
            try:
                copy.deepcopy(value, self.memo | above)
            except Exception:  # noqa: BLE001  # whatever an object's __deepcopy__ raises
                self.memo[id(value)] = value

    def _parts(self, value: Any) -> Iterable[Any]:
        """What a deep copy would go on to, with a decision on the way."""
        if type(value) in _CONTAINERS:
            return parts_of_container(value)
        if id(value) in self.memo or not has_parts(value):
            return ()
        decided = _decided(value)
        if decided is not None:
            self.memo[id(value)] = decided
            return ()
        if isinstance(value, MethodType):
            return [value.__self__]
        if isinstance(value, np.ndarray):
            return value.flat if value.dtype == object else ()
        if id(value) in self._units:
            return own_state(value).values()
        if isinstance(value, torch.Tensor) or hasattr(type(value), "__deepcopy__"):
            return ()
        try:
            return list(_reduced(value))
        except Exception:  # noqa: BLE001  # whatever an object's __reduce__ raises
            self.memo[id(value)] = _NotRead(value) if _is_iterator(value) else value
            return ()


def _decided(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        return value.detach().clone()  # a loss that was kept, or the weight that weight_norm and pruning compute
    if isinstance(value, torch.Generator):
        private = torch.Generator(device=value.device)
        private.set_state(value.get_state())
        return private
    shared = isinstance(value, (Dataset, DataLoader)) or is_data_module(value) or type(value).__name__ == "DeviceMesh"
    return value if shared else None


def _reduced(value: Any) -> Iterator[Any]:
    """The objects that `copy.deepcopy` copies for this one."""
    reducer = copyreg.dispatch_table.get(type(value))
    reduced = reducer(value) if reducer else value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return
    _, arguments, state, items, pairs = (*reduced, *[None] * 5)[:5]
    yield from (arguments, state)
    yield from items or ()
    for pair in pairs or ():
        yield from pair


def _is_iterator(value: Any) -> bool:
    return hasattr(value, "__next__") and not isinstance(value, io.IOBase)


class _NotRead:
    """Stands for an iterator that cannot be copied: what a chain took from it, training would miss."""

    def __init__(self, iterator: Any) -> None:
        self._name = type(iterator).__name__

    def __iter__(self) -> _NotRead:
        return self

    def __next__(self) -> NoReturn:
        raise RuntimeError(
            f"Expected the loss to need its batch alone, but it reads from an iterator that the module holds (a "
            f"{self._name}), and what it takes from there training would miss: pass a `loss_fn` that does not"
        )
