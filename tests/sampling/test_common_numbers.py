"""A loss that draws random numbers: the same ones for the same samples, and none of anybody else's."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slt_callbacks import SGLD, Influence, LossKernel, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.generators import own_generators
from slt_callbacks.losses.measured import MeasuredLoss
from slt_callbacks.losses.objective import Objective
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.weights.fork import Fork
from tests.problems import Weights, llc, settings

X = torch.linspace(-1, 1, 48).view(12, 4) ** 3


def frozen(**changes: Any) -> SamplerConfig:
    """A step of 1e-30 moves no weight by a bit."""
    return settings(1e-30, nbeta=40.0, num_draws=5, **changes)


class Autoencoder(nn.Module):
    """A variational autoencoder; what it draws from is its own affair."""

    def __init__(self, draw: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(4, 6), nn.Linear(3, 4)
        self.draw = torch.randn_like if draw is None else draw

    def losses(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_std = self.encode(x).chunk(2, dim=1)
        out = self.decode(mean + log_std.exp() * self.draw(mean))
        divergence = (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(1) / 2
        return (out - x).square().sum(1) + divergence


def losses(module: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = module.losses(x)
    return out


def mean_loss(module: Any, x: torch.Tensor) -> torch.Tensor:
    return losses(module, x).mean()


def by_numpy(like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.random.standard_normal(like.shape)).to(like)


def by_python(like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[random.gauss(0, 1) for _ in row] for row in like])


class Own:
    """Draws from a generator that it has."""

    def __init__(self, kind: str) -> None:
        makers: dict[str, Any] = {
            "torch": lambda: torch.Generator().manual_seed(1),
            "numpy": lambda: np.random.default_rng(1),
            "old numpy": lambda: np.random.RandomState(1),
            "python": lambda: random.Random(1),
        }
        self.generator = makers[kind]()

    def __call__(self, like: torch.Tensor) -> torch.Tensor:
        if isinstance(self.generator, torch.Generator):
            return torch.randn(like.shape, generator=self.generator)
        if isinstance(self.generator, random.Random):
            return torch.tensor([[self.generator.gauss(0, 1) for _ in row] for row in like])
        return torch.from_numpy(self.generator.normal(size=like.shape)).to(like)

    def state(self) -> Any:
        if isinstance(self.generator, torch.Generator):
            return self.generator.get_state().tolist()
        return repr(getattr(self.generator, "bit_generator", None) and self.generator.bit_generator.state) + repr(
            getattr(self.generator, "get_state", getattr(self.generator, "getstate", lambda: 0))()
        )


@pytest.mark.parametrize("loss_fn", [losses, mean_loss])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_where_nothing_moves_the_llc_is_exactly_0(
    loss_fn: Any, batch_size: int | None, block_size: int | None, engine: Any
) -> None:
    config = frozen(batch_size=batch_size, block_size=block_size, engine=engine)
    found = estimate(Autoencoder(), [X], loss_fn, sampler=config)
    assert llc(found) == 0
    assert float(found["llc"]["stderr"]) == 0


@pytest.mark.parametrize("draw", [by_numpy, by_python, *map(Own, ("torch", "numpy", "old numpy", "python"))])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_whatever_it_draws_from(draw: Any, batch_size: int | None) -> None:
    module = Autoencoder(draw)
    before = draw.state() if isinstance(draw, Own) else None
    found = estimate(module, [X], losses, sampler=frozen(batch_size=batch_size))
    assert llc(found) == 0
    if before is not None:
        assert module.draw.state() == before, "the live module's own generator has not moved"


def test_generators_that_the_loss_function_closes_over_are_common_and_put_back() -> None:
    own = Own("torch")
    module = Autoencoder()

    def noisy(module: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        return losses(module, x) + scale * own(x).sum(1)

    before = own.state()
    assert llc(estimate(module, [X], functools.partial(noisy, scale=2.0), sampler=frozen(batch_size=4))) == 0
    assert own.state() == before


def test_a_dropout_that_is_always_on_is_common_to_kernel_and_queries() -> None:
    def dropped(module: Any, x: torch.Tensor) -> torch.Tensor:
        return (nn.functional.dropout(module(x), 0.5, training=True) - x).square().sum(1)

    observables: Any = {"kernel": LossKernel(), "influence": Influence([X[:3] + 1])}
    found = estimate(nn.Linear(4, 4), [X], dropped, observables=observables, sampler=frozen(batch_size=4))
    assert float(torch.as_tensor(found["kernel"]["covariance"]).abs().max()) == 0
    assert float(torch.as_tensor(found["influence"]["bif"]).abs().max()) == 0


def test_a_training_step_that_draws_is_asked_about_single_samples_with_numbers_of_their_own() -> None:
    class Stepping(Autoencoder):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.losses(batch).mean()

    module = Stepping()
    found = estimate(module, [X], observables={"kernel": LossKernel()}, sampler=frozen())
    assert float(torch.as_tensor(found["kernel"]["covariance"]).abs().max()) == 0
    loss = MeasuredLoss(mean_loss, module, fork := Fork(module))
    objective = Objective(fork, loss, draw_reference([X]), per_sample=False, singles_at_once=True)
    objective.measure_fork()
    whole, few = objective.sample_losses(), objective.sample_losses(torch.tensor([5, 2]))
    assert torch.equal(few, whole[[5, 2]])


def test_the_numbers_are_those_of_the_samples_and_not_of_the_order_of_calls() -> None:
    module = Autoencoder()
    objective = Objective(fork := Fork(module), MeasuredLoss(losses, module, fork), draw_reference([X]), batch_size=4)
    objective.measure_fork()
    places = torch.tensor([3, 0, 7, 1])
    first = objective.losses(places)
    objective.losses(torch.tensor([4, 5]))
    assert torch.equal(objective.losses(places), first)
    assert not torch.equal(objective.losses(places[[1, 0, 2, 3]]).sort().values, first.sort().values)


def test_the_gradient_is_that_of_the_loss_with_the_same_numbers() -> None:
    module = Autoencoder().double()
    objective = Objective(
        fork := Fork(module), MeasuredLoss(losses, module, fork), draw_reference([X.double()]), batch_size=4
    )
    objective.measure_fork()
    places = torch.tensor([3, 0, 7, 1])
    _, gradients = objective.losses_and_gradient(places)
    direction = torch.linspace(-1, 1, len(fork), dtype=torch.float64)
    step = 1e-6
    fork.position.add_(step * direction)
    up = objective.losses(places).mean()
    fork.position.sub_(2 * step * direction)
    down = objective.losses(places).mean()
    assert float((up - down) / (2 * step)) == pytest.approx(float(torch.cat(gradients) @ direction), rel=1e-6)


class Shaken(Weights):
    """E of 1/2 h (w + z)^2 over a standard normal z: curvature h, whatever the noise."""

    def losses(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * (self.w[0] + 0.3 * torch.randn(len(x))).square() / 2


@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_llc_of_a_noisy_quadratic_is_that_of_its_curvature(batch_size: int | None) -> None:
    eps, nbeta, gamma, h, size = 1e-2, 20.0, 20.0, 2.0, 64
    config = SamplerConfig(
        SGLD(eps), nbeta, gamma, num_chains=8, num_draws=600, num_burnin_steps=50, batch_size=batch_size
    )
    found = llc(estimate(Shaken(1), [torch.zeros(size, 1)], losses, sampler=config))
    k = nbeta * h + gamma
    expected = nbeta * h / (2 * k * (1 - eps * k / 4))
    if batch_size is None:  # the same noise at every step is a slope at w*
        loss = MeasuredLoss(losses, module := Shaken(1), fork := Fork(module))
        objective = Objective(fork, loss, draw_reference([torch.zeros(size, 1)]))
        objective.measure_fork()
        _, (slope,) = objective.losses_and_gradient()
        expected -= (nbeta * float(slope)) ** 2 * (k + gamma) / (2 * k * k)
    else:  # other minibatches, other noise, which heats the chains a little
        expected *= 1 + eps / 4 * (nbeta * h * 0.3) ** 2 / batch_size
    # Autocorrelation 0.7: the error of 4 chains of 600 draws is 0.02.
    assert found == pytest.approx(expected, abs=0.06)


def test_sampling_leaves_every_generator_alone() -> None:
    module = Autoencoder(by_numpy)
    states = torch.get_rng_state(), copy.deepcopy(np.random.get_state()), random.getstate()
    estimate(module, [X], losses, sampler=frozen())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == repr(states[1])
    assert random.getstate() == states[2]


def test_a_loss_that_draws_nothing_is_not_seeded() -> None:
    module = nn.Linear(4, 1)
    loss = MeasuredLoss(lambda m, x: m(x).square()[:, 0], module, fork := Fork(module))
    objective = Objective(fork, loss, draw_reference([X]), batch_size=4)
    objective.measure_fork()
    assert not objective.draws_numbers
    state = torch.get_rng_state()
    objective.losses_and_gradient(torch.tensor([1, 2, 3, 4]))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_that_begins_to_draw_in_mid_run_is_found_at_the_next_measurement() -> None:
    module = Autoencoder(torch.zeros_like)
    one = Estimator(draw_reference([X]), losses, None, frozen(batch_size=4))
    one.check(module)
    assert llc(one.measure(module, 1)) == 0
    module.draw = torch.randn_like
    assert llc(one.measure(module, 2)) == 0


def test_what_cannot_be_made_common_is_said() -> None:
    class Hidden:
        """A generator that nobody can find."""

        __slots__ = ("_next",)

        def __init__(self) -> None:
            self._next = iter(torch.randn(10**5).tolist()).__next__

        def __call__(self) -> float:
            return self._next()

    draw = Hidden()
    with pytest.warns(UserWarning, match="draws from a generator that is out of sight"):
        estimate(nn.Linear(4, 1), [X], lambda m, x: m(x).square()[:, 0] + draw(), sampler=settings())


def test_generators_are_found_where_users_keep_them() -> None:
    made = [torch.Generator(), np.random.default_rng(), random.Random(), torch.Generator()]

    class Holder:
        def __init__(self) -> None:
            self.inner = {"deep": [made[1]]}

    module = nn.Sequential(nn.Linear(1, 1), nn.Identity())
    module[1].generators = (made[0],)
    holder = Holder()

    def loss_fn(module: Any, x: Any, own: Any = made[2]) -> Any:
        return holder, own

    found = own_generators(module, loss_fn, functools.partial(max, key=made[3]))
    assert {id(each) for each in found} == {id(each) for each in made}
    assert own_generators(nn.Linear(1, 1), lambda m, x: torch.default_generator) == []
    operating_system = random.SystemRandom()  # has no state that could be put back
    assert own_generators(nn.Linear(1, 1), lambda m, x: operating_system.random()) == []


def test_of_a_large_data_set_no_more_is_looked_at_than_could_hold_a_generator() -> None:
    """It may have millions of rows, and every measurement looks."""
    looked_at = 0

    class Rows(list[object]):
        def __iter__(self) -> Iterator[object]:
            nonlocal looked_at
            for row in super().__iter__():
                looked_at += 1
                yield row

    rows, generator = Rows([object() for _ in range(10_000)]), torch.Generator()
    assert own_generators(None, lambda module, x: (rows, torch.rand(3, generator=generator))) == [generator]
    assert looked_at <= 2000
