"""One measurement: fork, losses at w*, chains, observables. `SLTMonitor` runs the same code at every trigger."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.basics.ranks import Alone, Exchange, Ranks
from slt_callbacks.basics.rng import generator, isolated_rng, seed_from
from slt_callbacks.data.batches import Batch, map_leaves
from slt_callbacks.data.drawing import check_seed
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.functions import LossFn, check_loss_fn, resolve_loss
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.probes import Probe, split_from
from slt_callbacks.losses.rehearsal import Rehearsal
from slt_callbacks.losses.tokens import TokenObjective
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.base import Observable, ReferencePoint
from slt_callbacks.observables.health import ChainHealth
from slt_callbacks.observables.loss_kernel import LossKernel
from slt_callbacks.observables.pairs import check_entries
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.chains import Chain, make_chains, warm_round
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.dynamics import resolve_step_size
from slt_callbacks.sampling.engine_choice import EngineChoice
from slt_callbacks.sampling.memory import ChainMemory
from slt_callbacks.sampling.posterior import LocalPosterior, default_nbeta
from slt_callbacks.sampling.sampler import Sampler
from slt_callbacks.sampling.verdict import Verdict
from slt_callbacks.weights.fork import Fork

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_CURVATURE_STREAM, _GLOBAL_STREAM = 201, 202  # apart from the streams of the chains, which start at 0
# Where the curvature of the loss has grown so far that this is exceeded, an "auto" step is halved: beyond it the bias
# is as large as the usual standard error, and an LLC that rises may be nothing else.
_MOST_STEP_BIAS = 0.05


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

    Attributes:
        dynamics: The dynamics in use: `config`'s, with "auto" resolved at the first measurement and then held.

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
        observables: Mapping[str, Observable] | None = None,
        config: SamplerConfig | None = None,
        seed: int = 0,
        persistent: bool = False,
        store_chains: Literal["device", "cpu"] = "device",
        ranks: Ranks | None = None,
    ) -> None:
        if store_chains not in ("device", "cpu"):
            raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {store_chains!r}.')
        check_loss_fn(loss_fn)
        check_seed(seed)
        self.reference = reference
        self._exchange = Exchange(Alone() if ranks is None else ranks)
        with self._exchange.together():
            self._panel = Panel(observables)
            check_distinct(self._panel.observables)
            self._panel.share_queries(self._exchange.first)
            self._panel.check(reference)
        self._queries = {
            key: split_from(samples, reference) if self._panel.reference_losses else (samples, None)
            for key, samples in self._panel.queries.items()
        }
        self.config = SamplerConfig() if config is None else config
        self.dynamics = self.config.dynamics
        self.nbeta = default_nbeta(len(reference)) if self.config.nbeta is None else float(self.config.nbeta)
        self._loss_fn = loss_fn
        self._seed = seed
        self._persistent = persistent
        self._engines = EngineChoice(self.config)
        self._block_size = self.config.block_size
        self._health = ChainHealth()
        self._memory = ChainMemory(on_cpu=store_chains == "cpu")
        self._direction: torch.Tensor | None = None
        self._per_sample: bool | None = None
        self._singles_at_once = False

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement in this process, if warm chains do not drift."""
        own = self._own(range(self.config.num_chains))
        warm = len(self._memory.past.keys() & set(own))
        return (len(own) - warm) * self.config.num_steps + warm * self.warm_steps

    @property
    def stored_bytes(self) -> int:
        """Memory of the chains that wait for the next measurement."""
        return self._memory.num_bytes

    @property
    def warm_steps(self) -> int:
        """Gradient steps of a chain that goes on from the last measurement, if it does not drift."""
        return warm_round(self.config) + self.config.num_draw_steps

    def check(self, module: nn.Module) -> None:
        """Fork `module` and try the loss on two samples, so that a mistake shows before any training.

        Raises:
            TypeError: As `Fork`, `resolve_loss` and `check_loss`.
            ValueError: Likewise.
        """
        self._per_sample = None
        with _undisturbed(module, self._seed), self._exchange.together():
            self._prepare(module)

    def measure(self, module: nn.Module, step: int = 0, on_steps: Callable[[int], None] | None = None) -> Measurement:
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
        try:
            return self._measure_together(module, step, on_steps, start)
        except Exception as error:
            smaller = self._smaller_block() if is_out_of_memory(error) else None
            if smaller is None:
                raise
            level = logging.WARNING if self._exchange.rank == 0 else logging.DEBUG
            _log.log(level, "A measurement ran out of memory: trying again with `block_size=%d`, from now on.", smaller)
        self._block_size = smaller  # outside of the handler, which keeps the tensors of the failed attempt alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._measure_together(module, step, on_steps, start)

    def automatic_step_size(self, module: nn.Module) -> float:
        """The step that "auto" stands for at the present weights.

        Raises:
            ValueError: If the curvature there is not a positive number.
        """
        with _undisturbed(module, self._seed):
            objective = self._prepare(module)
            curvature, _ = self._curvature(objective, LocalPosterior(self.nbeta, self.config.localization), 0)
        dynamics = replace(self.config.dynamics, step_size="auto")  # type: ignore[type-var]
        return float(resolve_step_size(dynamics, curvature).step_size)

    def failed(self, step: int, error: str, start: float | None = None) -> Measurement:
        """The record of a measurement that gave nothing: the usual keys with NaN; chains start afresh after it.

        Args:
            step: Training step of the fork.
            error: Why, for `Measurement.error`.
            start: When the measurement began, on the clock of `time.perf_counter`; None for now.
        """
        self._memory.clear()
        self._direction = None
        empty = torch.empty(0)
        self._reset(self._point(step, math.nan, empty), lenient=True)
        self._end_chains(set(range(self.config.num_chains)))
        return self._collect(step, math.nan, None, start, error)

    def _measure_together(
        self, module: nn.Module, step: int, on_steps: Callable[[int], None] | None, start: float
    ) -> Measurement:
        with _undisturbed(module, seed_from(self._seed, step, _GLOBAL_STREAM)), self._exchange.together():
            return self._measure_once(module, step, on_steps, start)

    def _measure_once(
        self, module: nn.Module, step: int, on_steps: Callable[[int], None] | None, start: float
    ) -> Measurement:
        objective = self._prepare(module)
        posterior = LocalPosterior(self.nbeta, self.config.localization)
        point = self._reference_point(step, objective)
        probes = self._probes(objective)
        at_fork = self._probed_at_fork(objective, probes)
        curvature, direction = self._curvature(objective, posterior, step)
        # A loss function may answer otherwise on another rank, and all must go on, or none.
        problems = [p for p in self._exchange.gather(_problem_at_fork(point.loss, curvature, at_fork)) if p is not None]
        if problems:
            return self.failed(step, problems[0], start)
        self.dynamics = resolve_step_size(self.dynamics, curvature)
        self._halve_step(curvature)
        sampler = Sampler(
            self._engines.engine(
                objective, self.dynamics, posterior, len(self._own(range(self.config.num_chains))), self._exchange.first
            ),
            self.config,
            self._chains(objective.fork, step),
            keep=self._persistent,
            reference_losses=self._panel.reference_losses,
            probes=probes,
            on_steps=on_steps,
            gather=self._exchange.gather,
        )
        verdict = Verdict(self.nbeta, len(objective.fork), objective.at_fork, len(objective), at_fork)
        measurement = self._sample(sampler, verdict, point, curvature, start)
        self._direction = direction  # not before: a measurement that is cut short is made again after a resume
        return measurement

    def _curvature(
        self, objective: Objective, posterior: LocalPosterior, step: int
    ) -> tuple[float, torch.Tensor | None]:
        """k_max, from the direction that the last measurement found, and where to begin at the next."""
        fork = objective.fork
        rng = generator(fork.device, self._seed, step, _CURVATURE_STREAM)
        if self._direction is not None and len(self._direction) != len(fork):
            self._direction = None  # parameters were frozen or added since
        start_from = None if self._direction is None else self._direction.to(fork.device)
        curvature, direction = largest_curvature(objective, posterior, rng, start_from)
        return float(self._exchange.first(curvature)), direction if self._persistent else None

    def _halve_step(self, curvature: float) -> None:
        """Where an "auto" step has become too long for the curvature; its chains are of another make, and end."""
        if self.config.dynamics.step_size != "auto" or not is_dataclass(self.dynamics):
            return
        while self._step_bias(curvature) > _MOST_STEP_BIAS:
            self.dynamics = replace(self.dynamics, step_size=float(self.dynamics.step_size) / 2)
            self._memory.clear()

    def _smaller_block(self) -> int | None:
        """Half the samples of a forward pass, once in a run; None where they have been halved, or are one."""
        if self._block_size != self.config.block_size:
            return None
        largest = min(size for size in (len(self.reference), self.config.batch_size, self._block_size) if size)
        return largest // 2 or None

    def state_dict(self, chains: bool = True) -> dict[str, Any]:
        """What a resumed run needs, in builtins and tensors on the CPU.

        Args:
            chains: Whether to include the chains' positions (chains x parameters).
        """
        return {
            "settings": self._settings(),
            "step_size": self._step_size(),
            "engine": self._engines.name,
            "observables": self._panel.state_dict(),
            "queries": {key: queries.fingerprint for key, queries in self._panel.queries.items()},
            "direction": _to_cpu(self._direction) if chains else None,
            "chains": self._memory.state_dict() if chains else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Go on where `state_dict` was taken.

        After a change of settings or samples the chains start afresh, with a warning. What observables remember, such
        as the order of a picture's rows, depends on the samples and on their own queries alone, and is lost with these.

        Returns:
            Whether what comes can be compared with what was before.
        """
        before = state.get("settings", {})
        changed = [
            f"`{name}` was {before[name]!r} and is {value!r}"
            for name, value in self._settings().items()
            if name in before and before[name] != value
        ]
        self._memory.clear()
        self._direction = None
        if all(before.get(name, value) == value for name, value in self._samples().items()):
            asked = state.get("queries", {})
            same = {key for key, queries in self._panel.queries.items() if asked.get(key) == queries.fingerprint}
            own = self._panel.observables.keys() - self._panel.queries.keys()
            self._panel.load_state_dict({k: v for k, v in state.get("observables", {}).items() if k in own | same})
        if changed:
            warnings.warn(
                f"The checkpoint's chains were run with other settings or samples ({', '.join(changed)}): they start "
                "afresh, and the LLC before and after is not comparable.",
                stacklevel=2,
            )
            return False
        if self.config.dynamics.step_size == "auto" and state["step_size"] != "auto":
            self.dynamics = replace(self.config.dynamics, step_size=state["step_size"])  # type: ignore[type-var]
        if self.config.engine == "auto":
            self._engines.name = state.get("engine", "auto")
        if self._persistent:
            self._direction = state.get("direction")
            self._memory.load_state_dict(state["chains"])
        return True

    def _settings(self) -> dict[str, Any]:
        """What chains cannot survive a change of, in builtins."""
        return {
            "dynamics": repr(self.config.dynamics),
            "nbeta": self.nbeta,
            "localization": float(self.config.localization),
            "num_chains": self.config.num_chains,
            "batch_size": self.config.batch_size,
            **self._samples(),
        }

    def _samples(self) -> dict[str, Any]:
        """What tells the reference set from another: a change means other rows, even where their number is the same."""
        return {"num_samples": len(self.reference), "checksum": self.reference.fingerprint}

    def _prepare(self, module: nn.Module) -> Objective:
        """Fork, and try the loss the first time."""
        # A loss function was written for this and only reads; a training step may keep a running average of weights.
        fork = Fork(module, share_frozen=self._loss_fn is not None)
        self._share_buffers(fork)
        loss_fn = resolve_loss(self._loss_fn, module)
        if self._per_sample is None:
            self._per_sample = self._rehearse(fork, loss_fn)
            fork.reset()
        return self._objective(Objective, fork, _on_copies(loss_fn), self.reference, self.config.batch_size)

    def _objective(
        self,
        kind: type[Objective],
        fork: Fork,
        loss_fn: LossFn,
        samples: ReferenceSet,
        batch_size: int | None = None,
    ) -> Objective:
        return kind(fork, loss_fn, samples, bool(self._per_sample), batch_size, self._block_size, self._singles_at_once)

    def _rehearse(self, fork: Fork, loss_fn: LossFn) -> bool:
        """Try the loss in every way in which it will be asked; returns whether it gives one a sample."""
        rehearsal, panel = Rehearsal(fork, loss_fn, self.reference), self._panel
        per_sample = rehearsal.samples()
        samples_wanted = bool(panel.reference_losses or panel.queries)
        if not per_sample and self._loss_fn is not None and (samples_wanted or panel.reference_tokens):
            raise ValueError(
                "Expected `loss_fn` to return one loss a sample, shape (B,), for the loss kernel or influence, but got "
                'a scalar: use reduction="none" and average over all but the first dimension.'
            )
        for key, queries in panel.queries.items():
            rehearsal.queries(key, queries)
        for key in panel.reference_tokens:
            rows = rehearsal.tokens()
            if isinstance(panel.observables[key], LossKernel):
                remedy = "lower `num_samples`, or leave `per_token` at False"
                check_entries(rows, rows, "a loss kernel of tokens", remedy)
        if not per_sample and samples_wanted:
            self._singles_at_once = rehearsal.singles_at_once()
            _log.info(
                "The loss comes as a mean, and observables need one a sample: it is asked about batches of one, %s. A "
                "method `per_sample_loss(batch)` of the module, or a `loss_fn`, that returns one loss a sample costs "
                "less.",
                "all at once" if self._singles_at_once else "in a loop",
            )
        return per_sample

    def _share_buffers(self, fork: Fork) -> None:
        """Ranks train on batches of their own, so BatchNorm's averages differ: rank 0's are those of a checkpoint."""
        if self._exchange.size > 1:
            fork.set_buffers(self._exchange.first([buffer.cpu() for buffer in fork.buffers()]))

    def _probes(self, objective: Objective) -> dict[str, Probe]:
        """The same loss at the same fork, on the samples, or the tokens, that an observable asks for."""
        fork, loss_fn = objective.fork, objective.loss_fn
        probes = {}
        for key, (samples, places) in self._queries.items():
            asked = None if samples is None else self._objective(Objective, fork, loss_fn, samples)
            probes[key] = Probe(asked, None if places is None else places.to(fork.device))
        for key in self._panel.reference_tokens:
            probes[key] = Probe(self._objective(TokenObjective, fork, loss_fn, self.reference))
        return probes

    def _probed_at_fork(self, objective: Objective, probes: Mapping[str, Probe]) -> dict[str, float]:
        """Mean of the losses that each observable asks for at w*."""
        known = objective.at_fork
        if not objective.per_sample and any(probe.places is not None for probe in probes.values()):
            known = objective.sample_losses()
        return {
            key: float(probe.losses(lambda asked: [asked.sample_losses()], [known])[0].mean())
            for key, probe in probes.items()
        }

    def _reference_point(self, step: int, objective: Objective) -> ReferencePoint:
        loss = float(objective.measure_fork())
        return self._point(step, loss, objective.at_fork if objective.per_sample else torch.empty(0))

    def _point(self, step: int, loss: float, losses: torch.Tensor) -> ReferencePoint:
        return ReferencePoint(
            step=step,
            loss=loss,
            losses=losses,
            indices=self.reference.indices,
            nbeta=self.nbeta,
            localization=self.config.localization,
            num_chains=self.config.num_chains,
            num_draws=self.config.num_draws,
        )

    def _chains(self, fork: Fork, step: int) -> list[Chain]:
        """This process's chains: new random numbers, and the places where the last ones ended."""
        self._memory.check(len(fork))
        chains = self._own(make_chains(self.config, fork.device, self._seed, step, self._memory.past))
        self._memory.resume(chains, fork.device)
        return chains

    def _sample(
        self, sampler: Sampler, verdict: Verdict, point: ReferencePoint, curvature: float, start: float
    ) -> Measurement:
        self._reset(point)
        failed: set[int] = set()
        for draws in self._all_draws(sampler):
            for draw in draws:
                verdict.update(draw)
                self._panel.update(draw)
                self._health.update(draw)
            bad = verdict.failed()
            self._end_chains(bad)
            failed |= bad
        sampler.sgld_steps = sum(self._exchange.gather(sampler.sgld_steps))
        sampler.num_burnin_steps = max(self._exchange.gather(sampler.num_burnin_steps))
        ended_well = [chain for chain in sampler.chains if chain.index not in failed]
        shared = self._persistent and self._exchange.size > 1
        self._memory.keep(ended_well, self._exchange.gather if shared else None, self._exchange.rank)
        error = None
        if len(failed) == self.config.num_chains:
            error = f"all {len(failed)} chains diverged: try a smaller `step_size`, or a larger `localization`"
        return self._collect(point.step, curvature, sampler, start, error)

    def _all_draws(self, sampler: Sampler) -> Iterator[Iterator[Draw]]:
        """The draws of every rank's chains, on every rank, in the order in which one process would see them."""
        own = (draws for _, draws in sampler.draws())
        if self._exchange.size == 1:
            yield from own
            return
        device = sampler.engine.objective.fork.device
        while True:
            group = next(own, None)
            mine = None if group is None else [draw.to(torch.device("cpu")) for draw in group]
            theirs = [draws for draws in self._exchange.gather(mine) if draws is not None]
            if not theirs:
                return
            for draws in theirs:
                yield (draw.to(device) for draw in draws)

    def _own(self, chains: Sequence[_T]) -> list[_T]:
        """Those that this process runs: every so many'th, so that ranks in order give chains in order."""
        return list(chains[self._exchange.rank :: self._exchange.size])

    def _reset(self, point: ReferencePoint, lenient: bool = False) -> None:
        self._panel.reset(point, lenient)
        self._health.reset(point)

    def _end_chains(self, failed: set[int]) -> None:
        self._panel.end_chains(failed)
        for chain in failed:
            self._health.discard(chain)

    def _collect(
        self, step: int, curvature: float, sampler: Sampler | None, start: float | None, error: str | None
    ) -> Measurement:
        results = self._panel.compute(lenient=error is not None)
        results["health"] = self._health.compute() | {
            "step_size": math.nan if self._step_size() == "auto" else self._step_size(),
            "step_bias": self._step_bias(curvature),
            "num_burnin_steps": sampler.num_burnin_steps if sampler else 0,
            "nbeta": self.nbeta,
            "localization": float(self.config.localization),
        }
        results["cost"] = {
            "seconds": 0.0 if start is None else time.perf_counter() - start,
            "sgld_steps": sampler.sgld_steps if sampler else 0,
        }
        return Measurement(step, results, error)

    def _step_size(self) -> float | str:
        step_size = self.dynamics.step_size
        return "auto" if step_size == "auto" else float(step_size)  # of whatever kind it was

    def _step_bias(self, curvature: float) -> float:
        bias = getattr(self.dynamics, "step_bias", None)
        return float(bias(curvature)) if bias is not None and math.isfinite(curvature) else math.nan


def check_distinct(observables: Mapping[str, Observable]) -> None:
    """Refuse one object under two keys, which would take every draw twice.

    Raises:
        ValueError: If so.

    Example:
        >>> from slt_callbacks import LLC
        >>> check_distinct({"first": LLC(), "second": LLC()})
    """
    keys: dict[int, str] = {}
    for key, observable in observables.items():
        other = keys.setdefault(id(observable), key)
        if other != key:
            raise ValueError(
                f"Expected every key of `observables` to have an object of its own, but got one as {other!r} and as "
                f"{key!r}: make a second one."
            )


@contextmanager
def _undisturbed(module: nn.Module, seed: int) -> Iterator[None]:
    """Sampling in its own world: own random numbers, gradients on, no autocast, whatever the caller has set."""
    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    with ExitStack() as stack:
        stack.enter_context(isolated_rng(seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _problem_at_fork(loss: float, curvature: float, probed: Mapping[str, float]) -> str | None:
    """Why no chain can start where these are the mean losses, those that an observable asks for by its key."""
    if not (math.isfinite(loss) and math.isfinite(curvature)):
        return "the loss or its gradient is not finite at the fork: has training diverged?"
    bad = [key for key, value in probed.items() if not math.isfinite(value)]
    return f"a loss that {bad} asks for is not finite at the fork: look at its queries" if bad else None


def _on_copies(loss_fn: LossFn) -> LossFn:
    """The batch may be the kept reference set itself, where whatever a loss function writes would stay."""

    def on_copies(module: nn.Module, batch: Batch) -> torch.Tensor:
        return loss_fn(module, map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, batch))

    return on_copies


def _to_cpu(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()
