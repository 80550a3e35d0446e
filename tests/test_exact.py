"""Exact targets of methods.md, section 4, through `estimate`: tolerances are standard errors from the formula.

Repeating a coordinate R times in one weight vector gives R independent chains for the price of one: most targets below
are hit to a percent in a second, so that an error of a few percent, or two errors that hide each other, cannot pass.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.llc import LLC
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.sampling.langevin import SGLD, RMSPropSGLD
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


@pytest.mark.parametrize(("eps", "num_draws", "burn_in", "between"), [(8e-3, 50, 50, 5), (2e-3, 50, 0, 1)])
def test_variance_companion_is_the_pooled_variance_of_the_loss(
    eps: float, num_draws: int, burn_in: int, between: int
) -> None:
    # A variance needs thousands of draws that have forgotten each other: many chains, all at once.
    chains, copies = 80, 20
    config = settings(
        eps,
        nbeta=50.0,
        localization=5.0,
        num_draws=num_draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
        num_chains=chains,
        engine="vectorized",
    )
    measurement = measure_quadratic(repeated(H, copies), config)
    exact = oracles.quadratic_llc(np.tile(H, copies), 50.0, 5.0, eps, num_draws, burn_in, between)
    expected, stderr = exact.pooled_variance(chains)
    assert abs(measurement["llc"]["variance_llc"] - expected) < 3 * stderr < 0.1 * expected
    if burn_in:
        stationary = oracles.stationary_variance_companion(np.tile(H, copies), 50.0, 5.0, eps)
        assert expected == pytest.approx(stationary, rel=0.01)


def test_spread_over_chains_is_the_one_of_the_formula_within_15_percent() -> None:
    config = settings(
        1e-2, nbeta=50.0, localization=5.0, num_draws=20, num_burnin_steps=8, num_chains=220, engine="vectorized"
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
    x = np.array([[1.0, 0.2], [0.3, -1.2], [-0.8, 0.7], [1.4, 0.5]])
    y = 3 * np.array([0.5, -0.4, 1.1, 0.2])
    nbeta, gamma, eps, draws, chains, copies = 12.0, 1.0, 3e-2, 200, 60, 20
    weights, residuals = oracles.regression_minimum(x, y)
    config = settings(
        eps,
        nbeta=nbeta,
        localization=gamma,
        num_draws=draws,
        num_burnin_steps=60,
        batch_size=2,
        num_chains=chains,
        engine="vectorized",
    )

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return (batch[0] @ module.w - batch[1][:, None]).square().sum(1) / 2

    module = Weights(torch.tensor(weights)[:, None].repeat(1, copies))
    measurement = estimate(module, [(torch.tensor(x), torch.tensor(y))], loss_fn, sampler=config)
    exact = oracles.regression_minibatch_llc(x, y, 2, nbeta, gamma, eps, draws // 2, 30)
    hessian = x.T @ x / 4
    # The fluctuations of the full-batch chain, scaled to this mean: chain variance is quadratic in the scale of w^2.
    full = oracles.quadratic_llc(np.linalg.eigvalsh(hessian), nbeta, gamma, eps, draws, 60)
    # Copies have noise of their own, but one order of the samples: what that adds to the mean fluctuates in all alike,
    # and so does the slope of a minibatch at w*.
    slopes = np.array([x[list(pair)].T @ residuals[list(pair)] / 2 for pair in itertools.combinations(range(4), 2)])
    spread = np.linalg.inv(nbeta * hessian + gamma * np.eye(2))
    of_slope = nbeta**2 * float(np.mean(np.einsum("ij,jk,ik->i", slopes, spread, slopes))) / draws
    own, common = exact / full.mean, exact / full.mean - 1
    stderr = math.sqrt(((own**2 / copies + common**2) * full.variance + of_slope) / chains)
    assert 3 * stderr < 0.07 * exact
    assert exact - full.mean > 6 * stderr
    assert abs(llc(measurement) / copies - exact) < 3 * stderr
    # That is generous: what the minibatches of an epoch add cancels in part. The chains know better, to some 10 %.
    assert abs(llc(measurement) / copies - exact) < 4 * measurement["llc"]["stderr"] / copies < 0.02 * exact


class MeanLosses:
    """An observable: the mean of every reference sample's loss over the draws."""

    reference_losses = True

    def reset(self, reference: ReferencePoint) -> None:
        self._losses: list[torch.Tensor] = []

    def update(self, draw: Draw) -> None:
        assert draw.reference_losses is not None
        self._losses.append(draw.reference_losses.double())

    def compute(self) -> dict[str, Any]:
        return {"mean": torch.stack(self._losses).mean(0)}


def test_linear_regression_with_all_samples_sees_the_eigenvalues_of_its_hessian_and_the_loss_of_each_sample() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 0.5, 2.0])
    y = 0.3 * torch.randn(20, COPIES, generator=generator, dtype=torch.float64)
    weights, residuals = oracles.regression_minimum(x.numpy(), y.numpy())
    module = nn.Linear(3, COPIES, bias=False, dtype=torch.float64)
    module.weight.data = torch.tensor(weights.T)
    nbeta, gamma, eps, draws, between = 20.0, 3.0, 1e-2, 150, 10
    config = settings(
        eps,
        nbeta=nbeta,
        localization=gamma,
        num_draws=draws,
        num_burnin_steps=100,
        num_steps_bw_draws=between,
    )
    observables = {"llc": LLC(), "losses": MeanLosses()}
    measurement = estimate(module, [(x, y)], squared_error, observables=observables, sampler=config)
    eigenvalues = np.linalg.eigvalsh(x.numpy().T @ x.numpy() / 20)
    exact = oracles.quadratic_llc(np.tile(eigenvalues, COPIES), nbeta, gamma, eps, draws, 100, between)
    assert abs(llc(measurement) - exact.mean) < 3 * exact.stderr(2)

    expected, variance = (  # sums over the copies, (20,)
        np.sum([moments(x.numpy(), e, nbeta, gamma, eps) for e in residuals.T], axis=0)
        for moments in (oracles.regression_losses, lambda *at: np.diag(oracles.regression_kernel(*at)))
    )
    memory = (1 - eps * (nbeta * eigenvalues[0] + gamma) / 2) ** between  # of the flattest direction
    stderr = np.sqrt(variance * (1 + memory) / (1 - memory) / (2 * draws))
    above_least_squares = expected - (residuals**2).sum(1) / 2
    assert (4 * stderr < 0.2 * above_least_squares).all()
    # Of 20 samples one in a thousand such tests has one beyond 4 errors.
    assert (np.abs(measurement["losses"]["mean"].numpy() - expected) < 4 * stderr).all()


@pytest.mark.parametrize("at_minimum", [True, False])
def test_strong_localization_reads_gradient_and_hessian_of_any_network(at_minimum: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    flat, x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((20,), (15, 3), (2, 15)))

    def outputs(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        first, second = weights[..., :12].unflatten(-1, (4, 3)), weights[..., 12:].unflatten(-1, (2, 4))
        return second @ torch.tanh(first @ x.T)  # (..., 2, 15): of one network or of many side by side

    y = outputs(flat, x) + (0 if at_minimum else y)

    def mean_loss(weights: torch.Tensor) -> torch.Tensor:
        return (outputs(weights, x) - y).square().sum() / (2 * len(x))

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        x, y = batch
        return (outputs(module.w, x) - y.T).square().sum((0, 1)) / 2

    gradient = torch.func.grad(mean_loss)(flat)
    hessian = torch.func.hessian(mean_loss)(flat)
    copies, nbeta, gamma = 100, 3.0, 600.0
    eps = 1.5 / gamma
    config = settings(eps, nbeta=nbeta, localization=gamma, num_draws=300, num_burnin_steps=10)

    measured = llc(estimate(Weights(flat.repeat(copies, 1)), [(x, y.T)], loss_fn, sampler=config)) / copies
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    exact = oracles.quadratic_llc(eigenvalues, nbeta, gamma, eps, 300, 10, slope=vectors.T @ gradient)
    stderr = exact.stderr(2 * copies)
    of_trace = nbeta / gamma * float(hessian.trace()) / 2
    limit = oracles.large_localization_llc(float(hessian.trace()), float(gradient.norm()), nbeta, gamma)
    # 1 / (1 - eps k / 4) on the trace term is all that a step of this size changes.
    limit += of_trace * (1 / (1 - eps * gamma / 4) - 1)
    assert 3 * stderr < 0.1 * of_trace
    assert at_minimum or (nbeta * float(gradient.norm())) ** 2 / gamma > 6 * stderr
    assert abs(measured - exact.mean) < 3 * stderr
    assert abs(measured - limit) < 3 * stderr + 0.03 * of_trace  # curvature over localization


@pytest.mark.parametrize(
    ("eps", "draws", "burn_in", "between"),
    [pytest.param(4e-3, 60, 500, 15, id="stationary, thinned"), pytest.param(1.5e-2, 150, 0, 2, id="from w* itself")],
)
@pytest.mark.parametrize("degree", [4, 6])
def test_a_power_of_w_gives_one_over_its_degree(
    degree: int, eps: float, draws: int, burn_in: int, between: int
) -> None:
    copies = 4000

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
    assert abs(measured["mean"] / copies - one.mean) < 3 * stderr < 0.04 * one.mean
    if burn_in:
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
    assert llc(first) > 0


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
    copies, sgld_step, rmsprop_step = 1000, 0.2 / 1e4, 6e-3
    scales = np.repeat([1.0, 1e4], copies)
    # Two samples tilted to either side, one a step: gradient noise is what V is meant to see.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 2 * copies)
    tilts = np.outer([1.0, -1.0], 4 * np.sqrt(scales) * signs)
    h = torch.tensor(scales).float()

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        return (h * module.w.square()).sum() / 2 + batch @ module.w

    times = 500, 2500, 2  # draws, burn-in, an epoch between draws
    slow = settings(
        sgld_step,
        nbeta=1.0,
        localization=0.0,
        num_draws=times[0],
        num_burnin_steps=times[1],
        num_steps_bw_draws=times[2],
        num_chains=1,
        batch_size=1,
    )
    fast = dataclasses.replace(slow, dynamics=RMSPropSGLD(rmsprop_step))
    data = [torch.tensor(tilts).float()]
    lagging, reaching = (llc(estimate(Weights(2 * copies), data, loss_fn, sampler=config)) for config in (slow, fast))

    def closed(eps: float, preconditioned: bool) -> tuple[float, float]:
        parts = []
        for scale in (1.0, 1e4):  # V averages the squared gradient: tilt^2 + h^2 w^2
            g = 1 / (math.sqrt(17 * scale) + 0.1) if preconditioned else 1.0
            parts.append(oracles.tilted_minibatch_llc(scale, tilts[:, scales == scale], 1, 1.0, 0.0, eps, *times, g))
        return sum(part.mean for part in parts), math.sqrt(sum(part.variance for part in parts))

    truth = oracles.exact_llc(scales, 1.0, 0.0)
    expected, stderr = closed(sgld_step, preconditioned=False)
    assert abs(lagging - expected) < 3 * stderr < 0.08 * expected
    assert lagging < 0.65 * truth
    expected, stderr = closed(rmsprop_step, preconditioned=True)
    # V forgets within 100 steps, the soft direction within 1400: there G still follows w a little, and the law p / G is
    # sqrt(16 + u^2) exp(-u^2 / 2), with E u^2 = (1 + 3 / 32) / (1 + 1 / 32): 6 % on half of the coordinates.
    assert abs(reaching - 1.03 * expected) < 3 * stderr < 0.08 * expected
    assert reaching == pytest.approx(truth, rel=0.1)


def test_rmsprop_without_gradient_noise_reads_as_much_too_high_as_its_docstring_says() -> None:
    copies = 5000
    h = torch.tensor([1.0, 1e4]).repeat(copies)
    config = dataclasses.replace(
        settings(nbeta=1.0, localization=0.0, num_draws=50, num_burnin_steps=1500, num_chains=1, num_steps_bw_draws=8),
        dynamics=RMSPropSGLD(4e-3),
    )
    # 3 errors of 5000 softest coordinates over 400 steps, which they hardly forget in, are 4 %.
    measured = llc(measure_quadratic(h, config)) / oracles.exact_llc(h.numpy(), 1.0, 0.0)
    assert measured == pytest.approx(1.36, rel=0.04)


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
    [((10, 10, 10), 5, 24, 4000.0, 1e-5, 4500, 47.0), ((3, 3, 3), 1, 400, 2000.0, 2.5e-5, 6450, 4.0)],
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
        num_draws=20,
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
    """Samples of exp(-nbeta |BA|^2 / 2 - |A|^2 / 2 - |B|^2 / 2) and the mean of nbeta |BA|^2 / 2.

    With A integrated out, the eigenvalues s of B'B have density prod s^((outputs - hidden - 1) / 2) exp(-s / 2)
    (1 + nbeta s)^(-inputs / 2) prod |s_i - s_j|: a sum over a grid in log s. Given B, A is Gaussian with precision
    I + nbeta B'B in every column. All of it is invariant under rotations, so that B may as well be diagonal.
    """
    inputs, hidden, outputs = widths
    rng = np.random.default_rng(0)
    axis, spacing = np.linspace(math.log(1e-9), math.log(80), 100, retstep=True)
    log_s = np.stack(np.meshgrid(*[axis] * hidden)).reshape(hidden, -1)
    s = np.exp(log_s)
    p = np.exp(((outputs - hidden + 1) / 2 * log_s - s / 2 - inputs / 2 * np.log1p(nbeta * s)).sum(0))
    for i, j in itertools.combinations(range(hidden), 2):
        p *= np.abs(s[i] - s[j])
    p /= p.sum()
    mean = float(p @ (inputs / 2 * nbeta * s / (1 + nbeta * s)).sum(0))
    cells = log_s[:, rng.choice(len(p), copies, p=p)].T
    drawn = np.exp(cells + rng.uniform(-spacing / 2, spacing / 2, cells.shape))
    first = rng.standard_normal((copies, hidden, inputs)) / np.sqrt(1 + nbeta * drawn)[:, :, None]
    second = np.eye(outputs, hidden) * np.sqrt(drawn)[:, None, :]
    return torch.tensor(first), torch.tensor(second), mean


def test_rank_zero_deep_linear_network_keeps_its_exact_posterior_within_3_percent_of_the_learning_coefficient() -> None:
    # Rank 0 with multiplicity 2 approaches 6.5 as 1 / log(nbeta): no cold chain of a test's length gets there. The
    # chains start from an exact sample of the posterior, through the memory of persistent chains, and have to keep it.
    widths, nbeta, copies, eps = (5, 3, 5), 1e5, 1500, 2e-7
    first, second, exact = exact_posterior_of_two_layers(widths, nbeta, copies)
    config = settings(eps, nbeta=nbeta, localization=1.0, num_draws=60, num_steps_bw_draws=5, num_chains=1)
    estimator = Estimator(draw_reference(TWO_SAMPLES), DeepLinear.loss, config=config, persistent=True)
    displacement = torch.cat([first.flatten(), second.flatten()])
    estimator.load_state_dict(
        {"step_size": eps, "chains": {0: {"displacement": displacement, "state": {}, "sgld_step": 0}}}
    )
    measured = estimator.measure(DeepLinear(widths, 0, copies))["llc"]

    def losses(displacement: torch.Tensor) -> torch.Tensor:
        first, second = displacement.split([copies * 15, copies * 15])
        return (second.view(copies, 5, 3) @ first.view(copies, 3, 5)).square().sum((1, 2))

    kept = estimator.state_dict()["chains"][0]["displacement"]
    memory = torch.corrcoef(torch.stack([losses(displacement), losses(kept)]))[0, 1]
    assert memory < 0.4  # the chains have moved on, each to another loss: it is the posterior that stayed
    assert oracles.deep_linear_llc(widths, 0) == 6.5
    assert exact == pytest.approx(6.5, rel=0.025)  # what 1 / log(nbeta) leaves
    assert measured["mean"] / copies == pytest.approx(exact, rel=0.02)
    assert measured["mean"] / copies == pytest.approx(6.5, rel=0.03)
