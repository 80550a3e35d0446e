"""Scalars to every Lightning logger but W&B's, which has a sink of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.each import logger_name, to_each
from slt_callbacks.sinks.wandb import is_wandb


class LoggerSink:
    """Writes the scalars with ``log_metrics``, so that they lie on the axis of the training metrics.

    ``self.log`` would not do: Lightning writes it at its own interval, under another step, and repeats it.

    Example:
        >>> class Printing:
        ...     def log_metrics(self, metrics, step):
        ...         print(step, metrics)
        >>> sink = LoggerSink()
        >>> sink.open([Printing()], {})
        >>> from slt_callbacks import Measurement
        >>> sink.publish(Publication(Measurement(8, {}), {"slt/llc/mean": 1.5}, log_step=7))
        7 {'slt/llc/mean': 1.5}
    """

    def __init__(self) -> None:
        self._loggers: list[Any] = []

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Take the loggers that are not W&B's."""
        self._loggers = [logger for logger in loggers if not is_wandb(logger)]

    def publish(self, publication: Publication) -> None:
        """Write the scalars.

        Raises:
            PartlyFailedError: If a logger has raised; the others have theirs.
        """
        to_each(
            self._loggers,
            lambda logger: logger.log_metrics(dict(publication.scalars), step=publication.log_step),
            logger_name,
        )

    def close(self) -> None:
        """The loggers belong to the trainer."""
        self._loggers = []
