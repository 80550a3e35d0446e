"""One training run under watch: from a due measurement to what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_warn

from slt_callbacks.basics.keys import PREFIX
from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.account import Account
from slt_callbacks.callbacks.arguments import Asked, is_fast_dev_run
from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.callbacks.compared import read_metrics, tell_unseen
from slt_callbacks.callbacks.outbox import Outbox
from slt_callbacks.callbacks.place import Place
from slt_callbacks.callbacks.samples import Samples
from slt_callbacks.callbacks.trial import Trial
from slt_callbacks.observables.media import Media
from slt_callbacks.recording.guard import Guard
from slt_callbacks.recording.history import remembered
from slt_callbacks.sinks.defaults import default_sinks
from slt_callbacks.weights.snapshot import Snapshot

if TYPE_CHECKING:
    from slt_callbacks.measuring.estimator import Estimator
    from slt_callbacks.measuring.measurement import Measurement
    from slt_callbacks.sinks.base import Publication, Sink

_T = TypeVar("_T")
_WITHOUT = "Checkpoints go without the {}, because a `state_dict`"


class Run:
    """What a monitor knows of one run, and the way of its measurements: guard, fork, measure, record, tell.

    Args:
        asked: The monitor's arguments.

    Attributes:
        trigger: When a measurement is due.
        story: History, detectors and events.
        samples: The reference set, or how far it is.
        outbox: What Lightning has still to be told.
        begun: Training step and log step of a measurement that is under way, or was cut short; None without one.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._notices = Notices(_warn)
        self._guard = Guard(self._notices, asked.seed)
        self._trial = Trial(asked, self._notices)
        self.trigger = asked.when.trigger(self._guard, asked.seed)
        self._account = Account(Budget(asked.max_overhead), asked.between.checkpoint_chains, self._notices)
        self.story = asked.story(self._notices, self._guard)
        self.samples = Samples(asked, self._notices, self._go_on)
        self.outbox = Outbox(asked.refinements.names({*asked.observables, "health", "cost"}), self._notices)
        self.begun: list[int] | None = None
        self._resumed: dict[str, Any] = {}  # a checkpoint's state, until there is an estimator to go on with it
        self._place = Place(asked.executor, self._guard)
        self._submitted: dict[int, _Submitted] = {}  # what is being measured, by training step
        self._last_step: int | None = None  # of the last measurement in this process

    def open(self, trainer: pl.Trainer, pl_module: pl.LightningModule, begun: bool = False) -> None:
        """There is a reference set: try the loss on the module, say what will be measured, and begin to tell.

        Args:
            trainer: With its loaders.
            pl_module: The live module.
            begun: Whether training has begun: a mistake costs measurements then, and no longer the run.

        Raises:
            MisconfigurationException: If nothing can be measured, unless it is the user's own loss that raises: that
                may mend itself.
        """
        estimator = self.samples.estimator
        if estimator is None:
            return
        self._trial.prepare(estimator, trainer)
        sound = begun or self._trial.check(estimator, pl_module)
        if not self._trial.check_elsewhere(self._place, estimator, pl_module, begun, sound):
            return
        self._account.expect(self._trial.look_ahead(estimator, trainer, pl_module, self.trigger, sound))
        self._place.open(trainer, estimator)
        if trainer.is_global_zero:
            sinks = _sinks_of(trainer) if self._asked.told.sinks is None else self._asked.told.sinks
            self.story.open(sinks, trainer.loggers, self._told(estimator))

    def start(self, trainer: pl.Trainer) -> None:
        """Training begins, or goes on: the clock runs, and Lightning hears of what was measured before."""
        self._account.start(trainer.global_step)
        if self.begun is not None and self.begun[0] != trainer.global_step:
            self.begun = None  # the weights of then are gone
            self._account.budget.skipped += 1
        last = next((one for one in reversed(self.story.everything) if not one.failed), None)
        self.outbox.start({} if last is None else last.logged())

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, log_step: int, on_step: bool | None) -> None:
        """Guard, measure, record. Rank 0 decides; all ranks share the chains, and get rank 0's record.

        Args:
            trainer: At the step to be measured.
            pl_module: The live module.
            log_step: Step under which Lightning logs the training metrics of the same batch.
            on_step: As Lightning's ``log`` takes it; None where Lightning cannot be told yet.
        """
        estimator = self.samples.estimator
        if not trainer.strategy.broadcast(self._goes_ahead(trainer)) or estimator is None:
            return
        step, start, expected = trainer.global_step, time.perf_counter(), estimator.expected
        self.begun = [step, log_step]
        asked = partial(read_metrics, trainer, self._asked.told.also_compare)
        with self._guard.world(step):
            metrics: dict[str, float] = self._guard.ask(asked, {}, "`trainer.callback_metrics`")
            taken = self._place.submit(Snapshot(step, pl_module))
        blocked = time.perf_counter() - start
        self._account.budget.add(blocked)
        self._last_step = step
        if taken:
            self._submitted[step] = _Submitted(log_step, expected, blocked, metrics)
        else:
            self._account.budget.skipped += 1
        self.receive(trainer, pl_module, on_step)

    def receive(self, trainer: pl.Trainer, pl_module: pl.LightningModule, on_step: bool | None) -> None:
        """Record what has been finished since, at the step of its fork."""
        if self._submitted:
            self._record_all(self._timed(self._place.poll), trainer, pl_module, on_step)
        if not self._submitted:
            self.begun = None

    def finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, wait: bool) -> None:
        """Training has ended: the rest is recorded, waited for or not, and the whole story told."""
        if self._submitted:
            rest = self._place.rest(trainer) if wait else iter([self._place.poll()])
            while (found := self._timed(partial(next, rest, None))) is not None:
                self._record_all(found, trainer, pl_module, on_step=None)
        estimator = self.samples.estimator
        if wait and estimator is not None:  # what was lost on the way has failed, and is said to have
            with self._guard.world(trainer.global_step):
                lost = [estimator.failed(step, self._place.why_lost) for step in sorted(self._submitted)]
            self._record_all(lost, trainer, pl_module, on_step=None)
            self.begun = None
        tell_unseen(self._asked.told.also_compare, self.story.everything, self._notices)
        self.story.finish()

    def close(self) -> None:
        """End the executor and the sinks."""
        self._submitted = {}
        self._place.close()
        self.story.close()

    def state_dict(self, version: int) -> dict[str, Any]:
        """What a resumed run needs; builtins and tensors only. What has to be waited for is paid for."""
        return self._timed(partial(self._state, version))

    def _state(self, version: int) -> dict[str, Any]:
        estimator = self.samples.estimator
        if estimator is None:
            return self._resumed
        chains = self._asked.between.checkpoint_chains
        return {
            "version": version,
            "last_step": self.trigger.last_step,
            # of what is being measured elsewhere a resumed run can make the newest again, and no other
            "skipped": self._account.budget.skipped + max(len(self._submitted) - 1, 0),
            "begun": self.begun,
            "estimator": self._guard.ask(
                partial(self._place.state_dict, estimator, chains), None, _WITHOUT.format("chains")
            ),
            "watch": self._guard.ask(
                self.story.state_dict, self._asked.unused_detectors, _WITHOUT.format("events and the detectors")
            ),
            "curve": self.story.curve(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.trigger.last_step = state["last_step"]
        self._account.budget.skipped = state["skipped"]
        self.begun, self._last_step, self._submitted = state.get("begun"), None, {}
        before = [remembered(*point) for point in state["curve"]]
        self.story = self._asked.story(self._notices, self._guard, state["watch"], before)
        self._resumed = state
        if self.samples.estimator is not None:
            self._go_on(self.samples.estimator)

    def _go_on(self, estimator: Estimator) -> None:
        """Chains and observables go on where a checkpoint has left them, unless each measurement stands alone."""
        resumed, self._resumed = self._resumed.get("estimator"), {}
        if resumed is not None and not self._place.stands_alone and not estimator.load_state_dict(resumed):
            self.story.mark_break()

    def _goes_ahead(self, trainer: pl.Trainer) -> bool:
        """Whether a due measurement takes place; one that the budget forbids is counted."""
        estimator = self.samples.estimator
        again = self._last_step is not None and (self._last_step == trainer.global_step or is_fast_dev_run(trainer))
        if estimator is None or again or not self._place.is_open:
            return False
        if not self._place.takes(waits=self._account.budget.max_overhead is None):
            self._account.budget.skipped += 1
            return False
        return self._account.allows(estimator.expected, trainer)

    def _record_all(
        self,
        measurements: Iterable[Measurement],
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        on_step: bool | None,
    ) -> None:
        for measurement in measurements:
            submitted = self._submitted.pop(measurement.step, None)
            if submitted is None:
                self._notices.once(f"A measurement of step {measurement.step}, for which nobody asked, is left out.")
                continue
            with self._guard.world(measurement.step):
                made = _shared(trainer, self._charged(measurement, submitted))
                start = time.perf_counter()
                self.begun = self.begun if self._submitted else None
                publication = self.story.record(made, submitted.log_step)
                self._tell(publication, trainer, pl_module, on_step)
                self._account.budget.add(time.perf_counter() - start)
            estimator = self.samples.estimator
            if estimator is not None:
                outlook, workers, shares = self._place.outlook(estimator), self._place.num_workers, estimator.num_shares
                self._account.tell(trainer, self.trigger, estimator.config, outlook, shares, made, workers)

    def _timed(self, question: Callable[[], _T]) -> _T:
        """The answer; training waits for it, and the time is paid for."""
        start = time.perf_counter()
        given = question()
        self._account.budget.add(time.perf_counter() - start)
        return given

    def _charged(self, measurement: Measurement, submitted: _Submitted) -> Measurement:
        """Pay for it; one that has failed is told once a kind of error, for the texts may differ."""
        if measurement.error is not None:
            message = f"The measurement at step {measurement.step} failed: {measurement.error}."
            self._notices.once(message, measurement.error.partition(":")[0])
        for name, error in measurement.failed_refinements():
            message = f"The measurement of refinements[{name!r}] at step {measurement.step} failed: {error}."
            self._notices.once(message, f"{name} {error.partition(':')[0]}")
        num_failed = sum(one.failed for one in (*self.story.everything, measurement))
        made = replace(measurement, metrics=submitted.metrics)
        return self._account.charge(made, submitted.blocked, submitted.expected, num_failed)

    def _tell(
        self, publication: Publication, trainer: pl.Trainer, pl_module: pl.LightningModule, on_step: bool | None
    ) -> None:
        """Lightning, and whoever reacts to events; the sinks have been told."""
        self.outbox.put(publication.scalars)
        if on_step is not None:
            self.outbox.tell(pl_module, on_step)
        for event in publication.news:
            for reaction in self._asked.told.reactions:
                self._guard(reaction, "__call__", trainer, pl_module, event)

    def _told(self, estimator: Estimator) -> dict[str, Any]:
        """The settings, in builtins, for the run's config."""
        return {
            **estimator.settings.told(),
            "observables": sorted(self._asked.observables),
            "persistent_chains": self._asked.between.persistent_chains and not self._place.stands_alone,
            "max_overhead": self._account.budget.max_overhead,
            "detectors": self.story.detectors,
            **({"refinements": refined} if (refined := estimator.refinements.told()) else {}),
        }


@dataclass(frozen=True)
class _Submitted:
    """A measurement that has been asked for: where to log it, what it takes, and what the trainer's metrics were."""

    log_step: int
    expected: Mapping[str, int]
    blocked: float
    metrics: Mapping[str, float]


def _shared(trainer: pl.Trainer, measurement: Measurement) -> Measurement:
    """Rank 0's record, on every rank; the pictures stay with it, for nobody else shows them."""
    if trainer.world_size == 1:
        return measurement
    shared: Measurement = trainer.strategy.broadcast(replace(measurement, media=Media()))
    return replace(shared, media=measurement.media) if trainer.is_global_zero else shared


def _sinks_of(trainer: pl.Trainer) -> list[Sink]:
    """The default: neither a barebones trainer nor one that tries every line once leaves anything behind."""
    has_folder = any(getattr(logger, "save_dir", None) for logger in trainer.loggers)
    folder = None if has_folder else Path(trainer.default_root_dir) / PREFIX
    return default_sinks(folder, files=not (trainer.barebones or is_fast_dev_run(trainer)))


def _warn(message: str) -> None:
    rank_zero_warn(message, category=UserWarning)
