"""The story of a run: its history, what the detectors make of it, and what is told of it, to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from slt_callbacks.basics.notices import Notices
from slt_callbacks.detection.changes import BoundaryChanges
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.report import Report
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.member import keys_with_matrices
from slt_callbacks.recording.explaining import explained
from slt_callbacks.recording.guard import Call, unguarded
from slt_callbacks.recording.history import History, completed
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sinks.base import Publication, Sink


class Story:
    """Takes the measurements of a run one after the other, in step order, as monitor and replay both do.

    Args:
        watch: The detectors.
        observables: What is measured, by key: results of some hold matrices, which the history cannot keep for ever.
        call: How sinks are called: a `Guard`, or `unguarded`.
        notices: Where it is told, once, what a plug-in has done wrong.
        before: Measurements of before a resume.
        most_bytes: Of matrices in the history.

    Attributes:
        measurements: Those of this process, in order; matrices in the last ones alone.
        before: As given.

    Example:
        >>> from slt_callbacks import MemorySink
        >>> story, sink = Story(Watch()), MemorySink()
        >>> story.open([sink], [], {"seed": 0})
        >>> story.record(Measurement(3, {"llc": {"mean": 1.5}}), log_step=2).scalars["slt/llc/mean"]
        1.5
        >>> len(story.measurements), len(sink.publications)
        (1, 1)
    """

    def __init__(
        self,
        watch: Watch,
        observables: Mapping[str, Any] | None = None,
        call: Call = unguarded,
        notices: Notices | None = None,
        before: Sequence[Measurement] = (),
        most_bytes: int = 2**26,
    ) -> None:
        self._watch = watch
        self._call = call
        self._notices = notices or Notices()
        self.before = list(before)
        self._asked = None if observables is None else frozenset(observables)
        self._history = History(keys_with_matrices(observables or {}), most_bytes)
        self._sinks: list[Sink] = []
        self._rows: list[dict[str, Any]] = []

    @property
    def measurements(self) -> list[Measurement]:
        """See the class."""
        return self._history.measurements

    @property
    def everything(self) -> list[Measurement]:
        """All of the run, those from before a resume included."""
        return [*self.before, *self.measurements]

    @property
    def events(self) -> list[Any]:
        """Every event so far, those from before a resume included."""
        return [found.event for found in self._watch.found]

    @property
    def stages(self) -> list[Stage]:
        """As they look now, or final after `finish`."""
        return self._watch.stages

    @property
    def changes(self) -> list[BoundaryChanges]:
        """What changed at each of their boundaries, likewise."""
        return self.report().changes

    @property
    def detectors(self) -> dict[str, list[str]]:
        """What watches which key, in words."""
        return self._watch.settings()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The events, one row of builtins each."""
        self._rows += [found.row() for found in self._watch.found[len(self._rows) :]]
        return list(self._rows)

    def report(self) -> Report:
        """All of it, for tables and a figure."""
        return Report(self.everything, self.stages, self.events, self.rows, self._watch.observable)

    def open(self, sinks: Sequence[Sink], loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Begin to tell; a sink that cannot be opened is told nothing.

        Args:
            sinks: To whom.
            loggers: The trainer's.
            config: The settings, builtins only.
        """
        self._sinks += [sink for sink in sinks if self._call(sink, "open", loggers, config)]

    def record(self, measurement: Measurement, log_step: int) -> Publication:
        """Take one measurement, and tell of it.

        Args:
            measurement: The whole record; NaN stands for the numbers that a failed one does not know it has.
            log_step: The step under which Lightning logs the training metrics of the same batch.
        """
        if measurement.media.problem is not None:
            kind = measurement.media.problem.partition(":")[0]
            message = f"The pictures could not be made: {measurement.media.problem}. Training goes on."
            self._notices.once(message, f"pictures {kind}")
        measurement = completed(measurement, self.everything, self._asked)
        self._history.add(measurement)
        found = self._watch.update(measurement, partial(explained, history=self.everything, watch=self._watch))
        report = self.report() if found else None
        publication = Publication(
            measurement,
            measurement.logged() | self._watch.scalars(),
            log_step,
            events=() if report is None else report.rows,
            stages=() if report is None else report.stage_rows,
            report=report,
            news=[one.event for one in found],
        )
        for sink in self._sinks:
            self._call(sink, "publish", publication)
        self._tell_silent_keys(publication)
        return publication

    def mark_break(self) -> None:
        """What was before cannot be compared with what comes."""
        self._watch.mark_break()

    def finish(self) -> None:
        """Training has ended: the stages are final, and sinks that want it are given the whole story."""
        self._call(self._watch, "finish")
        for sink in self._sinks:
            if hasattr(sink, "finish"):
                self._call(sink, "finish", self.report())

    def close(self) -> None:
        """Nothing more will be told."""
        for sink in self._sinks:
            self._call(sink, "close")
        self._sinks = []

    def state_dict(self) -> dict[str, Any]:
        """Events and detectors, in builtins."""
        return self._watch.state_dict()

    def curve(self) -> list[list[Any]]:
        """The numbers of every measurement, in builtins; see `remembered`."""
        return [[one.step, one.main_scalars(), one.error, *_beside(one)] for one in self.everything]

    def _tell_silent_keys(self, publication: Publication) -> None:
        """Once: a detector on a number that a measurement which has succeeded did not give will wait for ever."""
        if publication.measurement.failed:
            return
        for key in self.detectors.keys() - publication.scalars.keys():
            if self._watch.knows(key, publication.measurement):
                continue
            start = key.rpartition("/")[0] + "/"
            there = sorted(other for other in publication.scalars if other.startswith(start))
            self._notices.once(
                f"`detectors` watches {key!r}, which no measurement gives: there is {', '.join(there) or 'none'}."
            )


def _beside(measurement: Measurement) -> list[dict[str, Any]]:
    """Numbers of the refinements, and of the trainer; none of these where there are none."""
    if measurement.metrics:
        return [measurement.refined_numbers(), dict(measurement.metrics)]
    return [measurement.refined_numbers()] if measurement.refinements else []
