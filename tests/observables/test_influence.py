import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import poisson
from torch import nn

from slt_callbacks import SGLD, Estimator, Influence, LossKernel, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.observables.labels import pair_names
from slt_callbacks.observables.shifts import Course, cosine, follow
from slt_callbacks.stats.intervals import sign_quantile
from tests.observables.draws import draw_of, feed, point_for

ANY = [torch.zeros(4, 1)]


def traces(seed: int = 0, num_chains: int = 4, num_draws: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of 5 samples and 4 queries that share three directions, chains with means of their own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, 9, generator=generator).double()
    both = torch.randn(num_chains, num_draws, 3, generator=generator).double() @ mixing
    both += 0.5 * torch.randn(both.shape, generator=generator).double()
    both += torch.randn(num_chains, 1, 9, generator=generator).double()
    return both[..., :5], both[..., 5:]


def cross(x: torch.Tensor, y: torch.Tensor, function: Any = np.cov) -> Any:
    both = torch.cat([x, y], dim=-1).flatten(0, -2).numpy()
    return function(both.T)[: x.shape[-1], x.shape[-1] :]


class TestResult:
    def test_the_influence_is_minus_the_covariance_and_the_correlation_is_plain(self) -> None:
        x, y = traces()
        result = feed(Influence(ANY), x, y)
        np.testing.assert_allclose(result["bif"], -cross(x, y), rtol=0, atol=1e-12)
        np.testing.assert_allclose(result["correlation"], cross(x, y, np.corrcoef), rtol=0, atol=1e-12)
        assert result["correlation"].abs().max() > 0.5

    def test_within_chains_every_chain_has_a_mean_of_its_own(self) -> None:
        x, y = traces()
        result = feed(Influence(ANY), x, y)
        centred = [part - part.mean(1, keepdim=True) for part in (x, y)]
        np.testing.assert_allclose(
            result["within_bif"], -np.mean([cross(a, b) for a, b in zip(x, y, strict=True)], axis=0), rtol=0, atol=1e-12
        )
        np.testing.assert_allclose(result["within_correlation"], cross(*centred, np.corrcoef), rtol=0, atol=1e-12)
        assert (result["within_bif"] - result["bif"]).abs().max() > 0.1

    @pytest.mark.parametrize("interleaved", [False, True])
    def test_a_failed_chain_leaves_no_mark(self, interleaved: bool) -> None:
        x, y = traces()
        good = [part[[0, 1, 3]] for part in (x, y)]
        y[2, 5:] = torch.nan
        influence, clean = Influence(ANY, [0, 0, 1, 1, 1]), Influence(ANY, [0, 0, 1, 1, 1])
        result = feed(influence, x, y, failed=[2], interleaved=interleaved)
        wanted = feed(clean, *good)
        for name in ("bif", "correlation", "within_bif", "within_correlation", "group_means"):
            torch.testing.assert_close(result[name], wanted[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(result["bif"], -cross(*good), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("batch_size", [None, 4])
    def test_all_chains_at_once_give_what_one_after_the_other_gives(self, batch_size: int | None) -> None:
        torch.manual_seed(0)
        net, x = nn.Linear(3, 1), torch.randn(12, 3)

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            return module(batch).square().mean(1)

        results = []
        for engine in ("sequential", "vectorized"):
            config = SamplerConfig(SGLD(1e-3), num_draws=10, num_burnin_steps=3, batch_size=batch_size, engine=engine)
            observables = {"influence": Influence([torch.randn(5, 3, generator=torch.Generator().manual_seed(1))])}
            results.append(estimate(net, [x], loss_fn, observables=observables, sampler=config)["influence"])
        for name in ("bif", "within_bif", "correlation", "within_correlation"):
            one, other = (result[name] for result in results)
            assert one.abs().max() > 0
            # Losses are single precision, and draws differ by rounding over 13 steps.
            torch.testing.assert_close(other, one, rtol=0, atol=100 * 2**-24 * float(one.abs().max()))

    def test_a_loss_that_is_not_a_number_does_not_pass_for_no_influence(self) -> None:
        x, y = traces()
        y[0, 3, 1] = torch.nan
        influence = Influence(ANY)
        result = feed(influence, x, y)
        assert result["correlation"][:, 1].isnan().all()
        assert result["correlation"][:, 0].isfinite().all()
        assert influence.images(result) == {}
        assert influence.state_dict()["last"] is None

    def test_a_loss_that_never_varies_has_no_influence(self) -> None:
        x, y = traces()
        x[..., 1], y[..., 2] = 0.1, 0.3
        result = feed(Influence(ANY), x, y)
        assert result["correlation"][1].eq(0).all()
        assert result["correlation"][:, 2].eq(0).all()
        assert result["bif"].isfinite().all()

    def test_the_losses_of_reference_and_queries_are_taken_at_the_same_weights(self) -> None:
        torch.manual_seed(0)
        net, x = nn.Linear(3, 1).double(), torch.randn(12, 3).double()

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            return module(batch).square().mean(1)

        for batch_size in (None, 4):
            observables = {"kernel": LossKernel(), "influence": Influence([x[3:8].clone()])}
            config = SamplerConfig(SGLD(1e-3), num_draws=10, num_burnin_steps=3, batch_size=batch_size, block_size=5)
            measurement = estimate(net, [x], loss_fn, observables=observables, sampler=config)
            kernel = measurement["kernel"]["covariance"]
            torch.testing.assert_close(measurement["influence"]["bif"], -kernel[:, 3:8], rtol=1e-9, atol=1e-12)


class TestShift:
    def test_it_is_one_minus_the_cosine_of_the_correlations(self) -> None:
        influence = Influence(ANY)
        first = feed(influence, *traces(1))
        assert math.isnan(first["shift"])
        second = feed(influence, *traces(2))
        a, b = (r["correlation"].numpy().ravel() for r in (first, second))
        # the last correlation is kept in single precision
        assert second["shift"] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=2**-23)
        assert feed(influence, *traces(2))["shift"] == pytest.approx(0.0, abs=1e-12)

    def test_losses_on_another_scale_are_no_shift(self) -> None:
        influence = Influence(ANY)
        x, y = traces(1)
        feed(influence, x, y)
        assert feed(influence, 100 * x, 0.01 * y)["shift"] == pytest.approx(0.0, abs=1e-12)

    def test_a_failed_measurement_is_nan_and_the_next_compares_with_the_last_good_one(self) -> None:
        influence = Influence(ANY, [0, 0, 1, 1, 1], [0, 1, 0, 1])
        feed(influence, *traces(1))
        nothing = [torch.full_like(part, torch.nan) for part in traces(1)]
        failed = feed(influence, *nothing, failed=range(4))
        assert failed["bif"].shape == (5, 4)
        assert all(failed[name].isnan().all() for name in ("bif", "correlation", "within_bif", "group_means"))
        assert all(math.isnan(failed[name]) for name in ("shift", "sign_flips", "peaks", "group_flips", "group/0_to_1"))
        assert failed["events"] == []
        influence.reset(point_for(*traces(7)))  # one that breaks off in the middle
        for index in range(40):
            influence.update(draw_of(traces(7)[0], 0, index, traces(7)[1]))
        other = Influence(ANY, [0, 0, 1, 1, 1], [0, 1, 0, 1])
        feed(other, *traces(1))
        found, wanted = feed(influence, *traces(2)), feed(other, *traces(2))
        assert found["shift"] == wanted["shift"]
        assert found["sign_flips"] == wanted["sign_flips"]
        assert found["events"] == wanted["events"]

    def test_what_stays_is_shifted_by_nothing_and_not_by_less(self) -> None:
        generator = torch.Generator().manual_seed(0)
        same = [torch.randn(5, 4, generator=generator) for _ in range(200)]
        cosines = [cosine(one, factor * one) for one in same for factor in (1.0, 3.0, -3.0)]
        assert min(cosines) == -1.0
        assert max(cosines) == 1.0

    def test_cosine_of_nothing_is_not_a_number(self) -> None:
        assert math.isnan(cosine(torch.zeros(2), torch.ones(2)))


def signed(correlation: torch.Tensor, seed: int, num_chains: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and queries with given correlations: every sample its own queries, ``correlation`` of shape (N,)."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, num_chains, 50, len(correlation), generator=generator).double()
    return x, correlation * x + (1 - correlation.square()).sqrt() * noise


class TestFlips:
    def test_pairs_that_change_sides_are_counted_and_named(self) -> None:
        influence = Influence(ANY)
        before = torch.tensor([0.8, -0.8, 0.8, 0.0, -0.9, 0.9], dtype=torch.float64)
        after = torch.tensor([-0.8, 0.8, 0.8, 0.0, -0.9, 0.9], dtype=torch.float64)
        assert math.isnan(feed(influence, *signed(before, 1))["sign_flips"])
        result = feed(influence, *signed(after, 2))
        assert result["sign_flips"] == 2
        flipped = [(e["source"], e["target"]) for e in result["events"] if e["flipped"]]
        assert sorted(flipped) == [("0", "0"), ("1", "1")]
        assert all(event["flipped"] for event in result["events"][:2]), "flips come first"
        first = next(event for event in result["events"] if event["source"] == "0" and event["target"] == "0")
        assert first["before"] > 0.7
        assert first["after"] < -0.7
        assert first["change"] == pytest.approx(first["after"] - first["before"])

    def test_a_flip_is_told_in_the_numbers_that_decided_it(self) -> None:
        """Chains far apart correlate every pooled pair positively, whatever happens within them."""
        influence = Influence(ANY, [0, 1, 1], [0, 1, 1])
        offsets = 10 * torch.arange(8.0, dtype=torch.float64)[:, None, None]
        found = []
        for seed, levels in enumerate([(0.8, -0.8, 0.9), (0.02, 0.0, 0.9), (-0.7, 0.7, 0.9)]):
            x, y = signed(torch.tensor(levels, dtype=torch.float64), seed, num_chains=8)
            result = feed(influence, x + offsets, y + offsets)
            assert result["correlation"].min() > 0.9
            found += [event for event in result["events"] if event["flipped"]]
        assert sorted((e["kind"], e["source"], e["target"]) for e in found if e["kind"] == "pair") == [
            ("pair", "0", "0"),
            ("pair", "1", "1"),
        ]
        assert any(event["kind"] == "group" for event in found)
        assert all(event["before"] * event["after"] < 0 for event in found)
        # from the last certain value, not from the one in between, which was none
        assert all(abs(event["before"]) > 0.6 for event in found if event["kind"] == "pair")

    def test_a_flip_comes_before_larger_movements_and_is_not_crowded_out(self) -> None:
        influence = Influence(ANY)
        before, after = torch.zeros(24, dtype=torch.float64), torch.full((24,), 0.97, dtype=torch.float64)
        before[5], after[5] = 0.35, -0.35
        feed(influence, *signed(before, 1, num_chains=8))
        result = feed(influence, *signed(after, 2, num_chains=8))
        assert result["sign_flips"] == 1
        first, *others = result["events"]
        assert (first["source"], first["target"], first["flipped"]) == ("5", "5", True)
        assert len(others) == 19
        assert all(not event["flipped"] and abs(event["change"]) > 0.7 for event in others)

    def test_a_slow_change_through_zero_is_one_flip_however_many_measurements_it_takes(self) -> None:
        influence, flips, peaks = Influence(ANY), 0.0, 0.0
        for step, level in enumerate([0.8, 0.5, 0.2, 0.0, 0.0, -0.2, -0.5, -0.8]):
            result = feed(influence, *signed(torch.tensor([level], dtype=torch.float64), step))
            flips += result["sign_flips"] if step else 0
            peaks += result["peaks"] if step else 0
        assert flips == 1
        assert peaks == 0

    def test_a_rise_and_fall_is_one_peak_and_no_flip(self) -> None:
        influence, flips, peaks = Influence(ANY), 0.0, 0.0
        for step, level in enumerate([0.2, 0.6, 0.9, 0.97, 0.9, 0.5, 0.2]):
            result = feed(influence, *signed(torch.tensor([level] * 2, dtype=torch.float64), step, num_chains=8))
            flips += result["sign_flips"] if step else 0
            peaks += result["peaks"] if step else 0
        assert (flips, peaks) == (0, 2)

    def test_one_chain_has_no_interval_and_counts_nothing(self) -> None:
        influence = Influence(ANY)
        feed(influence, *signed(torch.tensor([0.9], dtype=torch.float64), 1))
        alone = feed(influence, *signed(torch.tensor([-0.9], dtype=torch.float64), 2, num_chains=1))
        assert math.isnan(alone["sign_flips"])
        assert alone["shift"] == pytest.approx(2.0)
        # what was certain before it still is
        assert feed(influence, *signed(torch.tensor([-0.9], dtype=torch.float64), 3))["sign_flips"] == 1

    def test_samples_and_queries_are_named_by_their_rows_in_the_data(self) -> None:
        influence = Influence(ANY)
        for seed, level in ((1, 0.9), (2, -0.9)):
            x, y = signed(torch.tensor([level], dtype=torch.float64), seed)
            influence.reset(point_for(x, y, indices=torch.tensor([17]), query_indices=torch.tensor([4])))
            for chain in range(4):
                for index in range(50):
                    influence.update(draw_of(x, chain, index, y))
            result = influence.compute()
        assert [(event["source"], event["target"]) for event in result["events"]] == [("17", "4")]

    def test_there_are_at_most_twenty_events_and_they_are_builtins(self) -> None:
        influence = Influence(ANY, list(range(10)))
        levels = torch.full((10,), 0.9, dtype=torch.float64)
        feed(influence, *signed(levels, 1))
        events = feed(influence, *signed(-levels, 2))["events"]
        assert len(events) == 20
        assert {type(value) for event in events for value in event.values()} == {str, float, bool}


def independent(shape: tuple[int, int, int], memory: Any, squared: bool, generator: torch.Generator) -> torch.Tensor:
    """Autocorrelated losses that have nothing to do with each other."""
    chains, draws, size = shape
    state = torch.randn(chains, size, generator=generator).double()
    rows = []
    for _ in range(draws):
        rows.append(state.square() if squared else state)
        state = memory * state + (1 - memory**2) ** 0.5 * torch.randn(chains, size, generator=generator).double()
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("num_chains", "num_draws", "memory", "squared", "rate"),
    [
        (4, 50, 0.0, False, 0.1),
        (4, 50, 0.9, True, 0.1),
        (2, 50, 0.9, True, 0.4),  # two chains of skewed losses have no common variance: more false signs than aimed at
        (3, 20, 0.98, False, 0.1),
        (4, 50, "mixed", True, 0.1),
    ],
)
def test_noise_alone_flips_nothing_and_gives_no_more_false_signs_than_stated(
    num_chains: int, num_draws: int, memory: Any, squared: bool, rate: float
) -> None:
    """A flip takes two false signs of one pair: (rate x measurements)^2 / 4 of 4096 pairs, under 3e-3 here."""
    size, measurements = 64, 16
    generator = torch.Generator().manual_seed(0)
    memory = torch.linspace(0, 0.98, size).double() if memory == "mixed" else torch.tensor(memory)
    influence = Influence(ANY, [i % 4 for i in range(size)], [i % 3 for i in range(size)])
    counted = dict.fromkeys(("sign_flips", "peaks", "group_flips", "group_peaks"), 0.0)
    for number in range(measurements):
        x, y = (independent((num_chains, num_draws, size), memory, squared, generator) for _ in range(2))
        result = feed(influence, x, y)
        for name in counted if number else ():
            counted[name] += result[name]
    assert counted["sign_flips"] == 0, "of 61440 pairs"
    assert counted["peaks"] == 0
    assert counted["group_flips"] == counted["group_peaks"] == 0
    certain = influence.state_dict()["last"]["certain"] != 0
    assert certain.sum() <= poisson.ppf(0.999, rate * measurements)


def test_true_influence_is_certain_among_65536_pairs_of_four_chains() -> None:
    """The level is Bonferroni's, but the error is that of all draws together: z of a pair has 1 / sqrt(C (T - 3))."""
    size, chains, draws, true = 256, 4, 50, 16
    error = 1 / math.sqrt(chains * (draws - 3))
    level = torch.zeros(size, dtype=torch.float64)
    level[:true] = math.tanh((sign_quantile(size**2, math.inf) + 3) * error)  # each is missed once in 740 times
    assert level[0] < 0.6
    influence = Influence(ANY)
    feed(influence, *signed(level, 0, chains))
    certain = influence.state_dict()["last"]["certain"].view(size, size)
    assert (certain.diagonal()[:true] > 0).sum() >= true - 1
    assert (certain != 0).sum() <= true + poisson.ppf(0.999, 0.1)


class TestFollow:
    def run(self, values: list[float], errors: list[float] | None = None) -> Iterator[tuple[bool, bool] | None]:
        course: Course | None = None
        for value, error in zip(values, errors or [0.1] * len(values), strict=True):
            course, turns = follow(course, torch.tensor([value]), torch.tensor([error]), 2.0, 3.0)
            yield turns and (bool(turns.flipped), bool(turns.peaked))

    def test_an_interval_that_holds_zero_has_no_sign(self) -> None:
        flipped = [t[0] for t in self.run([0.5, -0.1, 0.5, -0.19, -0.21, -0.5, 0.5]) if t]
        assert flipped == [False, False, False, True, False, True]

    def test_valleys_are_turns_too_and_each_is_counted_once(self) -> None:
        turned = [t[1] for t in self.run([1.0, 2.0, 3.0, 2.0, 1.0, 1.5, 2.5, 3.5]) if t]
        assert turned == [False, False, True, False, True, False, False]

    def test_a_movement_within_the_errors_is_no_turn(self) -> None:
        assert not any(t[1] for t in self.run([1.0, 1.3, 1.0, 1.3, 1.0, 0.9, 1.3]) if t)

    def test_a_measurement_without_an_error_is_passed_over(self) -> None:
        turned = list(self.run([1.0, -5.0, -1.0], [0.1, math.nan, 0.1]))
        assert turned == [None, (False, False), (True, False)]


class TestGroups:
    labels, query_labels = ("cat", "dog", "cat", "dog", "dog"), (1, 0, 1, 1)

    def test_means_are_over_the_pairs_of_each_two_classes(self) -> None:
        result = feed(Influence(ANY, self.labels, self.query_labels), *traces())
        correlation = result["correlation"].numpy()
        for a, name in enumerate(["cat", "dog"]):
            for b in (0, 1):
                rows, columns = np.array(self.labels) == name, np.array(self.query_labels) == b
                mean = correlation[rows][:, columns].mean()
                assert result[f"group/{name}_to_{b}"] == pytest.approx(mean, abs=1e-12)
                assert float(result["group_means"][a, b]) == pytest.approx(mean, abs=1e-12)

    def test_a_side_without_labels_is_one_class(self) -> None:
        result = feed(Influence(ANY, query_labels=self.query_labels), *traces())
        assert {name for name in result if name.startswith("group/")} == {"group/all_to_0", "group/all_to_1"}
        assert "group_means" not in feed(Influence(ANY), *traces())

    def test_a_group_that_turns_from_helping_to_harming_is_an_event(self) -> None:
        influence = Influence(ANY, ["a", "a", "b"], ["a", "a", "b"])
        levels = torch.tensor([0.9, 0.9, 0.9], dtype=torch.float64)
        feed(influence, *signed(levels, 1))
        result = feed(influence, *signed(levels * torch.tensor([1.0, 1.0, -1.0]), 2))
        assert result["group_flips"] == 1
        (event,) = [e for e in result["events"] if e["kind"] == "group" and e["flipped"]]
        assert (event["source"], event["target"]) == ("b", "b")

    def test_a_class_that_was_not_drawn_is_nan_and_breaks_nothing(self) -> None:
        influence = Influence(ANY, [0, 0, 1, 1, 1, 2], self.query_labels)
        for seed in (1, 2):
            result = feed(influence, *traces(seed))
        assert math.isnan(result["group/2_to_0"])
        assert math.isfinite(result["group/1_to_0"])
        assert all(math.isfinite(event["change"]) for event in result["events"])

    def test_too_many_classes_are_not_logged_one_by_one(self) -> None:
        x, y = signed(torch.zeros(11, dtype=torch.float64), 0)
        result = feed(Influence(ANY, list(range(11)), list(range(11))), x, y)
        assert not any(name.startswith("group/") for name in result)
        assert result["group_means"].shape == (11, 11)


class TestStateAndOrder:
    def test_everything_goes_on_after_a_resume(self) -> None:
        labels = ([0, 0, 1, 1, 1], [0, 1, 0, 1])
        straight, stopped, resumed = (Influence(ANY, *labels) for _ in range(3))
        for influence in (straight, stopped):
            for seed in (1, 2):
                influence.images(feed(influence, *traces(seed)))
        resumed.load_state_dict(stopped.state_dict())
        wanted, found = (feed(influence, *traces(3)) for influence in (straight, resumed))
        assert {k: v for k, v in found.items() if isinstance(v, (float, int, list))} == {
            k: v for k, v in wanted.items() if isinstance(v, (float, int, list))
        }
        assert straight.images(wanted)["map"].matrix.equal(resumed.images(found)["map"].matrix)

    def test_the_names_in_the_state_are_those_of_every_checkpoint_so_far(self) -> None:
        influence = Influence(ANY, [0, 0, 1, 1, 1])
        feed(influence, *traces())
        pairs = {"certain", "direction", "low", "low_error", "high", "high_error", "level"}
        assert set(influence.state_dict()["last"]) == {"correlation"} | pairs | {f"group_{name}" for name in pairs}

    def test_a_state_saved_again_before_the_next_measurement_is_the_same(self) -> None:
        first, second = Influence(ANY), Influence(ANY)
        for seed in (1, 2):
            feed(first, *traces(seed))
        state = first.state_dict()
        second.load_state_dict(state)
        again = second.state_dict()
        assert again.keys() == state.keys()
        assert again["order"].equal(state["order"])
        assert again["query_order"].equal(state["query_order"])
        assert again["last"].keys() == state["last"].keys()
        assert all(again["last"][name].equal(value) for name, value in state["last"].items())

    def test_the_state_survives_a_weights_only_load(self, tmp_path: Any) -> None:
        influence = Influence(ANY, [0, 0, 1, 1, 1])
        feed(influence, *traces(1))
        torch.save(influence.state_dict(), tmp_path / "state.pt")
        other = Influence(ANY, [0, 0, 1, 1, 1])
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert feed(other, *traces(1))["shift"] == pytest.approx(0.0, abs=1e-12)

    def test_rows_and_columns_keep_their_order_labels_first(self) -> None:
        influence = Influence(ANY, [1, 0, 1, 0, 0], [1, 0, 0, 1])
        orders = []
        for seed in (1, 2):
            result = feed(influence, *traces(seed))
            picture = influence.images(result)["map"]
            rows, columns = influence.order, influence.query_order
            assert rows is not None
            assert columns is not None
            assert picture.matrix.equal(result["correlation"][rows][:, columns])
            orders.append((rows.tolist(), columns.tolist()))
        assert orders[0] == orders[1]
        assert [[1, 0, 1, 0, 0][row] for row in orders[0][0]] == [0, 0, 0, 1, 1]
        assert [[1, 0, 0, 1][column] for column in orders[0][1]] == [0, 0, 1, 1]

    def test_the_users_own_order_is_used_and_wins_over_that_of_a_checkpoint(self) -> None:
        before, after = Influence(ANY), Influence(ANY, order=[4, 3, 2, 1, 0], query_order=[3, 2, 1, 0])
        result = feed(before, *traces(1))
        before.images(result)
        after.load_state_dict(before.state_dict())
        result = feed(after, *traces(2))
        assert after.images(result)["map"].matrix.equal(result["correlation"].flip(0).flip(1))
        assert after.matrices(result)["query_order"].tolist() == [3, 2, 1, 0]
        mixed = Influence(ANY, order=[4, 3, 2, 1, 0])
        mixed.load_state_dict(before.state_dict())
        assert mixed.query_order is not None
        assert mixed.query_order.equal(before.matrices(result)["query_order"])

    def test_a_checkpoint_holds_29_bytes_a_pair(self) -> None:
        influence = Influence(ANY)
        for seed in range(3):
            feed(influence, *signed(torch.zeros(64, dtype=torch.float64), seed))
        assert sum(tensor.nbytes for tensor in influence.state_dict()["last"].values()) == 29 * 64**2

    def test_a_result_without_matrices_is_said_to_be_one(self) -> None:
        influence = Influence(ANY)
        result = feed(influence, *traces(1))
        del result["correlation"]
        for method in (influence.images, influence.matrices):
            with pytest.raises(ValueError, match=r"the matrix 'correlation', .* give a MemorySink in `sinks`"):
                method(result)

    def test_a_failed_measurement_has_no_picture(self) -> None:
        nothing = [torch.full_like(part, torch.nan) for part in traces(1)]
        influence = Influence(ANY)
        assert influence.images(feed(influence, *nothing, failed=range(4))) == {}


class TestRefusals:
    def make(self, influence: Influence, **settings: Any) -> Estimator:
        reference = draw_reference([(torch.ones(6, 3), torch.ones(6))])
        return Estimator(reference, lambda m, b: m(b[0]).flatten() - b[1], {"influence": influence}, **settings)

    queries = ((torch.ones(4, 3), torch.ones(4)),)

    def test_fitting_queries_and_labels_are_taken(self) -> None:
        self.make(Influence(list(self.queries), [0] * 6, [1] * 4)).check(nn.Linear(3, 1))

    def test_labels_of_the_wrong_length(self) -> None:
        with pytest.raises(ValueError, match="`labels` to hold one label for each of the 6 samples"):
            self.make(Influence(list(self.queries), [0] * 4))
        with pytest.raises(ValueError, match="`query_labels` to hold one label for each of the 4 samples"):
            self.make(Influence(list(self.queries), query_labels=[0] * 6))

    def test_labels_whose_pairs_would_be_logged_under_one_name(self) -> None:
        labels, others = ["a", "a", "a", "a", "a_to_b", "a_to_b"], ["c", "c", "b_to_c", "c"]
        told = r"'a' with 'b_to_c' and 'a_to_b' with 'c' are both 'a_to_b_to_c' there: rename one of the four"
        with pytest.raises(ValueError, match=told):
            self.make(Influence(list(self.queries), labels, others))
        self.make(Influence(list(self.queries), labels, ["c_to_b", "c", "d", "c"]))

    def test_one_query_is_enough_and_none_is_not(self) -> None:
        Influence([(torch.ones(1, 3), torch.ones(1))])
        with pytest.raises(ValueError, match="Expected `queries` to hold samples, but it is empty: give at least 1"):
            self.make(Influence([]))

    def test_no_queries(self) -> None:
        with pytest.raises(TypeError, match=r"samples to ask about, .* but got None"):
            Influence(None)  # type: ignore[arg-type]

    def test_an_order_that_is_no_permutation(self) -> None:
        with pytest.raises(ValueError, match="`order` to name each of the 6 rows once"):
            self.make(Influence(list(self.queries), order=[0, 1, 2]))
        with pytest.raises(ValueError, match="`query_order` to name each of the 4 columns once"):
            self.make(Influence(list(self.queries), query_order=[0, 1, 2, 2]))

    def test_queries_of_another_precision_are_taken_and_give_the_same(self) -> None:
        results = []
        for dtype in (torch.float32, torch.float64):
            torch.manual_seed(0)
            estimator = self.make(
                Influence([(torch.rand(4, 3).to(dtype), torch.ones(4).to(dtype))]),
                config=SamplerConfig(SGLD(1e-3), num_draws=4, num_burnin_steps=0),
            )
            results.append(estimator.measure(nn.Linear(3, 1))["influence"]["bif"])
        assert results[0].abs().max() > 0
        assert results[0].equal(results[1])

    def test_the_message_names_types_where_the_shapes_are_the_same(self) -> None:
        with pytest.raises(ValueError, match=r"Tensor\[1\] of float32.*, but got .*Tensor\[1\] of int64"):
            self.make(Influence([(torch.ones(4, 3), torch.ones(4).long())]))

    @pytest.mark.parametrize(
        "queries",
        [[torch.ones(4, 3)], [(torch.ones(4, 3), torch.ones(4).long())], [{"x": torch.ones(4, 3)}]],
        ids=["no target", "another dtype", "another container"],
    )
    def test_queries_of_another_structure(self, queries: Any) -> None:
        with pytest.raises(ValueError, match=r"to have the structure of the reference samples, .*Tensor\[1, 3\]"):
            self.make(Influence(queries))

    def test_queries_of_a_shape_that_the_model_does_not_take(self) -> None:
        estimator = self.make(Influence([(torch.ones(4, 5), torch.ones(4))]))
        with pytest.raises(ValueError, match="Give queries of the same structure and shape"):
            estimator.check(nn.Linear(3, 1))

    def test_queries_that_are_no_data_or_not_finite_are_called_queries(self) -> None:
        with pytest.raises(TypeError, match=r"observables\['influence'\]: Expected `queries` to be a Dataset"):
            self.make(Influence(torch.ones(4, 3)))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="samples of `queries` to be finite"):
            self.make(Influence([(torch.full((2, 3), torch.nan), torch.ones(2))]))

    def test_more_pairs_than_memory_has_room_for(self) -> None:
        reference = draw_reference([torch.ones(4200, 1)])
        with pytest.raises(ValueError, match=r"but got 4200 x 4200: lower `num_samples`, or give fewer `queries`"):
            Estimator(reference, None, {"influence": Influence([torch.ones(4200, 1)])})

    def test_a_scalar_loss(self) -> None:
        reference = draw_reference([torch.ones(4, 1)])
        estimator = Estimator(reference, lambda m, b: m(b).mean(), {"influence": Influence([torch.ones(2, 1)])})
        with pytest.raises(ValueError, match="one loss a sample"):
            estimator.check(nn.Linear(1, 1))


def test_of_ten_classes_on_ten_every_mean_has_a_name_and_of_more_none() -> None:
    classes = [f"class {number}" for number in range(11)]
    assert len(pair_names(classes[:10], classes[:10])) == 100
    assert pair_names(classes, classes[:10]) == []
