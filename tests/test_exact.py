"""Exact targets of methods.md, section 4, through `estimate`: tolerances are standard errors from the formula.

Repeating a coordinate R times in one weight vector gives R independent chains for the price of one: most targets below
are hit to a percent in a second, so that an error of a few percent, or two errors that hide each other, cannot pass.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slt_callbacks.sampling import SGLD, RMSPropSGLD, SamplerConfig, draw_reference
from tests import oracles
from tests.problems import TWO_SAMPLES, Estimator, Quadratic, Weights, estimate, llc, settings, squared_error

H = (0.2, 1.0, 3.0, 0.0)
COPIES = 250


def measure_quadratic(
    h: torch.Tensor, config: SamplerConfig, slope: Any = 0.0, seed: int = 0, floor: float = 0.0
) -> Any:
    return estimate(Weights(len(h)), TWO_SAMPLES, Quadratic(h, slope, floor), sampler=config, seed=seed)


def repeated(values: tuple[float, ...], copies: int = COPIES) -> torch.Tensor:
    return torch.tensor(values).repeat(copies)


@pytest.mark.parametrize(
    ("nbeta", "gamma", "eps", "num_draws", "burn_in", "between"),
    [
        pytest.param(50.0, 5.0, 2e-3, 300, 0, 1, id="from w* itself"),
        pytest.param(50.0, 5.0, 2e-3, 60, 200, 5, id="stationary, thinned"),
        pytest.param(50.0, 5.0, 1.5e-2, 200, 20, 1, id="step bias of a third"),
        pytest.param(20.0, 40.0, 5e-3, 20, 3, 7, id="localization as strong as the loss"),
        pytest.param(100.0, 0.0, 1e-3, 150, 0, 2, id="no localization"),
    ],
)
def test_a_quadratic_gives_its_finite_length_expectation(
    nbeta: float, gamma: float, eps: float, num_draws: int, burn_in: int, between: int
) -> None:
    config = settings(
        eps,
        nbeta=nbeta,
        localization=gamma,
        num_draws=num_draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
    )
    measurement = measure_quadratic(repeated(H), config, floor=2.0)
    exact = oracles.quadratic_llc(np.tile(H, COPIES), nbeta, gamma, eps, num_draws, burn_in, between)
    assert 3 * exact.stderr(2) < 0.05 * exact.mean  # the tolerance is worth something
    assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)
    assert measurement["llc"]["reference_loss"] == pytest.approx(2.0, abs=1e-6)
    for per_chain in measurement["llc"]["per_chain"].tolist():
        assert abs(per_chain - exact.mean) < 3.5 * exact.stderr(1)


@pytest.mark.parametrize(("num_draws", "burn_in", "between"), [(300, 0, 1), (60, 200, 5)])
def test_oracle_agrees_with_the_numbers_in_the_methods(num_draws: int, burn_in: int, between: int) -> None:
    expected = {300: 1.26950, 60: 1.32768}[num_draws]
    exact = oracles.quadratic_llc(H, 50.0, 5.0, 2e-3, num_draws, burn_in, between)
    assert exact.mean == pytest.approx(expected, abs=1e-5)
    assert oracles.stationary_llc(H, 50.0, 5.0, 2e-3) == pytest.approx(1.32777, abs=1e-5)
    longer = oracles.quadratic_llc(H, 50.0, 5.0, 2e-3, 1000, 500, between)
    # The formula for long chains is asymptotic: it knows nothing of the two ends of the trace.
    assert math.sqrt(longer.variance) == pytest.approx(oracles.chain_spread(H, 50, 5, 2e-3, 1000, between), rel=0.02)


@pytest.mark.parametrize(("num_draws", "burn_in", "between"), [(100, 300, 2), (200, 0, 1)])
def test_variance_companion_is_the_pooled_variance_of_the_loss(num_draws: int, burn_in: int, between: int) -> None:
    config = settings(
        2e-3,
        nbeta=50.0,
        localization=5.0,
        num_draws=num_draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
        num_chains=5,
    )
    measurement = measure_quadratic(repeated(H), config)
    exact = oracles.quadratic_llc(np.tile(H, COPIES), 50.0, 5.0, 2e-3, num_draws, burn_in, between)
    expected, stderr = exact.pooled_variance(5)
    assert abs(measurement["llc"]["variance_llc"] - expected) < 3 * stderr < 0.5 * expected
    if burn_in:
        stationary = oracles.stationary_variance_companion(np.tile(H, COPIES), 50.0, 5.0, 2e-3)
        assert expected == pytest.approx(stationary, rel=0.1)


def test_spread_over_chains_is_the_one_of_the_formula_within_15_percent() -> None:
    config = settings(
        1e-2, nbeta=50.0, localization=5.0, num_draws=20, num_burnin_steps=8, num_chains=220
    )  # 220 chains know their spread to 5 %
    h = repeated((1.0, 3.0), 8)
    measured = measure_quadratic(h, config)["llc"]
    exact = oracles.quadratic_llc(h.numpy(), 50.0, 5.0, 1e-2, 20, 8)
    assert measured["std"] == pytest.approx(math.sqrt(exact.variance), rel=0.15)
    assert measured["stderr"] == pytest.approx(measured["std"] / math.sqrt(220), rel=1e-6)
    assert measured["std"] == pytest.approx(float(measured["per_chain"].std()), rel=1e-9)


def test_stderr_of_a_single_chain_covers_its_autocorrelation() -> None:
    config = settings(4e-3, nbeta=50.0, localization=5.0, num_draws=1500, num_burnin_steps=100, num_chains=1)
    h = repeated((1.0,), 50)
    measured = measure_quadratic(h, config)["llc"]
    exact = oracles.quadratic_llc(h.numpy(), 50.0, 5.0, 4e-3, 1500, 100)
    # 1500 draws hold about 160 independent ones, so that the estimated error is itself good to some 15 %.
    assert measured["stderr"] == pytest.approx(math.sqrt(exact.variance), rel=0.35)
    assert measured["stderr"] > 2 * float((measured["loss_trace"] * 50.0).std()) / math.sqrt(1500)
    assert math.isnan(measured["std"])


@pytest.mark.parametrize(("num_draws", "burn_in", "eps"), [(200, 0, 2e-3), (100, 300, 5e-3)])
def test_off_a_minimum_the_estimate_is_negative_and_not_clipped(num_draws: int, burn_in: int, eps: float) -> None:
    slope = (0.1, -0.4, 0.3, 0.05)
    config = settings(eps, nbeta=50.0, localization=5.0, num_draws=num_draws, num_burnin_steps=burn_in)
    measurement = measure_quadratic(repeated(H), config, slope=repeated(slope))
    exact = oracles.quadratic_llc(np.tile(H, COPIES), 50.0, 5.0, eps, num_draws, burn_in, slope=np.tile(slope, COPIES))
    assert exact.mean < 0
    assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)
    if burn_in:  # long burnt in: only the flattest coordinate still remembers its start
        stationary = oracles.stationary_llc(H, 50.0, 5.0, eps) + oracles.off_minimum_shift(H, slope, 50.0, 5.0)
        assert exact.mean == pytest.approx(COPIES * stationary, rel=0.02)


@pytest.mark.parametrize(
    ("batch_size", "num_draws", "burn_in", "between"), [(4, 90, 40, 3), (8, 302, 0, 1), (48, 121, 20, 1)]
)
def test_minibatch_noise_adds_exactly_its_share(batch_size: int, num_draws: int, burn_in: int, between: int) -> None:
    # Per-sample losses h |w|^2 / 2 + tilt_i . w + offset_i: real minibatch noise with a closed form. The offsets are
    # huge (0 to 95): an estimate that does not compare a minibatch with the same samples at w* drowns in them.
    rng = np.random.default_rng(0)
    tilts = rng.normal(0, 0.5 * math.sqrt(batch_size), (96, 24))
    tilts -= tilts.mean(0)
    h, nbeta, gamma, eps = 1.0, 30.0, 5.0, 1e-2
    data = [
        torch.utils.data.default_collate(
            [(torch.tensor(t).float(), torch.tensor(1.0 * i)) for i, t in enumerate(tilts)]
        )
    ]

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        tilt, offset = batch
        return h * module.w.square().sum() / 2 + tilt @ module.w + offset

    config = settings(
        eps,
        nbeta=nbeta,
        localization=gamma,
        num_draws=num_draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
        batch_size=batch_size,
        num_chains=6,
    )
    measured = estimate(Weights(24), data, loss_fn, sampler=config)["llc"]
    exact = oracles.tilted_minibatch_llc(h, tilts, batch_size, nbeta, gamma, eps, num_draws, burn_in, between)
    noiseless = oracles.quadratic_llc(np.full(24, h), nbeta, gamma, eps, num_draws, burn_in, between)
    assert exact.mean - noiseless.mean > 6 * exact.stderr(6)  # what minibatches add can be seen
    assert abs(measured["mean"] - exact.mean) < 3 * exact.stderr(6)
    expected, stderr = exact.pooled_variance(6)
    assert abs(measured["variance_llc"] - expected) < 3 * stderr


def test_regression_on_minibatches_gives_the_average_over_every_order_of_the_samples() -> None:
    x = torch.tensor([[1.0, 0.2], [0.3, -1.2], [-0.8, 0.7], [1.4, 0.5]], dtype=torch.float64)
    y = 3 * torch.tensor([0.5, -0.4, 1.1, 0.2], dtype=torch.float64)
    nbeta, gamma, eps, draws, chains = 12.0, 1.0, 3e-2, 700, 4
    weights, _ = oracles.regression_minimum(x.numpy(), y.numpy())
    config = settings(
        eps,
        nbeta=nbeta,
        localization=gamma,
        num_draws=draws,
        num_burnin_steps=60,
        batch_size=2,
        num_chains=chains,
    )

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return (batch[0] @ module.w - batch[1]).square() / 2

    measurement = estimate(Weights(torch.tensor(weights)), [(x, y)], loss_fn, sampler=config)
    exact = oracles.regression_minibatch_llc(x.numpy(), y.numpy(), 2, nbeta, gamma, eps, draws // 2, 30)
    hessian = x.numpy().T @ x.numpy() / 4
    # The fluctuations of the full-batch chain, scaled to this mean: chain variance is quadratic in the scale of w^2.
    full = oracles.quadratic_llc(np.linalg.eigvalsh(hessian), nbeta, gamma, eps, draws, 60)
    stderr = full.stderr(chains) * exact / full.mean
    assert exact - full.mean > 6 * stderr
    assert abs(llc(measurement) - exact) < 3 * stderr


def test_linear_regression_with_all_samples_sees_the_eigenvalues_of_its_hessian() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, 3, generator=generator) * torch.tensor([1.0, 0.5, 2.0])
    y = torch.randn(20, COPIES, generator=generator)
    weights, _ = oracles.regression_minimum(x.double().numpy(), y.double().numpy())
    module = nn.Linear(3, COPIES, bias=False)
    module.weight.data = torch.tensor(weights.T, dtype=torch.float32)
    nbeta, gamma, eps = 20.0, 3.0, 4e-3
    config = settings(eps, nbeta=nbeta, localization=gamma, num_draws=50, num_burnin_steps=30, num_steps_bw_draws=3)
    measurement = estimate(module, [(x, y)], squared_error, sampler=config)
    eigenvalues = np.linalg.eigvalsh(x.double().numpy().T @ x.double().numpy() / 20)
    exact = oracles.quadratic_llc(np.tile(eigenvalues, COPIES), nbeta, gamma, eps, 50, 30, 3)
    assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)


def test_strong_localization_reads_gradient_and_hessian_of_any_network() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(30, 3).double(), torch.randn(30, 2).double()
    names = [name for name, _ in module.named_parameters()]
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])

    def mean_loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([p.numel() for p in module.parameters()])
        weights = {n: v.view_as(p) for n, v, p in zip(names, parts, module.parameters(), strict=True)}
        return (torch.func.functional_call(module, weights, (x,)) - y).square().sum(1).mean() / 2

    gradient = torch.func.grad(mean_loss)(flat)
    hessian = torch.func.hessian(mean_loss)(flat)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    slope = vectors.T @ gradient
    nbeta, gamma = 30.0, 1e4
    eps = 0.5 / gamma
    config = settings(eps, nbeta=nbeta, localization=gamma, num_draws=400, num_burnin_steps=30, num_steps_bw_draws=4)
    measurement = estimate(module, [(x, y)], squared_error, sampler=config)
    exact = oracles.quadratic_llc(eigenvalues, nbeta, gamma, eps, 400, 30, 4, slope=slope)
    limit = oracles.large_localization_llc(float(hessian.trace()), float(gradient.norm()), nbeta, gamma)
    # 1 / (1 - eps k / 4) on the trace term is all that a step of this size changes.
    bias = nbeta / gamma * float(hessian.trace()) / 2 * (1 / (1 - eps * gamma / 4) - 1)
    assert exact.mean == pytest.approx(limit + bias, rel=0.03)
    assert exact.mean < -3 * exact.stderr(2)
    assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)


@pytest.mark.parametrize("degree", [4, 6])
def test_a_power_of_w_gives_one_over_its_degree(degree: int) -> None:
    copies, eps, draws, burn_in, between = 4000, 4e-3, 60, 500, 15

    def loss_fn(module: Any, batch: torch.Tensor) -> torch.Tensor:
        return module.w.pow(degree).sum().expand(len(batch))

    config = settings(
        eps,
        nbeta=1.0,
        localization=0.0,
        num_draws=draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
        num_chains=1,
    )
    measured = estimate(Weights(copies), TWO_SAMPLES, loss_fn, sampler=config)["llc"]
    one = oracles.grid_llc(
        lambda w: w**degree, lambda w: degree * w ** (degree - 1), 1.0, 0.0, eps, draws, burn_in, between, reach=2.8
    )
    stderr = math.sqrt(one.variance / copies)
    assert abs(measured["mean"] / copies - one.mean) < 3 * stderr
    # The chain itself is within 2 % of the learning coefficient, and its variance is the same number.
    assert one.mean == pytest.approx(oracles.power_law_llc(degree), rel=0.02)
    assert measured["mean"] / copies == pytest.approx(oracles.power_law_llc(degree), rel=0.02 + 3 * stderr * degree)


def test_power_law_estimate_is_the_same_at_every_nbeta() -> None:
    def loss_fn(module: Any, batch: torch.Tensor) -> torch.Tensor:
        return module.w.pow(4).sum().expand(len(batch))

    # w^4 at (nbeta, eps) is w^4 at (1, eps sqrt(nbeta)) in units of nbeta^(-1/4): the same chain, scaled.
    first, second = (
        estimate(
            Weights(torch.zeros(50, dtype=torch.float64)),
            TWO_SAMPLES,
            loss_fn,
            sampler=settings(0.02 / math.sqrt(nbeta), nbeta=nbeta, localization=0.0, num_draws=40),
        )
        for nbeta in (1.0, 1e4)
    )
    assert llc(first) == pytest.approx(llc(second), rel=1e-9)


def test_scaling_the_loss_up_and_nbeta_down_changes_nothing() -> None:
    h = repeated(H, 3).double()
    w = torch.zeros(12, dtype=torch.float64)
    results = [
        estimate(
            Weights(w), TWO_SAMPLES, Quadratic(c * h, c * 0.1), sampler=settings(2e-3, nbeta=50.0 / c, num_draws=20)
        )
        for c in (1.0, 7.0)
    ]
    assert llc(results[0]) == pytest.approx(llc(results[1]), rel=1e-12)
    assert results[0]["llc"]["variance_llc"] == pytest.approx(results[1]["llc"]["variance_llc"], rel=1e-12)
    assert llc(results[0]) != 0


def test_nbeta_zero_gives_exactly_zero() -> None:
    measured = measure_quadratic(repeated(H, 3), settings(1e-2, nbeta=0.0, num_draws=20), slope=1.0)["llc"]
    assert measured["mean"] == 0
    assert measured["per_chain"].tolist() == [0, 0]
    assert measured["variance_llc"] == 0
    assert float(measured["loss_trace"].std()) > 0  # the chains did move


def test_a_step_size_of_zero_moves_nothing() -> None:
    for dynamics in (SGLD(0.0), RMSPropSGLD(0.0)):
        config = dataclasses.replace(settings(), dynamics=dynamics, num_draws=5)
        measured = measure_quadratic(repeated(H, 3), config, slope=1.0)["llc"]
        assert measured["loss_trace"].unique().tolist() == [measured["reference_loss"]]


class FixedPreconditioner(RMSPropSGLD):
    """The shipped step with G held fixed, so that a closed form exists."""

    values = np.tile([0.5, 2.0, 1.0, 4.0], COPIES)

    def preconditioner(self, square_average: torch.Tensor, num_steps: int) -> torch.Tensor:
        return torch.tensor(self.values, dtype=square_average.dtype)


@pytest.mark.parametrize(("eps", "num_draws", "burn_in"), [(2e-3, 150, 0), (8e-3, 100, 30)])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_rmsprop_with_its_preconditioner_held_fixed_follows_the_formula(
    eps: float, num_draws: int, burn_in: int, slope: float
) -> None:
    config = dataclasses.replace(
        settings(nbeta=50.0, localization=5.0, num_draws=num_draws, num_burnin_steps=burn_in),
        dynamics=FixedPreconditioner(eps),
    )
    h = (3.0, 0.2, 1.0, 0.0)
    measurement = measure_quadratic(repeated(h), config, slope=slope)
    exact = oracles.quadratic_llc(
        np.tile(h, COPIES),
        50.0,
        5.0,
        eps,
        num_draws,
        burn_in,
        slope=slope,
        preconditioner=FixedPreconditioner.values,
    )
    assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)


def test_rmsprop_without_memory_follows_the_kernel_of_its_own_preconditioner() -> None:
    # With decay 0, V is the present squared gradient of the loss alone and G = 1 / (|h w| + damping): a Markov chain in
    # one weight, whose kernel is known. V with nbeta or with the localization in it would be another chain.
    h, nbeta, gamma, eps, damping, copies = 2.0, 5.0, 3.0, 8e-3, 0.5, 2500
    config = dataclasses.replace(
        settings(nbeta=nbeta, localization=gamma, num_draws=60, num_burnin_steps=60, num_steps_bw_draws=5),
        dynamics=RMSPropSGLD(eps, decay=0.0, damping=damping),
    )
    measured = measure_quadratic(torch.full((copies,), h), config)["llc"]
    one = oracles.grid_llc(
        lambda w: h * w**2 / 2,
        lambda w: h * w,
        nbeta,
        gamma,
        eps,
        60,
        60,
        5,
        reach=2.0,
        preconditioner=lambda w: 1 / (np.abs(h * w) + damping),
    )
    assert abs(measured["mean"] / copies - one.mean) < 3 * math.sqrt(one.variance / (2 * copies)) < 0.02 * one.mean


def test_rmsprop_reaches_a_badly_scaled_quadratic_where_sgld_at_its_stable_step_lags() -> None:
    scales = np.repeat([1.0, 1e4], 150)
    # Two samples tilted to either side, one a step: gradient noise is what V is meant to see. Without it V follows the
    # chain's own position, and an RMSprop that forgets faster than the chain mixes has another stationary law.
    tilts = 4 * np.sqrt(scales)
    h, tilt = torch.tensor(scales).float(), torch.tensor(tilts).float()

    def loss_fn(module: Any, batch: torch.Tensor) -> torch.Tensor:
        return (h * module.w.square()).sum() / 2 + batch @ (tilt * module.w)

    rng = np.random.default_rng(0)
    signs = torch.tensor(rng.choice([-1.0, 1.0], (1, 300)), dtype=torch.float32)
    data = [torch.cat([signs, -signs])]
    slow = settings(
        0.2 / 1e4,
        nbeta=1.0,
        localization=0.0,
        num_draws=50,
        num_burnin_steps=2500,
        num_steps_bw_draws=20,
        num_chains=1,
        batch_size=1,
    )
    fast = dataclasses.replace(slow, dynamics=RMSPropSGLD(6e-3))
    lagging, reaching = (llc(estimate(Weights(300), data, loss_fn, sampler=config)) for config in (slow, fast))

    def closed(eps: float, preconditioned: bool) -> tuple[float, float]:
        parts = []
        for scale in (1.0, 1e4):
            tilt_here = 4 * math.sqrt(scale)  # V averages the squared gradient: tilt^2 + h^2 w^2
            g = 1 / (math.sqrt(tilt_here**2 + scale) + 0.1) if preconditioned else 1.0
            part = tilt_here * data[0].numpy()[:, scales == scale]
            parts.append(oracles.tilted_minibatch_llc(scale, part, 1, 1.0, 0.0, eps, 50, 2500, 20, g))
        return sum(part.mean for part in parts), math.sqrt(sum(part.variance for part in parts))

    truth = oracles.exact_llc(scales, 1.0, 0.0)
    expected, stderr = closed(0.2 / 1e4, preconditioned=False)
    assert abs(lagging - expected) < 3 * stderr
    assert expected < 0.75 * truth
    expected, stderr = closed(6e-3, preconditioned=True)
    assert abs(reaching - expected) < 3 * stderr
    assert expected == pytest.approx(truth, rel=0.1)


class DeepLinear(nn.Module):
    """`copies` two-layer linear networks at the minimal-rank parameter of one diagonal matrix of ones and zeros."""

    def __init__(self, widths: tuple[int, int, int], rank: int, copies: int) -> None:
        super().__init__()
        first = torch.eye(widths[1], widths[0], dtype=torch.float64)
        second = torch.eye(widths[2], widths[1], dtype=torch.float64)
        first[rank:], second[:, rank:] = 0, 0
        self.first = nn.Parameter(first.repeat(copies, 1, 1))
        self.second = nn.Parameter(second.repeat(copies, 1, 1))
        self.register_buffer("target", second @ first)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return ((self.second @ self.first - self.target).square().sum() / 2).expand(len(batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "rank", "copies", "nbeta", "eps", "burn_in", "learning_coefficient"),
    [((10, 10, 10), 5, 24, 4000.0, 1e-5, 4500, 47.0), ((3, 3, 3), 1, 400, 2000.0, 2.5e-5, 6000, 4.0)],
)
def test_deep_linear_network_from_its_most_singular_point_is_within_3_percent_of_the_learning_coefficient(
    widths: tuple[int, int, int],
    rank: int,
    copies: int,
    nbeta: float,
    eps: float,
    burn_in: int,
    learning_coefficient: float,
) -> None:
    # No localization: the chain spreads along the flat directions as sqrt(eps t), still small against the ones of the
    # regular directions; those have h = 2, hence eps k / 4 = 2 % at 1e-5 * 4000 * 2 / 4, and 2.5 % at the other.
    assert oracles.deep_linear_llc(widths, rank) == learning_coefficient
    config = settings(
        eps,
        nbeta=nbeta,
        localization=0.0,
        num_draws=100,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=15,
        num_chains=1,
    )
    module = DeepLinear(widths, rank, copies)
    measured = llc(estimate(module, TWO_SAMPLES, DeepLinear.loss, sampler=config)) / copies
    assert measured == pytest.approx(learning_coefficient, rel=0.03)


def exact_posterior_of_two_layers(
    widths: tuple[int, int, int], nbeta: float, copies: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Samples of exp(-nbeta |BA|^2 / 2 - |A|^2 / 2 - |B|^2 / 2) and the mean of nbeta |BA|^2 / 2, by Gibbs sampling.

    Given B, A is Gaussian with precision I + nbeta B'B in every column, and the other way round.
    """
    rng = np.random.default_rng(0)
    b = rng.standard_normal((copies, widths[2], widths[1])) * nbeta**-0.25
    losses = []

    def columns(gram: Any, number: int) -> Any:
        root = np.linalg.cholesky(np.eye(widths[1]) + nbeta * gram)
        return np.linalg.solve(root.transpose(0, 2, 1), rng.standard_normal((copies, widths[1], number)))

    for _ in range(600):
        a = columns(b.transpose(0, 2, 1) @ b, widths[0])
        b = columns(a @ a.transpose(0, 2, 1), widths[2]).transpose(0, 2, 1)
        losses.append(float((nbeta / 2 * (b @ a) ** 2).sum(axis=(1, 2)).mean()))
    return torch.tensor(a), torch.tensor(b), float(np.mean(losses[200:]))


def test_rank_zero_deep_linear_network_keeps_its_exact_posterior_within_3_percent_of_the_learning_coefficient() -> None:
    # Rank 0 with multiplicity 2 approaches 6.5 as 1 / log(nbeta): no cold chain of a test's length gets there. The
    # chains start from an exact sample of the posterior, through the memory of persistent chains, and have to keep it.
    widths, nbeta, copies = (5, 3, 5), 1e5, 300
    first, second, exact = exact_posterior_of_two_layers(widths, nbeta, copies)
    config = settings(2e-8, nbeta=nbeta, localization=1.0, num_draws=60, num_steps_bw_draws=5, num_chains=1)
    estimator = Estimator(draw_reference(TWO_SAMPLES), DeepLinear.loss, config=config, persistent=True)
    displacement = torch.cat([first.flatten(), second.flatten()])
    estimator.load_state_dict(
        {"step_size": 2e-8, "chains": {0: {"displacement": displacement, "state": {}, "sgld_step": 0}}}
    )
    measured = estimator.measure(DeepLinear(widths, 0, copies))["llc"]
    assert oracles.deep_linear_llc(widths, 0) == 6.5
    assert exact == pytest.approx(6.5, rel=0.025)  # what 1 / log(nbeta) leaves
    assert measured["mean"] / copies == pytest.approx(6.5, rel=0.03)
