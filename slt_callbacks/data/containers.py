"""Containers of any kind: taken apart into their items, and put together again around others."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from slt_callbacks.basics.reach import has_parts, parts_of_container, reachable

Arrays = (torch.Tensor, np.ndarray)
"""Data themselves, for `isinstance`."""

_LOOKED_AT = 10_000  # objects in which data are looked for


class Column(list):  # type: ignore[type-arg]
    """One entry a sample, where the samples do not stack: images of several sizes, targets in a dict each.

    Example:
        >>> taken_apart(Column([torch.zeros(2), torch.zeros(3)])) is None
        True
    """


class TupleColumn(tuple):  # type: ignore[type-arg]
    """The same as a tuple."""

    __slots__ = ()


Columns = (Column, TupleColumn)


def taken_apart(value: Any) -> list[tuple[str, Any]] | None:
    """The items of a container, each with how it is written behind the container's name; None for a leaf.

    Containers are mappings, named tuples, dataclasses, and lists and tuples that hold tensors, arrays or containers.
    Other lists, such as one of strings, of numbers or of graphs, are leaves, and so are columns and packed sequences.

    Example:
        >>> taken_apart({"x": 1}), taken_apart((torch.ones(1), 2))
        ([('["x"]', 1)], [('[0]', tensor([1.])), ('[1]', 2)])
        >>> taken_apart([1, 2]) is taken_apart(torch.ones(2)) is None
        True
    """
    if isinstance(value, (*Arrays, *Columns, PackedSequence)):
        return None
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", item) for name, item in zip(value._fields, value, strict=True)]
    if isinstance(value, (list, tuple)):
        return [(f"[{place}]", item) for place, item in enumerate(value)] if any(map(_is_part, value)) else None
    if isinstance(value, Mapping):
        return [(f'["{key}"]' if isinstance(key, str) else f"[{key!r}]", item) for key, item in value.items()]
    if _is_record(value):
        return [(f".{name}", getattr(value, name)) for name in _attributes(value)]
    return None


def put_together(like: Any, items: Sequence[Any]) -> Any:
    """A container of the kind of `like` around `items`, in the order of `taken_apart`.

    Nobody's constructor is called where that can be helped: it may check what it is given, or change it once more.

    Example:
        >>> put_together({"x": 1, "y": 2}, [3, 4]), put_together((torch.ones(1), 2), [3, 4])
        ({'x': 3, 'y': 4}, (3, 4))
    """
    if isinstance(like, tuple):
        return tuple.__new__(type(like), items) if type(like) is not torch.Size else tuple(items)
    if isinstance(like, list):
        return _list(like, items)
    if isinstance(like, Mapping):
        return _mapping(like, dict(zip(like.keys(), items, strict=True)))
    new = copy.copy(like)
    for name, item in zip(_attributes(like), items, strict=True):
        object.__setattr__(new, name, item)
    for name in [name for name in getattr(new, "__dict__", ()) if _is_cached(new, name)]:
        del new.__dict__[name]  # it was computed from the old items
    return new


def holds_data(value: Any) -> bool:
    """Whether an object, such as a graph, holds tensors or arrays somewhere inside.

    Example:
        >>> class Graph:
        ...     def __init__(self, **store):
        ...         self.store = store
        >>> holds_data(Graph(edges=torch.zeros(2, 3))), holds_data(Graph(name="C6H6"))
        (True, False)
    """
    found = islice(reachable(value, _parts), _LOOKED_AT)
    return any(isinstance(part, Arrays) for part in found)


def _is_part(item: Any) -> bool:
    """Whether a list with this item is a container."""
    return isinstance(item, (*Arrays, PackedSequence, list, tuple, Mapping)) or _is_record(item)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _attributes(value: Any) -> list[str]:
    """Fields of a dataclass, and what its `__post_init__` may have added."""
    names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
    added = [name for name in getattr(value, "__dict__", ()) if name not in names and not _is_cached(value, name)]
    return names + added


def _is_cached(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name, None), cached_property)


def _list(like: list[Any], items: Sequence[Any]) -> list[Any]:
    if type(like) is list:
        return list(items)
    new = copy.copy(like)
    list.__setitem__(new, slice(None), items)
    return new


def _mapping(like: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(like) is dict:
        return items
    if isinstance(like, (dict, UserDict)):  # these hold their items themselves, so that a copy has its own
        own = copy.copy(like)
        for key, item in items.items():
            own[key] = item
        return own
    try:
        new: Any = type(like)(items)  # type: ignore[call-arg]  # most take a dict
        if hasattr(new, "auto_batch_size_"):  # a TensorDict is told how many dimensions go over samples
            new.auto_batch_size_(batch_dims=like.batch_dims)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  # whatever a constructor raises that wants other arguments
        return items
    return new  # type: ignore[no-any-return]


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Arrays) or not has_parts(value):
        return ()
    slots = [getattr(value, name, None) for kind in type(value).__mro__ for name in _slots(kind)]
    return [*parts_of_container(value), *getattr(value, "__dict__", {}).values(), *slots]


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots
