"""Contract checks for what users plug in. Run them over your own: ``check_dynamics(MyDynamics(1e-3))``.

Each raises AssertionError with the promise that was broken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch

from slt_callbacks import SGLD, Estimator, Measurement
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.executors.base import Executor
from slt_callbacks.figures.report import Report
from slt_callbacks.losses.objective import Objective
from slt_callbacks.observables.base import ForkObservable, Observable, ReferencePoint
from slt_callbacks.observables.needs import needs_of
from slt_callbacks.observables.panel import Panel
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sinks.base import Publication, Sink
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.snapshot import Snapshot


def check_dynamics(dynamics: Any) -> None:
    """A dynamics with a number for its step size: elementwise, in place, pure given its state, at home on pieces."""
    assert isinstance(dynamics, Dynamics), "has `step_size`, `init` and `step`"
    assert math.isfinite(dynamics.step_size), "give it a number for `step_size` first"
    SamplerConfig(dynamics=dynamics)
    posterior = LocalPosterior(nbeta=3.0, localization=2.0)
    generator = torch.Generator().manual_seed(0)
    start, anchor, *others = torch.randn(10, 12, generator=generator, dtype=torch.float64)
    gradients, noises = others[:4], others[4:]
    settings = copy.deepcopy(getattr(dynamics, "__dict__", {}))

    def run(cuts: list[slice], chains: int = 0) -> torch.Tensor:
        position = start.clone() if not chains else start.repeat(chains, 1)
        state = dynamics.init(position)
        assert isinstance(state, Mapping), "`init` returns tensors by name"
        for name, value in state.items():
            assert isinstance(name, str), "`init` returns tensors by name"
            assert value.shape == position.shape, f"state `{name}` has the shape of the position"
        for step, (gradient, noise) in enumerate(zip(gradients, noises, strict=True)):
            for cut in cuts:
                given = gradient[cut].clone().expand_as(position[..., cut])
                kept = given.clone(), anchor.clone()
                result = dynamics.step(
                    position=position[..., cut],
                    gradient=given,
                    noise=noise[cut].clone().repeat(chains, 1) if chains else noise[cut].clone(),
                    anchor=anchor[cut],
                    posterior=posterior,
                    state={name: value[..., cut] for name, value in state.items()},
                    sgld_step=step,
                )
                assert result is None, "`step` moves in place and returns None"
                assert torch.equal(given, kept[0]), "`step` leaves the gradient as it is"
                assert torch.equal(anchor, kept[1]), "`step` leaves the anchor as it is"
        return position

    before = torch.get_rng_state()
    whole = run([slice(0, 12)])
    assert whole.isfinite().all(), "stays finite on numbers of size 1"
    assert dynamics.step_size == 0 or not torch.equal(whole, start), "moves"
    torch.testing.assert_close(run([slice(0, 12)]), whole, rtol=0, atol=0, msg="same inputs, same step")
    torch.testing.assert_close(run([slice(0, 5), slice(5, 12)]), whole, msg="pieces give what the whole gives")
    stacked = run([slice(0, 12)], chains=3)
    for row in stacked:
        torch.testing.assert_close(row, whole, msg="takes a chain dimension in front")
    assert torch.equal(torch.get_rng_state(), before), "draws from no global generator"
    assert getattr(dynamics, "__dict__", {}) == settings, "keeps what changes in its state, not in itself"


def check_observable(observable: Any, per_sample: bool = True) -> None:
    """An observable of the chains' losses: three verbs, a total reset, a pure compute, a `discard` if it has one.

    What it compares over measurements is in its `state_dict`: the same state and the same draws give the same result.
    """
    assert isinstance(observable, Observable), "has `reset`, `update` and `compute`"
    if hasattr(observable, "state_dict"):
        _measured(observable, per_sample, skip=(1,))  # something to compare with
        observable = _Restarted(observable)
    first = _measured(observable, per_sample, skip=())
    assert isinstance(first, Mapping), "`compute` returns results by name"
    for name, value in first.items():
        assert isinstance(name, str), "`compute` returns results by name"
        assert all(name.split("/")), "names may have parts, such as `group/a_to_b`, none of them empty"
        assert not isinstance(value, torch.Tensor) or not value.requires_grad, f"`{name}` carries no graph"
    _assert_same(observable.compute(), first, "`compute` changes nothing and may be called twice")
    _assert_same(_measured(observable, per_sample, skip=()), first, "`reset` forgets everything")
    if hasattr(observable, "discard"):
        without = _measured(observable, per_sample, skip=(), discard=1)
        never = _measured(observable, per_sample, skip=(1,), discard=1)
        _assert_same(without, never, "`discard` takes back every draw of a chain, as if none had come")
        _assert_same(_measured(observable, per_sample, skip=()), first, "`reset` brings a discarded chain back")
        poisoned = _measured(observable, per_sample, skip=(), discard=1, poison=1)
        _assert_same(poisoned, never, "NaN of a discarded chain leaves no trace")


class _Restarted:
    """An observable that begins every measurement in the state it was given in."""

    def __init__(self, observable: Any) -> None:
        self._observable = observable
        self._state = copy.deepcopy(observable.state_dict())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observable, name)

    def reset(self, reference: ReferencePoint) -> None:
        self._observable.load_state_dict(copy.deepcopy(self._state))
        self._observable.reset(reference)


def _measured(
    observable: Any, per_sample: bool, skip: tuple[int, ...], discard: int | None = None, poison: int | None = None
) -> Any:
    num_chains, num_draws, num_samples, num_queries = 3, 20, 6, 4
    needs = needs_of(observable)
    asks = needs.queries is not None
    generator = torch.Generator().manual_seed(0)
    at_fork = torch.rand(num_samples, generator=generator)
    table = at_fork + 0.1 * torch.randn(num_chains, num_draws, num_samples, generator=generator)
    table[1] = at_fork + 5 * (table[1] - at_fork)  # the chain to be discarded is the one with the extremes
    observable.reset(
        ReferencePoint(
            step=3,
            loss=float(at_fork.mean()),
            losses=at_fork if per_sample else torch.empty(0),
            indices=torch.arange(num_samples),
            nbeta=10.0,
            localization=1.0,
            num_chains=num_chains,
            num_draws=num_draws,
            key="own",
            query_indices=torch.arange(num_queries if asks else 0),
        )
    )

    def probed(losses: torch.Tensor) -> dict[str, torch.Tensor]:
        if asks:
            return {"own": losses[:num_queries].square()}
        return {"own": losses.repeat_interleave(2)} if needs.reference_tokens else {}

    for chain in range(num_chains):
        for index in range(num_draws):
            losses = table[chain, index]
            if chain == poison and index > num_draws // 2:
                losses = torch.full_like(losses, torch.nan)
            if chain in skip:
                continue
            draw = Draw(
                chain,
                index,
                samples=None,
                losses=losses if per_sample else losses.mean(),
                loss=losses.mean(),
                excess=(losses - at_fork).mean(),
                reference_losses=losses if needs.reference_losses else None,
                query_losses=probed(losses),
            )
            assert observable.update(draw) is None, "`update` returns None"
        if chain == discard:
            observable.discard(chain)
    return observable.compute()


def _assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], promise: str) -> None:
    assert found.keys() == expected.keys(), promise
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True, msg=f"{promise} ({name})")
        elif isinstance(value, float) and math.isnan(value):
            assert math.isnan(found[name]), f"{promise} ({name})"
        else:
            assert found[name] == value, f"{promise} ({name})"


def check_fork_observable(observable: Any) -> None:
    """An observable of the fork: the same answer twice, whatever it moves is put back, and no graph is kept."""
    assert isinstance(observable, ForkObservable), "has `inspect`"
    reference = _small_reference()
    objective = _small_problem(reference)
    before = objective.fork.position.clone()
    panel = Panel({"own": observable})
    panel.check(reference)
    point = _point(objective)
    found = []
    for _ in range(2):
        panel.inspect(objective, point, seed=0)
        found.append(panel.compute()["own"])
        assert torch.equal(objective.fork.position, before), "the fork is put back after it"
    assert isinstance(found[0], Mapping), "`inspect` returns results by name"
    for name, value in found[0].items():
        assert isinstance(name, str), "`inspect` returns results by name"
        assert all(name.split("/")), "names may have parts, such as `group/a_to_b`, none of them empty"
        assert not isinstance(value, torch.Tensor) or not value.requires_grad, f"`{name}` carries no graph"
    _assert_same(found[1], found[0], "the same fork gives the same answer")


def check_sink(sink: Any) -> None:
    """A sink: takes measurements good and failed, one run after the other."""
    assert isinstance(sink, Sink), "has `open`, `publish` and `close`"
    for _ in range(2):
        sink.open([], {"seed": 0})
        for step, error in ((1, None), (2, "all 4 chains diverged")):
            results = {"llc": {"mean": math.nan if error else 1.5}, "health": {}, "cost": {"seconds": 0.1}}
            measurement = Measurement(step, results, error)
            assert sink.publish(Publication(measurement, measurement.logged(), log_step=step - 1)) is None
        if hasattr(sink, "finish"):
            sink.finish(Report([Measurement(1, {"llc": {"mean": 1.5}})]))
        sink.close()


def check_detector(detector: Any) -> None:
    """A detector: takes steps, values and NaN; what it returns becomes an event; a resume changes nothing."""

    def fed(one: Any, steps: range) -> list[Any]:
        watch = Watch({"slt/own/number": one}, {"own": object()})
        for step in steps:
            value = math.nan if step == 5 else 10.0 * (step > 20) + math.sin(step)
            watch.update(Measurement(step, {"own": {"number": value}, "health": {}}))
        return [found.row() for found in watch.found]

    fresh = [copy.deepcopy(detector) for _ in range(3)]
    whole = fed(fresh[0], range(40))
    assert fed(fresh[1], range(40)) == whole, "the same series gives the same events"
    if hasattr(detector, "state_dict"):
        first = fed(fresh[2], range(23))
        resumed = copy.deepcopy(detector)
        resumed.load_state_dict(copy.deepcopy(fresh[2].state_dict()))
        assert [*first, *fed(resumed, range(23, 40))] == whole, "it goes on where its `state_dict` was taken"


def check_schedule(schedule: Any) -> None:
    """A schedule: for a step, whether to measure there; the same answer every time."""
    answers = [schedule(step) for step in range(200)]
    assert all(isinstance(answer, bool) for answer in answers), "returns True or False"
    assert answers == [schedule(step) for step in range(200)], "answers alike when it is asked again"


def check_executor(executor: Any) -> None:
    """An executor: every measurement once, in the order of the forks, with the numbers of an estimator alone."""
    assert isinstance(executor, Executor), "has `open`, `submit`, `poll`, `drain` and `close`"
    reference, loss_fn = draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))]), _square
    config = SamplerConfig(SGLD(1e-3), num_chains=2, num_draws=3, num_burnin_steps=2, engine="sequential")
    alone = Estimator(reference, loss_fn, None, config, persistent=True)
    module = torch.nn.Linear(2, 1)
    for _ in range(2):
        executor.open(Estimator(reference, loss_fn, None, config, persistent=True))
        alone = Estimator(reference, loss_fn, None, config, persistent=True)
        found, expected = [], []
        for step in (1, 2, 3):
            expected.append(alone.measure(module, step))
            executor.submit(Snapshot(step, module))
            found += executor.poll()
            with torch.no_grad():
                module.weight.add_(0.01)  # training goes on
        found += executor.drain()
        assert executor.poll() == [], "a measurement is given back once"
        assert [one.step for one in found] == [1, 2, 3], "in the order of the forks, none left out"
        for one, other in zip(found, expected, strict=True):
            _assert_same(one["llc"], other["llc"], "of the weights as they were when it was submitted")
        executor.close()


def _square(module: Any, batch: Any) -> torch.Tensor:
    return (module(batch[0]) - batch[1]).square().flatten(1).sum(1)


def _small_reference() -> ReferenceSet:
    return draw_reference([torch.randn(6, 3, generator=torch.Generator().manual_seed(1))])


def _small_problem(reference: ReferenceSet) -> Objective:
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        module[0].bias[:2] = -100.0  # two units that no sample reaches
    objective = Objective(Fork(module), lambda m, x: m(x).square()[:, 0], reference)
    objective.measure_fork()
    return objective


def _point(objective: Objective) -> ReferencePoint:
    losses = objective.at_fork
    return ReferencePoint(3, float(losses.mean()), losses, torch.arange(len(losses)), 10.0, 1.0, 2, 3)
