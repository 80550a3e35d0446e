"""A stand-in for what is live: a fork may read the trainer's values, and changes nothing through it."""

from __future__ import annotations

import collections
import datetime
import enum
import pathlib
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), type, enum.Enum, pathlib.PurePath, datetime.timedelta),
    *(np.generic, torch.dtype, torch.device, torch.Size),
)
_CONTAINERS = (list, tuple, set, frozenset, dict, collections.OrderedDict, collections.deque)
_LONGEST = 1000  # a longer container is looked into one by one
# What tells others: from a fork it reaches nobody.
_SILENT = ("logger", "loggers", "progress_bar_callback", "profiler", "_logger_connector")
_TELLING = ("log", "log_dict", "log_metrics", "log_hyperparams", "print")
_LIGHTNING = ("lightning", "pytorch_lightning")
_READING = ("get_", "is_", "has_")  # how methods begin that only read, of optimizers, schedulers and the trainer


def stand_in_for(trainer: Any, live: nn.Module, own: nn.Module, parameters: Mapping[int, torch.Tensor] | None) -> Any:
    """What `own`, a fork of `live`, may see of the trainer.

    Values are those of the trainer at the moment of asking: steps, epochs, learning rates, metrics, the data module's
    attributes. Tensors and containers come as copies, the live module as the fork, and its weights as the fork's. What
    would be told to a logger, a progress bar or a profiler is told to nobody, what is set on a trainer is forgotten,
    and what would change something else, or take an optimizer's step, is refused.

    Args:
        trainer: The live one; not kept alive.
        live: The module that it trains.
        own: The fork's module; not kept alive.
        parameters: The fork's parameters, by the `id` of the live ones; None where others stand in for them.

    Example:
        >>> class Trainer:
        ...     global_step, metrics = 7, {"loss": 0.5}
        >>> trainer, net = Trainer(), nn.Linear(1, 1)
        >>> seen = stand_in_for(trainer, net, net, {})
        >>> seen.metrics["loss"] = 0.0
        >>> seen.global_step, trainer.metrics
        (7, {'loss': 0.5})
    """
    proxy = trainer if isinstance(trainer, weakref.ProxyTypes) else weakref.proxy(trainer)
    return StandIn(proxy, _Root(live, own, parameters), "trainer")


class _Root:
    """What all stand-ins of one fork share."""

    def __init__(self, live: nn.Module, own: nn.Module, parameters: Mapping[int, torch.Tensor] | None) -> None:
        self.live = weakref.ref(live)
        self.own = weakref.ref(own)
        self.parameters = parameters

    def show(self, value: Any, path: str, silent: bool = False) -> Any:
        """A value as the fork may have it."""
        if isinstance(value, _PLAIN) or type(value) is StandIn:
            return value
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return value.copy()
        if value is self.live():
            return self.own()
        if type(value) in _CONTAINERS and len(value) <= _LONGEST:
            return self._container(value, path, silent)
        return StandIn(value, self, path, silent)

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if self.parameters is None and isinstance(value, nn.Parameter):
            raise RuntimeError("weights that a loss reaches through its trainer cannot be batched")
        own = (self.parameters or {}).get(id(value))
        return value.detach().clone() if own is None else own

    def _container(self, value: Any, path: str, silent: bool) -> Any:
        if isinstance(value, dict):
            return type(value)((key, self.show(inner, f"{path}[{key!r}]", silent)) for key, inner in value.items())
        return type(value)(self.show(inner, f"{path}[{place}]", silent) for place, inner in enumerate(value))


class StandIn:
    """One live object, seen from a fork; see `stand_in_for`."""

    __slots__ = ("__weakref__", "_slt_live", "_slt_path", "_slt_root", "_slt_silent")

    def __init__(self, live: Any, root: _Root, path: str, silent: bool = False) -> None:
        for name, value in (("live", live), ("root", root), ("path", path), ("silent", silent)):
            object.__setattr__(self, f"_slt_{name}", value)

    @property
    def __class__(self) -> Any:  # `isinstance` sees the live object's
        return self._slt_live.__class__

    @__class__.setter
    def __class__(self, value: Any) -> None:
        _refuse(self, "")

    def __getattr__(self, name: str) -> Any:
        path = f"{self._slt_path}.{name}"
        silent = self._slt_silent or name in _SILENT
        if self._slt_silent and name == "experiment":
            return Nobody()  # to look at it would start the run
        value = getattr(self._slt_live, name)
        if isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            return _method(self, name, value)
        if isinstance(value, types.FunctionType):
            return value
        return self._slt_root.show(value, path, silent)

    def __setattr__(self, name: str, value: Any) -> None:
        if not (self._slt_silent or _is_lightning(self._slt_live)):
            _refuse(self, f".{name} = ...")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__setattr__(f"[{key!r}]", value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Of the user's own objects, whose code then sees the stand-in; of modules nothing, for they may change."""
        if self._slt_silent:
            return Nobody()
        kind = self._slt_live.__class__
        if not issubclass(kind, nn.Module) and isinstance(getattr(kind, "__call__", None), types.FunctionType):  # noqa: B004
            return kind.__call__(self, *args, **kwargs)
        return _refuse(self, "(...)")

    def __getitem__(self, key: Any) -> Any:
        return self._slt_root.show(self._slt_live[key], f"{self._slt_path}[{key!r}]", self._slt_silent)

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self._slt_live, (Sequence, Mapping, Set)):
            _refuse(self, " in a loop")
        return (self._slt_root.show(each, self._slt_path, self._slt_silent) for each in self._slt_live)

    def __len__(self) -> int:
        return len(self._slt_live)

    def __contains__(self, item: Any) -> bool:
        return item in self._slt_live

    def __bool__(self) -> bool:
        return bool(self._slt_live)

    def __eq__(self, other: object) -> bool:
        return bool(self._slt_live == (other._slt_live if type(other) is StandIn else other))

    def __hash__(self) -> int:
        return hash(id(self._slt_live))

    def __repr__(self) -> str:
        return f"<{self._slt_path}, to be read>"

    def __deepcopy__(self, memo: Any) -> StandIn:
        return self

    def __copy__(self) -> StandIn:
        return self


class Nobody:
    """Takes whatever it is told.

    Example:
        >>> with Nobody().start("run") as run:
        ...     run.add_scalar("loss", 0.5)
        nobody
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols, such as those of copying
            raise AttributeError(name)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Nobody:
        """Nothing happens."""
        return self

    def __getitem__(self, key: Any) -> Nobody:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __repr__(self) -> str:
        return "nobody"


def _method(owner: StandIn, name: str, method: Any) -> Callable[..., Any]:
    """A method of a live object, as the fork may call it."""
    if owner._slt_silent or name in _TELLING:
        return lambda *_args, **_kwargs: Nobody()
    live = owner._slt_live
    if isinstance(method, types.MethodType) and _package(method.__func__) not in (*_LIGHTNING, "torch"):
        # The user's own: what it sets, it sets on the stand-in, which refuses.
        return lambda *args, **kwargs: method.__func__(owner, *args, **kwargs)
    if name.startswith(_READING) or (isinstance(live, Mapping) and name in ("get", "keys", "values", "items")):
        return lambda *args, **kwargs: owner._slt_root.show(method(*args, **kwargs), owner._slt_path)
    if name in ("all_gather", "reduce", "broadcast", "barrier") and getattr(live, "world_size", 1) == 1:
        return lambda *args, **_: args[0] if args else None  # among one process, nothing changes

    return lambda *_args, **_kwargs: _refuse(owner, f".{name}(...)")


def _is_lightning(live: Any) -> bool:
    return _package(live.__class__) in _LIGHTNING  # of a weak proxy, `type` would give the proxy's


def _package(thing: Any) -> str:
    return str(getattr(thing, "__module__", None)).partition(".")[0]


def _refuse(stand_in: StandIn, what: str) -> NoReturn:
    raise RuntimeError(
        f"Expected the loss to do no more than read values of its trainer, but it uses `{stand_in._slt_path}{what}`: a "
        "measurement neither takes an optimizer's step nor changes what training uses. Compute the loss without it, or "
        "pass a `loss_fn` that does"
    )
