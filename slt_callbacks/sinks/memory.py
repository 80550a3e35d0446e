"""Keep every publication in a list: for tests, notebooks and runs without a logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slt_callbacks.figures.report import Report
from slt_callbacks.sinks.base import Publication


class MemorySink:
    """Keeps what is published, all matrices included, of which ``monitor.history`` keeps the last ones alone.

    Attributes:
        publications: In the order they came.
        config: The monitor's settings.
        report: The whole story, once training has ended.

    Example:
        >>> sink = MemorySink()
        >>> sink.open([], {"seed": 0})
        >>> sink.publications, sink.config
        ([], {'seed': 0})
    """

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self.config: dict[str, Any] = {}
        self.report: Report | None = None

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Remember the settings."""
        self.config = dict(config)

    def publish(self, publication: Publication) -> None:
        """Keep it."""
        self.publications.append(publication)

    def finish(self, report: Report) -> None:
        """Keep the story."""
        self.report = report

    def close(self) -> None:
        """Nothing to close: what was published stays."""
