import numpy as np
import pytest
import torch

from slt_callbacks.stats.intervals import moderated_variance, sign_quantile
from slt_callbacks.stats.moments import ChainMoments, Moments, RunningMoments, merge, moments_of


def random_trace(*shape: int, seed: int = 0) -> torch.Tensor:
    """Correlated columns far from zero, which a sum of squares would lose to cancellation."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return 1e4 + torch.randn(*shape, generator=generator, dtype=torch.float64) @ mixing


def assert_close(found: torch.Tensor, wanted: np.ndarray, relative: float = 1e-10) -> None:
    scale = max(float(np.abs(wanted).max()), 1e-300)
    assert np.abs(found.numpy() - wanted).max() <= relative * scale


def whole(trace: torch.Tensor) -> np.ndarray:
    return np.atleast_2d(np.cov(trace.reshape(-1, trace.shape[-1]).numpy().T))


def within(trace: torch.Tensor) -> np.ndarray:
    return whole(trace) if len(trace) == 1 else np.mean([whole(chain) for chain in trace], axis=0)


class TestRunningMoments:
    def test_streaming_equals_batch_at_every_prefix(self) -> None:
        x = random_trace(150, 5)  # two full blocks and a part of one
        running = RunningMoments()
        for count, row in enumerate(x, start=1):
            running.update(row)
            if count > 1:
                value = running.value()
                assert value.count == count
                assert_close(value.mean_x, x[:count].mean(0).numpy())
                assert_close(value.covariance(), whole(x[:count]))
                assert_close(value.correlation(), np.corrcoef(x[:count].numpy().T), 1e-9)

    def test_two_sided_moments_are_the_cross_block_of_the_whole(self) -> None:
        both = random_trace(140, 7)
        running = RunningMoments()
        for row in both:
            running.update(row[:4], row[4:])
        value = running.value()
        assert_close(value.covariance(), whole(both)[:4, 4:])
        assert_close(value.correlation(), np.corrcoef(both.numpy().T)[:4, 4:], 1e-9)

    def test_value_changes_nothing(self) -> None:
        x = random_trace(90, 3)
        peeked, straight = RunningMoments(), RunningMoments()
        for row in x:
            peeked.update(row)
            peeked.value()
            straight.update(row)
        assert peeked.value().comoment.equal(straight.value().comoment)

    def test_single_precision_losses_are_accumulated_in_double(self) -> None:
        x = (1e3 + torch.rand(200, 2, generator=torch.Generator().manual_seed(1))).float()
        running = RunningMoments()
        for row in x:
            running.update(row)
        assert running.value().comoment.dtype == torch.float64
        assert_close(running.value().covariance(), whole(x.double()))

    def test_a_row_that_never_varies_has_a_variance_and_correlations_of_exactly_zero(self) -> None:
        x = random_trace(177, 3)
        x[:, 1] = 0.1  # not a sum of powers of two: its mean has a rounding error
        running = RunningMoments()
        for row in x:
            running.update(row)
        value = running.value()
        assert value.covariance()[1].eq(0).all()
        assert value.correlation()[:, 1].eq(0).all()

    def test_a_row_that_is_not_a_number_stays_none(self) -> None:
        x = random_trace(20, 3)
        x[4, 1], x[:, 2] = torch.nan, 0.5
        correlation = moments_of(x).correlation()
        assert correlation[1].isnan().all()
        assert correlation[2, [0, 2]].eq(0).all()
        assert correlation[0, 0] == pytest.approx(1.0)

    def test_asking_before_the_first_draw_is_refused(self) -> None:
        with pytest.raises(ValueError, match="Expected at least one draw"):
            RunningMoments().value()

    def test_one_draw_has_no_covariance(self) -> None:
        assert moments_of(torch.ones(1, 2, dtype=torch.float64)).covariance().isnan().all()


def test_merge_is_the_whole_in_any_grouping() -> None:
    x = random_trace(60, 4)
    parts = [moments_of(part) for part in x.split([1, 7, 30, 22])]
    left = merge(merge(merge(parts[0], parts[1]), parts[2]), parts[3])
    right = merge(parts[3], merge(parts[2], merge(parts[1], parts[0])))
    for merged in (left, right):
        assert_close(merged.covariance(), whole(x))
        assert_close(merged.mean_x, x.mean(0).numpy())


class TestChainMoments:
    @pytest.mark.parametrize("interleaved", [False, True])
    @pytest.mark.parametrize("num_draws", [1, 2, 40])
    @pytest.mark.parametrize("failed", [(), (0,), (2,), (1, 3)])
    def test_pooled_and_within_are_those_of_the_chains_that_are_left(
        self, interleaved: bool, num_draws: int, failed: tuple[int, ...]
    ) -> None:
        trace = random_trace(4, num_draws, 3) + torch.arange(4.0)[:, None, None]  # chains have not met
        spoilt = trace.clone()
        for chain in failed:
            spoilt[chain, num_draws // 2 :] = torch.nan
        moments = ChainMoments(num_draws)
        if interleaved:
            for index in range(num_draws):
                for chain in range(4):
                    moments.update(chain, spoilt[chain, index])
            for chain in failed:
                moments.discard(chain)
        else:
            for chain in range(4):
                for index in range(num_draws):
                    moments.update(chain, spoilt[chain, index])
                if chain in failed:
                    moments.discard(chain)
        good = trace[[chain for chain in range(4) if chain not in failed]]
        summary = moments.summary()
        assert summary is not None
        assert_close(summary.pooled.covariance(), whole(good))
        if num_draws > 1:
            assert_close(summary.within.covariance(), within(good))
            assert (summary.pooled.covariance() - summary.within.covariance()).abs().max() > 0.1
        else:
            assert summary.within.covariance().isnan().all()

    def test_chains_one_after_the_other_are_folded_into_one_total(self) -> None:
        moments = ChainMoments(num_draws=3)
        for chain in range(10):
            for row in random_trace(3, 4, seed=chain):
                moments.update(chain, row)
        assert list(moments._open) == [9]

    def test_a_chain_that_has_been_folded_cannot_be_taken_back_in_silence(self) -> None:
        moments = ChainMoments(num_draws=2)
        for chain in (0, 1):
            for row in random_trace(2, 3):
                moments.update(chain, row)
        with pytest.raises(RuntimeError, match="Chain 0 can no longer be taken back"):
            moments.discard(0)

    def test_discarding_a_chain_that_never_drew_is_nothing(self) -> None:
        moments = ChainMoments(num_draws=2)
        moments.discard(5)
        assert moments.summary() is None

    def test_the_spread_over_chains_is_that_of_the_statistic(self) -> None:
        trace = random_trace(5, 75, 3)

        def statistic(chain: Moments) -> torch.Tensor:
            return chain.covariance().flatten()

        moments = ChainMoments(75, statistic)
        for chain in range(5):
            for row in trace[chain]:
                moments.update(chain, row)
        spread = moments.summary().spread  # type: ignore[union-attr]
        single = np.stack([whole(chain).flatten() for chain in trace])
        assert spread is not None
        assert spread.count == 5
        assert_close(spread.mean, single.mean(0))
        assert_close(spread.variance(), single.var(0, ddof=1))


class TestIntervals:
    def variances(self, degrees: int, true: torch.Tensor, seed: int = 0) -> torch.Tensor:
        normal = torch.randn(degrees, len(true), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return true * normal.square().mean(0)

    def test_a_prior_of_known_strength_is_found(self) -> None:
        # True variances scaled inverse chi-square with 8 degrees of freedom, around 2: the model's own assumption.
        generator = torch.Generator().manual_seed(1)
        true = 2 / torch.randn(8, 40000, generator=generator, dtype=torch.float64).square().mean(0)
        moderated, degrees = moderated_variance(self.variances(3, true), 3)
        assert degrees == pytest.approx(11, rel=0.05)
        before = (self.variances(3, true).log() - true.log()).square().mean()
        assert (moderated.log() - true.log()).square().mean() < before / 5

    def test_one_common_variance_is_taken_as_such(self) -> None:
        moderated, degrees = moderated_variance(self.variances(3, torch.full((20000,), 5.0, dtype=torch.float64)), 3)
        assert degrees > 100
        assert (moderated / 5 - 1).abs().max() < 0.2

    def test_a_handful_of_variances_is_left_alone(self) -> None:
        variance = torch.tensor([1.0, 4.0, 0.0])
        moderated, degrees = moderated_variance(variance, 3)
        assert moderated is variance
        assert degrees == 3

    def test_the_quantile_is_students_with_bonferronis_level(self) -> None:
        assert sign_quantile(1, 3) == pytest.approx(3.182446, rel=1e-5)
        assert sign_quantile(1000, float("inf")) == pytest.approx(3.890592, rel=1e-5)  # 1e-4 on both sides together
