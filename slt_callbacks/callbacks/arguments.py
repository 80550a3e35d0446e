"""What `SLTMonitor` is given: checked before anything else, and made into what a run needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_warn

from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.processes import LightningRanks, share_reference
from slt_callbacks.callbacks.schedule import When
from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, check_num_samples, check_seed, draw_reference
from slt_callbacks.executors.base import Executor
from slt_callbacks.losses.functions import LossFn, check_loss_fn
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.panel import check_observables
from slt_callbacks.recording.guard import Call
from slt_callbacks.recording.story import Story
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sinks.base import Sink

if TYPE_CHECKING:
    from slt_callbacks.callbacks.reactions import Reaction

MOST_MATRIX_BYTES = 2**26  # in the history: some twenty kernels with influence of 256 samples


@dataclass(frozen=True)
class Between:
    """What becomes of the chains between two measurements.

    Raises:
        ValueError: If they are to be stored elsewhere than on the device or the CPU.
    """

    persistent_chains: bool = True
    checkpoint_chains: bool = True
    store_chains: Literal["device", "cpu"] = "device"

    def __post_init__(self) -> None:
        if self.store_chains not in ("device", "cpu"):
            raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {self.store_chains!r}.')


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
    detectors: Any = None
    reactions: Sequence[Reaction] = ()
    sinks: Sequence[Sink] | None = None
    executor: Executor | None = None
    seed: int = 0
    unused_detectors: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.observables = check_observables(self.observables)
        self.sampler = _checked_sampler(self.sampler)
        self.reactions = _checked_reactions(self.reactions)
        self.sinks = _checked_sinks(self.sinks)
        _check_executor(self.executor)
        check_loss_fn(self.loss_fn)
        check_num_samples(self.num_samples)
        check_seed(self.seed)
        watch = self.watch(Notices())
        self.unused_detectors = copy.deepcopy(watch.state_dict())
        if self.reactions and not watch.settings():
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
        return Watch(self.detectors, self.observables, notices)

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
        draw = partial(draw_reference, reference, num_samples, self.seed, self.wanted)
        return Estimator(
            share_reference(trainer, draw),
            self.loss_fn,
            self.observables,
            shortened(self.sampler) if is_fast_dev_run(trainer) else self.sampler,
            self.seed,
            self.between.persistent_chains,
            self.between.store_chains,
            LightningRanks(trainer) if trainer.world_size > 1 else None,
            transferred=self.reference is None,
        )


def is_fast_dev_run(trainer: pl.Trainer) -> bool:
    """Whether the trainer only tries every line once."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside the class, unseen by mypy


def _checked_sampler(sampler: SamplerConfig | None) -> SamplerConfig:
    """The settings of the chains, or the defaults.

    Raises:
        TypeError: If they are something else.
    """
    if sampler is None:
        return SamplerConfig()
    if not isinstance(sampler, SamplerConfig):
        raise TypeError(f"Expected `sampler` to be a SamplerConfig, but got {sampler!r}.")
    return sampler


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
        num_burnin_steps=min(sampler.num_burnin_steps, 1),
    )


def _checked_reactions(reactions: Any) -> list[Callable[..., None]]:
    """What to do on an event, as a list of its own.

    Raises:
        TypeError: If they are no list, or one cannot be called or is a class.
    """
    if not isinstance(reactions, Sequence) or isinstance(reactions, str):
        raise TypeError(
            "Expected `on_event` to be a list of functions (trainer, pl_module, event), but got "
            f"{reactions!r}: write a list, such as [Alert()]."
        )
    for reaction in reactions:
        if not callable(reaction) or isinstance(reaction, type):
            raise TypeError(
                "Expected `on_event` to hold functions (trainer, pl_module, event), such as Alert(), but got "
                f"{reaction!r}."
            )
    return list(reactions)


def _checked_sinks(sinks: Any) -> list[Sink] | None:
    """Where measurements go, as a list of its own; None stays None.

    Raises:
        TypeError: If they are no list, or one lacks a method or is a class.
    """
    if sinks is not None and (not isinstance(sinks, Sequence) or isinstance(sinks, str)):
        raise TypeError(
            "Expected `sinks` to be a list of objects with `open`, `publish` and `close`, but got "
            f"{sinks!r}: write a list, such as [MemorySink()]."
        )
    for sink in sinks or ():
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(f"Expected `sinks` to hold objects with `open`, `publish` and `close`, but got {sink!r}.")
    return None if sinks is None else list(sinks)


def _check_executor(executor: Any) -> None:
    if executor is not None and (not isinstance(executor, Executor) or isinstance(executor, type)):
        raise TypeError(
            "Expected `executor` to be an object with `open`, `submit`, `poll`, `drain` and `close`, or None for the "
            f"training process, but got {executor!r}."
        )
