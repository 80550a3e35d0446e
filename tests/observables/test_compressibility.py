"""Critical bits and rank: exact on quadratics and on layers of a known rank, within 25 passes, and put back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LLC, Compressibility, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.figures.agreement import rank_correlation
from slt_callbacks.figures.pictures import image_of
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.coarsening import Search, Truncation, quantized
from slt_callbacks.observables.media import Curve
from slt_callbacks.stats.agreement import rank_agreement
from tests.contracts import check_fork_observable
from tests.problems import TWO_SAMPLES, Everything, Quadratic, Weights, settings, squared_error
from tests.training import fingerprint, fit, monitor

MOST_PASSES = 25


def measured(module: nn.Module, loss_fn: Any, reference: Any = TWO_SAMPLES, **options: Any) -> Any:
    return estimate(module, reference, loss_fn, observables={"c": Compressibility(**options)})["c"]


@pytest.mark.parametrize("methods", [("quantization",), ("factorization",), ("factorization", "quantization")])
def test_it_keeps_its_contract(methods: Any) -> None:
    check_fork_observable(Compressibility(0.5, methods))


class TestBits:
    @pytest.mark.parametrize("tolerance", [1e-7, 1e-5])
    def test_of_a_quadratic_follow_the_trace_of_its_hessian(self, tolerance: float) -> None:
        """Rounding with step s adds Tr(H) s^2 / 24."""
        size = 40_000
        generator = torch.Generator().manual_seed(0)
        weights = 2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1
        h = torch.rand(size, generator=generator, dtype=torch.float64) / size
        target = weights.clone()

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            return (h * (module.w - target).square() / 2).sum().expand(len(batch))

        found = measured(Weights(weights), loss_fn, tolerance=tolerance, methods=("quantization",))
        step = math.sqrt(24 * tolerance / float(h.sum()))
        bits = math.log2(2 * float(weights.abs().max()) / step + 1)
        # the mean of 40 000 squares of uniform numbers, weighed by h, is known to .5 %: .004 bits
        assert found["critical_bits"] == pytest.approx(bits, abs=0.015)

    def test_a_narrower_grid_saves_bits_where_few_weights_are_large(self) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(10_000, generator=generator)
        target = weights.clone()

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            return (module.w - target).square().mean().expand(len(batch))

        def rise(levels: int, width: float) -> float:
            return float((quantized(weights, levels, width) - target).square().mean())

        for tolerance in (0.01, 0.05):
            found = measured(Weights(weights), loss_fn, tolerance=tolerance, methods=("quantization",))["critical_bits"]
            every = range(3, 99, 2)
            whole = next(levels for levels in every if rise(levels, 1.0) <= tolerance)
            widths = [2 ** (-place / 2) for place in range(4)]
            best = next(levels for levels in every if min(rise(levels, width) for width in widths) <= tolerance)
            assert best < whole
            assert math.log2(best - 2) <= found <= math.log2(best)

    def test_of_weights_that_are_not_needed_are_0(self) -> None:
        flat = measured(Weights(torch.ones(3)), Quadratic(torch.tensor(0.01)), tolerance=0.1)
        assert flat["critical_bits"] == 0.0
        assert math.isnan(flat["critical_rank"]), "there is no matrix"
        assert flat["factorization"].shape == (0, 2)

    def test_that_are_never_enough_are_nan(self) -> None:
        def exactly(module: Any, batch: Any) -> torch.Tensor:
            return 1e9 * (module.w - target).abs().sum().expand(len(batch))

        target = torch.tensor([1.0, 0.3, 0.7])
        found = measured(Weights(target), exactly, tolerance=0.1)
        assert math.isnan(found["critical_bits"])

    def test_losses_that_are_not_finite_are_too_high(self) -> None:
        def log(module: Any, batch: Any) -> torch.Tensor:
            return (-module.w.log()).sum().expand(len(batch))

        found = measured(Weights(torch.tensor([1.0, 0.3])), log, tolerance=0.5)
        assert found["critical_bits"] == pytest.approx(math.log2(5))  # .3 becomes 0 with 3 points, and .5 with 5
        assert measured(Weights(torch.tensor([1.0, 0.01])), log, tolerance=0.5)["critical_bits"] > 5

    @pytest.mark.parametrize("levels", [1, 3, 5, 255])
    def test_the_grid_is_symmetric_with_0_and_as_many_points(self, levels: int) -> None:
        tensor = torch.linspace(-2, 1, 5000).double()
        for width in (1.0, 0.5):
            points = quantized(tensor, levels, width).unique()
            grid = torch.linspace(-2 * width, 2 * width, levels).double() if levels > 1 else torch.zeros(1).double()
            assert all(bool(((point - grid).abs() < 1e-6).any()) for point in points)
            nearest = grid[(tensor.clamp(-2 * width, 2 * width)[:, None] - grid).abs().argmin(1)]
            error = (quantized(tensor, levels, width) - tensor).abs()
            assert torch.allclose(error, (nearest - tensor).abs(), atol=1e-6)

    def test_a_tensor_of_zeros_stays_so(self) -> None:
        assert quantized(torch.zeros(3), 5).tolist() == [0.0] * 3
        assert quantized(torch.zeros(0), 5).shape == (0,)


def layer(rank: int, size: int = 16, wide: int = 24) -> tuple[nn.Module, list[torch.Tensor]]:
    """A layer whose singular values are 1, `rank` of them, and inputs that see all of it."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.linalg.qr(torch.randn(size, rank, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(wide, rank, generator=generator)).Q
    net = nn.Linear(wide, size, bias=False)
    with torch.no_grad():
        net.weight.copy_(left @ right.mT)
    return net, [torch.eye(wide)]


class TestRank:
    @pytest.mark.parametrize("rank", [1, 3, 16])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_of_a_layer_is_the_one_that_it_was_made_with(self, rank: int, transposed: bool) -> None:
        net, inputs = layer(rank, 24, 16) if transposed else layer(rank)
        inputs = [torch.eye(net.in_features)]
        target = net.weight.detach().clone()
        found = measured(
            net,
            lambda module, x: (module(x) - x @ target.mT).square().sum(1) * len(x),
            inputs,
            tolerance=1e-4,
            methods=("factorization",),
        )
        # Each singular value of 1 that is lost adds 1: the crossing is 1e-4 of the way from the rank to one below.
        assert found["critical_rank"] == pytest.approx((rank - 1e-4) / 16, abs=1e-5)
        kept = dict(found["factorization"].tolist())
        for share, rise in kept.items():
            assert rise == pytest.approx(max(rank - 16 * share, 0), abs=1e-4)

    def test_is_one_share_for_all_matrices_and_leaves_vectors(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.small = nn.Parameter(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))
                self.large = nn.Parameter(torch.diag(torch.tensor([1.0] * 3 + [0.0] * 5)).reshape(8, 2, 4))
                self.bias = nn.Parameter(torch.ones(4))

        net = Two()
        targets = [p.detach().clone() for p in net.parameters()]

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            rises = [(p - t).square().sum() for p, t in zip(module.parameters(), targets, strict=True)]
            return torch.stack(rises).sum().expand(len(batch))

        found = measured(net, loss_fn, tolerance=1e-6, methods=("factorization",))
        # Shares are eighths: at 3/8 the small one keeps two of four, rounded up, and the large one three.
        assert found["critical_rank"] == pytest.approx(3 / 8, abs=1e-5)

    def test_of_matrices_that_are_not_needed_is_0(self) -> None:
        net, inputs = layer(3)
        assert measured(net, lambda module, x: 1e-3 * module(x).square().sum(1), inputs)["critical_rank"] == 0.0

    def test_a_truncation_is_that_of_the_singular_values(self) -> None:
        matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
        for tensor in (matrix, matrix.mT.contiguous(), matrix.reshape(6, 3, 3)):
            flat = tensor.flatten(1)
            u, s, v = torch.linalg.svd(flat, full_matrices=False)
            truncation = Truncation([tensor])
            for number in range(7):
                expected = (u[:, :number] * s[:number]) @ v[:number]
                assert torch.allclose(truncation.kept(0, tensor, number), expected.reshape(tensor.shape), atol=1e-5)


class TestPasses:
    def count(self, module: nn.Module, loss_fn: Any, reference: Any, tolerance: float) -> int:
        calls: list[bool] = []

        def counted(module: Any, batch: Any) -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            found: torch.Tensor = loss_fn(module, batch)
            return found

        one = Estimator(draw_reference(reference), counted, {"c": Compressibility(tolerance)}, settings())
        first = one.measure(module)  # tries the loss
        calls.clear()
        assert one.measure(module)["cost"]["sgld_steps"] == first["cost"]["sgld_steps"] == 0
        assert calls[0] is False
        assert not any(calls), "no gradient"
        return len(calls) - 1  # the loss at w*, which every measurement takes

    @pytest.mark.parametrize("tolerance", [1e-9, 1e-5, 1e-3, 0.03, 0.1, 0.3, 1.0, 100.0])
    @pytest.mark.parametrize("spread", [1.0, 3.0])
    def test_are_25_at_most_whatever_the_tolerance(self, tolerance: float, spread: float) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(30, 300), nn.ReLU(), nn.Linear(300, 1))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(parameter * torch.randn_like(parameter).abs() ** spread)
        x = torch.randn(16, 30)
        passes = self.count(net, squared_error, [(x, net(x).detach())], tolerance)
        assert 2 <= passes <= MOST_PASSES

    def test_worst_is_what_is_told_before_training(self) -> None:
        assert Compressibility().needs.forward_passes == MOST_PASSES
        parts = [Compressibility(methods=(name,)).needs.forward_passes for name in ("quantization", "factorization")]
        assert sum(parts) == MOST_PASSES

    def test_of_any_rise_are_25_at_most(self) -> None:
        """Every path through the search, for rises that no network has."""
        generator = torch.Generator().manual_seed(0)

        class Fork:
            parameters = (torch.eye(130),)
            point = ReferencePoint(0, 0.0, *[torch.empty(0)] * 2, 1.0, 0.0, 1, 1)

            def __init__(self, share: float) -> None:
                self.passes, self.share = 0, share

            def reset(self) -> None: ...

            def loss(self) -> float:
                self.passes += 1
                return 0.2 / self.passes + float(torch.rand((), generator=generator) > self.share)

        most = 0
        for place in range(100):
            fork: Any = Fork(place / 99)
            Compressibility(0.1).inspect(fork)
            most = max(most, fork.passes)
        assert 20 <= most <= MOST_PASSES

    @pytest.mark.parametrize("size", [1e3, 1e4, 1e6, 1e8])
    def test_are_25_at_most_where_each_narrower_grid_is_better(self, size: float) -> None:
        """One weight, the largest by far, does not matter: grids may as well cut it off."""
        weights = torch.randn(4000, generator=torch.Generator().manual_seed(0)) / 20
        weights[0] = 1.0

        class Fork:
            parameters = (weights.clone(),)
            point = ReferencePoint(0, 0.0, *[torch.empty(0)] * 2, 1.0, 0.0, 1, 1)
            passes = 0

            def reset(self) -> None:
                self.parameters[0].copy_(weights)

            def loss(self) -> float:
                self.passes += 1
                return float(size * (self.parameters[0] - weights)[1:].square().mean())

        fork: Any = Fork()
        found = Compressibility(0.1, methods=("quantization",)).inspect(fork)["critical_bits"]
        assert fork.passes <= Compressibility(methods=("quantization",)).needs.forward_passes
        step = math.sqrt(12 * 0.1 / size)  # of a grid that reaches to .35, and rounds with step ** 2 / 12
        assert found == pytest.approx(math.log2(1 + 2 * 8**-0.5 / step), abs=0.25)

    def test_a_search_asks_nothing_twice(self) -> None:
        asked: list[tuple[int, float]] = []

        def ask(number: int, width: float) -> float:
            asked.append((number, width))
            return 1 / (number + 1)

        search = Search(ask, float, 0.2)
        assert search.narrow(0, 100, lambda low, high: (low + high) // 2, 20) == (3, 4)
        assert search.crossing(3, 4) == pytest.approx(4.0)
        assert search.within(4)
        assert not search.within(3)
        assert len(asked) == len(set(asked))
        rises = list(search.least().values())
        assert rises == sorted(rises, reverse=True)


class TestNothingIsLeftBehind:
    def test_neither_in_weights_nor_in_buffers_nor_in_the_draws(self) -> None:
        def llc(observables: dict[str, Any]) -> Measurement:
            torch.manual_seed(0)
            module = Everything()
            before = {name: value.clone() for name, value in module.state_dict().items()}
            batch = (torch.randn(8, 4), torch.randn(8, 1))
            found = estimate(
                module, [batch], squared_error, observables={**observables, "llc": LLC()}, sampler=settings()
            )
            for name, value in module.state_dict().items():
                assert torch.equal(value, before[name]), name
            return found

        beside = llc({"c": Compressibility()})
        assert beside["llc"]["mean"] == llc({})["llc"]["mean"]
        assert math.isfinite(beside["c"]["critical_bits"])

    def test_training_is_as_without_and_the_pictures_are_published(self) -> None:
        plain = fingerprint(fit())
        watched = monitor(observables={"compressibility": Compressibility(0.05)})
        assert fingerprint(fit(watched)) == plain
        logged = watched.history[-1].logged()
        assert {"slt/compressibility/critical_bits", "slt/compressibility/critical_rank"} <= logged.keys()

    def test_tied_weights_are_coarsened_once_and_frozen_ones_never(self) -> None:
        module = Everything()
        seen: list[torch.Tensor] = []

        def loss_fn(m: Any, batch: Any) -> torch.Tensor:
            assert m.tied.weight is m.embed.weight
            assert torch.equal(m.frozen.weight, module.frozen.weight)
            seen.append(m.embed.weight.detach().clone())
            return squared_error(m, batch)

        measured(module, loss_fn, [(torch.randn(8, 4), torch.randn(8, 1))])
        assert len({tuple(weight.flatten().tolist()) for weight in seen}) > 3


def test_the_curves_are_pictures() -> None:
    net, inputs = layer(3)
    found = estimate(
        net,
        inputs,
        lambda module, x: (module(x) - x[:, :16]).square().sum(1),
        observables={"compressibility": Compressibility(0.05)},
    )
    assert found.pictures.keys() == {"compressibility/quantization", "compressibility/factorization"}
    curve: Any = found.pictures["compressibility/quantization"]
    assert curve.level == 0.05
    assert curve.crossing == found["compressibility"]["critical_bits"]
    assert (curve.points[:, 0].diff() > 0).all(), "from left to right"
    assert image_of(curve).size[0] > 300  # type: ignore[union-attr]


@pytest.mark.parametrize("tolerance", [0, -0.1, math.nan, math.inf, True, "0.1"])
def test_the_tolerance_has_to_be_a_positive_number(tolerance: Any) -> None:
    with pytest.raises(ValueError, match="Expected `tolerance` to be a positive number, in the unit of the"):
        Compressibility(tolerance)


@pytest.mark.parametrize("methods", [(), ("pruning",), ("quantization", "quantization"), "pruning"])
def test_the_methods_have_to_be_known(methods: Any) -> None:
    with pytest.raises(
        ValueError, match='Expected `methods` to be "quantization", "factorization", or a tuple of both'
    ):
        Compressibility(methods=methods)


def test_the_level_of_a_curve_has_to_be_positive() -> None:
    with pytest.raises(ValueError, match=r"Expected `level` to be positive, but got 0\.0"):
        Curve(torch.zeros(2, 2), "none", ("x", "y"), level=0.0)


class TestRankCorrelation:
    def test_is_that_of_the_ranks(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(30, generator=generator)
        y = x + torch.randn(30, generator=generator)
        ranks = torch.stack([x.argsort().argsort(), y.argsort().argsort()]).double()
        found = rank_agreement(x.tolist(), y.exp().tolist())
        assert found.of_levels == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))
        assert found.count == 30

    def test_two_trends_agree_in_level_and_not_in_their_changes(self) -> None:
        generator = torch.Generator().manual_seed(1)
        trend = torch.arange(400.0)
        x, y = (trend + torch.randn(400, generator=generator) for _ in range(2))
        found = rank_agreement(x.tolist(), y.tolist())
        assert found.of_levels > 0.99
        assert abs(found.of_changes) < 4 / math.sqrt(400)

    def test_is_unknown_of_few_and_of_what_does_not_change(self) -> None:
        assert math.isnan(rank_agreement([1, 2, 3], [1, 2, 3]).of_levels)
        assert math.isnan(rank_agreement([1, 2, 3, 4, 5], [1, 1, 1, 1, 1]).of_levels)
        with pytest.raises(ValueError, match="series of one length, but got 1 and 2 numbers"):
            rank_agreement([1.0], [1.0, 2.0])

    def test_of_a_run_passes_over_what_failed_or_is_missing(self) -> None:
        def one(step: int, llc: float, bits: float | None, error: str | None = None) -> Measurement:
            own = {} if bits is None else {"c": {"critical_bits": bits}}
            return Measurement(step, {"llc": {"mean": llc}, **own}, error)

        history = [one(step, float(step), 2.0 * step) for step in range(6)]
        history += [one(6, 100.0, None), one(7, 100.0, math.nan), one(8, 100.0, 0.0, "diverged")]
        found = rank_correlation(history, "c/critical_bits")
        assert found.of_levels == pytest.approx(1.0)
        assert math.isnan(found.of_changes), "all alike"
        assert found.count == 6
