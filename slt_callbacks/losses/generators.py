"""The random generators that a loss may draw from: the global ones, the module's own, and those of a loss function."""

from __future__ import annotations

import functools
import itertools
import pickle
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

_OWN = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# From a loss function to a generator: its closure, an object there, a list in it, and what the list holds.
_DEEPEST, _MOST_LOOKED_AT = 4, 2000


@dataclass(frozen=True)
class Source:
    """One generator, whosever make it is.

    Attributes:
        get: Its state.
        put: Puts a state back.
        seed: Starts it anew from a number of 32 bits.
    """

    get: Callable[[], Any]
    put: Callable[[Any], object]
    seed: Callable[[int], object]


def global_sources() -> list[Source]:
    """Those of torch, of a GPU that is in use, of numpy and of `random`."""
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return [
        *map(source_of, (torch.default_generator, *cuda)),
        Source(np.random.get_state, np.random.set_state, np.random.seed),
        Source(random.getstate, random.setstate, random.seed),
    ]


def source_of(generator: Any) -> Source:
    """A generator of torch, numpy or `random` as a `Source`.

    Example:
        >>> own = random.Random(3)
        >>> source = source_of(own)
        >>> source.seed(5)
        >>> own.random() == random.Random(5).random()
        True
    """
    if isinstance(generator, torch.Generator):
        return Source(generator.get_state, generator.set_state, generator.manual_seed)
    if isinstance(generator, np.random.RandomState):
        return Source(generator.get_state, generator.set_state, generator.seed)
    if isinstance(generator, random.Random):
        return Source(generator.getstate, generator.setstate, generator.seed)
    bits = generator.bit_generator

    def put(state: Any) -> None:
        bits.state = state

    return Source(lambda: bits.state, put, lambda seed: put(type(bits)(seed).state))


def own_generators(module: nn.Module | None, *functions: Any) -> list[Any]:
    """Generators that a module and its parts hold, and those that functions reach.

    Args:
        module: Looked through at all its parts; None where functions alone are asked about.
        functions: What they close over, are bound to, have as defaults or name among their module's variables.

    Returns:
        Each generator once; none of the global ones.

    Example:
        >>> generator = torch.Generator()
        >>> own_generators(nn.Linear(1, 1), lambda module, x: torch.rand(3, generator=generator)) == [generator]
        True
    """
    found: dict[int, Any] = {}
    looked_at: set[int] = set()
    # A module's flags are many: what functions reach comes first, or none would be left to look at it.
    waiting: deque[tuple[Any, int]] = deque([*((function, 0) for function in functions), (module, 0)])
    while waiting and len(looked_at) < _MOST_LOOKED_AT:
        value, depth = waiting.popleft()
        if id(value) in looked_at:
            continue
        looked_at.add(id(value))
        if isinstance(value, _OWN):
            if not isinstance(value, random.SystemRandom):  # which has no state
                found[id(value)] = value
        elif isinstance(value, nn.Module):
            waiting.extend((inner, depth + 1) for part in value.modules() for inner in _attributes(part))
            kinds = {type(part) for part in value.modules()}
            waiting.extendleft((method, depth + 1) for kind in kinds for method in _own_methods(kind))
        elif depth < _DEEPEST:
            # No more than could be looked at: it may be a data set with a million rows.
            some = itertools.islice(_reached_from(value), _MOST_LOOKED_AT)
            further = [(inner, depth + 1) for inner in some]
            if isinstance(value, types.FunctionType):
                waiting.extendleft(further)
            else:
                waiting.extend(further)
    everywhere = {id(generator) for generator in (torch.default_generator, *torch.cuda.default_generators)}
    return [generator for key, generator in found.items() if key not in everywhere]


@contextmanager
def put_back(sources: Iterable[Source]) -> Iterator[None]:
    """Run a block, and put the generators back as they were, whatever happens.

    Example:
        >>> own = random.Random(3)
        >>> with put_back([source_of(own)]):
        ...     _ = own.random()
        >>> own.random() == random.Random(3).random()
        True
    """
    states = [(source, source.get()) for source in sources]
    try:
        yield
    finally:
        for source, state in states:
            source.put(state)


def is_same(before: Any, after: Any) -> bool:
    """Whether two states of one source are the same."""
    if isinstance(before, torch.Tensor):
        return torch.equal(before, after)
    return pickle.dumps(before) == pickle.dumps(after)


def _attributes(part: nn.Module) -> Iterator[Any]:
    """What a module holds beside its weights and parts; most of it is flags, and dicts of hooks that are empty."""
    for name, value in vars(part).items():
        if type(value) in (bool, dict, OrderedDict, set) and not value:
            continue
        if not _is_plain(value) and name not in ("_parameters", "_buffers", "_modules", "_trainer"):
            yield value


def _own_methods(kind: type) -> Iterator[types.FunctionType]:
    """Methods that a user wrote, who may draw from a generator among the variables of their file."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "lightning", "pytorch_lightning", "builtins"):
            yield from (member for member in vars(base).values() if isinstance(member, types.FunctionType))


def _reached_from(value: Any) -> Iterator[Any]:
    inner: Iterable[Any] = ()
    if isinstance(value, functools.partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        inner = (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        named = (value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__)
        inner = (*cells, *named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, (list, tuple, set)):
        inner = value
    elif not isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        inner = getattr(value, "__dict__", {}).values()
    yield from (each for each in inner if not _is_plain(each))


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is yet to be bound
        return False
    return True


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:  # strides and shapes, of which convolutions have many
        return all(type(item) in (int, float, str, bool, type(None)) for item in value)
    return value is None or isinstance(value, (int, float, str, bytes, torch.Tensor, np.ndarray, np.generic))
