"""What `SLTMonitor` is given: checked before anything else, and made into what a run needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_warn

from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.plugins import checked_sampler
from slt_callbacks.callbacks.processes import LightningRanks, share_reference
from slt_callbacks.callbacks.schedule import When
from slt_callbacks.callbacks.told import Told
from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, check_num_samples, check_seed, draw_reference
from slt_callbacks.executors.base import check_executor
from slt_callbacks.losses.functions import check_loss_fn
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.refinement import RefinementSet
from slt_callbacks.observables.panel import check_observables
from slt_callbacks.recording.story import Story
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sampling.config import SamplerConfig

if TYPE_CHECKING:
    from slt_callbacks.executors.base import Executor
    from slt_callbacks.losses.functions import LossFn
    from slt_callbacks.measuring.measurement import Measurement
    from slt_callbacks.recording.guard import Call

MOST_MATRIX_BYTES = 2**26  # in the history: some twenty kernels with influence of 256 samples


@dataclass(frozen=True)
class Between:
    """What becomes of the chains between two measurements, and where they run if the module is sharded.

    Raises:
        ValueError: If they are to be stored elsewhere than on the device or the CPU, or run in an unknown way.
    """

    persistent_chains: bool = True
    checkpoint_chains: bool = True
    store_chains: Literal["device", "cpu"] = "device"
    sharded: Literal["auto", "gathered", "in_place"] = "auto"

    def __post_init__(self) -> None:
        if self.store_chains not in ("device", "cpu"):
            raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {self.store_chains!r}.')
        if self.sharded not in ("auto", "gathered", "in_place"):
            raise ValueError(f'Expected `sharded` to be "auto", "gathered" or "in_place", but got {self.sharded!r}.')


@dataclass
class Asked:
    """The arguments that decide what a run measures and to whom it tells what, as `SLTMonitor` describes them.

    Raises:
        TypeError: If one has the wrong type.
        ValueError: If a setting is out of range.

    Example:
        >>> Asked(num_samples=32).wanted, Asked().wanted
        (32, 256)
    """

    reference: Any = None
    loss_fn: LossFn | None = None
    observables: Any = None
    sampler: Any = None
    num_samples: int | None = None
    when: When = field(default_factory=When)
    between: Between = field(default_factory=Between)
    max_overhead: float | None = 0.1
    told: Told = field(default_factory=Told)
    executor: Executor | None = None
    refining: tuple[Any, int | None] = (None, None)
    seed: int = 0
    refinements: RefinementSet = field(init=False)
    unused_detectors: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.observables = check_observables(self.observables)
        self.sampler = checked_sampler(self.sampler)
        check_executor(self.executor)
        check_loss_fn(self.loss_fn)
        self.refinements = RefinementSet(*self.refining)
        check_num_samples(self.num_samples)
        check_seed(self.seed)
        watch = self.watch(Notices())
        self.unused_detectors = copy.deepcopy(watch.state_dict())
        if self.told.reactions and not watch.settings():
            rank_zero_warn(
                "`on_event` has nothing to react to but failing measurements, for no LLC is measured: add one to "
                "`observables`, or say in `detectors` what to watch.",
                category=UserWarning,
            )

    @property
    def wanted(self) -> int:
        """Samples of the reference set, at most."""
        return self.num_samples or DEFAULT_NUM_SAMPLES

    def watch(self, notices: Notices) -> Watch:
        """The detectors at work."""
        return Watch(self.told.detectors, self.observables, notices, self.refinements.by_name)

    def story(
        self,
        notices: Notices,
        call: Call,
        detectors: Mapping[str, Any] | None = None,
        before: Sequence[Measurement] = (),
    ) -> Story:
        """A story that begins, or goes on where a checkpoint was saved.

        Args:
            notices: Where it is told what a plug-in has done wrong.
            call: How sinks are called.
            detectors: State of the detectors and their events; None for what they were before any run.
            before: Measurements of before a resume.
        """
        watch = self.watch(notices)
        watch.load_state_dict(copy.deepcopy(self.unused_detectors if detectors is None else detectors))
        return Story(watch, self.observables, call, notices, before, MOST_MATRIX_BYTES)

    def estimator(self, trainer: pl.Trainer, reference: Any, num_samples: int | None) -> Estimator:
        """What measures in the runs of this trainer.

        Args:
            trainer: With its processes.
            reference: The samples, or the first batches.
            num_samples: How many of them; None for as many as are wanted or there are.
        """
        draw = partial(draw_reference, seed=self.seed, at_most=self.wanted)
        return Estimator(
            share_reference(trainer, partial(draw, reference, num_samples)),
            self.loss_fn,
            self.observables,
            shortened(self.sampler) if is_fast_dev_run(trainer) else self.sampler,
            self.seed,
            self.between.persistent_chains,
            self.between.store_chains,
            LightningRanks(trainer) if trainer.world_size > 1 else None,
            transferred=self.reference is None,
            refinements=self.refinements.drawn(lambda own: share_reference(trainer, partial(draw, own))),
            sharded=self.between.sharded,
        )


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    """Whether the trainer only tries every line once."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside the class, unseen by mypy


def shortened(sampler: SamplerConfig) -> SamplerConfig:
    """Enough to run every line once.

    Example:
        >>> shortened(SamplerConfig()).num_steps
        3
    """
    return replace(
        sampler,
        num_chains=min(sampler.num_chains, 2),
        num_draws=min(sampler.num_draws, 2),
        num_burnin_steps=min(sampler.most_burnin_steps, 1),
    )
