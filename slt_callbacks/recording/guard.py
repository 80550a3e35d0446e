"""Plug-ins called so that none can cost the run, or its random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from slt_callbacks.basics.errors import PartlyFailedError
from slt_callbacks.basics.notices import Notices
from slt_callbacks.basics.rng import isolated_rng, seed_from

_T = TypeVar("_T")
_PLUGINS_STREAM = 301  # apart from the streams of the estimator

Call = Callable[..., bool]
"""``(plugin, method, *arguments) -> whether it went well``."""


class Guard:
    """Calls sinks and reactions; one that raises is reported once and costs what it was given.

    Args:
        notices: Where it is reported.
        seed: Of the run: what a plug-in draws from the global generators depends on it alone.

    Attributes:
        step: Training step that the run has come to.

    Example:
        >>> class Full:
        ...     def publish(self, what):
        ...         raise OSError("no space left")
        >>> Guard(Notices(print), seed=0)(Full(), "publish", 1)
        Full.publish raised OSError: no space left. Training goes on.
        False
    """

    def __init__(self, notices: Notices, seed: int) -> None:
        self.notices = notices
        self.step = -1
        self._seed = seed
        self._alike: dict[str, list[Any]] = {}  # plug-ins of one name, in the order in which they were called

    def __call__(self, plugin: Any, method: str, *arguments: Any) -> bool:
        """Whether it went well; so it did where some of those whom a plug-in serves have raised, and it goes on."""
        name = f"{self._name(plugin)}.{method}"
        try:
            with isolated_rng(self._seed_here):
                getattr(plugin, method)(*arguments)
        except PartlyFailedError as error:
            for served, failure in error.failures.items():
                message = f"{name} raised {type(failure).__name__} for {served}: {failure}. Training goes on."
                self.notices.once(message, f"{name} {served}")
        except Exception as error:  # noqa: BLE001  # a full disk or a finished W&B run must not end training
            self.notices.once(f"{name} raised {type(error).__name__}: {error}. Training goes on.", name)
            return False
        return True

    def ask(self, question: Callable[[], _T], otherwise: _T, what: str | None = None, seed: int | None = None) -> _T:
        """What a plug-in answers, or `otherwise` where it raises.

        Args:
            question: The call.
            otherwise: See above.
            what: What has raised, for the message; None for the name of the method.
            seed: Of the random numbers that it may draw; None for that of the other calls.
        """
        try:
            with isolated_rng(self._seed_here if seed is None else seed):
                return question()
        except Exception as error:  # noqa: BLE001  # it may be the user's own
            named = what or getattr(question, "__qualname__", repr(question))
            self.notices.once(f"{named} raised {type(error).__name__}: {error}. Training goes on.", named)
            return otherwise

    @contextmanager
    def world(self, step: int) -> Iterator[None]:
        """Random numbers of their own for all that belongs to a training step."""
        self.step = step
        with isolated_rng(self._seed_here):
            yield

    def _name(self, plugin: Any) -> str:
        """That of its class, or function; two of one name are told apart by their order."""
        name = str(getattr(plugin, "__name__", type(plugin).__name__))
        alike = self._alike.setdefault(name, [])
        if not any(one is plugin for one in alike):
            alike.append(plugin)
        place = next(place for place, one in enumerate(alike, 1) if one is plugin)
        return name if place == 1 else f"{name} (number {place})"

    @property
    def _seed_here(self) -> int:
        return seed_from(self._seed, self.step, _PLUGINS_STREAM)


def unguarded(plugin: Any, method: str, *arguments: Any) -> bool:
    """The same where there is no training to be saved: what is raised ends the call.

    Example:
        >>> unguarded([1], "append", 2)
        True
    """
    getattr(plugin, method)(*arguments)
    return True
