"""Contract checks for what users plug in. Run them over your own: ``check_dynamics(MyDynamics(1e-3))``.

Each raises AssertionError with the promise that was broken.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch

from slt_callbacks.observables.base import Observable, ReferencePoint
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.posterior import LocalPosterior


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
    asks = getattr(observable, "queries", None) is not None
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
        return {"own": losses.repeat_interleave(2)} if getattr(observable, "reference_tokens", False) else {}

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
                reference_losses=losses if getattr(observable, "reference_losses", False) else None,
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
