"""The order of a measurement, written down: fork, losses at w*, what is read there, chains, results."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.basics.rng import seed_from
from slt_callbacks.losses.world import own_world
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.measuring.preparation import Preparation, means_at_fork
from slt_callbacks.measuring.sampling_run import NOT_FINITE, SamplingRun
from slt_callbacks.measuring.settings import Settings, changes
from slt_callbacks.measuring.target import Target
from slt_callbacks.measuring.timed_pass import time_pass
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.media import Media
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import resolve_step_size

if TYPE_CHECKING:
    from slt_callbacks.basics.ranks import Ranks
    from slt_callbacks.data.reference import ReferenceSet
    from slt_callbacks.losses.functions import LossFn
    from slt_callbacks.measuring.sampling_run import OnSteps, Sampled
    from slt_callbacks.measuring.timed_pass import TimedPass
    from slt_callbacks.sampling.dynamics import Dynamics

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_GLOBAL_STREAM, _FORK_STREAM = 202, 204  # apart from the streams of the chains, which start at 0


class Estimator:
    """Everything that stays the same from one measurement of a run to the next, and what the chains remember.

    Args:
        reference: The reference set.
        loss_fn: As in `estimate`.
        observables: By key; None for ``{"llc": LLC()}``.
        config: Settings of the chains.
        seed: Of the chains' generators.
        persistent: Whether chains go on from where the last measurement left them (memory: chains x parameters).
        store_chains: Where they wait for the next measurement: "device", where the module is, or "cpu".
        ranks: The processes that share the chains; None for this one alone. All must measure the same weights together.
        transferred: Whether the samples are training batches that have been through the module's transfer hooks.
        together: Samples in a training batch, where known: a loss that compares samples is taken in such batches.

    Raises:
        TypeError: If an observable lacks a method, `loss_fn` cannot be called, or `seed` is no integer.
        ValueError: If a key is reserved or no name, two keys have one observable, or an observable refuses the
            reference set or its own queries.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> reference = draw_reference([torch.zeros(4, 2)])
        >>> config = SamplerConfig(num_chains=1, num_draws=2, num_burnin_steps=0)
        >>> estimator = Estimator(reference, lambda net, x: net(x).square().mean(1), None, config)
        >>> estimator.measure(nn.Linear(2, 1), step=7).step
        7
    """

    def __init__(
        self,
        reference: ReferenceSet,
        loss_fn: LossFn | None = None,
        observables: Mapping[str, Any] | None = None,
        config: SamplerConfig | None = None,
        seed: int = 0,
        persistent: bool = False,
        store_chains: Literal["device", "cpu"] = "device",
        ranks: Ranks | None = None,
        transferred: bool = False,
        together: int | None = None,
    ) -> None:
        if store_chains not in ("device", "cpu"):
            raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {store_chains!r}.')
        self.settings = Settings(SamplerConfig() if config is None else config, reference, seed)
        self._exchange = Exchange(ranks)
        with self._exchange.together():
            self._panel = Panel(observables)
            self._panel.share_queries(self._exchange.first)
            self._panel.check(reference)
        self._loss_fn = loss_fn
        self._preparation = Preparation(
            reference, loss_fn, self._panel, self.config, self._exchange, transferred, together
        )
        self._targets = {
            name: Target(
                self.config, self.settings.posterior, seed, self._exchange, persistent, store_chains == "cpu", name
            )
            for name in ("",)
        }
        self._main = self._targets[""]
        self._run = SamplingRun(self._main, self._panel, self.config, self._exchange, persistent)

    @property
    def reference(self) -> ReferenceSet:
        """The samples."""
        return self.settings.reference

    @property
    def config(self) -> SamplerConfig:
        """Settings of the chains."""
        return self.settings.config

    @property
    def nbeta(self) -> float:
        """Inverse temperature times samples, in force."""
        return self.settings.nbeta

    @property
    def dynamics(self) -> Dynamics:
        """The dynamics in use: `config`'s, with "auto" resolved at the first measurement and then held."""
        return self._main.stride.dynamics

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement in this process, if warm chains do not drift."""
        return sum(target.expected_steps for target in self._targets.values()) if self._panel.reads_draws else 0

    @property
    def later_steps(self) -> int:
        """Gradient steps of a later measurement in this process, if its chains do not drift."""
        return sum(target.later_steps for target in self._targets.values()) if self._panel.reads_draws else 0

    @property
    def warm_steps(self) -> int:
        """Gradient steps of a chain that goes on from the last measurement, if it does not drift."""
        return self._main.warm_steps

    @property
    def stored_bytes(self) -> int:
        """Memory of the chains that wait for the next measurement."""
        return sum(target.memory.num_bytes for target in self._targets.values())

    def set_together(self, size: int | None) -> None:
        """Give the number of samples in a training batch later than at first, for loaders come when training starts.

        Args:
            size: As `together`; None where it is not known.
        """
        self._preparation.together = size

    def check(self, module: nn.Module) -> None:
        """Fork `module` and try the loss on two samples, so that a mistake shows before any training.

        Raises:
            TypeError: As `Fork`, `resolve_loss` and `check_loss`.
            ValueError: Likewise.
        """
        self._preparation.try_again()
        with self._undisturbed(module, self.settings.seed):
            self._preparation.objective(module)

    def time_pass(self, module: nn.Module) -> TimedPass:
        """Fork `module` and take a gradient pass, which tells what the first measurement will see and take.

        Raises:
            Exception: Whatever the loss function raises, and as `check`.
        """
        return self._as_memory_allows(lambda: self._time_pass(module))

    def measure(self, module: nn.Module, step: int = 0, on_steps: OnSteps | None = None) -> Measurement:
        """Measure `module` at its present weights; it is read, never changed.

        Args:
            module: The live module.
            step: Optimizer steps done; with `seed` it decides the chains' random numbers.
            on_steps: Told how many SGLD steps were just taken, for a progress bar; at most `expected_steps` in all
                unless warm chains drift.

        Returns:
            The measurement; a failed one, with NaN for every number, where no chain survives.

        Raises:
            Exception: Whatever the loss function raises, and as `check`.
        """
        start = time.perf_counter()
        return self._as_memory_allows(lambda: self._measure(module, step, on_steps, start))

    def attempt(self, module: nn.Module, step: int = 0, on_steps: OnSteps | None = None) -> Measurement:
        """`measure`, whatever happens: where it raises, the record of a failed measurement says why."""
        start = time.perf_counter()
        try:
            return self.measure(module, step, on_steps)
        except Exception as error:  # noqa: BLE001  # whatever a measurement meets costs a measurement, not the run
            return self.failed(step, f"{type(error).__name__}: {error}", start)

    def failed(self, step: int, error: str, start: float | None = None) -> Measurement:
        """The record of a measurement that gave nothing: the usual keys with NaN; chains start afresh after it.

        Args:
            step: Training step of the fork.
            error: Why, for `Measurement.error`.
            start: When the measurement began, on the clock of `time.perf_counter`; None for now.
        """
        self._panel.forget_fork()
        point = self._point(step, math.nan, torch.empty(0, device="cpu"))
        return self._record(step, self._run.fail(point, error), start)

    def automatic_step_size(self, module: nn.Module) -> float:
        """The step that "auto" stands for at the present weights.

        Raises:
            ValueError: If the curvature there is not a positive number.
        """
        with self._undisturbed(module, self.settings.seed):
            curvature = self._main.find_curvature(self._preparation.objective(module), 0)
        dynamics = replace(self.config.dynamics, step_size="auto")  # type: ignore[type-var]
        return float(resolve_step_size(dynamics, curvature).step_size)

    def state_dict(self, chains: bool = True) -> dict[str, Any]:
        """What a resumed run needs, in builtins and tensors on the CPU.

        Args:
            chains: Whether to include the chains' positions (chains x parameters).
        """
        return {
            "settings": self.settings.of_chains(),
            "observables": self._panel.state_dict(),
            "queries": {key: queries.fingerprint for key, queries in self._panel.queries.items()},
            **self._main.state_dict(chains),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on where `state_dict` was taken.

        After a change of settings or samples the chains start afresh, with a warning. What observables remember, such
        as the order of a picture's rows, depends on the samples and on their own queries alone, and is lost with these.

        Returns:
            Whether what comes can be compared with what was before.
        """
        before = state.get("settings", {})
        if not changes(before, self.settings.of_samples()):
            asked = state.get("queries", {})
            same = {key for key, queries in self._panel.queries.items() if asked.get(key) == queries.fingerprint}
            self._panel.load_state_dict(state.get("observables", {}), same)
        self._main.forget()
        changed = changes(before, self.settings.of_chains())
        if changed:
            warnings.warn(
                f"The checkpoint's chains were run with other settings or samples ({', '.join(changed)}): they start "
                "afresh, and the LLC before and after is not comparable.",
                stacklevel=2,
            )
            return False
        self._main.load_state_dict(state)
        return True

    def _as_memory_allows(self, attempt: Callable[[], _T]) -> _T:
        """Again in ever smaller blocks while memory runs out; the block that fits is kept for the run."""
        before = self._preparation.block_size
        while True:
            try:
                return attempt()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = self._preparation.shrink_block()
                if smaller is None:
                    self._preparation.block_size = before  # none has helped: the next measurement may find more memory
                    raise
                level = logging.WARNING if self._exchange.rank == 0 else logging.DEBUG
                text = "A measurement ran out of memory: trying again with `block_size=%d`, from now on."
                _log.log(level, text, smaller)
            if torch.cuda.is_available():  # outside of the handler, which keeps the tensors of the attempt alive
                torch.cuda.empty_cache()

    def _time_pass(self, module: nn.Module) -> TimedPass:
        with self._undisturbed(module, self.settings.seed):
            objective, main = self._preparation.objective(module), self._main
            draws = main.num_chains * self.config.num_draws if self._panel.reads_draws else 0
            forwards = len(objective) + draws * self._preparation.samples_a_draw(objective)
            at_once = partial(main.seconds_at_once, objective)
            more = main.gradients_ahead(objective) if self._panel.reads_draws else 0
            return time_pass(objective, self.expected_steps, main.num_chains, more, forwards, at_once)

    def _measure(self, module: nn.Module, step: int, on_steps: OnSteps | None, start: float) -> Measurement:
        """The order of a measurement."""
        with self._undisturbed(module, seed_from(self.settings.seed, step, _GLOBAL_STREAM)):
            objective = self._preparation.objective(module)
            loss = float(objective.measure_fork())
            point = self._point(step, loss, objective.at_fork if objective.per_sample else torch.empty(0, device="cpu"))
            if not all(self._exchange.gather(math.isfinite(loss))):
                return self.failed(step, NOT_FINITE, start)
            probes = self._preparation.probes(objective)
            at_fork = means_at_fork(objective, probes)
            self._panel.inspect(objective, point, seed_from(self.settings.seed, step, _FORK_STREAM))
            sampled = self._run.sample(objective, point, probes, at_fork, on_steps)
            return self._record(step, sampled, start)

    def _point(self, step: int, loss: float, losses: torch.Tensor) -> ReferencePoint:
        posterior = self.settings.posterior
        return ReferencePoint(
            step=step,
            loss=loss,
            losses=losses,
            indices=self.reference.indices,
            nbeta=posterior.nbeta,
            localization=posterior.localization,
            num_chains=self.config.num_chains,
            num_draws=self.config.num_draws,
        )

    def _record(self, step: int, sampled: Sampled, start: float | None) -> Measurement:
        """What the observables have found, the chains' health, and what it took."""
        results = self._panel.compute(lenient=sampled.error is not None)
        results["health"] = self._main.told(sampled.curvature, sampled.num_burnin_steps)
        media = self._panel.media(results) if sampled.error is None else Media()
        seconds = 0.0 if start is None else time.perf_counter() - start
        results["cost"] = {"seconds": seconds, "sgld_steps": sampled.sgld_steps}
        return Measurement(step, results, sampled.error, media)

    @contextmanager
    def _undisturbed(self, module: nn.Module, seed: int) -> Iterator[None]:
        with own_world(module, seed, self._loss_fn), self._exchange.together():
            yield
