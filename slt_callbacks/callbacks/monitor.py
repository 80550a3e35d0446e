"""The callback: at a trigger, measure the live module and publish what was found."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from slt_callbacks.basics.errors import LossFnError, RankFailedError, is_loss_fn_error
from slt_callbacks.basics.keys import PREFIX
from slt_callbacks.basics.notices import Notices
from slt_callbacks.basics.plain import to_builtins
from slt_callbacks.basics.rng import isolated_rng, seed_from
from slt_callbacks.callbacks.arguments import (
    check_store_chains,
    checked_reactions,
    checked_sampler,
    checked_sinks,
    shortened,
)
from slt_callbacks.callbacks.awaited import awaited_keys
from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.callbacks.first_batches import FirstBatches, check_before_batches
from slt_callbacks.callbacks.forecast import Forecast
from slt_callbacks.callbacks.information import shown_by_lightning
from slt_callbacks.callbacks.processes import LightningRanks, share_reference
from slt_callbacks.callbacks.progress import measurement_progress
from slt_callbacks.callbacks.reactions import Reaction
from slt_callbacks.callbacks.schedule import Trigger
from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, Reference, check_num_samples, check_seed, draw_reference
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.report import Report
from slt_callbacks.losses.functions import LossFn, check_loss_fn
from slt_callbacks.measuring.estimator import Estimator, check_distinct
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.base import Observable
from slt_callbacks.observables.llc import LLC
from slt_callbacks.observables.panel import check_observables
from slt_callbacks.recording.history import History, remembered
from slt_callbacks.recording.watch import Detector, Watch
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sinks.base import Publication, Sink, publish_media, publish_scalars
from slt_callbacks.sinks.files import FileSink
from slt_callbacks.sinks.loggers import LoggerSink
from slt_callbacks.sinks.wandb import WandbSink

_State = dict[str, Any] | None
_STATE_VERSION = 1
_MOST_MATRIX_BYTES = 2**26  # in the history: some twenty kernels with influence of 256 samples
# By name: those of the package pytorch_lightning are classes of their own.
_REFUSED = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy"}
_PLUGINS_STREAM, _SCHEDULE_STREAM = 301, 302  # apart from the streams of the estimator


class SLTMonitor(pl.Callback):
    """Measures the local learning coefficient, and whatever else is asked for, while a model trains.

    At every trigger the live weights are forked, short localized SGLD chains run from the fork, and what the
    observables make of their draws goes to the loggers. Training itself is left bit-identical: the live module is read
    only, and all randomness is private.

    Args:
        reference: Samples to measure on: a Dataset, a DataLoader (its dataset), a list of batches, a function that
            returns one of these, or None for the first training batches seen, as far as the first epoch goes. Batches
            that cannot serve cost the measurements, with a warning, and never the run; and a resumed run sees others,
            so that its chains start afresh. Labels need a data set, and are refused without.
        loss_fn: ``(module, batch) -> losses``, one a sample ``(B,)`` or one a token ``(B, T)`` (averaged over T); a
            scalar serves the LLC alone. None: the module's ``per_sample_loss(batch)``, else the loss that its
            ``training_step`` returns.
        observables: What to measure, by the key it is logged under; None for ``{"llc": LLC()}``.
        sampler: What one measurement costs; None for the defaults of `SamplerConfig`.
        num_samples: Size of the reference set, drawn once (seeded); None for 256, or all where there are fewer.
        every_n_train_steps: Measure when a multiple of so many optimizer steps is crossed.
        every_n_epochs: Measure at the end of every so many epochs.
        train_time_interval: Measure after every such time of training.
        schedule: Measure where ``schedule(step)`` is true, as for `log_linear_steps`; step 0 is before training.
        persistent_chains: Chains go on from one measurement to the next (memory: chains x parameters), which saves most
            of the burn-in. False starts each measurement at the weights themselves.
        max_overhead: Most seconds of measuring for a second of training; a due measurement beyond it is skipped and
            counted. The first one always runs. None for no limit.
        detectors: What watches which logged key, one or several, such as ``{"slt/kernel/trace": JumpDetector()}``; a
            `JumpDetector` and a `StageDetector` watch the mean of the first LLC as well, where one of the same class
            takes its place and an empty list switches them off.
        on_event: What to do on an event: `Alert`, `SaveCheckpoint`, `StopTraining`, or any
            ``(trainer, pl_module, event)``. One that raises is reported, and training goes on.
        sinks: Where measurements go; None for every logger of the trainer, and files in the folder of the run.
        checkpoint_chains: Whether checkpoints hold the persistent chains; without, they burn in again after a resume.
        store_chains: Where persistent chains wait for the next measurement: "device" or "cpu".
        seed: Of the reference set and the chains.

    A monitor may serve one fit after the other. Where the same trainer goes on, so do the measurements; a fit that
    begins at step 0 and is no resume is a new run, whose history, events, detectors and chains begin empty (a detector
    of your own without `load_state_dict` remembers what it has seen).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a setting is out of range, or not exactly one trigger is given.
        MisconfigurationException: From `fit`, before training: a reference set or loss function that cannot be used,
            nothing trainable, or a strategy that shards parameters.

    What is logged, against ``slt/step`` (optimizer steps at the fork), for an observable with the key ``llc``:

    ====================================  ==================================================================
    key                                   meaning
    ====================================  ==================================================================
    slt/llc/mean, stderr, std             the estimate, its standard error over chains, their spread
    slt/llc/variance_llc, reference_loss  nbeta^2 Var(L); the loss at the fork
    slt/health/rhat, ess, drift           do the chains agree, how many draws are they worth, do they move on
    slt/health/failed_chains, step_bias   chains dropped; relative discretization bias, sound below 0.05
    slt/health/step_size, nbeta, ...      the settings in force
    slt/cost/seconds, sgld_steps          what the measurement took
    slt/cost/overhead, skipped, failed    share of training time so far; due measurements left out; failed ones
    slt/stage, slt/jump                   boundaries announced so far; +1 or -1 where the LLC has just jumped
    slt/detection/phi                     calibration of the standard errors as noise of the curve
    slt/stages, slt/events (tables)       the stages and events so far, at every event and at the end
    slt/figure (image)                    loss and LLC with stages and jumps, at the same times
    slt/kernel/trace, effective_rank      `LossKernel`: summed variance, directions the samples' losses move in
    slt/kernel/alignment, class_contrast  CKA with the last kernel; correlation within classes minus between
    slt/kernel/label_alignment            CKA with the kernel that is 1 within classes
    slt/kernel/map (image)                the kernel, rows in one order over the whole run
    slt/influence/shift                   `Influence`: how much it moved
    slt/influence/sign_flips, peaks       pairs that certainly changed sides, or turned
    slt/influence/group/<a>_to_<b>        mean correlation by label; positive helps
    slt/influence/group_flips, ..._peaks  of these means
    slt/influence/map, events             an image; a table of the pairs and groups that moved most
    slt-matrices-<run> (artifact)         the matrices, at events and at the end
    ====================================  ==================================================================

    ``slt/llc/mean`` is also in ``trainer.callback_metrics``, for ModelCheckpoint and EarlyStopping. It is not there
    before the first measurement that has succeeded, and no number may stand in for it, so let EarlyStopping wait:
    ``EarlyStopping("slt/llc/mean", strict=False)``; by default it ends a run whose metric is missing. A
    ModelCheckpoint, which would end it as well, is told NaN, to which it prefers any number.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from slt_callbacks import SLTMonitor, SamplerConfig
        >>> class Net(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> data = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
        >>> sampler = SamplerConfig(num_chains=2, num_draws=8, num_burnin_steps=4)
        >>> monitor = SLTMonitor([data], sampler=sampler, every_n_train_steps=2, max_overhead=None)
        >>> trainer = pl.Trainer(max_steps=4, accelerator="cpu", callbacks=[monitor], barebones=True)  # no files
        >>> trainer.fit(Net(), DataLoader(data, 4))
        >>> [measurement.step for measurement in monitor.history]
        [2, 4]
    """

    def __init__(
        self,
        reference: Reference | None = None,
        loss_fn: LossFn | None = None,
        observables: Mapping[str, Observable] | None = None,
        sampler: SamplerConfig | None = None,
        num_samples: int | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        schedule: Callable[[int], bool] | None = None,
        persistent_chains: bool = True,
        max_overhead: float | None = 0.1,
        detectors: Mapping[str, Detector | Sequence[Detector]] | None = None,
        on_event: Sequence[Reaction] = (),
        sinks: Sequence[Sink] | None = None,
        checkpoint_chains: bool = True,
        store_chains: Literal["device", "cpu"] = "device",
        seed: int = 0,
    ) -> None:
        check_store_chains(store_chains)
        check_loss_fn(loss_fn)
        check_num_samples(num_samples)
        check_seed(seed)
        super().__init__()
        asked = partial(self._asked, schedule) if callable(schedule) else schedule
        self._trigger = Trigger(every_n_train_steps, every_n_epochs, train_time_interval, asked)
        self._budget = Budget(max_overhead)
        self._reference = reference
        self._loss_fn = loss_fn
        self._observables = check_observables({"llc": LLC()} if observables is None else observables)
        check_distinct(self._observables)
        self._sampler = checked_sampler(sampler)
        self._num_samples = num_samples
        self._persistent_chains = persistent_chains
        self._checkpoint_chains = checkpoint_chains
        self._store_chains = store_chains
        self._seed = seed
        self._detectors = detectors
        self._notices = Notices(_warn)
        self._watch = Watch(detectors, self._observables)
        self._unused_watch = copy.deepcopy(self._watch.state_dict())
        self._reactions = checked_reactions(on_event)
        if self._reactions and not self._watch.settings():
            rank_zero_warn(
                "`on_event` has nothing to react to but failing measurements, for no LLC is measured: add one to "
                "`observables`, or say in `detectors` what to watch.",
                category=UserWarning,
            )
        self._sinks = checked_sinks(sinks)
        self._open_sinks: list[Sink] = []
        self._stage = "fit"
        self._loaded = False  # whether a checkpoint was loaded for the fit that is about to begin
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Nothing has been measured yet."""
        self._trigger.last_step = -1
        self._budget.skipped = 0
        self._estimator: Estimator | None = None
        self._first_batches: FirstBatches | None = None
        self._restored: dict[str, Any] = {}
        self._notices = Notices(_warn)
        self._cost_told = False
        self._first_step = 0
        self._told_others = False  # what a ModelCheckpoint that goes by our numbers has to be told
        self._unlogged: dict[str, float] = {}
        self._begun: list[int] | None = None  # step and log step of a measurement that is under way, or was cut short
        self._before: list[Measurement] = []  # a resume: their numbers alone
        self._history = History(self._observables, _MOST_MATRIX_BYTES)
        self._watch = self._new_watch(self._unused_watch)

    def _new_watch(self, state: Mapping[str, Any]) -> Watch:
        watch = Watch(self._detectors, self._observables, self._notices)
        watch.load_state_dict(copy.deepcopy(state))
        return watch

    @property
    def history(self) -> list[Measurement]:
        """Every `Measurement` of this run in this process, in order.

        Matrices, such as a kernel's covariance, stay in the last ones only, at most 16 of them and 64 MiB, or a long
        run would fill the memory: a `MemorySink` keeps them all.
        """
        return self._history.measurements

    @property
    def events(self) -> list[Any]:
        """Every jump and stage event so far, those from before a resume included."""
        return [found.event for found in self._watch.found]

    @property
    def stages(self) -> list[Stage]:
        """The developmental stages: as they look now, and final after the fit."""
        return self._watch.stages

    @property
    def state_key(self) -> str:
        """One state for every monitor of a Trainer: what they measure tells them apart."""
        return self._generate_state_key(observables=sorted(self._observables), seed=self._seed)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and draw the reference set."""
        self._stage = stage
        if stage != "fit":
            return
        if _REFUSED & {kind.__name__ for kind in type(trainer.strategy).__mro__}:
            raise MisconfigurationException(
                f"SLTMonitor cannot sample a model that {type(trainer.strategy).__name__} shards or rewrites: use "
                'strategy="auto" or "ddp".'
            )
        if any(isinstance(other, SLTMonitor) and other is not self for other in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "Expected one SLTMonitor in `callbacks`, but got several, whose keys would collide: give one of them "
                'all `observables`, such as {"llc": LLC(), "finer": LLC()}.'
            )
        if trainer.global_step == 0 and not self._loaded:
            self._start_afresh()
        if self._estimator is not None:  # the same trainer goes on
            return
        try:
            if self._reference is None:
                wanted = self._num_samples or DEFAULT_NUM_SAMPLES
                check_before_batches(wanted, self._sampler, self._observables, self._loss_fn, pl_module)
                self._first_batches = FirstBatches(wanted)
            else:
                self._estimator = self._make_estimator(trainer, self._reference, self._num_samples)
        except (RankFailedError, TypeError, ValueError) as error:
            raise MisconfigurationException(f"SLTMonitor: {error}") from error

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the loss function on the model, now on its device, and open the sinks."""
        self._loaded = False
        if self._estimator is not None:
            self._check(self._estimator, pl_module)
            self._open(trainer, self._estimator)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; measure before training where the schedule says so."""
        self._budget.start()
        self._first_step, self._told_others = trainer.global_step, False
        last = next((one for one in reversed([*self._before, *self.history]) if not one.failed), None)
        if last is not None:  # a run that goes on: Lightning has forgotten what was there
            self._unlogged = _finite(publish_scalars(last))
        if self._trigger.at_start(trainer.global_step):
            self._measure(trainer, pl_module, log_step=0, on_step=None)
        elif self._begun is not None and self._begun[0] == trainer.global_step:
            self._measure(trainer, pl_module, log_step=self._begun[1], on_step=None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Without a reference, keep the first batches."""
        if self._first_batches is not None:
            self._collect(trainer, self._first_batches, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where a step trigger is due."""
        if not self._told_others:  # once a fit, for Lightning's metrics may be costly to look at
            self._told_others = True
            awaited = awaited_keys(trainer, {*self._observables, "health", "cost"})
            self._unlogged = dict.fromkeys(awaited, math.nan) | self._unlogged
        self._log_metrics(pl_module, on_step=True)
        due = self._trigger.at_step(trainer.global_step)
        if self._trigger.by_time:
            due = trainer.strategy.broadcast(due)
        if due or _fast_dev_run(trainer):
            log_step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self._measure(trainer, pl_module, log_step, on_step=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure where an epoch trigger is due."""
        if self._first_batches is not None:
            self._start_with(trainer, self._first_batches)  # an epoch is all there is
        if self._trigger.at_epoch_end(trainer.current_epoch):
            log_step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)
            self._measure(trainer, pl_module, log_step, on_step=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The stages are final."""
        self._tell_story()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning calls no teardown after an exception; what was found until then is told."""
        self._tell_story()
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the sinks."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Trigger, step size and chains; builtins and tensors only."""
        if self._estimator is None:
            return self._restored
        return {
            "version": _STATE_VERSION,
            "last_step": self._trigger.last_step,
            "skipped": self._budget.skipped,
            "begun": self._begun,
            "estimator": self._state_of("chains", partial(self._estimator.state_dict, self._checkpoint_chains), None),
            "watch": self._state_of("events and the detectors", self._watch.state_dict, self._unused_watch),
            "curve": [[m.step, m.scalars(), m.error] for m in (*self._before, *self.history)],
        }

    def _state_of(self, what: str, take: Callable[[], _State], otherwise: _State) -> _State:
        """A part of the checkpoint, which without it is still one to train on from."""
        try:
            return take()
        except Exception as error:  # noqa: BLE001  # a detector or an observable may be the user's own
            reason = f"a `state_dict` raised {type(error).__name__}: {error}"
            self._notices.once(
                f"Checkpoints go without the {what}, because {reason}. Training goes on.", f"state {what}"
            )
            return otherwise

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the state of a monitor that measured something else, or with another seed: its run goes on here."""
        states = checkpoint.get("callbacks", {})
        others = [key for key in states if key.partition("{")[0] == type(self).__name__]
        if self.state_key not in states and len(others) == 1:
            self.load_state_dict(copy.deepcopy(states[others[0]]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after a resume: nothing is measured twice, and chains need no burn-in."""
        if self._stage != "fit":  # Lightning also loads a checkpoint to test it, and the run's story must not change
            return
        if state_dict.get("version") != _STATE_VERSION:
            warnings.warn(
                f"The checkpoint holds SLTMonitor state of version {state_dict.get('version')}, but this is version "
                f"{_STATE_VERSION}: the monitor starts afresh.",
                stacklevel=2,
            )
            return
        self._loaded = True
        self._trigger.last_step = state_dict["last_step"]
        self._begun = state_dict.get("begun")
        self._budget.skipped = state_dict["skipped"]
        self._watch = self._new_watch(state_dict["watch"])
        self._before = [remembered(*point) for point in state_dict["curve"]]
        self._history = History(self._observables, _MOST_MATRIX_BYTES)
        if self._estimator is None:
            self._restored = state_dict
        else:
            self._go_on(self._estimator, state_dict)

    def _asked(self, schedule: Callable[[int], bool], step: int) -> bool:
        """What the user's schedule says; one that raises is reported once, and nothing is due."""
        try:
            with isolated_rng(seed_from(self._seed, step, _SCHEDULE_STREAM)):
                return bool(schedule(step))
        except Exception as error:  # noqa: BLE001  # it is the user's own
            self._notices.once(f"`schedule` raised {type(error).__name__}: {error}. Training goes on.", "schedule")
            return False

    def _make_estimator(self, trainer: pl.Trainer, reference: Reference, num_samples: int | None) -> Estimator:
        at_most = self._num_samples or DEFAULT_NUM_SAMPLES
        estimator = Estimator(
            share_reference(trainer, partial(draw_reference, reference, num_samples, self._seed, at_most)),
            self._loss_fn,
            self._observables,
            shortened(self._sampler) if _fast_dev_run(trainer) else self._sampler,
            self._seed,
            self._persistent_chains,
            self._store_chains,
            LightningRanks(trainer) if trainer.world_size > 1 else None,
        )
        if self._restored:
            self._go_on(estimator, self._restored)
            self._restored = {}
        return estimator

    def _go_on(self, estimator: Estimator, state_dict: dict[str, Any]) -> None:
        state = state_dict["estimator"]
        if state is not None and not estimator.load_state_dict(state):
            self._watch.mark_break()

    def _open(self, trainer: pl.Trainer, estimator: Estimator) -> None:
        """Open the sinks, with the settings in force."""
        if trainer.is_global_zero:
            for sink in self._sinks if self._sinks is not None else _default_sinks(trainer):
                if self._safely(sink, "open", trainer.loggers, self._config(estimator)):
                    self._open_sinks.append(sink)

    def _check(self, estimator: Estimator, pl_module: pl.LightningModule) -> None:
        try:
            with shown_by_lightning():
                estimator.check(pl_module)
        except (LossFnError, RankFailedError, TypeError, ValueError) as error:
            if self._loss_fn is None or not is_loss_fn_error(error):
                raise MisconfigurationException(f"SLTMonitor: {error}") from error
            self._notices.once(f"Every measurement will fail until this is mended: {error}")

    def _collect(self, trainer: pl.Trainer, first: FirstBatches, batch: Any) -> None:
        """Keep a batch; rank 0's are the reference set of all ranks."""
        problem = None
        try:
            first.add(batch)
        except Exception as error:  # noqa: BLE001  # whatever a batch is, training can live with it
            problem = f"{type(error).__name__}: {error}"
        problem, enough = trainer.strategy.broadcast((problem, first.enough))
        if problem is not None:
            self._give_up(problem)
        elif enough:
            self._start_with(trainer, first)

    def _start_with(self, trainer: pl.Trainer, first: FirstBatches) -> None:
        """Make a reference set of the batches seen."""
        self._first_batches = None
        try:
            self._estimator = self._make_estimator(trainer, first.batches, None)
        except Exception as error:  # noqa: BLE001  # as above
            self._give_up(f"{type(error).__name__}: {error}")
        if not trainer.strategy.reduce_boolean_decision(self._estimator is not None) or self._estimator is None:
            self._estimator = None  # where one rank has failed, none measures
            return
        if self._num_samples is not None and not first.enough:
            self._notices.once(
                f"Expected `num_samples` to be at most the samples of the first epoch, but got {self._num_samples}: "
                f"measuring on the {len(self._estimator.reference)} that were seen."
            )
        self._open(trainer, self._estimator)

    def _give_up(self, problem: str) -> None:
        self._first_batches = None
        self._notices.once(
            f"The first training batches cannot serve as the reference set ({problem}), so nothing is measured in this "
            "fit. Training goes on. Give the samples to measure on as `reference`."
        )

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, log_step: int, on_step: bool | None) -> None:
        """Guard, measure, publish. Rank 0 decides; all ranks share the chains, and get rank 0's record."""
        if not trainer.strategy.broadcast(self._goes_ahead(trainer)) or self._estimator is None:
            return
        self._begun = [trainer.global_step, log_step]
        with isolated_rng(seed_from(self._seed, trainer.global_step, _PLUGINS_STREAM)):
            self._measure_and_publish(self._estimator, trainer, pl_module, log_step, on_step)

    def _measure_and_publish(
        self,
        estimator: Estimator,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        log_step: int,
        on_step: bool | None,
    ) -> None:
        start = time.perf_counter()
        measurement = trainer.strategy.broadcast(self._attempt(estimator, trainer, pl_module))
        self._history.add(measurement)
        self._begun = None
        found = self._watch.update(measurement)
        publication = Publication(
            measurement,
            publish_scalars(measurement) | self._watch.scalars(),
            log_step,
            events=[earlier.row() for earlier in self._watch.found] if found else (),
            stages=[dataclasses.asdict(stage) for stage in self.stages] if found else (),
            report=self._report() if found else None,
            **self._media(measurement),
        )
        self._publish(publication, pl_module, on_step)
        self._tell_silent_keys(publication)
        for new in found:
            for reaction in self._reactions:
                self._safely(reaction, "__call__", trainer, pl_module, new.event)
        self._budget.add(max(time.perf_counter() - start - measurement["cost"]["seconds"], 0.0))
        self._tell_cost(trainer, estimator, measurement)

    def _tell_silent_keys(self, publication: Publication) -> None:
        """Once: a detector on a number that a measurement which has succeeded did not give will wait for ever."""
        if publication.measurement.failed:
            return
        for key in self._watch.settings().keys() - publication.scalars.keys():
            start = key.rpartition("/")[0] + "/"
            there = sorted(other for other in publication.scalars if other.startswith(start))
            self._notices.once(
                f"`detectors` watches {key!r}, which no measurement gives: there is {', '.join(there) or 'none'}."
            )

    def _report(self) -> Report:
        rows = [found.row() for found in self._watch.found]
        return Report([*self._before, *self.history], self.stages, self.events, rows, self._watch.observable)

    def _tell_story(self) -> None:
        self._safely(self._watch, "finish")
        for sink in self._open_sinks:
            if hasattr(sink, "finish"):
                self._safely(sink, "finish", self._report())

    def _tell_cost(self, trainer: pl.Trainer, estimator: Estimator, measurement: Measurement) -> None:
        """Once, as soon as there is a measurement and some training to compare it with."""
        if self._cost_told or measurement.failed or trainer.global_step == 0 or _fast_dev_run(trainer):
            return
        self._cost_told = True
        steps = max(trainer.global_step - self._first_step, 1)
        seconds_per_step = self._budget.training_seconds / steps
        forecast = Forecast(
            seconds=measurement["cost"]["seconds"],
            sgld_steps=measurement["cost"]["sgld_steps"],
            next_steps=estimator.expected_steps * trainer.world_size,
            seconds_per_step=seconds_per_step,
            every_n_steps=self._trigger.steps_between(steps, trainer.current_epoch, seconds_per_step),
            stored_bytes=estimator.stored_bytes,
            in_checkpoints=self._checkpoint_chains,
        )
        rank_zero_info(forecast.line(estimator.config, self._budget.max_overhead))

    def _media(self, measurement: Measurement) -> dict[str, Any]:
        """Pictures and tables; an observable that raises over them is reported once, and its numbers are published."""
        try:
            return publish_media(measurement, self._observables)
        except Exception as error:  # noqa: BLE001  # an observable may be the user's own
            kind = type(error).__name__
            self._notices.once(
                f"The pictures could not be made: {kind}: {error}. Training goes on.", f"pictures {kind}"
            )
            return {}

    def _goes_ahead(self, trainer: pl.Trainer) -> bool:
        """Whether a due measurement takes place; one that the budget forbids is counted."""
        again = bool(self.history) and (self.history[-1].step == trainer.global_step or _fast_dev_run(trainer))
        if self._estimator is None or again:
            return False
        if not self._budget.allows(self._estimator.expected_steps):
            self._budget.skipped += 1
            return False
        return True

    def _attempt(self, estimator: Estimator, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Measurement:
        """Measure, whatever happens, and pay for it."""
        step, start, expected = trainer.global_step, time.perf_counter(), estimator.expected_steps
        try:
            with shown_by_lightning(), measurement_progress(trainer, expected) as advance:
                measurement = estimator.measure(pl_module, step, on_steps=advance)
        except Exception as error:  # noqa: BLE001  # whatever a measurement meets costs a measurement, not the run
            measurement = estimator.failed(step, f"{type(error).__name__}: {error}", start)
        if measurement.error is not None:
            kind = measurement.error.partition(":")[0]  # the texts may differ from one to the next
            self._notices.once(f"The measurement at step {step} failed: {measurement.error}.", kind)
        self._budget.spend(measurement["cost"]["seconds"], expected if measurement["cost"]["sgld_steps"] else 0)
        cost = {
            **measurement["cost"],
            "overhead": self._budget.overhead,
            "skipped": self._budget.skipped,
            "failed": sum(one.failed for one in (*self._before, *self.history, measurement)),
        }
        return replace(measurement, results={**measurement.results, "cost": cost})

    def _publish(self, publication: Publication, pl_module: pl.LightningModule, on_step: bool | None) -> None:
        # EarlyStopping would end the run over a NaN.
        self._unlogged = _finite(publication.scalars)
        # What Lightning is told before the first batch would come back at the end of every epoch: it waits for a batch.
        if on_step is not None:
            self._log_metrics(pl_module, on_step)
        for sink in self._open_sinks:
            self._safely(sink, "publish", publication)

    def _log_metrics(self, pl_module: pl.LightningModule, on_step: bool) -> None:
        """Into the bar and ``trainer.callback_metrics``, which a barebones trainer has not."""
        metrics, self._unlogged = self._unlogged, {}
        if not pl_module.trainer.barebones:
            for key, value in metrics.items():
                shown = key.endswith("/mean")
                pl_module.log(
                    key, value, prog_bar=shown, logger=False, on_step=on_step, on_epoch=not on_step, batch_size=1
                )

    def _safely(self, plugin: Any, method: str, *arguments: Any) -> bool:
        """Call a sink or a reaction; one that raises is reported once and costs what it was given."""
        try:
            with isolated_rng(seed_from(self._seed, self._trigger.last_step, _PLUGINS_STREAM)):
                getattr(plugin, method)(*arguments)
        except Exception as error:  # noqa: BLE001  # a full disk or a finished W&B run must not end training
            name = getattr(plugin, "__name__", type(plugin).__name__)
            self._notices.once(
                f"{name}.{method} raised {type(error).__name__}: {error}. Training goes on.", f"{name}.{method}"
            )
            return False
        return True

    def _close(self) -> None:
        for sink in self._open_sinks:
            self._safely(sink, "close")
        self._open_sinks = []

    def _config(self, estimator: Estimator) -> dict[str, Any]:
        """The settings, in builtins, for the run's config."""
        return {
            "observables": sorted(self._observables),
            "sampler": to_builtins(estimator.config, tag="name"),
            "nbeta": estimator.nbeta,
            "num_samples": len(estimator.reference),
            "persistent_chains": self._persistent_chains,
            "max_overhead": self._budget.max_overhead,
            "detectors": self._watch.settings(),
            "seed": self._seed,
        }


def _warn(message: str) -> None:
    rank_zero_warn(message, category=UserWarning)


def _finite(scalars: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in scalars.items() if math.isfinite(value)}


def _default_sinks(trainer: pl.Trainer) -> list[Sink]:
    sinks: list[Sink] = [LoggerSink(), WandbSink()]
    if trainer.barebones or _fast_dev_run(trainer):  # neither leaves anything behind
        return sinks
    has_folder = any(getattr(logger, "save_dir", None) for logger in trainer.loggers)
    return [*sinks, FileSink(None if has_folder else Path(trainer.default_root_dir) / PREFIX)]


def _fast_dev_run(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside the class, unseen by mypy
