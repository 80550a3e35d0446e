"""One measurement: fork, losses at w*, chains, observables. `SLTMonitor` runs the same code at every trigger."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from slt_callbacks.observables import ChainHealth, Observable, Panel, ReferencePoint
from slt_callbacks.sampling import (
    Chain,
    Engine,
    Fork,
    LocalPosterior,
    LossFn,
    Objective,
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
    isolated_rng,
    largest_curvature,
    losses_of,
    make_chains,
    resolve_loss,
    resolve_step_size,
    seed_from,
    warm_round,
)

_log = logging.getLogger(__name__)
_CURVATURE_STREAM, _GLOBAL_STREAM = 201, 202  # apart from the streams of the chains, which start at 0


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
    ) -> None:
        self.reference = reference
        self._panel = Panel(observables)
        self._panel.check(reference)
        self.config = SamplerConfig() if config is None else config
        self.dynamics = self.config.dynamics
        self.nbeta = default_nbeta(len(reference)) if self.config.nbeta is None else float(self.config.nbeta)
        self._loss_fn = loss_fn
        self._seed = seed
        self._persistent = persistent
        self._health = ChainHealth()
        self._memory: dict[int, Chain] = {}
        self._direction: torch.Tensor | None = None
        self._per_sample: bool | None = None
        self._one_by_one = False

    @property
    def expected_steps(self) -> int:
        """Gradient steps of the next measurement, if warm chains do not drift."""
        warm = len(self._memory)
        burn_in = warm_round(self.config)
        cold_steps = (self.config.num_chains - warm) * self.config.num_steps
        return cold_steps + warm * (burn_in + self.config.num_draw_steps)

    def check(self, module: nn.Module) -> None:
        """Fork `module` and try the loss on two samples, so that a mistake shows before any training.

        Raises:
            TypeError: As `Fork`, `resolve_loss` and `check_loss`.
            ValueError: Likewise.
        """
        with _undisturbed(module, self._seed):
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
        with _undisturbed(module, seed_from(self._seed, step, _GLOBAL_STREAM)):
            objective = self._prepare(module)
            posterior = LocalPosterior(self.nbeta, self.config.localization)
            point = self._reference_point(step, objective)
            rng = generator(objective.fork.device, self._seed, step, _CURVATURE_STREAM)
            if self._direction is not None and len(self._direction) != len(objective.fork):
                self._direction = None  # parameters were frozen or added since
            start_from = None if self._direction is None else self._direction.to(objective.fork.device)
            curvature, self._direction = largest_curvature(objective, posterior, rng, start_from)
            del start_from  # as large as the parameters
            if not self._persistent:
                self._direction = None
            if not (math.isfinite(point.loss) and math.isfinite(curvature)):
                return self.failed(
                    step, "the loss or its gradient is not finite at the fork: has training diverged?", start
                )
            self.dynamics = resolve_step_size(self.dynamics, curvature)
            sampler = Sampler(
                self._engine(objective, posterior),
                self.config,
                self._chains(objective.fork, step),
                keep=self._persistent,
                reference_losses=self._panel.reference_losses,
                queries=self._probes(objective),
                on_steps=on_steps,
            )
            return self._sample(sampler, point, curvature, start)

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
        self._reset(self._point(step, math.nan, empty))
        self._end_chains(set(range(self.config.num_chains)))
        return self._collect(step, math.nan, None, start, error)

    def state_dict(self, chains: bool = True) -> dict[str, Any]:
        """What a resumed run needs, in builtins and tensors on the CPU.

        Args:
            chains: Whether to include the chains' positions (chains x parameters).
        """
        return {
            "step_size": self.dynamics.step_size,
            "observables": self._panel.state_dict(),
            "direction": _to_cpu(self._direction) if chains else None,
            "chains": {
                index: {
                    "displacement": _to_cpu(chain.displacement),
                    # a copy: the next measurement goes on in these tensors
                    "state": {name: value.to("cpu", copy=True) for name, value in (chain.state or {}).items()},
                    "sgld_step": chain.sgld_step,
                }
                for index, chain in (self._memory.items() if chains else ())
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; chains that no longer fit start afresh at the next measurement."""
        if self.config.dynamics.step_size == "auto" and state["step_size"] != "auto":
            self.dynamics = replace(self.config.dynamics, step_size=state["step_size"])  # type: ignore[type-var]
        self._panel.load_state_dict(state.get("observables", {}))
        self._memory, self._direction = {}, None
        if self._persistent:
            self._direction = state.get("direction")
            for chain in make_chains(self.config, torch.device("cpu"), self._seed, 0):
                if chain.index in state["chains"]:
                    vars(chain).update(state["chains"][chain.index])
                    self._memory[chain.index] = chain

    def _prepare(self, module: nn.Module) -> Objective:
        """Fork, and try the loss the first time."""
        fork = Fork(module)
        loss_fn = resolve_loss(self._loss_fn, module)
        if self._per_sample is None:
            batch, places = self.reference.to(fork.device, fork.dtype).batches(
                torch.arange(min(2, len(self.reference)))
            )[0]
            self._per_sample = check_loss(loss_fn, fork.module, fork.parameters, batch, len(places))
            self._check_per_sample(self._per_sample)
            self._check_queries(fork, loss_fn)
            fork.reset()
        return Objective(
            fork, loss_fn, self.reference, self._per_sample, self.config.batch_size, self.config.block_size
        )

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
            size = self.config.block_size
            return kind(objective.fork, objective.loss_fn, samples, objective.per_sample, block_size=size)

        return {key: probe(Objective, queries) for key, queries in self._panel.queries.items()} | {
            key: probe(TokenObjective, self.reference) for key in self._panel.reference_tokens
        }

    def _engine(self, objective: Objective, posterior: LocalPosterior) -> Engine:
        """The engine of the settings; one by one where the module cannot be batched, which is said once."""
        if self.config.engine == "vectorized" and not self._one_by_one:
            engine = VectorizedEngine(objective, self.dynamics, posterior)
            try:
                engine.try_step()
            except Exception as error:  # noqa: BLE001  # vmap meets the user's code, and refuses in many ways
                self._one_by_one = True
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                _log.info("The chains run one by one, because this module cannot be vectorized: %s", reason)
            else:
                return engine
        return SequentialEngine(objective, self.dynamics, posterior)

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
        """This measurement's chains: new random numbers, and the places where the last ones ended."""
        chains = make_chains(self.config, fork.device, self._seed, step)
        for chain in chains:
            last = self._memory.get(chain.index)
            if last is None or last.displacement is None:
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
            chain.state = {name: value.to(fork.device) for name, value in (last.state or {}).items()}
            chain.sgld_step = last.sgld_step
        return chains

    def _sample(self, sampler: Sampler, point: ReferencePoint, curvature: float, start: float) -> Measurement:
        self._reset(point)
        failed: set[int] = set()
        for members, draws in sampler.draws():
            excess: dict[int, list[torch.Tensor]] = {chain: [] for chain in members}
            for draw in draws:
                excess[draw.chain].append(draw.excess)
                self._panel.update(draw)
                self._health.update(draw)
            bad = self._senseless(excess, len(sampler.engine.objective.fork))
            self._end_chains(bad)
            failed |= bad
        self._memory = {c.index: c for c in sampler.chains if c.index not in failed and _may_go_on(c)}
        error = None
        if len(failed) == self.config.num_chains:
            error = f"all {len(failed)} chains diverged: try a smaller `step_size`, or a larger `localization`"
        return self._collect(point.step, curvature, sampler, start, error)

    def _senseless(self, excess: dict[int, list[torch.Tensor]], num_parameters: int) -> set[int]:
        """Chains whose losses are not finite, or finite beyond any sense; the one place that waits for the device.

        At equilibrium nbeta times the excess loss is about half the number of parameters at most (equipartition), and
        fluctuates by its root; twenty times that, and never less than 1000, is divergence and not sampling.
        """
        table = torch.stack([torch.stack(values) for values in excess.values()]).double().cpu() * self.nbeta
        good = (table.isfinite() & (table < 1000 + 10 * num_parameters)).all(dim=1)
        return {chain for chain, ok in zip(excess, good.tolist(), strict=True) if not ok}

    def _reset(self, point: ReferencePoint) -> None:
        self._panel.reset(point)
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


def _may_go_on(chain: Chain) -> bool:
    """Whether a chain was kept, and stands on finite weights: its very last step is seen by no draw."""
    return chain.displacement is not None and bool(chain.displacement.isfinite().all())


def _to_cpu(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()
