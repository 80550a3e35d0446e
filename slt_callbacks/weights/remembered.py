"""The lists, counters and caches of a private copy, as they were when it was made."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

from torch import nn

from slt_callbacks.basics.reach import reachable

_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict)
_EVERY_MODULES_OWN = frozenset(vars(nn.Module()))  # parameters, buffers, children, hooks


class Remembered:
    """What the attributes of a module hold, but for parameters and buffers.

    Every chain is to begin alike: what one has appended to a list must not reach the loss of the next, and would pile
    up. Tensors that were written into are not put back.

    Args:
        module: A private copy.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.outs, net.calls = [1], 0
        >>> remembered = Remembered(net)
        >>> net.outs.append(2)
        >>> net.calls, net.last = 1, 2
        >>> remembered.put_back()
        >>> net.outs, net.calls, hasattr(net, "last")
        ([1], 0, False)
    """

    def __init__(self, module: nn.Module) -> None:
        found = list(reachable(module, _parts))
        self._modules = [(vars(value), _own(value)) for value in found if isinstance(value, nn.Module)]
        self._containers = [(value, value.copy()) for value in found if type(value) in _CONTAINERS]

    def put_back(self) -> None:
        """Everything as it was."""
        for attributes, known in self._modules:
            for name in attributes.keys() - known.keys() - _EVERY_MODULES_OWN:
                del attributes[name]
            attributes.update(known)
        for container, items in self._containers:
            if isinstance(container, list):
                container[:] = items
            else:
                container.clear()
                (container.extend if isinstance(container, deque) else container.update)(items)


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _EVERY_MODULES_OWN}


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, nn.Module):
        return [*_own(value).values(), *value.children()]
    if isinstance(value, (dict, tuple)):
        return value.values() if isinstance(value, dict) else value
    return value if type(value) in _CONTAINERS else ()
