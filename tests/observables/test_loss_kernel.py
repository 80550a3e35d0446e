import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from slt_callbacks import SGLD, Draw, Estimator, Influence, LossKernel, ReferencePoint, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.observables.labels import Labels, display_order
from slt_callbacks.observables.shifts import alignment, class_contrast, effective_rank, label_kernel
from tests import oracles
from tests.observables.draws import draw_of, feed, point_for

Array = np.ndarray[Any, np.dtype[np.float64]]


class KeepTrace:
    """What a kernel must not do: keep every loss of every draw, as the truth to compare it with."""

    reference_losses = True

    def reset(self, reference: ReferencePoint) -> None:
        self._trace = torch.full(
            (reference.num_chains, reference.num_draws, len(reference.indices)), torch.nan
        ).double()

    def update(self, draw: Draw) -> None:
        assert draw.reference_losses is not None
        self._trace[draw.chain, draw.index] = draw.reference_losses

    def compute(self) -> dict[str, Any]:
        return {"trace": self._trace}


class Copies(nn.Module):
    """Independent copies of one regression in one module: as many draws of its kernel at the price of one."""

    def __init__(self, weights: Array, copies: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights).repeat(copies, 1))


def regression_loss(module: Any, batch: Any) -> torch.Tensor:
    x, y, copy = batch
    return ((x * module.w[copy]).sum(1) - y).square() / 2


def regression() -> tuple[Array, Array]:
    """Six samples in three dimensions with residuals of both signs, so that neither term of the kernel is small."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(6, generator=generator, dtype=torch.float64)
    return x.numpy(), y.numpy()


def chain_moments(
    x: Array, residuals: Array, nbeta: float, gamma: float, eps: float, times: Any
) -> tuple[Array, Array]:
    """Of one chain from w*: E l_i at each draw (T, N), and Cov(l_i at s, l_j at t) (T, T, N, N). Exact.

    In the eigenbasis of H every coordinate is an AR(1) started at 0; S(s, t) = X C(s, t) X^T gives both by Wick.
    """
    values, basis = np.linalg.eigh(x.T @ x / len(x))
    a = 1 - eps * (nbeta * values + gamma) / 2
    earlier, apart = np.minimum.outer(times, times)[..., None], np.abs(np.subtract.outer(times, times))[..., None]
    c = a**apart * eps * (1 - a ** (2.0 * earlier)) / (1 - a**2)
    projected = x @ basis
    s = np.einsum("ik,stk,jk->stij", projected, c, projected)
    means = (np.einsum("ttii->ti", s) + residuals**2) / 2
    return means, s**2 / 2 + np.outer(residuals, residuals) * s


def expected_kernels(means: Array, covariances: Array, num_chains: int) -> tuple[Array, Array]:
    """Expectations of the pooled and of the within-chain covariance over C chains of T draws."""
    num_draws, size = len(means), num_chains * len(means)
    second = np.einsum("ttij->ij", covariances) + means.T @ means  # sum over a chain of E[l l^T]
    of_mean, mean = covariances.mean((0, 1)), means.mean(0)
    pooled = (num_chains * second - size * (of_mean / num_chains + np.outer(mean, mean))) / (size - 1)
    within = (second - num_draws * (of_mean + np.outer(mean, mean))) / (num_draws - 1)
    return pooled, within


@pytest.mark.parametrize(
    ("num_chains", "num_draws", "burn_in", "between", "eps"),
    [(4, 300, 30, 1, 0.15), (4, 200, 30, 1, 0.22), (40, 12, 0, 1, 0.05), (40, 6, 2, 3, 0.05)],
    ids=["long", "large step", "short from w*", "short and thinned"],
)
def test_linear_regression_gives_its_finite_length_kernel_and_influence(
    num_chains: int, num_draws: int, burn_in: int, between: int, eps: float
) -> None:
    x, y = regression()
    weights, residuals = oracles.regression_minimum(x, y)
    nbeta, gamma, copies = 8.0, 2.0, 40
    config = SamplerConfig(
        SGLD(eps),
        batch_size=None,
        nbeta=nbeta * copies,  # the loss is the mean over all copies
        localization=gamma,
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
    )
    tile = torch.arange(copies).repeat_interleave(6)
    data = [(torch.tensor(np.tile(x, (copies, 1))), torch.tensor(np.tile(y, copies)), tile)]
    observables = {"kernel": LossKernel(), "influence": Influence(data), "all": KeepTrace()}
    measurement = estimate(Copies(weights, copies), data, regression_loss, observables=observables, sampler=config)
    trace = measurement["all"]["trace"].numpy()
    found = measurement["kernel"]
    single = np.mean([np.cov(chain.T) for chain in trace], axis=0)
    np.testing.assert_allclose(found["within_covariance"], single, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["covariance"], np.cov(trace.reshape(-1, 6 * copies).T), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["correlation"], np.corrcoef(trace.reshape(-1, 6 * copies).T), rtol=0, atol=1e-12)
    np.testing.assert_allclose(measurement["influence"]["bif"], -found["covariance"], rtol=0, atol=1e-12)

    times = oracles.draw_times(num_draws, burn_in, between)
    pooled, within = expected_kernels(*chain_moments(x, residuals, nbeta, gamma, eps, times), num_chains)
    for name, wanted in (("covariance", pooled), ("within_covariance", within)):
        blocks = np.stack([found[name].numpy()[6 * k : 6 * k + 6, 6 * k : 6 * k + 6] for k in range(copies)])
        mean, stderr = blocks.mean(0), blocks.std(0, ddof=1) / math.sqrt(copies)
        # Eight times 21 entries: beyond 3 errors a few would go by chance, beyond 4 one in 100 such tests.
        assert np.abs((mean - wanted) / stderr).max() < (3 if num_draws > 100 else 4)
        if num_draws > 100:
            exact = oracles.regression_kernel(x, residuals, nbeta, gamma, eps)
            assert np.abs(mean - exact).max() < 0.03 * exact.max()
            assert (np.abs(exact) < 0.5 * exact.max()).any()
            assert exact.min() < -0.1 * exact.max(), "no sign to get wrong"


def test_linear_regression_gives_the_influence_on_samples_it_was_not_fitted_to() -> None:
    """Cov(l_i, l_q) = S_iq^2 / 2 + e_i e_q S_iq with the query's own residual e_q; and the correlations that follow."""
    x, y = regression()
    weights, residuals = oracles.regression_minimum(x, y)
    asked, answers = np.array([[1.0, -0.5, 0.3], [-0.8, 1.2, 0.9]]), np.array([2.0, -1.5])
    both, errors = np.concatenate([x, asked]), np.concatenate([residuals, asked @ weights - answers])
    assert errors[6] * errors[7] < 0, "no sign to get wrong"
    nbeta, gamma, eps, copies, num_chains, num_draws = 8.0, 2.0, 0.15, 40, 20, 160
    config = SamplerConfig(
        SGLD(eps),
        batch_size=None,
        nbeta=nbeta * copies,
        localization=gamma,
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin_steps=30,
        engine="vectorized",
    )

    def tiled(x: Array, y: Array) -> Any:
        tile = torch.arange(copies).repeat_interleave(len(y))
        return [(torch.tensor(np.tile(x, (copies, 1))), torch.tensor(np.tile(y, copies)), tile)]

    observables = {"kernel": LossKernel(), "influence": Influence(tiled(asked, answers))}
    found = estimate(Copies(weights, copies), tiled(x, y), regression_loss, observables=observables, sampler=config)

    def per_copy(matrix: torch.Tensor, columns: int) -> Array:
        return np.stack([matrix.numpy()[6 * k : 6 * k + 6, columns * k : columns * k + columns] for k in range(copies)])

    k = nbeta * x.T @ x / len(x) + gamma * np.eye(3)
    s = both @ np.linalg.inv(k @ (np.eye(3) - eps * k / 4)) @ both.T
    covariance = s**2 / 2 + np.outer(errors, errors) * s
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    for measured, wanted in (
        (per_copy(found["influence"]["bif"], 2), -covariance[:6, 6:]),
        (per_copy(found["influence"]["correlation"], 2), correlation[:6, 6:]),
        (per_copy(found["kernel"]["correlation"], 6), correlation[:6, :6]),
    ):
        mean, stderr = measured.mean(0), measured.std(0, ddof=1) / math.sqrt(copies)
        assert stderr.max() < 0.01 * np.abs(wanted).max(), "3 errors are within 3 % of the largest entry"
        assert np.abs(mean - wanted).max() < 0.03 * np.abs(wanted).max()
        large = np.abs(wanted) > 0.1 * np.abs(wanted).max()
        assert (np.sign(mean) == np.sign(wanted))[large].all()
        assert wanted[large].min() < 0 < wanted[large].max()


@pytest.mark.parametrize("nbeta", [0.0, 20.0, 60.0])
def test_disjoint_tasks_leave_nothing_but_noise_in_their_cross_block(nbeta: float) -> None:
    class TwoTasks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.Parameter(torch.zeros(2, 2, 3, dtype=torch.float64))

    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        inputs, task = batch
        return torch.einsum("nd,nkd->nk", inputs, module.heads[task]).exp().sum(1)

    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double() + 0.7
    task = torch.arange(16) % 2
    gamma = 200.0
    # A step of 2 / gamma forgets where the chain was but for -nbeta h / gamma, below 0.5 here: the noise of a cross
    # correlation, sqrt((1 + a a') / (1 - a a') / n), is 1 / sqrt(n) at nbeta = 0 and at most 1.3 times that.
    config = SamplerConfig(SGLD(2 / gamma), nbeta=nbeta, localization=gamma, num_draws=500, num_burnin_steps=2)
    result = estimate(TwoTasks(), [(inputs, task)], loss_fn, observables={"kernel": LossKernel(task)}, sampler=config)[
        "kernel"
    ]
    cross = result["correlation"][task == 0][:, task == 1] * math.sqrt(4 * 500)
    within = result["correlation"][task == 0][:, task == 0]
    assert 0.5 < cross.square().mean().sqrt() < 1.5
    assert cross.abs().max() < 4.5 * (1.3 if nbeta else 1)
    assert within.mean() > 10 / math.sqrt(4 * 500)
    assert result["class_contrast"] == pytest.approx(_contrast(result["correlation"].numpy(), task.numpy()), abs=1e-12)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
        )

    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1], reduction="none")


def test_strong_localization_on_digits_gives_inner_products_of_gradients() -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, classes = load_digits(return_X_y=True)
    some = np.concatenate([np.flatnonzero(classes == 0)[:3], np.flatnonzero(classes == 1)[:1]])
    batch = (torch.tensor(images[some] / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(classes[some]))
    net = ConvNet()
    net.net(batch[0])  # statistics of its own for the normalization
    net.eval()
    gradients = []
    for loss in net.per_sample_loss(batch):
        single = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        gradients.append(torch.cat([g.flatten() for g in single]).double())
    wanted = torch.stack(gradients) @ torch.stack(gradients).T
    gamma, draws = 1e8, 6000
    # eps k = 2: every draw independent, of variance 2 / gamma in every weight (methods: s = 1 / (k (1 - eps k / 4))).
    config = SamplerConfig(
        SGLD(2 / gamma), nbeta=1.0, localization=gamma, num_chains=2, num_draws=draws // 2, num_burnin_steps=1
    )
    found = estimate(net.double(), [batch], observables={"kernel": LossKernel()}, sampler=config)["kernel"]
    covariance = found["covariance"] * gamma / 2
    # An entry's error is sqrt((K_ii K_jj + K_ij^2) / n): the norm of all of them is 2 % of the norm of K.
    assert (wanted.trace() ** 2 + wanted.norm() ** 2).div(draws).sqrt() < 0.022 * wanted.norm()
    assert (covariance - wanted).norm() < 0.03 * wanted.norm()
    assert (covariance - wanted).abs().max() < 0.03 * wanted.max()
    assert found["trace"] * gamma / 2 == pytest.approx(float(wanted.trace()), rel=0.03)


def random_trace(num_chains: int = 3, num_draws: int = 40, size: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator).double()
    return torch.randn(num_chains, num_draws, size, generator=generator).double() @ mixing + 3


def kernel_of(trace: torch.Tensor) -> Array:
    return np.cov(trace.reshape(-1, trace.shape[-1]).numpy().T)


class TestResult:
    def test_streaming_equals_batch_at_every_prefix(self) -> None:
        kernel, trace = LossKernel(), random_trace(2, 70)
        kernel.reset(point_for(trace))
        seen: list[torch.Tensor] = []
        for chain in range(2):
            for index in range(70):
                kernel.update(draw_of(trace, chain, index))
                seen.append(trace[chain, index])
                if len(seen) > 1:
                    found = kernel.compute()["covariance"]
                    np.testing.assert_allclose(found, np.cov(torch.stack(seen).numpy().T), rtol=0, atol=1e-11)

    def test_it_is_positive_semidefinite_and_symmetric_with_a_unit_diagonal(self) -> None:
        result = feed(LossKernel(), random_trace(2, 6, size=40))  # fewer draws than samples: singular
        for name in ("covariance", "correlation", "within_covariance"):
            matrix = result[name]
            assert matrix.equal(matrix.T)
            spectrum = torch.linalg.eigvalsh(matrix)
            assert spectrum[0] > -1e-13 * spectrum[-1]
        assert result["correlation"].diagonal().eq(1).all()

    def test_a_loss_that_is_not_a_number_leaves_no_mark_on_the_next_measurement(self) -> None:
        kernel, clean = LossKernel([0, 0, 1, 1, 1]), LossKernel([0, 0, 1, 1, 1])
        spoilt = random_trace(seed=3)
        spoilt[1, 7, 2] = torch.nan
        for one in (kernel, clean):
            feed(one, random_trace(seed=1))
        result = feed(kernel, spoilt)
        assert result["correlation"][2].isnan().all()
        assert math.isnan(result["alignment"])
        assert feed(kernel, random_trace(seed=2))["alignment"] == feed(clean, random_trace(seed=2))["alignment"]

    def test_a_sample_whose_loss_never_varies_has_rows_of_zeros(self) -> None:
        trace = random_trace()
        trace[:, :, 2] = 0.1
        result = feed(LossKernel(), trace)
        assert result["correlation"][2].eq(0).all()
        assert result["correlation"][:, 2].eq(0).all()
        assert result["correlation"].diagonal().tolist() == [1, 1, 0, 1, 1]

    @pytest.mark.parametrize("interleaved", [False, True])
    @pytest.mark.parametrize("failed", [0, 2])
    def test_a_failed_chain_leaves_no_mark(self, interleaved: bool, failed: int) -> None:
        trace = random_trace()
        good = trace[[chain for chain in range(3) if chain != failed]]
        trace[failed, 20:] = torch.nan
        result = feed(LossKernel(), trace, failed=[failed], interleaved=interleaved)
        np.testing.assert_allclose(result["covariance"], kernel_of(good), rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            result["within_covariance"], np.mean([np.cov(c.numpy().T) for c in good], axis=0), rtol=0, atol=1e-12
        )

    def test_pooled_and_within_differ_where_chains_have_not_met(self) -> None:
        trace = random_trace() + 5 * torch.arange(3.0)[:, None, None]
        result = feed(LossKernel(), trace)
        assert (result["covariance"] - result["within_covariance"]).min() > 10
        np.testing.assert_allclose(result["covariance"], kernel_of(trace), rtol=0, atol=1e-11)

    def test_computing_twice_gives_the_same_and_changes_nothing(self) -> None:
        kernel = LossKernel()
        feed(kernel, random_trace(seed=1))
        first = feed(kernel, random_trace(seed=2))
        again = kernel.compute()
        assert first.keys() == again.keys()
        assert first["alignment"] == again["alignment"]
        assert first["covariance"].equal(again["covariance"])

    def test_minibatches_and_the_whole_set_see_the_same_losses_at_the_same_draws(self) -> None:
        torch.manual_seed(0)
        net, x = nn.Linear(3, 1), torch.randn(12, 3)

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            return module(batch).square().mean(1)

        for batch_size in (None, 4):
            config = SamplerConfig(SGLD(1e-3), num_draws=10, num_burnin_steps=3, batch_size=batch_size, block_size=5)
            observables = {"kernel": LossKernel(), "all": KeepTrace()}
            measurement = estimate(net, [x], loss_fn, observables=observables, sampler=config)
            trace = measurement["all"]["trace"]
            np.testing.assert_allclose(measurement["kernel"]["covariance"], kernel_of(trace), rtol=0, atol=1e-12)
            assert trace.shape == (4, 10, 12)


class TestComparison:
    def test_the_first_has_nothing_to_align_with_and_the_same_again_aligns_fully(self) -> None:
        kernel = LossKernel()
        assert math.isnan(feed(kernel, random_trace(seed=1))["alignment"])
        assert feed(kernel, random_trace(seed=1))["alignment"] == pytest.approx(1.0, abs=1e-12)
        assert feed(kernel, random_trace(seed=9))["alignment"] < 0.9

    def test_alignment_is_the_centred_one_of_the_correlations(self) -> None:
        kernel = LossKernel()
        a, b = (feed(kernel, random_trace(seed=seed)) for seed in (1, 2))
        h = np.eye(5) - 1 / 5
        ca, cb = (h @ r["correlation"].numpy() @ h for r in (a, b))
        assert b["alignment"] == pytest.approx((ca * cb).sum() / np.linalg.norm(ca) / np.linalg.norm(cb), abs=1e-12)

    def test_a_failed_measurement_is_nan_and_the_comparison_goes_on_with_the_last_good_one(self) -> None:
        kernel = LossKernel(labels=[0, 0, 1, 1, 1])
        feed(kernel, random_trace(seed=1))
        wanted = feed(kernel, random_trace(seed=2))["alignment"]

        feed(kernel, random_trace(seed=1))
        failed = feed(kernel, torch.full((3, 40, 5), torch.nan), failed=[0, 1, 2])
        assert failed["covariance"].shape == (5, 5)
        assert failed["covariance"].isnan().all()
        assert all(math.isnan(failed[name]) for name in ("trace", "alignment", "effective_rank", "class_contrast"))
        kernel.reset(point_for(random_trace()))  # one that breaks off, though somebody has looked at it before
        for index in range(40):
            kernel.update(draw_of(random_trace(seed=7), 0, index))
            if index == 30:
                kernel.compute()
        assert feed(kernel, random_trace(seed=2))["alignment"] == pytest.approx(wanted, abs=1e-12)

    def test_a_users_new_order_wins_over_that_of_a_checkpoint(self) -> None:
        before, after = LossKernel(), LossKernel(order=[4, 3, 2, 1, 0])
        before.images(feed(before, random_trace(seed=1)))
        after.load_state_dict(before.state_dict())
        result = feed(after, random_trace(seed=2))
        assert after.images(result)["map"].matrix.equal(result["correlation"].flip(0).flip(1))

    def test_it_goes_on_after_a_resume(self) -> None:
        kernel, resumed = LossKernel(), LossKernel()
        feed(kernel, random_trace(seed=1))
        state = kernel.state_dict()
        resumed.load_state_dict(state)
        assert resumed.order is not None
        assert feed(resumed, random_trace(seed=2))["alignment"] == feed(kernel, random_trace(seed=2))["alignment"]
        assert kernel.order is not None
        assert resumed.order.equal(kernel.order)

    def test_another_number_of_samples_after_a_resume_is_said_and_not_compared(self) -> None:
        kernel = LossKernel()
        feed(kernel, random_trace(size=5))
        with pytest.warns(UserWarning, match="they are not compared"):
            assert math.isnan(feed(kernel, random_trace(size=4))["alignment"])

    def test_the_estimator_carries_the_comparison_over_a_checkpoint(self) -> None:
        torch.manual_seed(0)
        net, x = nn.Linear(3, 1), torch.randn(12, 3)

        def make() -> Estimator:
            config = SamplerConfig(SGLD(1e-3), num_draws=8, num_burnin_steps=2)
            loss_fn = lambda module, batch: module(batch).square().mean(1)  # noqa: E731
            return Estimator(draw_reference([x]), loss_fn, {"kernel": LossKernel()}, config, persistent=True)

        straight, stopped, resumed = make(), make(), make()
        for estimator in (straight, stopped):
            estimator.measure(net, step=1)
        resumed.load_state_dict(stopped.state_dict())
        wanted = straight.measure(net, step=2)["kernel"]["alignment"]
        assert math.isfinite(wanted)
        assert resumed.measure(net, step=2)["kernel"]["alignment"] == wanted


def _contrast(correlation: Array, labels: Any) -> float:
    """Over pairs, one by one."""
    same, different = [], []
    for i in range(len(labels)):
        for j in range(len(labels)):
            if i != j:
                (same if labels[i] == labels[j] else different).append(correlation[i, j])
    return float(np.mean(same) - np.mean(different))


class TestSummaries:
    def test_labels_are_those_of_the_drawn_samples(self) -> None:
        trace, labels = random_trace(), ["a", "b", "a", "c", "b", "a", "c", "a"]
        kernel = LossKernel(labels)
        rows = torch.tensor([0, 2, 3, 6, 7])
        kernel.reset(point_for(trace, indices=rows))
        for chain in range(3):
            for index in range(40):
                kernel.update(draw_of(trace, chain, index))
        result = kernel.compute()
        own = [labels[row] for row in rows.tolist()]
        correlation = result["correlation"].numpy()
        assert result["class_contrast"] == pytest.approx(_contrast(correlation, own), abs=1e-12)
        same = np.equal.outer(own, own).astype(float)
        wanted = alignment(result["correlation"], torch.tensor(same))
        assert result["label_alignment"] == pytest.approx(wanted, abs=1e-12)

    def test_the_effective_rank_is_that_of_the_correlation_and_the_trace_that_of_the_covariance(self) -> None:
        trace = random_trace() * torch.tensor([100.0, 1.0, 1.0, 1.0, 1.0])  # one sample of large variance
        result = feed(LossKernel(), trace)
        assert result["effective_rank"] == pytest.approx(effective_rank(result["correlation"]), rel=1e-9)
        assert result["effective_rank"] > 1.2 > effective_rank(result["covariance"])
        assert result["trace"] == pytest.approx(np.trace(kernel_of(trace)), rel=1e-9)

    def test_effective_rank_counts_directions(self) -> None:
        rank_two = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)).double()
        assert 1 < effective_rank(rank_two @ rank_two.T) <= 2 + 1e-9
        assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
            math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
        )
        assert math.isnan(effective_rank(torch.zeros(3, 3)))

    def test_alignment_ignores_scale_and_a_common_offset(self) -> None:
        a = torch.tensor(kernel_of(random_trace()))
        assert alignment(a, 3 * a + 7) == pytest.approx(1.0, abs=1e-12)
        assert math.isnan(alignment(a, torch.ones(5, 5)))

    def test_contrast_needs_pairs_of_both_kinds(self) -> None:
        assert math.isnan(class_contrast(torch.eye(3), torch.tensor([0, 0, 0])))
        assert math.isnan(class_contrast(torch.eye(3), torch.tensor([0, 1, 2])))
        assert class_contrast(label_kernel(torch.tensor([0, 1, 0])), torch.tensor([0, 1, 0])) == 1.0


class TestOrder:
    def test_labels_come_first_and_then_likeness(self) -> None:
        rows = torch.tensor([[0.0], [9.0], [0.1], [9.1], [0.2], [9.2]])
        classes = torch.tensor([0, 0, 1, 1, 0, 0])
        order = display_order(rows, classes)
        assert classes[order].tolist() == [0, 0, 0, 0, 1, 1]
        assert sorted(order.tolist()) == list(range(6))
        near = rows[order[:4], 0] < 5
        assert near.tolist() in ([True, True, False, False], [False, False, True, True])

    def test_it_is_taken_at_the_first_snapshot_and_kept(self) -> None:
        kernel = LossKernel(labels=[0, 1, 0, 1, 0])
        for seed in (1, 2):
            result = feed(kernel, random_trace(seed=seed))
            picture = kernel.images(result)["map"]
            order = display_order(
                feed(LossKernel(), random_trace(seed=1))["correlation"], torch.tensor([0, 1, 0, 1, 0])
            )
            assert picture.matrix.equal(result["correlation"][order][:, order])

    def test_the_users_own_is_used(self) -> None:
        kernel = LossKernel(order=[4, 3, 2, 1, 0])
        result = feed(kernel, random_trace())
        assert kernel.images(result)["map"].matrix.equal(result["correlation"].flip(0).flip(1))

    def test_a_failed_measurement_has_no_picture_and_takes_no_order(self) -> None:
        kernel = LossKernel()
        assert kernel.images(feed(kernel, torch.full((3, 4, 5), torch.nan), failed=[0, 1, 2])) == {}
        assert kernel.order is None


def token_loss(module: Any, batch: torch.Tensor) -> torch.Tensor:
    return module(batch).square()


class TestTokens:
    def measure(self, loss_fn: Any = token_loss, **options: Any) -> Any:
        torch.manual_seed(0)
        net, x = nn.Linear(3, 4), torch.randn(6, 3)
        config = SamplerConfig(SGLD(1e-3), num_draws=12, num_burnin_steps=2, block_size=4)
        observables = {"tokens": LossKernel(per_token=True, **options), "samples": LossKernel()}
        return estimate(net, [x], loss_fn, observables=observables, sampler=config)

    def test_rows_are_samples_times_tokens_and_their_means_are_the_samples(self) -> None:
        measurement = self.measure(labels=[0, 0, 0, 1, 1, 1])
        tokens = measurement["tokens"]["covariance"]
        assert tokens.shape == (24, 24)
        averaged = tokens.view(6, 4, 6, 4).mean((1, 3))
        torch.testing.assert_close(averaged, measurement["samples"]["covariance"], rtol=1e-5, atol=1e-9)
        labels = [0] * 12 + [1] * 12
        wanted = _contrast(measurement["tokens"]["correlation"].numpy(), labels)
        assert measurement["tokens"]["class_contrast"] == pytest.approx(wanted, abs=1e-12)

    def test_a_loss_without_tokens_is_refused(self) -> None:
        with pytest.raises(ValueError, match="do not average over the tokens"):
            self.measure(lambda module, batch: module(batch).square().mean(1))


class TestRefusals:
    def make(self, kernel: LossKernel, loss_fn: Any = token_loss, size: int = 6, **settings: Any) -> Estimator:
        return Estimator(draw_reference([torch.ones(size, 3)], **settings), loss_fn, {"kernel": kernel})

    @pytest.mark.parametrize("count", [4, 7])
    def test_labels_of_the_wrong_length(self, count: int) -> None:
        with pytest.raises(ValueError, match="one label for each of the 6 samples of the whole `reference`"):
            self.make(LossKernel([0] * count))

    def test_labels_for_the_drawn_samples_only(self) -> None:
        with pytest.raises(ValueError, match="the drawn samples pick their own"):
            self.make(LossKernel([0] * 3), num_samples=3)

    @pytest.mark.parametrize(
        "labels", [torch.zeros(6), [[0]] * 6, "abcabc", [True] * 6, 3, list(np.zeros(6)), list(np.ones(6, dtype=bool))]
    )
    def test_labels_that_are_no_classes(self, labels: Any) -> None:
        with pytest.raises(TypeError, match="one integer or string a sample"):
            LossKernel(labels)

    @pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.int32), np.zeros(6, dtype=np.int16), ("a",) * 6])
    def test_labels_of_every_kind_are_taken(self, labels: Any) -> None:
        self.make(LossKernel(labels))

    @pytest.mark.parametrize("values", [np.array([3, 1, 3], dtype=np.int16), np.array(["b", "a", "b"])])
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_labels_in_a_list_of_arrays_elements_are_those_of_the_array(self, values: Any, kind: Any) -> None:
        listed, whole = Labels(kind(values), "labels"), Labels(values, "labels")
        assert listed.names == whole.names
        assert listed.of(torch.arange(3)).tolist() == [1, 0, 1]
        assert Labels(list(torch.tensor([3, 1, 3])), "labels").names == ["1", "3"]

    @pytest.mark.parametrize("twins", [("a/b", "a-b"), (1, "1")])
    def test_labels_that_would_be_logged_under_one_name(self, twins: Any) -> None:
        with pytest.raises(ValueError, match=r"but got .* and .*: rename one of them"):
            LossKernel(["c", *twins])

    def test_a_result_without_matrices_has_no_picture(self) -> None:
        kernel = LossKernel()
        result = feed(kernel, random_trace())
        numbers = {name: value for name, value in result.items() if isinstance(value, float)}
        for method in (kernel.images, kernel.matrices):
            with pytest.raises(ValueError, match=r"Expected `result` to hold the matrix .*MemorySink"):
                method(numbers)

    def test_an_order_that_is_no_permutation(self) -> None:
        with pytest.raises(ValueError, match="name each of the 6 rows once"):
            self.make(LossKernel(order=[0, 1, 2, 3, 4, 4]))

    def test_more_samples_than_memory_has_room_for(self) -> None:
        with pytest.raises(ValueError, match=r"4096 x 4096 .* but got 4097 x 4097: lower `num_samples`"):
            self.make(LossKernel(), size=4097)

    def test_more_tokens_than_memory_has_room_for(self) -> None:
        config = SamplerConfig(SGLD(1e-3), num_chains=1, num_draws=1, num_burnin_steps=0)
        observables = {"kernel": LossKernel(per_token=True)}
        with pytest.raises(ValueError, match="leave `per_token` at False"):
            estimate(nn.Linear(1, 1025), [torch.ones(4, 1)], token_loss, observables=observables, sampler=config)

    @pytest.mark.parametrize("per_token", [False, True])
    def test_a_scalar_loss(self, per_token: bool) -> None:
        estimator = self.make(LossKernel(per_token=per_token), lambda module, batch: module(batch).mean())
        with pytest.raises(ValueError, match="one loss a sample"):
            estimator.check(nn.Linear(3, 1))


def test_nothing_is_warned_of_in_an_ordinary_run() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel = LossKernel(labels=[0, 0, 1, 1, 1])
        for seed in range(3):
            kernel.images(feed(kernel, random_trace(seed=seed)))
