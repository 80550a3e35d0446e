"""The generators that a data set owns, and its counters: reading it must not change what training reads."""

from __future__ import annotations

import copy
import inspect
import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from slt_callbacks.basics.reach import parts_of_container, reachable

# Their code has no generators but the global ones, which are set aside anyhow.
_FOREIGN = {*sys.stdlib_module_names, "torch", "numpy", "lightning", "pytorch_lightning", "slt_callbacks"}
_GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState)


class Untouched:
    """Everything random that can be reached from a data set, as it was.

    Reached is what it holds in attributes and containers, what its functions and those it calls by name have in their
    closures, defaults and globals, and so on from there.

    Args:
        source: A data set, a loader, a function that makes one.

    Example:
        >>> data = {"transforms": [random.Random(0).random]}
        >>> untouched, first = Untouched(data), data["transforms"][0]()
        >>> untouched.put_back()
        >>> data["transforms"][0]() == first
        True
    """

    def __init__(self, source: Any) -> None:
        found = list(reachable(source, _parts))
        self._put_back = [undo for undo in map(_undo, found) if undo]
        self._marks = [(value, mark) for value in found if (mark := _mark(value))]

    def put_back(self) -> None:
        """Every generator as it was."""
        for undo in self._put_back:
            undo()

    def changes(self) -> list[str]:
        """What else has moved on, and was not put back, for it may count what is kept in a cache."""
        return [told for value, before in self._marks for told in _moved_on(value, before, _mark(value))]


def _parts(value: Any) -> Iterable[Any]:
    """What an object may draw from."""
    if isinstance(value, (*_GENERATORS, torch.Tensor, ModuleType, CodeType)) or type(value).__name__ == "Trainer":
        return ()
    if isinstance(value, np.ndarray):
        return value.flat if value.dtype == object else ()
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return parts_of_container(value)
    if isinstance(value, deque):
        return value
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, (MethodType, BuiltinFunctionType)):
        return (value.__self__, getattr(value, "__func__", None))
    if isinstance(value, (staticmethod, classmethod, property)):
        return (getattr(value, "__func__", None), getattr(value, "fget", None))
    if isinstance(value, GeneratorType):
        return () if value.gi_frame is None else value.gi_frame.f_locals.values()
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    if isinstance(value, type):
        return () if _is_foreign(value) else vars(value).values()
    slots = [getattr(value, name, None) for kind in type(value).__mro__ for name in _slots(kind)]
    return [*getattr(value, "__dict__", {}).values(), *slots, *type(value).__mro__]


def _parts_of_function(function: FunctionType) -> Iterable[Any]:
    if _is_foreign(function):
        return ()
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    given = (function.__defaults__, function.__kwdefaults__, vars(function))
    return [*cells, *given, *_named(function.__code__, function.__globals__)]


def _named(code: CodeType, known: dict[str, Any]) -> Iterable[Any]:
    """Globals that a function's code names, itself or in a function inside it."""
    for name in code.co_names:
        value = known.get(name)
        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] not in _FOREIGN:
                yield from (vars(value)[other] for other in code.co_names if other in vars(value))
        else:
            yield value
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _named(inner, known)


def _undo(value: Any) -> Callable[[], Any] | None:
    """What puts a generator back."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state(legacy=False))
    if isinstance(value, (np.random.Generator, np.random.BitGenerator)):
        bits = value.bit_generator if isinstance(value, np.random.Generator) else value
        return partial(setattr, bits, "state", copy.deepcopy(bits.state))
    return None


def _mark(value: Any) -> dict[str, Any]:
    """Numbers that say how often an object of the user's was read, by attribute; of an iterator, how far it is."""
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        seen = {} if frame is None else {name: item for name, item in frame.f_locals.items() if _is_number(item)}
        return {"": (inspect.getgeneratorstate(value), seen)}
    if hasattr(type(value), "__next__") and type(value).__module__ in ("builtins", "collections"):
        return {"": operator.length_hint(value, -1)}
    if isinstance(value, type) or _is_foreign(type(value)):
        return {}
    return {name: item for name, item in getattr(value, "__dict__", {}).items() if _is_number(item)}


def _moved_on(value: Any, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    kind = type(value).__name__
    for name in before:
        if before[name] != after.get(name, before[name]):
            yield f"`{kind}.{name}` ({before[name]} -> {after[name]})" if name else f"a {kind} that it holds"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_foreign(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in _FOREIGN


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not bound yet
        return False


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots
