"""Several loggers or runs behind one sink: one that raises costs the others nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from slt_callbacks.basics.errors import PartlyFailedError

_T = TypeVar("_T")


def to_each(served: Iterable[_T], give: Callable[[_T], object], name_of: Callable[[_T], str]) -> None:
    """Serve all of them, and only then say who has raised.

    Args:
        served: Loggers, or runs.
        give: What is to be done for each.
        name_of: What a user knows it by.

    Raises:
        PartlyFailedError: If any of them has raised.

    Example:
        >>> to_each([1, 0, 4], lambda number: print(12 // number), name_of=str)
        Traceback (most recent call last):
        slt_callbacks.basics.errors.PartlyFailedError: 0: ZeroDivisionError: integer division or modulo by zero
    """
    failures: dict[str, Exception] = {}
    num_served = 0
    for number, one in enumerate(served, 1):
        try:
            give(one)
            num_served += 1
        except Exception as error:  # noqa: BLE001  # a server that does not answer, a full disk, a run that has ended
            name = name_of(one)
            failures[name if name not in failures else f"{name} ({number})"] = error
    if failures:
        raise PartlyFailedError(failures, num_served) from next(iter(failures.values()))


def logger_name(logger: Any) -> str:
    """Class, name and version of a logger, as far as it has them.

    Example:
        >>> from types import SimpleNamespace
        >>> logger_name(SimpleNamespace(name="digits", version=3)), logger_name(7)
        ('SimpleNamespace digits/version_3', 'int')
    """
    kind = type(logger).__name__
    try:
        name, version = getattr(logger, "name", None), getattr(logger, "version", None)
    except Exception:  # noqa: BLE001  # what has failed may be what its name is asked of
        return kind
    version = f"version_{version}" if isinstance(version, int) else version
    known = "/".join(str(part) for part in (name, version) if part not in (None, ""))
    return f"{kind} {known}" if known else kind
