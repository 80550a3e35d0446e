"""One measurement: fork, losses at w*, chains, observables. `SLTMonitor` runs the same code at every trigger."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from slt_callbacks.observables import ChainHealth, Observable, Panel, ReferencePoint
from slt_callbacks.sampling import (
    SHORTEST_RACE,
    Alone,
    Chain,
    Draw,
    Engine,
    Exchange,
    Fork,
    LocalPosterior,
    LossFn,
    Objective,
    Ranks,
    Reference,
    ReferenceSet,
    Sampler,
    SamplerConfig,
    SequentialEngine,
    TokenObjective,
    VectorizedEngine,
    check_loss,
    default_nbeta,
    draw_reference,
    generator,
    is_out_of_memory,
    is_worth_it,
    isolated_rng,
    largest_curvature,
    losses_of,
    make_chains,
    resolve_loss,
    resolve_step_size,
    seed_from,
    time_ratio,
    warm_round,
)

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_CURVATURE_STREAM, _GLOBAL_STREAM = 201, 202  # apart from the streams of the chains, which start at 0
# Where the curvature of the loss has grown so far that this is exceeded, an "auto" step is halved: beyond it the bias
# is as large as the usual standard error, and an LLC that rises may be nothing else.
_MOST_STEP_BIAS = 0.05


@dataclass(frozen=True)
class Measurement:
    """What one measurement found.

    ``measurement["llc"]["mean"]`` reads the result ``mean`` of the observable with the key ``llc``; ``"health"`` and
    ``"cost"`` are always there.

    Attributes:
        step: Training step of the fork: optimizer steps done; 0 for a bare `estimate`.
        results: By observable, then by name: floats and ints, and tensors on the CPU.
        error: Why the measurement failed, or None.

    Example:
        >>> Measurement(step=3, results={"llc": {"mean": 1.5}})["llc"]["mean"]
        1.5
    """

    step: int
    results: Mapping[str, Mapping[str, Any]]
    error: str | None = None

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        """Results of one observable, or of "health" or "cost"."""
        if key not in self.results:
            raise KeyError(f"No observable {key!r} in this measurement; it has {sorted(self.results)}.")
        return self.results[key]

    @property
    def failed(self) -> bool:
        """Whether no chain survived, or the measurement raised."""
        return self.error is not None

    def scalars(self) -> dict[str, float]:
        """Every single number, keyed ``observable/name``."""
        return {
            f"{key}/{name}": value
            for key, result in self.results.items()
            for name, value in result.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }


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
        TypeError: If an observable lacks a method.
        ValueError: If a key is reserved or no name, or an observable refuses the reference set or its own queries.

    Example:
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
        self.reference = reference
        self._panel = Panel(observables)
        self._panel.check(reference)
        self.config = SamplerConfig() if config is None else config
        self.dynamics = self.config.dynamics
        self.nbeta = default_nbeta(len(reference)) if self.config.nbeta is None else float(self.config.nbeta)
        self._loss_fn = loss_fn
        self._seed = seed
        self._persistent = persistent
        self._stores_on_cpu = store_chains == "cpu"
        self._exchange = Exchange(Alone() if ranks is None else ranks)
        self._engine_name: str = self.config.engine
        self._block_size = self.config.block_size
        self._health = ChainHealth()
        self._memory: dict[int, _Kept] = {}
        self._direction: torch.Tensor | None = None
        self._per_sample: bool | None = None

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement in this process, if warm chains do not drift."""
        own = self._own(range(self.config.num_chains))
        warm = len(self._memory.keys() & set(own))
        return (len(own) - warm) * self.config.num_steps + warm * self.warm_steps

    @property
    def stored_bytes(self) -> int:
        """Memory of the chains that wait for the next measurement."""
        tensors = [t for kept in self._memory.values() for t in (kept.displacement, *kept.state.values())]
        return sum(tensor.nbytes for tensor in tensors)

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
            _log.info("A measurement ran out of memory: trying again with `block_size=%d`.", smaller)
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
            curvature = self._curvature(objective, LocalPosterior(self.nbeta, self.config.localization), 0)
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
        curvature = self._curvature(objective, posterior, step)
        if not (math.isfinite(point.loss) and math.isfinite(curvature)):
            return self.failed(
                step, "the loss or its gradient is not finite at the fork: has training diverged?", start
            )
        self.dynamics = resolve_step_size(self.dynamics, curvature)
        self._halve_step(curvature)
        sampler = Sampler(
            self._engine(objective, posterior),
            self.config,
            self._chains(objective.fork, step),
            keep=self._persistent,
            reference_losses=self._panel.reference_losses,
            queries=self._probes(objective),
            on_steps=on_steps,
            gather=self._exchange.gather,
        )
        return self._sample(sampler, point, curvature, start)

    def _curvature(self, objective: Objective, posterior: LocalPosterior, step: int) -> float:
        """k_max, from the direction that the last measurement found."""
        fork = objective.fork
        rng = generator(fork.device, self._seed, step, _CURVATURE_STREAM)
        if self._direction is not None and len(self._direction) != len(fork):
            self._direction = None  # parameters were frozen or added since
        start_from = None if self._direction is None else self._direction.to(fork.device)
        curvature, direction = largest_curvature(objective, posterior, rng, start_from)
        self._direction = direction if self._persistent else None
        return float(self._exchange.first(curvature))

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
            "step_size": self.dynamics.step_size,
            "engine": self._engine_name,
            "observables": self._panel.state_dict(),
            "direction": _to_cpu(self._direction) if chains else None,
            "chains": {
                index: vars(kept.to(torch.device("cpu"))) for index, kept in (self._memory.items() if chains else ())
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; after a change of settings everything starts afresh, with a warning."""
        before = state.get("settings", {})
        changed = [
            f"`{name}` was {before[name]!r} and is {value!r}"
            for name, value in self._settings().items()
            if name in before and before[name] != value
        ]
        self._memory, self._direction = {}, None
        if changed:
            warnings.warn(
                f"The checkpoint's chains were run with other settings ({', '.join(changed)}): they start afresh, and "
                "the LLC before and after is not comparable.",
                stacklevel=2,
            )
            return
        if self.config.dynamics.step_size == "auto" and state["step_size"] != "auto":
            self.dynamics = replace(self.config.dynamics, step_size=state["step_size"])  # type: ignore[type-var]
        if self.config.engine == "auto":
            self._engine_name = state.get("engine", "auto")
        self._panel.load_state_dict(state.get("observables", {}))
        if self._persistent:
            self._direction = state.get("direction")
            self._memory = {index: _Kept(**place) for index, place in state["chains"].items()}

    def _settings(self) -> dict[str, Any]:
        """What chains cannot survive a change of, in builtins."""
        return {
            "dynamics": repr(self.config.dynamics),
            "nbeta": self.nbeta,
            "localization": float(self.config.localization),
            "num_chains": self.config.num_chains,
            "num_samples": len(self.reference),
            "batch_size": self.config.batch_size,
        }

    def _prepare(self, module: nn.Module) -> Objective:
        """Fork, and try the loss the first time."""
        fork = Fork(module)
        self._share_buffers(fork)
        loss_fn = resolve_loss(self._loss_fn, module)
        if self._per_sample is None:
            batch, places = self.reference.to(fork.device, fork.dtype).batches(
                torch.arange(min(2, len(self.reference)))
            )[0]
            self._per_sample = check_loss(loss_fn, fork.module, fork.parameters, batch, len(places))
            self._check_per_sample(self._per_sample)
            self._check_queries(fork, loss_fn)
            fork.reset()
        return Objective(fork, loss_fn, self.reference, self._per_sample, self.config.batch_size, self._block_size)

    def _share_buffers(self, fork: Fork) -> None:
        """Ranks train on batches of their own, so BatchNorm's averages differ: rank 0's are those of a checkpoint."""
        if self._exchange.size > 1:
            fork.set_buffers(self._exchange.first([buffer.cpu() for buffer in fork.buffers()]))

    def _check_per_sample(self, per_sample: bool) -> None:
        needs = self._panel.reference_losses or self._panel.queries or self._panel.reference_tokens
        if needs and not per_sample and self._loss_fn is not None:
            raise ValueError(
                "Expected `loss_fn` to return one loss a sample, shape (B,), for the loss kernel or influence, but got "
                'a scalar: use reduction="none" and average over all but the first dimension.'
            )

    def _check_queries(self, fork: Fork, loss_fn: LossFn) -> None:
        """Try the loss on one query of each observable."""
        for key, queries in self._panel.queries.items():
            batch, _ = queries.to(fork.device, fork.dtype).batches(torch.arange(1))[0]
            try:
                with torch.no_grad():
                    losses_of(loss_fn, fork.module, batch, 1)
            except Exception as error:
                raise ValueError(
                    f"Expected `loss_fn` to take the queries of `observables[{key!r}]` as it takes the reference "
                    f"samples, but it raised {type(error).__name__}: {error}. Give queries of the same structure and "
                    "shape."
                ) from error

    def _probes(self, objective: Objective) -> dict[str, Objective]:
        """The same loss at the same fork, on the samples, or the tokens, that an observable asks for."""

        def probe(kind: type[Objective], samples: ReferenceSet) -> Objective:
            return kind(objective.fork, objective.loss_fn, samples, objective.per_sample, block_size=self._block_size)

        return {key: probe(Objective, queries) for key, queries in self._panel.queries.items()} | {
            key: probe(TokenObjective, self.reference) for key in self._panel.reference_tokens
        }

    def _engine(self, objective: Objective, posterior: LocalPosterior) -> Engine:
        """The engine of the settings, decided at the first measurement and then held."""
        sequential = SequentialEngine(objective, self.dynamics, posterior)
        vectorized = VectorizedEngine(objective, self.dynamics, posterior)
        if self._engine_name == "auto":
            self._engine_name = self._exchange.first(self._faster(vectorized, sequential))
        elif self._engine_name == "vectorized" and self.config.engine == "vectorized":
            try:
                vectorized.try_step()
            except Exception as error:  # noqa: BLE001  # vmap meets the user's code, and refuses in many ways
                self._engine_name = "sequential"
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                _log.info("The chains run one by one, because this module cannot be vectorized: %s", reason)
        return vectorized if self._engine_name == "vectorized" else sequential

    def _faster(self, vectorized: Engine, sequential: Engine) -> str:
        """Name of the faster engine, where the chains are many and long enough for that to matter."""
        if self.config.num_chains < 2 or self.config.num_steps < SHORTEST_RACE:
            return "sequential"
        try:
            ratio = time_ratio(vectorized, sequential, self.config)
        except Exception as error:  # noqa: BLE001  # as above; the memory of all chains may be lacking as well
            _log.debug("The chains run one by one: %s", error)
            return "sequential"
        _log.info("All chains at once take %.2f times the time of one by one.", ratio)
        return "vectorized" if is_worth_it(ratio) else "sequential"

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
        chains = self._own(make_chains(self.config, fork.device, self._seed, step))
        for chain in chains:
            last = self._memory.get(chain.index)
            if last is None:
                continue
            if len(last.displacement) != len(fork):
                warnings.warn(
                    f"The chains were kept for {len(last.displacement)} trainable parameters, but the module now has "
                    f"{len(fork)}: they start afresh.",
                    stacklevel=2,
                )
                self._memory.clear()
                return chains
            chain.displacement = last.displacement
            # A copy: the dynamics moves it in place, and an attempt that fails must not.
            chain.state = {name: value.to(fork.device, copy=True) for name, value in last.state.items()}
            chain.sgld_step = last.sgld_step
        return chains

    def _sample(self, sampler: Sampler, point: ReferencePoint, curvature: float, start: float) -> Measurement:
        self._reset(point)
        failed: set[int] = set()
        for members, draws in self._all_draws(sampler):
            excess: dict[int, list[torch.Tensor]] = {chain: [] for chain in members}
            for draw in draws:
                excess[draw.chain].append(draw.excess)
                self._panel.update(draw)
                self._health.update(draw)
            bad = self._senseless(excess, len(sampler.engine.objective.fork))
            self._end_chains(bad)
            failed |= bad
        sampler.sgld_steps = sum(self._exchange.gather(sampler.sgld_steps))
        sampler.num_burnin_steps = max(self._exchange.gather(sampler.num_burnin_steps))
        self._remember([chain for chain in sampler.chains if chain.index not in failed])
        error = None
        if len(failed) == self.config.num_chains:
            error = f"all {len(failed)} chains diverged: try a smaller `step_size`, or a larger `localization`"
        return self._collect(point.step, curvature, sampler, start, error)

    def _all_draws(self, sampler: Sampler) -> Iterator[tuple[list[int], Iterator[Draw]]]:
        """The draws of every rank's chains, on every rank, in the order in which one process would see them."""
        if self._exchange.size == 1:
            yield from sampler.draws()
            return
        device, own = sampler.engine.objective.fork.device, sampler.draws()
        while True:
            group = next(own, None)
            mine = None if group is None else (group[0], [draw.to(torch.device("cpu")) for draw in group[1]])
            theirs = [part for part in self._exchange.gather(mine) if part is not None]
            if not theirs:
                return
            for members, draws in theirs:
                yield members, (draw.to(device) for draw in draws)

    def _own(self, chains: Sequence[_T]) -> list[_T]:
        """Those that this process runs: every so many'th, so that ranks in order give chains in order."""
        return list(chains[self._exchange.rank :: self._exchange.size])

    def _remember(self, chains: list[Chain]) -> None:
        """Keep the chains for the next measurement; rank 0 those of all ranks, because it writes the checkpoints."""
        own = {chain.index: kept for chain in chains if (kept := _kept(chain)) is not None}
        if self._stores_on_cpu:
            own = {index: kept.to(torch.device("cpu")) for index, kept in own.items()}
        if self._persistent and self._exchange.size > 1:
            parts = self._exchange.gather({index: kept.to(torch.device("cpu")) for index, kept in own.items()})
            if self._exchange.rank == 0:
                own = {index: kept for part in parts for index, kept in part.items()} | own
        self._memory = own

    def _senseless(self, excess: dict[int, list[torch.Tensor]], num_parameters: int) -> set[int]:
        """Chains whose losses are not finite, or finite beyond any sense; the one place that waits for the device.

        At equilibrium nbeta times the excess loss is about half the number of parameters at most (equipartition), and
        fluctuates by its root; twenty times that, and never less than 1000, is divergence and not sampling.
        """
        table = torch.stack([torch.stack(values) for values in excess.values()]).double().cpu() * self.nbeta
        good = (table.isfinite() & (table < 1000 + 10 * num_parameters)).all(dim=1)
        return {chain for chain, ok in zip(excess, good.tolist(), strict=True) if not ok}

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
            "step_size": math.nan if self.dynamics.step_size == "auto" else float(self.dynamics.step_size),
            "step_bias": self._step_bias(curvature),
            "num_burnin_steps": sampler.num_burnin_steps if sampler else 0,
            "nbeta": self.nbeta,
            "localization": self.config.localization,
        }
        results["cost"] = {
            "seconds": 0.0 if start is None else time.perf_counter() - start,
            "sgld_steps": sampler.sgld_steps if sampler else 0,
        }
        return Measurement(step, results, error)

    def _step_bias(self, curvature: float) -> float:
        bias = getattr(self.dynamics, "step_bias", None)
        return float(bias(curvature)) if bias is not None and math.isfinite(curvature) else math.nan


def estimate(
    module: nn.Module,
    reference: Reference,
    loss_fn: LossFn | None = None,
    *,
    observables: Mapping[str, Observable] | None = None,
    sampler: SamplerConfig | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Measurement:
    """Measure a module once, with no Trainer. The module, and every global generator, is left as it was.

    Args:
        module: Any module with a trainable parameter.
        reference: Samples to measure on: a Dataset, a DataLoader (its dataset), a list of batches, or a function that
            returns one of these.
        loss_fn: ``(module, batch) -> losses``, one a sample ``(B,)``, one a token ``(B, T)`` (averaged over T), or a
            scalar mean. None: the module's ``per_sample_loss(batch)``, else the loss of its ``training_step``.
        observables: What to measure, by key; None for ``{"llc": LLC()}``.
        sampler: Settings of the chains; None for the defaults.
        num_samples: Samples drawn from `reference` (seeded); None for all of them.
        seed: Of the choice of samples and of the chains.

    Returns:
        The measurement: ``measurement["llc"]["mean"]`` and so on.

    Raises:
        TypeError: If `reference`, `loss_fn` or an observable is of the wrong kind.
        ValueError: If a setting is out of range, `reference` is empty, too small or not finite, nothing is trainable,
            or `loss_fn` returns the wrong shape or no gradient.

    Example:
        >>> class Quadratic(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(2))
        >>> def loss_fn(module, batch):
        ...     return 0.5 * module.w.square().sum().expand(len(batch))
        >>> from slt_callbacks.sampling import SGLD
        >>> config = SamplerConfig(SGLD(1e-3), nbeta=200.0, localization=0.0, num_draws=2000)
        >>> measurement = estimate(Quadratic(), [torch.zeros(2, 1)], loss_fn, sampler=config)
        >>> abs(measurement["llc"]["mean"] - 1.0) < 0.15  # half the number of parameters
        True
    """
    drawn = draw_reference(reference, num_samples, seed)
    measurement = Estimator(drawn, loss_fn, observables, sampler, seed).measure(module)
    if measurement.failed:
        warnings.warn(f"The measurement failed: {measurement.error}.", stacklevel=2)
    return measurement


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


@dataclass(frozen=True)
class _Kept:
    """Where a chain has ended: ``w - w*`` ``(P,)``, the state of its dynamics, and the steps that this has seen."""

    displacement: torch.Tensor
    state: dict[str, torch.Tensor]
    sgld_step: int

    def to(self, device: torch.device) -> _Kept:
        """On another device; the displacement is never written to, and may be shared."""
        state = {name: value.to(device) for name, value in self.state.items()}
        return _Kept(self.displacement.to(device), state, self.sgld_step)


def _kept(chain: Chain) -> _Kept | None:
    """None for a chain that is not kept, or whose very last step, which no draw has seen, led nowhere."""
    if chain.displacement is None or not bool(chain.displacement.isfinite().all()):
        return None
    return _Kept(chain.displacement, chain.state or {}, chain.sgld_step)


def _to_cpu(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()
