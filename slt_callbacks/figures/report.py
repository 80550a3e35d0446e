"""The story of a run, from which its pictures are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slt_callbacks.detection.records import Stage
from slt_callbacks.measuring.measurement import Measurement


@dataclass(frozen=True)
class Report:
    """The story of a run so far, for tables and a figure.

    Attributes:
        history: Its measurements in order, those from before a resume with their numbers alone.
        stages: As in ``monitor.stages``.
        events: As in ``monitor.events``.
        rows: The events once more, one row of builtins each.
        observable: The one that `stages` are of, by its key; None where no LLC is watched.

    Example:
        >>> report = Report(history=[Measurement(step=3, results={"llc": {"mean": 1.5}})])
        >>> [measurement["llc"]["mean"] for measurement in report.history], len(report.stages)
        ([1.5], 0)
    """

    history: Sequence[Measurement]
    stages: Sequence[Stage] = ()
    events: Sequence[Any] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    observable: str | None = None
