"""The story of a run, from which its pictures are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from slt_callbacks.detection.changes import BoundaryChanges
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.refined import refined_key
from slt_callbacks.measuring.boundary_changes import changes_of
from slt_callbacks.measuring.measurement import Measurement

_WEIGHED = "free_energy"
_MOST_ROWS = 30  # of a boundary: a run with a hundred refinements has hundreds of numbers


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

    @property
    def refined(self) -> str | None:
        """The observable whose refined LLC is shown, by its key in the refinements' records; None without any."""
        return refined_key(self.history, self.observable)

    @property
    def weighed(self) -> str | None:
        """The observable whose free energy is shown, by its key: the one of the stages, or else the first; or None."""
        found = dict.fromkeys(key for one in self.history for key, result in one.results.items() if _WEIGHED in result)
        return self.observable if self.observable in found else next(iter(found), None)

    @cached_property
    def changes(self) -> list[BoundaryChanges]:
        """What changed at each boundary of the stages, as in ``monitor.changes``."""
        return changes_of(self.history, self.stages)

    @property
    def change_rows(self) -> list[dict[str, Any]]:
        """Of each boundary the 30 largest changes, one row of builtins each."""
        return [row for boundary in self.changes for row in boundary.rows(_MOST_ROWS)]

    @property
    def stage_rows(self) -> list[dict[str, Any]]:
        """The stages, one row of builtins each, with the three largest of these in words as ``changed_most``."""
        told = {boundary.stage: str(boundary) for boundary in self.changes}
        return [asdict(stage) | {"changed_most": told.get(stage.stage, "")} for stage in self.stages]
