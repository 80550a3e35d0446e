"""Detectors on logged keys: what is fed to them, and what they have found."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from slt_callbacks.detection import JumpDetector, JumpEvent, Stage, StageDetector, StageEvent
from slt_callbacks.estimate import Measurement

WATCHED_BY_DEFAULT = "slt/llc/mean"
# One failure may be a bad batch of weights; three in a row will not mend themselves.
_FAILURES_TO_REPORT = 3


@dataclass(frozen=True)
class FailureEvent:
    """Several measurements in a row have failed: look at the sampler's settings, not at the LLC.

    Attributes:
        step: Training step of the last of them.
        count: How many in a row.
        error: Why the last one failed.
    """

    step: int
    count: int
    error: str


@dataclass(frozen=True)
class StepSizeEvent:
    """An "auto" step size was halved, because the curvature has grown: the series has a break here, and no jump.

    Attributes:
        step: Training step of the first measurement with the new one.
        before: Step size so far.
        after: Step size from here on.
    """

    step: int
    before: float
    after: float


Event = JumpEvent | StageEvent | FailureEvent | StepSizeEvent
_KINDS = {kind.__name__: kind for kind in (JumpEvent, StageEvent, FailureEvent, StepSizeEvent)}


class Detector(Protocol):
    """What can watch a key: `JumpDetector`, `StageDetector`, or an object with an `update` of your own.

    `update` is called with ``(step, value)`` and those of the keywords ``stderr``, ``loss``, ``num_chains`` and
    ``per_chain`` that it takes; it returns an event, a list of events, or None.
    """

    @property
    def update(self) -> Any:
        """See the class."""


@dataclass(frozen=True)
class Found:
    """An event, and when and where it was found.

    Attributes:
        key: The watched key.
        detected_at: Training step of the measurement that gave it.
        event: What the detector returned.
    """

    key: str
    detected_at: int
    event: Any

    def row(self) -> dict[str, Any]:
        """As builtins, for a table or a checkpoint."""
        known = type(self.event).__name__ in _KINDS
        fields = dataclasses.asdict(self.event) if known else {"event": repr(self.event)}
        return {"key": self.key, "detected_at": self.detected_at, "type": type(self.event).__name__, **fields}


class Watch:
    """Feeds every measurement to the detectors and keeps what they find.

    Args:
        detectors: By logged key, one or several; they are added to the default, a `JumpDetector` and a `StageDetector`
            on ``slt/llc/mean``, which an empty list under that key switches off.
        observables: Names that are logged, to refuse a key that never comes; None for any.

    Attributes:
        found: Every event so far, in order.

    Raises:
        TypeError: If a detector has no `update`.
        ValueError: If a key is not ``slt/``, an observable's name, a slash and the name of a number.

    Example:
        >>> watch = Watch()
        >>> for step in range(20):
        ...     value = 10.0 * (step > 15) + step % 2
        ...     record = Measurement(step, {"llc": {"mean": value, "stderr": 0.5}, "health": {}})
        ...     _ = watch.update(record)
        >>> [found.event.onset_step for found in watch.found if isinstance(found.event, JumpEvent)]
        [16]
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector | Sequence[Detector]] | None = None,
        observables: Sequence[str] | None = None,
    ) -> None:
        for key in detectors or {}:
            _check_key(key, observables)
        default = {WATCHED_BY_DEFAULT: (JumpDetector(), StageDetector())}
        given = {key: _as_list(key, value) for key, value in {**default, **(detectors or {})}.items()}
        self._detectors = {key: watching for key, watching in given.items() if watching}
        self.found: list[Found] = []
        self._failures = 0
        self._step_size = math.nan
        self._jump = 0
        self._finished: list[Stage] | None = None

    @property
    def stages(self) -> list[Stage]:
        """Stages of the first key that has a `StageDetector`: as they look now, or final after `finish`."""
        detector = self._first(StageDetector)
        if detector is None:
            return []
        return detector.stages if self._finished is None else self._finished

    def update(self, measurement: Measurement) -> list[Found]:
        """Take one measurement; returns what it has made known. A failed one is a missing point."""
        scalars = measurement.scalars()
        events = self._failure(measurement) + self._halving(measurement)
        for key, detectors in self._detectors.items():
            observable, _, name = key.removeprefix("slt/").partition("/")
            if observable not in measurement.results:
                continue
            known = self._keywords(measurement, observable, name)
            for detector in detectors:
                value = scalars.get(f"{observable}/{name}", math.nan)
                returned = detector.update(measurement.step, value, **_accepted(detector, known))
                events += [Found(key, measurement.step, event) for event in _events(returned)]
        jumps = [found.event.direction for found in events if isinstance(found.event, JumpEvent)]
        self._jump = jumps[0] if jumps else 0
        self.found += events
        return events

    def scalars(self) -> dict[str, float]:
        """Numbers to log beside the last measurement: ``stage``, ``jump`` and ``detection/phi``."""
        logged: dict[str, float] = {}
        jumps = self._first(JumpDetector)
        if jumps is not None:
            logged |= {"slt/jump": self._jump, "slt/detection/phi": jumps.phi}
        if self.stages:
            logged["slt/stage"] = self.stages[-1].stage
        return logged

    def finish(self) -> None:
        """Training has ended: `stages` are final."""
        detector = self._first(StageDetector)
        self._finished = None if detector is None else detector.finish()

    def mark_break(self) -> None:
        """Settings have changed: what was before cannot be compared with what comes."""
        for detector in (detector for watching in self._detectors.values() for detector in watching):
            if hasattr(detector, "mark_break"):
                detector.mark_break()

    def state_dict(self) -> dict[str, Any]:
        """Events and detectors, as builtins."""
        return {
            "found": [found.row() for found in self.found if type(found.event).__name__ in _KINDS],
            "failures": self._failures,
            "step_size": self._step_size,
            "detectors": {
                key: [detector.state_dict() if hasattr(detector, "state_dict") else {} for detector in watching]
                for key, watching in self._detectors.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; a key watched otherwise now starts afresh."""
        self._failures = state["failures"]
        self._step_size = state["step_size"]
        self.found = [
            Found(row.pop("key"), row.pop("detected_at"), _KINDS[row.pop("type")](**row))
            for row in (dict(row) for row in state["found"])
        ]
        for key, saved in state["detectors"].items():
            watching = self._detectors.get(key, [])
            if len(watching) == len(saved):
                for detector, one in zip(watching, saved, strict=True):
                    if hasattr(detector, "load_state_dict"):
                        detector.load_state_dict(one)

    def _failure(self, measurement: Measurement) -> list[Found]:
        self._failures = self._failures + 1 if measurement.error is not None else 0
        if measurement.error is None or self._failures != _FAILURES_TO_REPORT:
            return []
        event = FailureEvent(measurement.step, self._failures, measurement.error)
        return [Found("slt/health/failed_chains", measurement.step, event)]

    def _halving(self, measurement: Measurement) -> list[Found]:
        """Another step size has another bias: what was before cannot be compared with what comes."""
        before, after = self._step_size, measurement.results.get("health", {}).get("step_size", math.nan)
        if not math.isnan(after):
            self._step_size = after
        if math.isnan(before) or math.isnan(after) or before == after:
            return []
        self.mark_break()
        return [Found("slt/health/step_size", measurement.step, StepSizeEvent(measurement.step, before, after))]

    def _keywords(self, measurement: Measurement, observable: str, name: str) -> dict[str, Any]:
        """What is known of a value besides itself; standard error and chains belong to an observable's mean alone."""
        result = measurement[observable]
        losses = [other["reference_loss"] for other in measurement.results.values() if "reference_loss" in other]
        keywords: dict[str, Any] = {"loss": result.get("reference_loss", losses[0] if losses else math.nan)}
        if name == "mean":
            per_chain = result.get("per_chain")
            chains = [float(value) for value in per_chain] if per_chain is not None else None
            valid = sum(map(math.isfinite, chains)) if chains is not None else None
            keywords |= {"stderr": result.get("stderr"), "per_chain": chains, "num_chains": valid or None}
        return keywords

    def _first(self, kind: type[Any]) -> Any:
        return next((d for watching in self._detectors.values() for d in watching if isinstance(d, kind)), None)


def _check_key(key: str, observables: Sequence[str] | None) -> None:
    prefix, _, rest = key.partition("/")
    observable, _, name = rest.partition("/")
    if prefix != "slt" or not name or (observables is not None and observable not in observables):
        known = ", ".join(f"slt/{known}/..." for known in observables or ("llc",))
        raise ValueError(f"Expected the keys of `detectors` to be logged ones, {known}, but got {key!r}.")


def _as_list(key: str, value: Any) -> list[Any]:
    detectors = list(value) if isinstance(value, (list, tuple)) else [value]
    for detector in detectors:
        if not callable(getattr(detector, "update", None)) or isinstance(detector, type):
            raise TypeError(f"Expected `detectors[{key!r}]` to be an object with `update`, but got {detector!r}.")
    return detectors


def _accepted(detector: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(detector.update).parameters
    return {name: value for name, value in keywords.items() if name in parameters}


def _events(returned: Any) -> list[Any]:
    if returned is None:
        return []
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]
