"""What can be reached from an object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

_PLAIN = frozenset((int, float, complex, bool, str, bytes, bytearray, NoneType, type(...), type(NotImplemented)))
_WITHOUT_PARTS = (BuiltinFunctionType, FunctionType, CodeType, ModuleType, type, property, range, slice)


def reachable(start: Any, parts: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """Every object that `parts` leads to, `start` first and each once; numbers, strings and tuples of them are not.

    Args:
        start: Where to begin.
        parts: What an object holds directly.

    Example:
        >>> ring = [{"x": (1.0, "text")}]
        >>> ring.append(ring)
        >>> [type(found).__name__ for found in reachable(ring, parts_of_container)]
        ['list', 'dict']
    """
    seen: dict[int, Any] = {}  # with the objects, for that of one which is gone may be the `id` of the next
    waiting = [start]
    while waiting:
        value = waiting.pop()
        if type(value) in _PLAIN or id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        waiting.extend(part for part in parts(value) if type(part) not in _PLAIN and not _is_row(part))


def _is_row(part: Any) -> bool:
    """Whether it is one of the tuples of numbers and strings of which a data set may hold a million."""
    return type(part) is tuple and _PLAIN.issuperset(map(type, part))


def parts_of_container(value: Any) -> Iterable[Any]:
    """What a list, tuple, set or dict of any kind holds; nothing of other objects.

    Example:
        >>> list(parts_of_container({"x": 1})), list(parts_of_container(3))
        (['x', 1], [])
    """
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def has_parts(value: Any) -> bool:
    """Whether an object may hold others that are its own, as functions, classes and modules do not.

    Example:
        >>> has_parts(object()), has_parts(len), has_parts(int)
        (True, False, False)
    """
    return not isinstance(value, _WITHOUT_PARTS)
