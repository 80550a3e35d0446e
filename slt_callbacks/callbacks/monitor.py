"""The callback: at a trigger, measure the live module and publish what was found."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.callbacks.forecast import Forecast
from slt_callbacks.callbacks.processes import LightningRanks, share_reference
from slt_callbacks.callbacks.progress import measurement_progress
from slt_callbacks.callbacks.reactions import Reaction
from slt_callbacks.callbacks.schedule import Trigger
from slt_callbacks.callbacks.watch import Detector, Found, Watch
from slt_callbacks.detection import Stage
from slt_callbacks.estimate import Estimator, Measurement
from slt_callbacks.observables import LLC, Observable, check_observables
from slt_callbacks.sampling import (
    DEFAULT_NUM_SAMPLES,
    LossFn,
    LossFnError,
    Reference,
    SamplerConfig,
    draw_reference,
    map_leaves,
    num_rows,
)
from slt_callbacks.sinks import (
    PREFIX,
    FileSink,
    LoggerSink,
    Publication,
    Report,
    Sink,
    WandbSink,
    publish_media,
    publish_scalars,
)

_STATE_VERSION = 1
_MOST_MATRIX_BYTES = 2**21  # in the history; the newest measurement keeps its own in any case
_REFUSED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, XLAStrategy)


class SLTMonitor(pl.Callback):
    """Measures the local learning coefficient, and whatever else is asked for, while a model trains.

    At every trigger the live weights are forked, short localized SGLD chains run from the fork, and what the
    observables make of their draws goes to the loggers. Training itself is left bit-identical: the live module is read
    only, and all randomness is private.

    Args:
        reference: Samples to measure on: a Dataset, a DataLoader (its dataset), a list of batches, a function that
            returns one of these, or None for the first training batches seen.
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
            `JumpDetector` and a `StageDetector` watch ``slt/llc/mean`` unless an empty list says otherwise.
        on_event: What to do on an event: `Alert`, `SaveCheckpoint`, `StopTraining`, or any
            ``(trainer, pl_module, event)``. One that raises is reported, and training goes on.
        sinks: Where measurements go; None for every logger of the trainer, and files in the folder of the run.
        checkpoint_chains: Whether checkpoints hold the persistent chains; without, they burn in again after a resume.
        store_chains: Where persistent chains wait for the next measurement: "device" or "cpu".
        seed: Of the reference set and the chains.

    Attributes:
        history: Every `Measurement` of this process, in order. Of matrices, such as a kernel's covariance, the last
            2 MiB stay, or a long run would fill the memory: a `MemorySink` keeps them all.

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
    slt/cost/overhead, skipped            share of training time so far; due measurements left out
    slt/stage, slt/jump                   number of the present stage; +1 or -1 where the LLC has just jumped
    slt/detection/phi                     calibration of the standard errors as noise of the curve
    slt/stages, slt/events (tables)       the stages and events so far, at every event and at the end
    slt/figure (image)                    loss and LLC with stages and jumps, at the same times
    slt/kernel/trace, effective_rank      `LossKernel`: summed variance, directions the samples' losses move in
    slt/kernel/alignment, class_contrast  CKA with the last kernel; correlation within classes minus between
    slt/kernel/map (image)                the kernel, rows in one order over the whole run
    slt/influence/shift, sign_flips       `Influence`: how much it moved; pairs that certainly changed sides
    slt/influence/group/<a>_to_<b>        mean correlation by label; positive helps
    slt/influence/map, events             an image; a table of the pairs and groups that moved most
    ====================================  ==================================================================

    ``slt/llc/mean`` is also in ``trainer.callback_metrics``, for ModelCheckpoint and EarlyStopping.

    Example:
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
        if store_chains not in ("device", "cpu"):
            raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {store_chains!r}.')
        super().__init__()
        self._trigger = Trigger(every_n_train_steps, every_n_epochs, train_time_interval, schedule)
        self._budget = Budget(max_overhead)
        self._reference = reference
        self._loss_fn = loss_fn
        self._observables = check_observables({"llc": LLC()} if observables is None else observables)
        self._sampler = _checked_sampler(sampler)
        self._num_samples = num_samples
        self._persistent_chains = persistent_chains
        self._checkpoint_chains = checkpoint_chains
        self._store_chains = store_chains
        self._seed = seed
        self._watch = Watch(detectors, [*self._observables, "health", "cost"])
        self._reactions = _checked_reactions(on_event)
        self._sinks = _checked_sinks(sinks)
        self._open_sinks: list[Sink] = []
        self._estimator: Estimator | None = None
        self._seen: list[Any] = []
        self._restored: dict[str, Any] = {}
        self._warned: set[str] = set()
        self._cost_told = False
        self._first_step = 0
        self._heavy: deque[tuple[int, int]] = deque()  # places in the history that keep matrices, and their bytes
        self._before: list[Measurement] = []  # a resume: their numbers alone
        self.history: list[Measurement] = []

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
        if stage != "fit":
            return
        if isinstance(trainer.strategy, _REFUSED):
            raise MisconfigurationException(
                f"SLTMonitor cannot sample a model that {type(trainer.strategy).__name__} shards or rewrites: use "
                'strategy="auto" or "ddp".'
            )
        if any(isinstance(other, SLTMonitor) and other is not self for other in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "Expected one SLTMonitor in `callbacks`, but got several, whose keys would collide: give one of them "
                'all `observables`, such as {"llc": LLC(), "finer": LLC()}.'
            )
        if _fast_dev_run(trainer):
            self._sampler = _shortened(self._sampler)
        if self._reference is not None:
            try:
                self._estimator = self._make_estimator(trainer, self._reference)
            except (TypeError, ValueError) as error:
                raise MisconfigurationException(f"SLTMonitor: {error}") from error

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the loss function on the model, now on its device, and open the sinks."""
        if self._estimator is not None:
            self._check(self._estimator, pl_module)
        self._seen = []
        if trainer.is_global_zero:
            for sink in self._sinks if self._sinks is not None else _default_sinks(trainer):
                if self._safely(sink, "open", trainer.loggers, self._config()):
                    self._open_sinks.append(sink)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; measure before training where the schedule says so."""
        self._budget.start()
        self._first_step = trainer.global_step
        if self._trigger.at_start() and trainer.global_step == 0:
            self._measure(trainer, pl_module, log_step=0, on_step=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Without a reference, keep the first batches."""
        if self._estimator is None:
            self._collect(trainer, batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where a step trigger is due."""
        due = self._trigger.at_step(trainer.global_step)
        if self._trigger.by_time:
            due = trainer.strategy.broadcast(due)
        if due or _fast_dev_run(trainer):
            log_step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self._measure(trainer, pl_module, log_step, on_step=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure where an epoch trigger is due."""
        if self._estimator is None and self._num_samples is None and self._seen:
            self._start_with_seen(trainer)  # fewer samples than the default: an epoch is all there is
        if self._trigger.at_epoch_end(trainer.current_epoch):
            log_step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)
            self._measure(trainer, pl_module, log_step, on_step=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The stages are final."""
        self._watch.finish()
        for sink in self._open_sinks:
            if hasattr(sink, "finish"):
                self._safely(sink, "finish", self._report())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning calls no teardown after an exception."""
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
            "estimator": self._estimator.state_dict(chains=self._checkpoint_chains),
            "watch": self._watch.state_dict(),
            "curve": [[m.step, m.scalars(), m.error] for m in (*self._before, *self.history)],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after a resume: nothing is measured twice, and chains need no burn-in."""
        if state_dict.get("version") != _STATE_VERSION:
            warnings.warn(
                f"The checkpoint holds SLTMonitor state of version {state_dict.get('version')}, but this is version "
                f"{_STATE_VERSION}: the monitor starts afresh.",
                stacklevel=2,
            )
            return
        self._restored = state_dict
        self._trigger.last_step = state_dict["last_step"]
        self._budget.skipped = state_dict["skipped"]
        self._watch.load_state_dict(state_dict["watch"])
        self._before = [Measurement(step, _nested(scalars), error) for step, scalars, error in state_dict["curve"]]
        if self._estimator is not None:
            self._estimator.load_state_dict(state_dict["estimator"])

    def _make_estimator(self, trainer: pl.Trainer, reference: Reference) -> Estimator:
        draw = partial(draw_reference, reference, self._num_samples, self._seed, at_most=DEFAULT_NUM_SAMPLES)
        estimator = Estimator(
            share_reference(trainer, draw),
            self._loss_fn,
            self._observables,
            self._sampler,
            self._seed,
            self._persistent_chains,
            self._store_chains,
            LightningRanks(trainer) if trainer.world_size > 1 else None,
        )
        if self._restored:
            estimator.load_state_dict(self._restored["estimator"])
        return estimator

    def _check(self, estimator: Estimator, pl_module: pl.LightningModule) -> None:
        try:
            estimator.check(pl_module)
        except LossFnError as error:
            if self._loss_fn is None:
                raise MisconfigurationException(f"SLTMonitor: {error}") from error
            self._warn_once(f"Every measurement will fail until this is mended: {error}")
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"SLTMonitor: {error}") from error

    def _collect(self, trainer: pl.Trainer, batch: Any) -> None:
        self._seen.append(map_leaves(_to_cpu, batch))
        wanted = self._num_samples or DEFAULT_NUM_SAMPLES
        if trainer.strategy.broadcast(sum(num_rows(seen) for seen in self._seen) >= wanted):
            self._start_with_seen(trainer)

    def _start_with_seen(self, trainer: pl.Trainer) -> None:
        self._estimator = self._make_estimator(trainer, self._seen)
        self._seen = []

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, log_step: int, on_step: bool) -> None:
        """Guard, measure, publish. Rank 0 decides; all ranks share the chains, and get rank 0's record."""
        if not trainer.strategy.broadcast(self._goes_ahead(trainer)) or self._estimator is None:
            return
        start = time.perf_counter()
        measurement = trainer.strategy.broadcast(self._attempt(self._estimator, trainer, pl_module))
        self._remember(measurement)
        found = self._detect(measurement)
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
        for new in found:
            for reaction in self._reactions:
                self._safely(reaction, "__call__", trainer, pl_module, new.event)
        self._budget.add(max(time.perf_counter() - start - measurement["cost"]["seconds"], 0.0))
        self._tell_cost(trainer, self._estimator, measurement)

    def _report(self) -> Report:
        return Report([*self._before, *self.history], self.stages, self.events, [f.row() for f in self._watch.found])

    def _remember(self, measurement: Measurement) -> None:
        """Into the history, where the oldest measurements give up their matrices."""
        self._heavy.append((len(self.history), sum(matrix.nbytes for matrix in self._matrices(measurement).values())))
        self.history.append(measurement)
        while len(self._heavy) > 1 and sum(size for _, size in self._heavy) > _MOST_MATRIX_BYTES:
            place, _ = self._heavy.popleft()
            old = self.history[place]
            matrices = self._matrices(old)
            results = {
                key: {name: value for name, value in result.items() if (key, name) not in matrices}
                for key, result in old.results.items()
            }
            self.history[place] = replace(old, results=results)

    def _matrices(self, measurement: Measurement) -> dict[tuple[str, str], torch.Tensor]:
        """The tensors of two dimensions of observables that show their matrices."""
        return {
            (key, name): value
            for key, result in measurement.results.items()
            if hasattr(self._observables.get(key), "matrices")
            for name, value in result.items()
            if isinstance(value, torch.Tensor) and value.ndim == 2
        }

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
        rank_zero_info(forecast.line(self._sampler, self._budget.max_overhead))

    def _media(self, measurement: Measurement) -> dict[str, Any]:
        """Pictures and tables; an observable that raises over them is reported once, and its numbers are published."""
        try:
            return publish_media(measurement, self._observables)
        except Exception as error:  # noqa: BLE001  # an observable may be the user's own
            self._warn_once(f"The pictures could not be made: {type(error).__name__}: {error}. Training goes on.")
            return {}

    def _detect(self, measurement: Measurement) -> list[Found]:
        """What the detectors make of it; one that raises is reported once, and the measurement is published without."""
        try:
            return self._watch.update(measurement)
        except Exception as error:  # noqa: BLE001  # a detector may be the user's own
            self._warn_once(f"A detector raised {type(error).__name__}: {error}. Training goes on.")
            return []

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
        step, start = trainer.global_step, time.perf_counter()
        try:
            with measurement_progress(trainer, estimator.expected_steps) as advance:
                measurement = estimator.measure(pl_module, step, on_steps=advance)
        except Exception as error:  # noqa: BLE001  # whatever a measurement meets costs a measurement, not the run
            measurement = estimator.failed(step, f"{type(error).__name__}: {error}", start)
        if measurement.error is not None:
            self._warn_once(f"The measurement at step {step} failed: {measurement.error}.", measurement.error)
        self._budget.spend(measurement["cost"]["seconds"], measurement["cost"]["sgld_steps"] // trainer.world_size)
        cost = {**measurement["cost"], "overhead": self._budget.overhead, "skipped": self._budget.skipped}
        return replace(measurement, results={**measurement.results, "cost": cost})

    def _publish(self, publication: Publication, pl_module: pl.LightningModule, on_step: bool) -> None:
        for key, value in publication.scalars.items():
            # EarlyStopping would end the run over a NaN; a barebones trainer keeps no metrics.
            if math.isfinite(value) and not pl_module.trainer.barebones:
                pl_module.log(
                    key,
                    float(value),
                    prog_bar=key.endswith("/mean"),
                    logger=False,
                    on_step=on_step,
                    on_epoch=not on_step,
                    batch_size=1,
                )
        for sink in self._open_sinks:
            self._safely(sink, "publish", publication)

    def _safely(self, plugin: Any, method: str, *arguments: Any) -> bool:
        """Call a sink or a reaction; one that raises is reported once and costs what it was given."""
        try:
            getattr(plugin, method)(*arguments)
        except Exception as error:  # noqa: BLE001  # a full disk or a finished W&B run must not end training
            name = getattr(plugin, "__name__", type(plugin).__name__)
            self._warn_once(
                f"{name}.{method} raised {type(error).__name__}: {error}. Training goes on.", f"{name}.{method}"
            )
            return False
        return True

    def _close(self) -> None:
        for sink in self._open_sinks:
            self._safely(sink, "close")
        self._open_sinks = []

    def _warn_once(self, message: str, reason: str | None = None) -> None:
        if (reason or message) not in self._warned:
            self._warned.add(reason or message)
            rank_zero_warn(message, category=UserWarning)

    def _config(self) -> dict[str, Any]:
        """The settings, in builtins, for the run's config."""
        estimator = self._estimator
        return {
            "observables": sorted(self._observables),
            "sampler": _builtins(self._sampler),
            "nbeta": estimator.nbeta if estimator else self._sampler.nbeta,
            "num_samples": len(estimator.reference) if estimator else self._num_samples or DEFAULT_NUM_SAMPLES,
            "persistent_chains": self._persistent_chains,
            "max_overhead": self._budget.max_overhead,
            "seed": self._seed,
        }


def _checked_sampler(sampler: SamplerConfig | None) -> SamplerConfig:
    if sampler is None:
        return SamplerConfig()
    if not isinstance(sampler, SamplerConfig):
        raise TypeError(f"Expected `sampler` to be a SamplerConfig, but got {sampler!r}.")
    return sampler


def _checked_reactions(reactions: Sequence[Reaction]) -> list[Reaction]:
    for reaction in reactions:
        if not callable(reaction) or isinstance(reaction, type):
            raise TypeError(
                "Expected `on_event` to hold functions (trainer, pl_module, event), such as Alert(), but got "
                f"{reaction!r}."
            )
    return list(reactions)


def _default_sinks(trainer: pl.Trainer) -> list[Sink]:
    sinks: list[Sink] = [LoggerSink(), WandbSink()]
    if trainer.barebones or _fast_dev_run(trainer):  # neither leaves anything behind
        return sinks
    return [*sinks, FileSink(None if trainer.loggers else Path(trainer.default_root_dir) / PREFIX)]


def _checked_sinks(sinks: Sequence[Sink] | None) -> list[Sink] | None:
    for sink in sinks or ():
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(f"Expected `sinks` to hold objects with `open`, `publish` and `close`, but got {sink!r}.")
    return None if sinks is None else list(sinks)


def _fast_dev_run(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside the class, unseen by mypy


def _shortened(sampler: SamplerConfig) -> SamplerConfig:
    """Enough to run every line once."""
    return replace(
        sampler,
        num_chains=min(sampler.num_chains, 2),
        num_draws=min(sampler.num_draws, 2),
        num_burnin_steps=min(sampler.num_burnin_steps, 1),
    )


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, torch.Tensor) else leaf


def _nested(scalars: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """``{"llc/mean": 1.0}`` as ``{"llc": {"mean": 1.0}}``."""
    results: dict[str, dict[str, float]] = {}
    for key, value in scalars.items():
        observable, _, name = key.partition("/")
        results.setdefault(observable, {})[name] = value
    return results


def _builtins(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _builtins(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": type(value).__name__, **fields}
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
