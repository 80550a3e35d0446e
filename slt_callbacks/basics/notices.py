"""Warnings that are given once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from slt_callbacks.basics.plain import brief

_LONGEST = 1500  # characters: what a plug-in or a loss raises may show a whole tensor


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


class Notices:
    """Remembers of what it has warned.

    Args:
        warn: How a warning is given; None for Python's. Where several processes run one training, one of them is to
            give it.

    Example:
        >>> notices = Notices(print)
        >>> for step in (1, 2):
        ...     notices.once(f"The disk was full at step {step}.", reason="disk")
        The disk was full at step 1.
    """

    def __init__(self, warn: Callable[[str], None] | None = None) -> None:
        self._warn = _warn if warn is None else warn
        self._given: set[str] = set()

    def once(self, message: str, reason: str | None = None) -> None:
        """Warn, unless it has been done for this reason.

        Args:
            message: The text.
            reason: What two messages share that tell of the same; None for the text itself.
        """
        if (reason or message) not in self._given:
            self._given.add(reason or message)
            self._warn(brief(message, _LONGEST))
