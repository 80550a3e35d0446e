"""Where measurements go unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path

from slt_callbacks.sinks.base import Sink
from slt_callbacks.sinks.files import FileSink
from slt_callbacks.sinks.loggers import LoggerSink
from slt_callbacks.sinks.wandb import WandbSink


def default_sinks(folder: Path | None = None, files: bool = True) -> list[Sink]:
    """Every logger, and files.

    Args:
        folder: Where to write files; None for the folder of the first logger.
        files: Whether to write any.

    Example:
        >>> [type(sink).__name__ for sink in default_sinks(files=False)]
        ['LoggerSink', 'WandbSink']
    """
    sinks: list[Sink] = [LoggerSink(), WandbSink()]
    return [*sinks, FileSink(folder)] if files else sinks
