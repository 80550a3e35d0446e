"""The order of a measurement, written down: the main posterior, those beside it, and what all of them have found."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from torch import nn

from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.basics.rng import seed_from
from slt_callbacks.measuring.beside import Beside, Record
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.measuring.preparation import Preparation, as_memory_allows
from slt_callbacks.measuring.refinement import Refinement, RefinementSet
from slt_callbacks.measuring.settings import Settings, changes
from slt_callbacks.measuring.sharding import Sharding
from slt_callbacks.measuring.survey import Survey
from slt_callbacks.measuring.target import Target
from slt_callbacks.observables.media import Media
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import resolve_step_size

if TYPE_CHECKING:
    from slt_callbacks.basics.ranks import Ranks
    from slt_callbacks.data.reference import ReferenceSet
    from slt_callbacks.losses.functions import LossFn
    from slt_callbacks.measuring.sampling_run import OnSteps, Sampled
    from slt_callbacks.measuring.sharding import How
    from slt_callbacks.measuring.timed_pass import TimedPass
    from slt_callbacks.sampling.dynamics import Dynamics

_T = TypeVar("_T")
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
        refinements: Posteriors beside the main one, their samples drawn; None for none.
        sharded: How a module is measured that FSDP2 shards, as `Sharding` takes it.

    Raises:
        TypeError: If an observable lacks a method, `loss_fn` cannot be called, or `seed` is no integer.
        ValueError: If a key is reserved or no name, two keys have one observable, or an observable refuses the
            reference set, its own queries or the refinements.

    Example:
        >>> import torch
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
        refinements: RefinementSet | None = None,
        sharded: How = "auto",
    ) -> None:
        if store_chains not in ("device", "cpu"):
            raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {store_chains!r}.')
        self.settings = Settings(SamplerConfig() if config is None else config, reference, seed)
        self._exchange = Exchange(ranks)
        self._sharding = Sharding(sharded, self._exchange, self.config, persistent and store_chains == "device")
        self._loss_fn = loss_fn
        self._persistent = persistent
        self._on_cpu = store_chains == "cpu"
        self._transferred = transferred
        self._together = together
        self.refinements = refinements or RefinementSet()
        with self._exchange.together():
            self._panel = Panel(observables)
            self._main = self._survey("", Refinement(), self._panel)
            self._beside = Beside(self.refinements, self._panel, self.reference, self._survey, self._exchange)

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
        return self._main.target.stride.dynamics

    @property
    def expected(self) -> dict[str, int]:
        """Gradient steps of the next measurement in this process, by posterior, "" for the main one.

        Warm chains that drift take more.
        """
        return {"": self._main.expected_steps, **self._beside.expected}

    @property
    def expected_steps(self) -> int:
        """Those of all posteriors."""
        return sum(self.expected.values())

    @property
    def later_steps(self) -> int:
        """Gradient steps of a later measurement in this process, if its chains do not drift."""
        return self._main.later_steps + self._beside.later_steps

    @property
    def num_shares(self) -> int:
        """Processes that run chains of their own; 1 where all run the same ones together, each on its shards."""
        return 1 if self._exchange.gate is not None else self._exchange.size

    @property
    def num_posteriors(self) -> int:
        """The main one, and those beside it that the next measurement takes."""
        return 1 + len(self._beside.turn)

    @property
    def warm_steps(self) -> int:
        """Gradient steps of a chain that goes on from the last measurement, if it does not drift."""
        return self._main.target.warm_steps

    @property
    def stored_bytes(self) -> int:
        """Memory of the chains that wait for the next measurement."""
        return sum(survey.target.memory.num_bytes for survey in self._surveys())

    @property
    def given(self) -> dict[str, Any]:
        """What the user has handed in, by the name of the argument; all else is made of it."""
        return {
            "loss_fn": self._loss_fn,
            **{f"observables[{member.key!r}]": member.observable for member in self._panel.members},
            **{f"refinements[{name!r}]": refinement for name, refinement in self.refinements.by_name.items()},
            "sampler": self.config,
            "reference": self.reference,
        }

    def twin(self) -> Self:
        """Another one that remembers what this one does, and shares the samples and the loss functions with it."""
        refined = [part for one in self.refinements.by_name.values() for part in (one.reference, one.loss_fn)]
        brought = [samples for one in self._panel.members for samples in (one.queries, one.samples)]
        shared = [self.reference, self._loss_fn, *brought, *refined]
        return copy.deepcopy(self, {id(one): one for one in shared})

    def set_together(self, size: int | None) -> None:
        """Give the number of samples in a training batch later than at first, for loaders come when training starts.

        Args:
            size: As `together`; None where it is not known.
        """
        self._together = size
        for survey in self._surveys():
            survey.preparation.together = size

    def check(self, module: nn.Module) -> None:
        """Fork `module` and try the loss, and observables of the fork, on two samples: a mistake shows before training.

        Raises:
            TypeError: As `Fork`, `resolve_loss` and `check_loss`.
            ValueError: Likewise.
        """
        for survey in self._surveys():
            survey.preparation.try_again()
        with self._undisturbed(module, self.settings.seed) as module:
            self._main.check(module, self.settings.seed)
            self._beside.check(module)

    def time_pass(self, module: nn.Module) -> TimedPass:
        """Fork `module` and take a gradient pass, which tells what the first measurement will see and take.

        Raises:
            Exception: Whatever the loss function raises, and as `check`.
        """
        return self._allowed(lambda: self._time_pass(module))

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
        return self._allowed(lambda: self._measure(module, step, on_steps, start))

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
        return self._record(step, self._main.fail(step, error), self._beside.failed(step, error), start)

    def automatic_step_size(self, module: nn.Module) -> float:
        """The step that "auto" stands for at the present weights.

        Raises:
            ValueError: If the curvature there is not a positive number.
        """
        with self._undisturbed(module, self.settings.seed) as module:
            curvature = self._main.target.find_curvature(self._main.preparation.objective(module), 0)
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
            **self._main.target.state_dict(chains),
            **({"refinements": self._beside.state_dict(chains)} if len(self._beside) else {}),
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
        self.forget()
        changed = changes(before, self.settings.of_chains())
        if changed:
            warnings.warn(
                f"The checkpoint's chains were run with other settings or samples ({', '.join(changed)}): they start "
                "afresh, and the LLC before and after is not comparable.",
                stacklevel=2,
            )
            return False
        self._main.target.load_state_dict(state)
        self._beside.load_state_dict(state.get("refinements", {}))
        return True

    def forget(self) -> None:
        """Let every chain start afresh."""
        self._main.target.forget()
        self._beside.forget()

    def _surveys(self) -> list[Survey]:
        return [self._main, *self._beside]

    def _survey(self, name: str, refinement: Refinement, panel: Panel) -> Survey:
        """The main posterior, or one that differs from it as `refinement` says."""
        reference = self.reference if refinement.reference is None else cast("ReferenceSet", refinement.reference)
        panel.share_samples(self._exchange.first)
        panel.check(reference)
        preparation = Preparation(
            reference,
            self._loss_fn if refinement.loss_fn is None else refinement.loss_fn,
            panel,
            self.config,
            self._exchange,
            self._transferred and refinement.reference is None,
            self._together,
            refinement.selection,
            quiet=bool(name) and refinement.of_weights,
            forks=self._sharding.fork,
        )
        seed, exchange = self.settings.seed, self._exchange
        target = Target(self.config, self.settings.posterior, seed, exchange, self._persistent, self._on_cpu, name)
        return Survey(target, preparation, panel, self.config, exchange, self._persistent)

    def _allowed(self, attempt: Callable[[], _T]) -> _T:
        return as_memory_allows(attempt, self._main.preparation, self._exchange.rank)

    def _time_pass(self, module: nn.Module) -> TimedPass:
        with self._undisturbed(module, self.settings.seed) as module:
            steps = self.expected_steps
            with self._exchange.together():  # a rank that fails leaves before the others begin with what is beside
                main = self._main.time_pass(module, steps)
            return main.beside(self._main.expected_steps, self._beside.time_passes(module, steps))

    def _measure(self, module: nn.Module, step: int, on_steps: OnSteps | None, start: float) -> Measurement:
        """The order of a measurement."""
        with self._undisturbed(module, seed_from(self.settings.seed, step, _GLOBAL_STREAM)) as module:
            seed = seed_from(self.settings.seed, step, _FORK_STREAM)
            sampled = self._main.measure(module, step, seed, on_steps)
            if sampled.error is not None:
                return self._record(step, sampled, self._beside.failed(step, sampled.error), start)
            refined = self._beside.measure(module, step, seed, on_steps)
            return self._record(step, sampled, refined, start)

    def _record(self, step: int, sampled: Sampled, refined: dict[str, Record], start: float | None) -> Measurement:
        """What the observables have found, the chains' health, and what it took."""
        results = self._main.results(sampled)
        media = self._panel.media(results) if sampled.error is None else Media()
        seconds = 0.0 if start is None else time.perf_counter() - start
        steps = sampled.sgld_steps + sum(record["cost"]["sgld_steps"] for record in refined.values())
        results["cost"] = {"seconds": seconds, "sgld_steps": steps}
        return Measurement(step, results, sampled.error, media, refined)

    @contextmanager
    def _undisturbed(self, module: nn.Module, seed: int) -> Iterator[nn.Module]:
        """A world of its own, and in it the module that forks can be made of."""
        losses = [self._loss_fn, *(one.loss_fn for one in self.refinements.by_name.values())]
        with self._panel.undisturbed(), self._sharding.undisturbed(module, seed, *losses) as measured:
            yield measured
