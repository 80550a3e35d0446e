"""The posteriors beside the main one: whose turn it is, what they have found, and what is remembered of them."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.basics.plain import brief
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.data.structure import check_structure
from slt_callbacks.measuring.preparation import as_memory_allows
from slt_callbacks.measuring.settings import changes
from slt_callbacks.observables.base import Part
from slt_callbacks.observables.llc import LLC
from slt_callbacks.observables.panel import Panel

if TYPE_CHECKING:
    from torch import nn

    from slt_callbacks.basics.ranks import Exchange
    from slt_callbacks.measuring.refinement import Refinement, RefinementSet
    from slt_callbacks.measuring.sampling_run import OnSteps, Sampled
    from slt_callbacks.measuring.survey import Survey
    from slt_callbacks.measuring.timed_pass import TimedPass

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

Record = dict[str, Any]
"""Of one refinement: results by observable, ``"health"``, and ``"num_parameters"``; ``"error"`` where it failed."""


class Beside:
    """The refinements of a run.

    Args:
        refinements: Their samples drawn.
        panel: Of the main posterior: its observables say what is measured beside it.
        reference: Its samples.
        make: A survey from a name, a refinement and a panel.
        exchange: The processes that share the chains.
    """

    def __init__(
        self,
        refinements: RefinementSet,
        panel: Panel,
        reference: ReferenceSet,
        make: Callable[[str, Refinement, Panel], Survey],
        exchange: Exchange,
    ) -> None:
        self._refinements = refinements.by_name
        self._at_once = len(self._refinements) if refinements.at_once is None else refinements.at_once
        self._exchange = exchange
        self._count = 0  # measurements so far, which decide whose turn it is
        for name, refinement in self._refinements.items():
            if isinstance(refinement.reference, ReferenceSet) and refinement.loss_fn is None:
                check_structure(f"`reference` of refinements[{name!r}]", refinement.reference, reference)
        self._surveys = {
            name: make(name, self._refinements[name], Panel(observables))
            for name, observables in _observables(panel, self._refinements).items()
        }

    @property
    def turn(self) -> list[str]:
        """Those that the next measurement takes."""
        names = list(self._surveys)
        return [names[(self._count * self._at_once + place) % len(names)] for place in range(self._at_once)]

    @property
    def expected(self) -> dict[str, int]:
        """Gradient steps of the next measurement in this process, by name, if warm chains do not drift."""
        return {name: self._surveys[name].expected_steps for name in self.turn}

    @property
    def later_steps(self) -> int:
        """Gradient steps of a later one, on average."""
        share = self._at_once / max(len(self._surveys), 1)
        return math.ceil(share * sum(survey.later_steps for survey in self._surveys.values()))

    def __iter__(self) -> Iterator[Survey]:
        return iter(self._surveys.values())

    def __len__(self) -> int:
        return len(self._surveys)

    def check(self, module: nn.Module) -> None:
        """Fork the module for each of them, and try its loss.

        Raises:
            TypeError: As `Preparation.objective`, with the name of the refinement.
            ValueError: Likewise.
            LossFnError: Likewise.
        """
        for name, survey in self._surveys.items():
            try:
                survey.preparation.objective(module)
            except (LossFnError, TypeError, ValueError) as error:
                raise type(error)(f"refinements[{name!r}]: {error}") from error

    def time_passes(self, module: nn.Module, num_steps: int) -> list[tuple[int, TimedPass]]:
        """Gradient steps of each whose turn it is, and a gradient pass of its own; without those whose loss raises.

        Args:
            module: The live one.
            num_steps: Gradient steps of the first measurement, of all posteriors.
        """
        found = []
        for name, steps in self.expected.items():
            try:
                timed = self._attempt(
                    self._surveys[name], lambda survey: survey.time_pass(module, num_steps, at_once=False)
                )
            except Exception as error:  # noqa: BLE001  # as the measurement will, which costs no time then
                _log.debug("The gradient pass of refinements[%r] failed: %s", name, error)
            else:
                found.append((steps, timed))
        return found

    def measure(self, module: nn.Module, step: int, seed: int, on_steps: OnSteps | None) -> dict[str, Record]:
        """Those whose turn it is, one after the other; whatever one of them meets costs its own numbers alone.

        Each takes its own losses at w*: one that looks at which parameters move is another loss for a part.

        Args:
            module: The live one.
            step: Training step of the fork.
            seed: As `Survey.measure` takes it.
            on_steps: For a progress bar.
        """
        records = {name: self._measured(self._surveys[name], module, step, seed, on_steps) for name in self.turn}
        self._count += 1
        return records

    def _measured(self, survey: Survey, module: nn.Module, step: int, seed: int, on_steps: OnSteps | None) -> Record:
        start = time.perf_counter()
        try:
            sampled = self._attempt(survey, lambda survey: survey.measure(module, step, seed, on_steps))
        except Exception as error:  # noqa: BLE001  # it may be the user's own loss
            sampled = survey.fail(step, f"{type(error).__name__}: {error}")
        return _record(survey, sampled, start)

    def _attempt(self, survey: Survey, verb: Callable[[Survey], _T]) -> _T:
        """On all processes together, in as large blocks as memory holds."""

        def attempt() -> _T:
            with self._exchange.together():
                return verb(survey)

        return as_memory_allows(attempt, survey.preparation, self._exchange.rank)

    def failed(self, step: int, error: str) -> dict[str, Record]:
        """Their records where the main posterior could not be measured."""
        return {name: _record(self._surveys[name], self._surveys[name].fail(step, error)) for name in self.turn}

    def state_dict(self, chains: bool) -> dict[str, Any]:
        """What a resumed run needs, in builtins and tensors on the CPU; see `Estimator.state_dict`."""
        return {
            "count": self._count,
            "targets": {
                name: {"settings": self._refinements[name].told(), **survey.target.state_dict(chains)}
                for name, survey in self._surveys.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; a refinement that was not there, or another one, starts afresh."""
        self._count = state.get("count", 0)
        before = state.get("targets", {})
        for name, survey in self._surveys.items():
            survey.target.forget()
            if name not in before:
                continue
            now = self._refinements[name].told()
            changed = changes({**dict.fromkeys(now), **before[name]["settings"]}, now)
            if changed or before[name]["settings"].keys() - now.keys():
                told = ", ".join(changed) or "it was of other data, slices or another loss"
                warnings.warn(
                    f"refinements[{name!r}] is another one than the checkpoint's ({told}): its chains start afresh, "
                    "and its LLC before and after is not comparable.",
                    stacklevel=3,
                )
            else:
                survey.target.load_state_dict(before[name])

    def forget(self) -> None:
        """Let every chain start afresh."""
        for survey in self._surveys.values():
            survey.target.forget()


def _observables(panel: Panel, refinements: Mapping[str, Refinement]) -> dict[str, dict[str, Any]]:
    """What reads the draws of each: whatever the main observables make for it, or else an LLC."""
    parts = [Part(name, refinement.of_weights) for name, refinement in refinements.items()]
    found: dict[str, dict[str, Any]] = {name: {} for name in refinements}
    for member in panel.members:
        for name, observable in member.refine(parts).items():
            if name not in found:
                raise ValueError(
                    f"Expected `refine` of `observables[{member.key!r}]` to name the parts that it was given, but it "
                    f"returned {name!r}: there are {', '.join(found) or 'none'}."
                )
            found[name][member.key] = observable
    for name, observables in found.items():
        if not any(isinstance(observable, LLC) for observable in observables.values()):
            found[name] = {"llc": LLC()} | observables
    return found


def _record(survey: Survey, sampled: Sampled, start: float | None = None) -> Record:
    """Of what was measured since `start`, on the clock of `time.perf_counter`; None where it was not."""
    results = {key: result for key, result in survey.results(sampled).items() if result}
    record: Record = {
        **results,
        "cost": {"seconds": 0.0 if start is None else time.perf_counter() - start, "sgld_steps": sampled.sgld_steps},
        "num_parameters": results["health"]["num_parameters"],
    }
    return record if sampled.error is None else {**record, "error": brief(sampled.error)}
