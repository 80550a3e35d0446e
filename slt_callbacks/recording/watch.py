"""Detectors on logged keys: what is fed to them, and what they have found."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, Protocol

from slt_callbacks.basics import keys
from slt_callbacks.basics.keys import is_logged, is_mean, key_of, parts_of
from slt_callbacks.basics.notices import Notices
from slt_callbacks.basics.plain import shown
from slt_callbacks.detection.jumps import JumpDetector, JumpEvent
from slt_callbacks.detection.records import Stage, StageEvent
from slt_callbacks.detection.stages import StageDetector
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.base import Observable
from slt_callbacks.observables.llc import LLC
from slt_callbacks.recording.events import FailureEvent, Found, StepSizeEvent

# One failure may be a bad batch of weights; three in a row will not mend themselves.
_FAILURES_TO_REPORT = 3


def _unexplained(event: Any) -> Any:
    return event


class Detector(Protocol):
    """What can watch a key: `JumpDetector`, `StageDetector`, or an object with an `update` of your own.

    `update` is called with ``(step, value)`` and those of the keywords ``stderr``, ``loss``, ``num_chains`` and
    ``per_chain`` that it takes; it returns an event, a list of events, or None. One that raises is reported once, and
    costs its own events.

    With `state_dict` and `load_state_dict`, in builtins, it goes on after a resume. Its events survive a checkpoint as
    they are if they are builtins; a dataclass comes back as the dict of its fields, anything else as its `repr`.

    Example:
        An event where a number first passes a bound, for ``detectors={"slt/health/rhat": Above(1.2)}``:

        >>> class Above:
        ...     def __init__(self, bound):
        ...         self.bound, self.told = bound, False
        ...     def update(self, step, value):
        ...         if value > self.bound and not self.told:
        ...             self.told = True
        ...             return {"step": step, "value": value}
        >>> watch = Watch({"slt/health/rhat": Above(1.2)})
        >>> for step, rhat in ((10, 1.0), (20, 1.3), (30, 1.4)):
        ...     _ = watch.update(Measurement(step, {"llc": {"mean": 1.0}, "health": {"rhat": rhat}}))
        >>> [found.event for found in watch.found]
        [{'step': 20, 'value': 1.3}]
    """

    @property
    def update(self) -> Any:
        """See the class."""


class Watch:
    """Feeds every measurement to the detectors and keeps what they find.

    Args:
        detectors: By logged key, one or several; they are added to the default, a `JumpDetector` and a `StageDetector`
            on the mean of the first LLC, where one of the same class takes its place, and an empty list its key.
        observables: What is measured, by key, to find the LLC and to refuse a key that never comes; None for an LLC
            under ``llc``, and any other key.
        notices: Where it is told, once, that a detector raises; None for Python's warnings.
        refinements: Names of the posteriors that are measured beside the main one.

    Attributes:
        found: Every event so far, in order.
        main: The key whose jumps and stages are logged, drawn, and in `stages`: the mean of the first LLC that is
            watched; else of another observable that has a mean; None without one.

    Raises:
        TypeError: If `detectors` is no dict, or a detector has no `update`.
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
        observables: Mapping[str, Observable] | None = None,
        notices: Notices | None = None,
        refinements: Collection[str] = (),
    ) -> None:
        if detectors is not None and not isinstance(detectors, Mapping):
            raise TypeError(
                f"Expected `detectors` to be a dict by logged key, but got {shown(detectors)}: write "
                '{"slt/llc/mean": JumpDetector()}.'
            )
        given = dict(detectors or {})
        for key in given:
            _check_key(key, observables, refinements)
        llc = _first_llc(observables)
        if llc is not None:
            given = {llc: (JumpDetector(), StageDetector())} | given
        watching = {key: _as_list(key, value) for key, value in given.items()}
        if llc is not None:
            watching[llc] = _with_default(watching[llc])
        self._detectors = {key: [_Watching(one) for one in several] for key, several in watching.items() if several}
        means = [key for key in self._detectors if is_mean(key)]
        self.main: str | None = llc if llc in means else next(iter(means), None)
        self._jumps, self._stages = (self._of_main(kind) for kind in (JumpDetector, StageDetector))
        self.found: list[Found] = []
        self._refinements = frozenset(refinements)
        self._failures = 0
        self._step_size = math.nan
        self._num_parameters = math.nan
        self._jump = 0
        self._boundaries = 0
        self._finished: list[Stage] | None = None
        self._notices = notices or Notices()

    @property
    def stages(self) -> list[Stage]:
        """Stages of `main`: as they look now, or final after `finish`. Another key's are in its own detector."""
        if self._stages is None:
            return []
        return self._stages.stages if self._finished is None else self._finished

    @property
    def observable(self) -> str | None:
        """The observable of `main`, by its key in the measurements."""
        return None if self.main is None else parts_of(self.main)[0]

    def update(self, measurement: Measurement, explain: Callable[[Any], Any] = _unexplained) -> list[Found]:
        """Take one measurement; returns what it has made known. A failed one is a missing point.

        Args:
            measurement: The newest.
            explain: Gives every event back, with what else is known of it.
        """
        self._finished = None
        events = self._failure(measurement) + self._changed_step(measurement)
        self._see_parameters(measurement)
        for key, detectors in self._detectors.items():
            observable, name = parts_of(key)
            if not self.is_due(key, measurement):
                continue
            result, number = measurement.of(observable, name)
            value = result.get(number, math.nan)
            known = self._keywords(measurement, observable, name)
            for watching in detectors:
                found = self._ask(watching, key, measurement.step, value, known)
                events += [Found(key, measurement.step, event) for event in found]
        events = [replace(found, event=explain(found.event)) for found in events]
        main = [found.event for found in events if found.key == self.main]
        self._jump = next((event.direction for event in main if isinstance(event, JumpEvent)), 0)
        self._boundaries += _boundaries(main)
        self.found += events
        return events

    def is_due(self, key: str, measurement: Measurement) -> bool:
        """Whether a measurement can have a number of this key: refinements may be taken in turn."""
        observable, name = parts_of(key)
        part = name.partition("/")[0]
        return part in measurement.refinements if part in self._refinements else observable in measurement.results

    def knows(self, key: str, measurement: Measurement) -> bool:
        """Whether a measurement has this number, logged or not, or its turn is to come."""
        observable, name = parts_of(key)
        result, number = measurement.of(observable, name)
        return number in result or (name.partition("/")[0] in self._refinements and not self.is_due(key, measurement))

    def scalars(self) -> dict[str, float]:
        """Numbers of `main` to log beside the last measurement.

        ``slt/jump``, +1 or -1 where it has just jumped; ``slt/stage``, the boundaries that are announced and not
        withdrawn so far; ``slt/detection/phi``, the calibration of its standard errors.
        """
        logged: dict[str, float] = {}
        if self._jumps is not None:
            logged[keys.JUMP] = self._jump
        if self._stages is not None:
            logged[keys.STAGE] = self._boundaries
        detector = self._jumps or self._stages
        return logged if detector is None else logged | {keys.PHI: detector.phi}

    def finish(self) -> None:
        """Training has ended: `stages` are final."""
        self._finished = None if self._stages is None else self._stages.finish()

    def settings(self) -> dict[str, list[str]]:
        """The detectors of each key, in words: with their arguments, where they are ours or dataclasses."""
        return {key: [watching.name for watching in detectors] for key, detectors in self._detectors.items()}

    def mark_break(self) -> None:
        """Settings have changed: what was before cannot be compared with what comes."""
        for detector in (watching.detector for several in self._detectors.values() for watching in several):
            if hasattr(detector, "mark_break"):
                detector.mark_break()

    def state_dict(self) -> dict[str, Any]:
        """Events and detectors, as builtins."""
        return {
            "found": [found.state_dict() for found in self.found],
            "failures": self._failures,
            "step_size": self._step_size,
            "num_parameters": self._num_parameters,
            "detectors": {key: [one.state_dict() for one in several] for key, several in self._detectors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; a detector that was not there, or set otherwise, starts afresh."""
        self._failures = state["failures"]
        self._step_size = state["step_size"]
        self._num_parameters = state.get("num_parameters", math.nan)
        self._finished = None
        self.found = [Found.from_state_dict(saved) for saved in state["found"]]
        self._boundaries = _boundaries([found.event for found in self.found if found.key == self.main])
        afresh = []
        for key, detectors in self._detectors.items():
            saved = list(state["detectors"].get(key, []))
            for watching in detectors:
                known = next((one for one in saved if one["name"] == watching.name), None)
                if known is None:
                    afresh.append(f"{watching.name} on {key}")
                else:
                    saved.remove(known)
                    watching.load_state_dict(known)
        if afresh:
            warnings.warn(
                f"The checkpoint does not know these detectors, which start afresh: {', '.join(afresh)}.", stacklevel=2
            )

    def _ask(
        self, watching: _Watching, key: str, step: int, value: float, known: Mapping[str, Any]
    ) -> list[JumpEvent | StageEvent | Any]:
        """The events of one detector, with their key; it may be the user's own, and must not cost the others theirs."""
        try:
            return [
                replace(event, key=key) if isinstance(event, (JumpEvent, StageEvent)) else event
                for event in watching.update(step, value, known)
            ]
        except Exception as error:  # noqa: BLE001
            message = f"{watching.name}, the detector of {key}, raised {type(error).__name__}: {error}."
            self._notices.once(f"{message} Training goes on.", f"detector {key} {watching.name}")
            return []

    def _failure(self, measurement: Measurement) -> list[Found]:
        self._failures = self._failures + 1 if measurement.error is not None else 0
        if measurement.error is None or self._failures != _FAILURES_TO_REPORT:
            return []
        event = FailureEvent(measurement.step, self._failures, measurement.error)
        return [Found(keys.FAILED_CHAINS, measurement.step, event)]

    def _changed_step(self, measurement: Measurement) -> list[Found]:
        """Another step size has another bias, if it has any: what was before cannot be compared with what comes."""
        health = measurement.results.get("health", {})
        if measurement.error is not None:  # the step of one that has failed is that of nothing
            return []
        before, after = self._step_size, health.get("step_size", math.nan)
        if not math.isnan(after):
            self._step_size = after
        if math.isnan(before) or math.isnan(after) or before == after or health.get("step_bias") == 0:
            return []
        self.mark_break()
        return [Found(keys.STEP_SIZE, measurement.step, StepSizeEvent(measurement.step, before, after))]

    def _see_parameters(self, measurement: Measurement) -> None:
        """Where weights were frozen or unfrozen the LLC is of another posterior: a break, and no news."""
        before, after = self._num_parameters, measurement.results.get("health", {}).get("num_parameters", math.nan)
        if not math.isnan(after):
            self._num_parameters = after
        if not (math.isnan(before) or math.isnan(after) or before == after):
            self.mark_break()

    def _keywords(self, measurement: Measurement, observable: str, name: str) -> dict[str, Any]:
        """What is known of a value besides itself; standard error and chains belong to an observable's mean alone."""
        result, name = measurement.of(observable, name)
        losses = [other["reference_loss"] for other in measurement.results.values() if "reference_loss" in other]
        keywords: dict[str, Any] = {"loss": result.get("reference_loss", losses[0] if losses else math.nan)}
        if name == "mean":
            per_chain = result.get("per_chain")
            chains = [float(value) for value in per_chain] if per_chain is not None else None
            valid = sum(map(math.isfinite, chains)) if chains is not None else None
            keywords |= {"stderr": result.get("stderr"), "per_chain": chains, "num_chains": valid or None}
        return keywords

    def _of_main(self, kind: type[Any]) -> Any:
        detectors = [] if self.main is None else self._detectors[self.main]
        return next((watching.detector for watching in detectors if isinstance(watching.detector, kind)), None)


class _Watching:
    """A detector at work: which of the keywords it takes is looked up once."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        ours = isinstance(detector, (JumpDetector, StageDetector)) or is_dataclass(detector)
        # the repr of an object of one's own may hold its address
        self.name = repr(detector) if ours else type(detector).__qualname__
        self._takes = frozenset(inspect.signature(detector.update).parameters)  # ddp_spawn pickles it

    def update(self, step: int, value: float, known: Mapping[str, Any]) -> list[Any]:
        returned = self.detector.update(step, value, **{name: known[name] for name in known if name in self._takes})
        if returned is None:
            return []
        return list(returned) if isinstance(returned, (list, tuple)) else [returned]

    def state_dict(self) -> dict[str, Any]:
        state = self.detector.state_dict() if hasattr(self.detector, "state_dict") else {}
        return {"name": self.name, "state": state}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        if hasattr(self.detector, "load_state_dict"):
            self.detector.load_state_dict(saved["state"])


def _first_llc(observables: Mapping[str, Observable] | None) -> str | None:
    """The key that is watched by default; None where no LLC is measured."""
    if observables is None:
        return key_of("llc", "mean")
    found = [name for name, one in observables.items() if isinstance(one, LLC) or name == "llc"]
    return key_of(found[0], "mean") if found else None


def _with_default(detectors: list[Any]) -> list[Any]:
    """A jump and a stage detector before those of the user's own; none at all for none."""
    if not detectors:
        return []
    kinds = (JumpDetector, StageDetector)
    missing = [kind() for kind in kinds if not any(isinstance(one, kind) for one in detectors)]
    return [*missing, *detectors]


def _boundaries(events: Sequence[Any]) -> int:
    """How many were announced, less those withdrawn."""
    kinds = [event.kind for event in events if isinstance(event, StageEvent)]
    return kinds.count("announced") - kinds.count("withdrawn")


def _check_key(key: str, observables: Mapping[str, Observable] | None, refinements: Collection[str]) -> None:
    more = ["llc"] if refinements else []
    logged = None if observables is None else [*dict.fromkeys([*observables, *more, "health", "cost"])]
    if not is_logged(key) or (logged is not None and parts_of(key)[0] not in logged):
        known = ", ".join(f"slt/{known}/..." for known in logged or ("llc",))
        raise ValueError(f"Expected the keys of `detectors` to be logged ones, {known}, but got {key!r}.")
    observable, name = parts_of(key)
    alone = observable == "llc" and observables is not None and observable not in observables  # of refinements
    refined = alone or observable == "health" or isinstance((observables or {}).get(observable), LLC)
    part, slash, _ = name.partition("/")
    if refined and (slash or alone) and part not in refinements:  # no other number of these has parts
        raise ValueError(
            f"Expected the keys of `detectors` to name refinements that there are, but got {key!r}: there are "
            f"{', '.join(sorted(refinements)) or 'none'}."
        )


def _as_list(key: str, value: Any) -> list[Any]:
    detectors = list(value) if isinstance(value, (list, tuple)) else [value]
    for detector in detectors:
        if not callable(getattr(detector, "update", None)) or isinstance(detector, type):
            raise TypeError(f"Expected `detectors[{key!r}]` to be an object with `update`, but got {shown(detector)}.")
    return detectors
