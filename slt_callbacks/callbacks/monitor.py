"""The callback: at a trigger, measure the live module and tell what was found.

What is logged, against ``slt/step`` (optimizer steps at the fork), for observables with the keys of the first column:

===================================  ===================================================================================
key                                  meaning
===================================  ===================================================================================
slt/llc/mean, stderr, std            the estimate, its standard error over chains, their spread
slt/llc/variance_llc                 nbeta^2 Var(L), with the noise of minibatches on top
slt/llc/reference_loss               the loss at the fork
slt/llc/free_energy                  `LLC` with `num_train_samples`: n times that loss + LLC ln n, in nats
slt/llc/<refinement>/mean, stderr    `Refinement`: the LLC of fewer weights, other data, another loss
slt/health/<refinement>/rhat, ...    and failed_chains, step_size: whether its chains can be trusted
slt/health/rhat, ess, drift          do the chains agree, how many draws are they worth, are they still moving
slt/health/failed_chains             chains dropped; num_valid_draws: draws left
slt/health/stability                 eps k_max / 4, the largest seen where chains were looked at: at 1 they explode; an
                                     "auto" step is chosen for 0.5 at most, and shortened above 0.75
slt/health/noise_bias                what the noise of minibatches adds to the LLC, relatively, to a factor of two; an
                                     "auto" step is chosen for 0.04
slt/health/step_gap                  LLC of draws with a whole step against those with half of it, relatively: should be
                                     noise around 0; not taken far below the longest stable step
slt/health/acceptance                with `acceptance=True`: which share of such SGLD steps a Metropolis test would pass
slt/health/step_bias                 of `SGLD` and `RMSPropSGLD`: relative bias of the step, eps k_max / 4; sound < 0.05
slt/health/step_size, nbeta, ...     and localization, num_burnin_steps: the settings in force
slt/health/num_parameters            weights that the chains move; where it changes the series has a break
slt/cost/seconds, sgld_steps         what the measurement took
slt/cost/overhead, skipped, failed   share of training time so far; due measurements left out; failed ones
slt/stage, slt/jump                  boundaries announced so far; +1 or -1 where the LLC has just jumped
slt/detection/phi                    how much noisier the curve is than the standard errors say
slt/stages, slt/events (tables)      the stages and events so far, at every event and at the end
slt/changes (table)                  every number before and after a boundary, largest first, by its noise and drift (z)
slt/figure (image)                   loss and LLC with stages and jumps, at the same times
slt/refinements (image)              the refined LLCs as a map and as curves on one scale, likewise
slt/free_energy (image)              with a free energy: loss against LLC over the run, on lines of equal free energy
slt/kernel/trace, effective_rank     `LossKernel`: summed variance, directions the samples' losses move in
slt/kernel/alignment                 CKA with the last kernel; label_alignment: with the kernel that is 1 within classes
slt/kernel/class_contrast            correlation within classes minus between
slt/kernel/map (image)               the kernel, rows in one order and colours on one scale over the whole run
slt/influence/shift                  `Influence`: how much it moved
slt/influence/sign_flips, peaks      pairs that certainly changed sides, or turned
slt/influence/group/<a>_to_<b>       mean correlation by label; positive helps; group_flips, group_peaks: of these means
slt/influence/map, events            an image; a table of the pairs and groups that moved most
slt/susceptibility/uniform_share     `Susceptibility`: how much of it all parts have in common
slt/susceptibility/pc1_share, ...    and pc2_share, pc3_share: of the principal components of the rest
slt/susceptibility/significant       share of the entries beyond a 5 % test
slt/susceptibility/<label>_to_<p>    means by label: below 0 the part p works for such data; images map, components
slt/trajectory/explained_1, null_1   `TrajectoryPCA`: shares of the components; those of a random walk
slt/trajectory/speed                 change of the outputs on the probes a training step
slt/trajectory/distance/<name>       root mean square distance to a reference predictor
slt/trajectory/map (image)           the path in the plane of the first two, steps as colour, on axes that stay
slt/compressibility/critical_bits    `Compressibility`: bits a weight, for a rise of the loss by `tolerance`
slt/compressibility/critical_rank    and share of the rank of matrices; images quantization, factorization
slt/<key>/<metric>                   `Metrics`: torchmetrics at the fork
slt-matrices-<run> (artifact)        the matrices as one compressed .npz, at events and at the end
===================================  ===================================================================================
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slt_callbacks.callbacks.arguments import Asked, Between, is_fast_dev_run
from slt_callbacks.callbacks.processes import refuse_elsewhere, refuse_sharding
from slt_callbacks.callbacks.reactions import Reaction
from slt_callbacks.callbacks.run import Run
from slt_callbacks.callbacks.schedule import When
from slt_callbacks.callbacks.told import Told
from slt_callbacks.data.drawing import Reference
from slt_callbacks.detection.records import Stage
from slt_callbacks.executors.base import Executor
from slt_callbacks.losses.functions import LossFn
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.measuring.refinement import Refinement
from slt_callbacks.observables.panel import Observables
from slt_callbacks.recording.watch import Detector
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sinks.base import Sink

if TYPE_CHECKING:
    from slt_callbacks.detection.changes import BoundaryChanges

_STATE_VERSION = 1


class SLTMonitor(pl.Callback):
    """Measures the local learning coefficient, and whatever else is asked for, while a model trains.

    At every trigger the live weights are forked, short localized SGLD chains run from the fork, and what the
    observables make of their draws goes to the loggers. Training itself is left bit-identical: the live module is read
    only, and all randomness is private. ``help("slt_callbacks.callbacks")`` says what that covers and where it ends,
    and ``help("slt_callbacks.callbacks.monitor")`` what is logged.

    Args:
        reference: Samples to measure on: a Dataset, a DataLoader (its dataset), a list of batches, a function that
            returns one of these, or None for the first training batches seen, as far as the first epoch goes. Batches
            that cannot serve cost the measurements, with a warning, and never the run; and a resumed run sees others,
            so that its chains start afresh. Labels need a data set, and are refused without. More of it, of graphs and
            of augmented data: ``help("slt_callbacks.data")``.
        loss_fn: ``(module, batch) -> losses``, one a sample ``(B,)`` or one a token ``(B, T)`` (averaged over T); a
            scalar serves the LLC alone. None: the module's ``per_sample_loss(batch)``, else the loss that its
            ``training_step`` returns. Of losses that draw random numbers, that compare samples, or that are sums:
            ``help("slt_callbacks.losses")``.
        observables: What to measure, by the key it is logged under; None for ``{"llc": LLC()}``.
        sampler: What one measurement costs; None for the defaults of `SamplerConfig`.
        num_samples: Size of the reference set, drawn once (seeded); None for 256, or all where there are fewer.
        every_n_train_steps: Measure when a multiple of so many optimizer steps is crossed.
        every_n_epochs: Measure at the end of every so many epochs.
        train_time_interval: Measure after every such time of training.
        schedule: Measure where ``schedule(step)`` is true, as for `log_linear_steps`; step 0 is before training.
        persistent_chains: Chains go on from one measurement to the next, which saves most of the burn-in. They take
            memory of chains times parameters, twice that while the next measurement runs, and add as much to
            checkpoints. False starts each measurement at the weights themselves.
        max_overhead: Most seconds of measuring for a second of training so far; a due measurement beyond it is skipped
            and counted. One that takes longer than the last can exceed it until training has caught up. The first one
            runs, unless a gradient pass before it says that it takes more than a minute: such a one waits until the
            training that is done, or all of a fit whose length is known, pays for it, and a warning names settings that
            fit. It is never made shorter by itself, for that would be another curve. None for no limit.
        detectors: What watches which logged key, one or several, such as ``{"slt/kernel/trace": JumpDetector()}``; a
            `JumpDetector` and a `StageDetector` watch the mean of the first LLC as well, where one of the same class
            takes its place and an empty list switches them off.
        on_event: What to do on an event: `Alert`, `SaveCheckpoint`, `StopTraining`, or any
            ``(trainer, pl_module, event)``. One that raises is reported, and training goes on.
        sinks: Where measurements go; None for every logger of the trainer, and files in the folder of the run.
        executor: Where measurements are made: `ProcessExecutor`, `RayExecutor` or your own; None for the training
            process, which waits for them. Elsewhere `max_overhead` counts what training waits for, and
            ``slt/cost/seconds`` what the measurement took.
        refinements: Posteriors to sample beside the main one, by the name they are logged under: over fewer weights,
            other data or another loss, such as ``{"head": Refinement("head.*")}``. See `Refinement`.
        refinements_at_once: How many of them a measurement takes, in turn; None for all. An EarlyStopping on one of
            them has to wait for its turn: ``strict=False``.
        also_compare: Metrics of your own, by the names in ``trainer.callback_metrics``, such as "val_acc": where a
            stage begins they are compared like what is measured, with the values of the last validation.
        checkpoint_chains: Whether checkpoints hold the persistent chains; without, they burn in again after a resume.
        store_chains: Where persistent chains wait for the next measurement: "device" or "cpu".
        seed: Of the reference set and the chains.
        sharded: How a module is measured that FSDP2 shards. "gathered": every rank gathers a whole copy of the weights,
            and the chains are split over the ranks. "in_place": all ranks run every chain together, on the shards of
            the live module, which are put back bit for bit; it takes a `loss_fn` or ``per_sample_loss``, and neither
            slices of parameters, `behavioral`, nor observables that look at the fork. "auto": gathered, where the copy
            and its chains fit three quarters of the free memory.

    Before the first batch one line says which loss is measured and what it gives, on how many samples in batches of
    which shape, how many weights move, what a measurement will take, and how many `max_overhead` allows.

    A monitor may serve one fit after the other. Where the same trainer goes on, so do the measurements; a fit that
    begins at step 0 and is no resume is a new run, whose history, events, detectors and chains begin empty (a detector
    of your own without `load_state_dict` remembers what it has seen).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a setting is out of range, or not exactly one trigger is given.
        MisconfigurationException: From `fit`, before training: a reference set or loss function that cannot be used,
            nothing trainable, or a strategy that shards parameters otherwise than by FSDP2.

    ``slt/llc/mean`` is also in ``trainer.callback_metrics``, for ModelCheckpoint and EarlyStopping. It is not there
    before the first measurement that has succeeded, and no number may stand in for it, so let EarlyStopping wait:
    ``EarlyStopping("slt/llc/mean", strict=False)``; by default it ends a run whose metric is missing. A
    ModelCheckpoint, which would end it as well, is told NaN, to which it prefers any number. EarlyStopping counts its
    own checks, not measurements: let it check no more often than you measure. A measurement that fails leaves the last
    value standing.

    Observables and detectors are known by their methods, not by a base class, so that LightningCLI cannot build them
    from YAML: give them in a subclass.

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

    _loaded = False  # whether a checkpoint was loaded for the fit that is about to begin
    _stage = "fit"

    def __init__(
        self,
        reference: Reference | None = None,
        loss_fn: LossFn | None = None,
        observables: Observables | None = None,
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
        executor: Executor | None = None,
        refinements: Mapping[str, Refinement] | None = None,
        refinements_at_once: int | None = None,
        also_compare: Sequence[str] = (),
        sharded: Literal["auto", "gathered", "in_place"] = "auto",
    ) -> None:
        self._asked = Asked(
            reference=reference,
            loss_fn=loss_fn,
            observables=observables,
            sampler=sampler,
            num_samples=num_samples,
            when=When(every_n_train_steps, every_n_epochs, train_time_interval, schedule),
            between=Between(persistent_chains, checkpoint_chains, store_chains, sharded),
            max_overhead=max_overhead,
            told=Told(detectors, on_event, sinks, also_compare),
            executor=executor,
            refining=(refinements, refinements_at_once),
            seed=seed,
        )
        self._run = Run(self._asked)

    @property
    def history(self) -> list[Measurement]:
        """Every `Measurement` of this run in this process, in order.

        Matrices, such as a kernel's covariance, stay in the last ones only, at most 16 of them and 64 MiB, or a long
        run would fill the memory: a `MemorySink` keeps them all.
        """
        return self._run.story.measurements

    @property
    def events(self) -> list[Any]:
        """Every jump and stage event so far, those from before a resume included."""
        return self._run.story.events

    @property
    def stages(self) -> list[Stage]:
        """The developmental stages: as they look now, and final after the fit."""
        return self._run.story.stages

    @property
    def changes(self) -> list[BoundaryChanges]:
        """What changed where each stage began: every logged number, those with the largest abs(z) first."""
        return self._run.story.changes

    @property
    def state_key(self) -> str:
        """One state for every monitor of a Trainer: what they measure tells them apart."""
        return self._generate_state_key(observables=sorted(self._asked.observables), seed=self._asked.seed)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and draw the reference set."""
        self._stage = stage
        if stage != "fit":
            return
        refuse_sharding(trainer)
        refuse_elsewhere(trainer, self._asked.executor)
        if any(isinstance(other, SLTMonitor) and other is not self for other in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "Expected one SLTMonitor in `callbacks`, but got several, whose keys would collide: give one of them "
                'all `observables`, such as {"llc": LLC(), "finer": LLC()}.'
            )
        if trainer.global_step == 0 and not self._loaded:
            self._run = Run(self._asked)
        self._run.samples.prepare(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What was loaded was for this fit."""
        self._loaded = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the loss where training will ask it, with the loaders there; measure where the schedule has step 0."""
        self._run.open(trainer, pl_module)
        self._run.start(trainer)
        if self._run.trigger.at_start(trainer.global_step):
            self._run.measure(trainer, pl_module, log_step=0, on_step=None)
        elif self._run.begun is not None and self._run.begun[0] == trainer.global_step:
            self._run.measure(trainer, pl_module, log_step=self._run.begun[1], on_step=None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Without a reference, keep the first batches."""
        if self._run.samples.collect(trainer, batch):
            self._run.open(trainer, pl_module, begun=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record what has been finished, and measure where a step trigger is due."""
        run = self._run
        run.outbox.ask_others(trainer)
        run.outbox.tell(pl_module, on_step=True)
        run.receive(trainer, pl_module, on_step=True)
        due = run.trigger.at_step(trainer.global_step)
        if run.trigger.by_time:
            due = trainer.strategy.broadcast(due)
        if due or is_fast_dev_run(trainer):
            run.measure(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped, on_step=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure where an epoch trigger is due; an epoch is all that first batches may take."""
        if self._run.samples.settle(trainer):
            self._run.open(trainer, pl_module, begun=True)
        if self._run.trigger.at_epoch_end(trainer.current_epoch):
            log_step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)
            self._run.measure(trainer, pl_module, log_step, on_step=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for what is being measured; the stages are final."""
        self._run.finish(trainer, pl_module, wait=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning calls no teardown after an exception; what was found until then is told."""
        self._run.finish(trainer, pl_module, wait=False)
        self._run.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the sinks."""
        self._run.close()

    def state_dict(self) -> dict[str, Any]:
        """Trigger, step size and chains; builtins and tensors only."""
        return self._run.state_dict(_STATE_VERSION)

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
        self._run.load_state_dict(state_dict)
