"""Where a measurement goes: the record that is published, and what a sink has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from slt_callbacks.basics import keys
from slt_callbacks.basics.keys import key_of
from slt_callbacks.figures.report import Report
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.base import Observable
from slt_callbacks.observables.picture import Picture


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
        pictures: What observables show of it, by a key such as ``kernel/map``.
        matrices: What of it belongs into a file, by a key such as ``kernel/correlation``; tensors.
        tables: Small tables of it, by a key such as ``influence/events``: one row of builtins each.

    Example:
        >>> measurement = Measurement(step=3, results={"llc": {"mean": 1.5}})
        >>> publication = Publication(measurement, publish_scalars(measurement), log_step=2)
        >>> publication.scalars["slt/llc/mean"], publication.report is None
        (1.5, True)
    """

    measurement: Measurement
    scalars: Mapping[str, float]
    log_step: int
    events: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    report: Report | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    matrices: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


@runtime_checkable
class Sink(Protocol):
    """Takes publications somewhere; only rank 0 has one open. A sink that raises is reported, and training goes on.

    A sink that also has ``finish(report)`` is given the whole story, a `Report`, when training has ended.

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


def publish_scalars(measurement: Measurement) -> dict[str, float]:
    """The numbers of a measurement under their logged keys.

    Example:
        >>> publish_scalars(Measurement(step=3, results={"llc": {"mean": 1.5}}))
        {'slt/step': 3, 'slt/llc/mean': 1.5}
    """
    return {keys.STEP: measurement.step} | {key_of(key): value for key, value in measurement.scalars().items()}


def publish_media(measurement: Measurement, observables: Mapping[str, Observable]) -> dict[str, Any]:
    """Pictures, matrices and tables of a measurement, as the keywords of `Publication`.

    An observable shows pictures through ``images(result)`` and gives matrices through ``matrices(result)``; a result
    that is a list of dicts is a table. A failed measurement has none.

    Example:
        >>> publish_media(Measurement(3, {"own": {"top": [{"sample": 1}]}}), {})["tables"]
        {'own/top': [{'sample': 1}]}
    """
    if measurement.failed:
        return {}
    media: dict[str, dict[str, Any]] = {"pictures": {}, "matrices": {}, "tables": {}}
    for key, result in measurement.results.items():
        for method, kind in (("images", "pictures"), ("matrices", "matrices")):
            give = getattr(observables.get(key), method, None)
            if give is not None:
                media[kind] |= {f"{key}/{name}": value for name, value in give(result).items()}
        tables = {name: value for name, value in result.items() if isinstance(value, list) and value}
        media["tables"] |= {f"{key}/{name}": rows for name, rows in tables.items() if isinstance(rows[0], Mapping)}
    return media
