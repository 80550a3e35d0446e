"""Which weights move: exact on quadratics, the same with every engine, and refused with what there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LLC, SGLD, RMSPropSGLD, SamplerConfig
from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.basics.rng import generator
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.measuring.sampling_run import SamplingRun
from slt_callbacks.measuring.target import Target
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.selection import Selection
from tests.problems import TWO_SAMPLES, Weights, settings

H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
NBETA, TIE = 50.0, 5.0


def coupled(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """A quadratic with the Hessian H over the two weights of one vector."""
    return (module.w @ H @ module.w / 2).expand(len(batch))


class Two(nn.Module):
    """The same two weights as parameters of their own, of which the second is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1))
        self.inner = nn.Module()
        self.inner.second = nn.Parameter(torch.zeros(1))
        self.tied = self.inner.second

    @property
    def w(self) -> torch.Tensor:
        return torch.cat([self.first, self.inner.second])


def llc_of(module: nn.Module, selection: Selection, config: SamplerConfig, loss_fn: Any = coupled) -> dict[str, Any]:
    """The LLC of the posterior over the selected weights, as a measurement finds it."""
    objective = Objective(Fork(module, selection=selection), loss_fn, draw_reference(TWO_SAMPLES))
    loss = float(objective.measure_fork())
    posterior, panel = LocalPosterior(NBETA, TIE), Panel({"llc": LLC()})
    none = torch.empty(0)
    point = ReferencePoint(0, loss, none, none, NBETA, TIE, config.num_chains, config.num_draws)
    target = Target(config, posterior, seed=0, exchange=Exchange(), name="part")
    run = SamplingRun(target, panel, config, Exchange(), persistent=False)
    sampled = run.sample(objective, point, {}, {}, None)
    assert sampled.error is None
    return {**panel.compute()["llc"], "curvature": sampled.curvature}


def stationary(h: torch.Tensor, eps: float) -> float:
    """lambda_hat of a quadratic with these curvatures under SGLD: methods, exact targets."""
    k = NBETA * h + TIE
    return float((NBETA * h / (2 * k * (1 - eps * k / 4))).sum())


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize(
    ("module", "selection", "curvatures"),
    [
        (Weights(2), Selection(), [1.0, 3.0]),
        (Weights(2), Selection("w", {"w": 0}), [2.0]),
        (Weights(2), Selection("*", {"w": 1}), [2.0]),
        (Weights(2), Selection("*", {"w": [0, 1]}), [1.0, 3.0]),
        (Two(), Selection("first"), [2.0]),
        (Two(), Selection("inner"), [2.0]),
        (Two(), Selection("tied"), [2.0]),
        (Two(), Selection(["fir*", "inner.second"]), [1.0, 3.0]),
    ],
    ids=["all", "slice 0", "slice 1", "two slices", "a parameter", "a module", "a tied name", "a list"],
)
def test_the_llc_of_a_part_is_that_of_its_block_of_the_hessian(
    module: nn.Module, selection: Selection, curvatures: list[float], engine: str
) -> None:
    eps, draws = 2e-3, 1500
    config = settings(eps, num_chains=8, num_draws=draws, num_burnin_steps=200, engine=engine)
    found = llc_of(module, selection, config)
    expected = stationary(torch.tensor(curvatures), eps)
    assert found["mean"] == pytest.approx(expected, abs=4 * found["stderr"])
    assert found["stderr"] < 0.04 * expected
    assert found["curvature"] == pytest.approx(NBETA * max(curvatures) + TIE, rel=1e-3)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
@pytest.mark.parametrize("dynamics", [SGLD(1e-2), RMSPropSGLD(1e-3)])
def test_what_is_not_selected_stays_to_the_last_bit(engine: str, dynamics: Any) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    selection = Selection(["0.weight", "2"], {"0.weight": [(slice(None), 0), (2, 2)]})
    seen: list[torch.Tensor] = []

    def loss_fn(net: Any, batch: torch.Tensor) -> torch.Tensor:
        if not torch._C._functorch.is_functorch_wrapped_tensor(net[0].weight):
            seen.append(torch.cat([net[0].weight.detach().flatten(), net[0].bias.detach()]).clone())
        return (net(batch) - 1).square()[:, 0]

    objective = Objective(Fork(module, selection=selection), loss_fn, draw_reference([torch.ones(4, 3)]))
    objective.measure_fork()
    config = settings(dynamics=dynamics, num_chains=3, num_draws=20, engine=engine)
    target = Target(config, LocalPosterior(10.0, 1.0), seed=0, exchange=Exchange())
    moving = torch.zeros(4, 3, dtype=torch.bool)
    moving[:, 0] = moving[2, 2] = True
    before = module[0].weight.detach()
    for group in target.engine(objective).groups(target.chains(objective, 0)):
        for halt in target.engine(objective).advance(group, range(20), keep=True):
            halt.losses(objective)
        for chain in group:
            assert chain.displacement is not None
            moved = chain.displacement[:12].view(4, 3)
            assert bool((moved[moving] != 0).all())
            assert bool((moved[~moving] == 0).all())
            assert bool((chain.displacement[12:] != 0).all())
    weights = torch.stack(seen)
    assert torch.equal(weights[:, 12:], module[0].bias.detach().expand(len(seen), -1))
    inside = weights[:, :12].view(-1, 4, 3)
    assert torch.equal(inside[:, ~moving], before[~moving].expand(len(seen), -1))


def test_parameters_below_the_selection_have_no_gradient_and_are_shared() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    fork = Fork(module, selection=Selection("2"))
    assert [parameter.requires_grad for parameter in fork.module.parameters()] == [False, False, True, True]
    assert fork.module[0].weight.data_ptr() == module[0].weight.data_ptr()  # type: ignore[index, union-attr]
    assert len(fork) == fork.num_moving == 5
    own = Fork(module, share_frozen=False, selection=Selection("2"))
    assert own.module[0].weight.data_ptr() != module[0].weight.data_ptr()  # type: ignore[index, union-attr]


def test_a_slice_counts_its_own_weights_alone() -> None:
    assert Fork(Weights(5), selection=Selection("w", {"w": slice(1, 3)})).num_moving == 2


def test_slices_under_two_names_of_one_parameter_are_taken_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.Parameter(torch.zeros(4))

    assert Fork(Tied(), selection=Selection("*", {"one": 0, "other": 2})).num_moving == 2


def test_the_direction_of_the_largest_curvature_lies_in_the_selection() -> None:
    fork = Fork(Weights(3), selection=Selection("w", {"w": slice(0, 2)}))
    loss_fn = lambda m, x: (m.w.square() * torch.tensor([1.0, 4.0, 100.0]) / 2).sum().expand(len(x))  # noqa: E731
    objective = Objective(fork, loss_fn, draw_reference(TWO_SAMPLES))
    rng = generator(torch.device("cpu"), 1)
    curvature, direction = largest_curvature(objective, LocalPosterior(10.0, 1.0), rng)
    assert curvature == pytest.approx(41.0, rel=1e-3)
    assert direction[2] == 0


def test_targets_with_other_names_draw_other_noise_and_the_main_one_that_of_the_run() -> None:
    config = settings()
    objective = Objective(Fork(Weights(2)), coupled, draw_reference(TWO_SAMPLES))

    def first(name: str) -> float:
        target = Target(config, LocalPosterior(1.0, 1.0), seed=7, exchange=Exchange(), name=name)
        return float(torch.rand((), generator=target.chains(objective, step=3)[0].noise))

    unnamed = torch.rand((), generator=generator(torch.device("cpu"), 7, 3, 0, 0))
    assert first("") == float(unnamed)
    assert len({first(""), first("head0"), first("head1")}) == 3
    assert first("head0") == first("head0")


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection("head"), r"'head' matches none: there are 0.weight, 0.bias, 2.weight, 2.bias"),
        (Selection(["0", "*.scale"]), r"'\*.scale' matches none"),
        (
            Selection("0", {"2.weight": 0}),
            r"`slices` to name selected parameters, but got '2.weight': there are 0.weight",
        ),
        (
            Selection("*", {"0.weight": 9}),
            r"`slices\['0.weight'\]` to be an index of a tensor of shape \(4, 3\), but got 9",
        ),
        (Selection([]), "at least one parameter, but got an empty list"),
        (Selection("*", {"0.weight": slice(0, 0)}), r"to select weights, but slice\(0, 0, None\) selects none"),
    ],
)
def test_what_selects_nothing_is_refused_with_what_there_is(selection: Selection, message: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=message):
        Fork(module, selection=selection)


def test_a_frozen_parameter_is_no_choice() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"'0' matches none: there are 1\.weight, 1\.bias"):
        Fork(module, selection=Selection("0"))
