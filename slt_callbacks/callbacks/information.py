"""Lines of information from the floors below, shown where Lightning shows its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_utilities.core.rank_zero import rank_zero_only

_OURS, _LIGHTNING = logging.getLogger("slt_callbacks"), logging.getLogger("lightning.pytorch")


class _Relay(logging.Handler):
    @rank_zero_only
    def emit(self, record: logging.LogRecord) -> None:
        _LIGHTNING.log(record.levelno, record.getMessage())


@contextmanager
def shown_by_lightning() -> Iterator[None]:
    """What `slt_callbacks` logs in this block goes to Lightning's logger, and is muted with it.

    Python hides information unless somebody asks for it. Who has asked for ours by setting up the logger
    ``slt_callbacks`` gets it there, and once.

    Example:
        >>> with shown_by_lightning():
        ...     logging.getLogger("slt_callbacks").isEnabledFor(logging.INFO)
        True
    """
    if _OURS.isEnabledFor(logging.INFO):
        yield
        return
    relay, level, propagate = _Relay(), _OURS.level, _OURS.propagate
    _OURS.addHandler(relay)
    _OURS.setLevel(logging.INFO)
    _OURS.propagate = False  # or whoever listens to all loggers would hear it twice
    try:
        yield
    finally:
        _OURS.propagate = propagate
        _OURS.setLevel(level)
        _OURS.removeHandler(relay)
