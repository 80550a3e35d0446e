"""Where a measurement goes: the record that is published, and what a sink has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from slt_callbacks.figures.report import Report
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.media import Picture, Scatter


@dataclass(frozen=True)
class Publication:
    """One measurement on its way out.

    Attributes:
        measurement: The whole record.
        scalars: Every number of it under its logged key, such as ``slt/llc/mean``; ``slt/step`` among them.
        log_step: The step under which Lightning logs the training metrics of the same batch.
        events: Every event of the run so far, one row of builtins each, where this measurement brought a new one.
        stages: The developmental stages as they look now, one row of builtins each, in the same case.
        report: The story so far, in the same case.
        news: The events that this measurement brought, as they are.

    Example:
        >>> measurement = Measurement(step=3, results={"llc": {"mean": 1.5}})
        >>> publication = Publication(measurement, measurement.logged(), log_step=2)
        >>> publication.scalars["slt/llc/mean"], publication.report is None
        (1.5, True)
    """

    measurement: Measurement
    scalars: Mapping[str, float]
    log_step: int
    events: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    report: Report | None = None
    news: Sequence[Any] = ()

    @property
    def pictures(self) -> Mapping[str, Picture | Scatter]:
        """What observables show of it, by a key such as ``kernel/map``."""
        return self.measurement.pictures

    @property
    def matrices(self) -> Mapping[str, torch.Tensor]:
        """What of it belongs into a file, by a key such as ``kernel/correlation``; tensors."""
        return self.measurement.matrices

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Small tables of it, by a key such as ``influence/events``: one row of builtins each."""
        return self.measurement.tables


@runtime_checkable
class Sink(Protocol):
    """Takes publications somewhere; only rank 0 has one open. A sink that raises is reported, and training goes on.

    A `Publication` has the scalars, pictures, matrices, tables, events and stages of one measurement. A sink that also
    has ``finish(report)`` is given the whole story, a `Report`, when training has ended.

    Example:
        >>> class Printer:
        ...     def open(self, loggers, config):
        ...         pass
        ...     def publish(self, publication):
        ...         print(publication.scalars["slt/llc/mean"])
        ...     def close(self):
        ...         pass
        >>> isinstance(Printer(), Sink)
        True
    """

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Begin a run.

        Args:
            loggers: The trainer's loggers.
            config: The monitor's settings, builtins only.
        """

    def publish(self, publication: Publication) -> None:
        """Take one measurement."""

    def close(self) -> None:
        """End the run; called once, also after an exception."""
