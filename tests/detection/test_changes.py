"""What changed at a boundary: the arithmetic by hand, and how often noise alone looks like a change."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from slt_callbacks.detection.changes import BoundaryChanges, Change, change_of, ranked, told

KEY = "slt/own/number"


def compared(before: Sequence[float], after: Sequence[float], error: float = math.nan) -> Change | None:
    """Both in the order of training."""
    left, right = ([(value, error) for value in side] for side in (before, after))
    return change_of("number", KEY, left[::-1], right, right[::-1])


def change(before: Sequence[float], after: Sequence[float], error: float = math.nan) -> Change:
    found = compared(before, after, error)
    assert found is not None
    return found


class TestOneNumber:
    def test_five_before_are_compared_with_five_after(self) -> None:
        found = change([99.0, 1, 2, 3, 4, 5], [8.0, 8, 8, 8, 13, 99])
        assert (found.before, found.after, found.delta) == (3.0, 9.0, 6.0)
        assert (found.n_before, found.n_after) == (5, 5)
        assert found.end == pytest.approx((8 + 8 + 8 + 13 + 99) / 5)

    def test_the_noise_is_that_of_differences_within_each_side(self) -> None:
        # Sides of 3: differences 1 apart, of which -1 and 1 are left less their mean: 2 squares with 1 degree a side.
        found = change([0.0, 1.0, 1.0], [7.0, 8.0, 8.0])
        squares = 4 * 0.5**2
        sigma = math.sqrt(squares / 2) / math.sqrt(2) * (1 + 3 / 2)
        assert found.z == pytest.approx(7.0 / (sigma * math.sqrt(2 / 3)), rel=1e-12)

    def test_of_long_sides_it_is_the_median_over_differences_five_apart(self) -> None:
        draws = np.random.default_rng(0).normal(size=50)
        before, after = draws[:25], draws[25:] + 3.0
        found = change(before, after)
        left = [side[5:] - side[:-5] for side in (before, after)]
        sizes = np.abs(np.concatenate([side - np.median(side) for side in left]))
        sigma = 1.4826 * np.median(sizes) / math.sqrt(2) * (1 + 3 / 38)
        assert found.z == pytest.approx((after[:5].mean() - before[-5:].mean()) / (sigma * math.sqrt(2 / 5)), rel=1e-12)

    def test_nothing_beyond_twenty_five_counts(self) -> None:
        draws = np.random.default_rng(0).normal(size=60)
        wild = np.concatenate([1e3 * draws[:5], draws[5:55], 1e3 * draws[55:]])
        assert change(wild[:30], wild[30:]).z == change(draws[5:30], draws[30:55]).z

    @pytest.mark.parametrize("noise", [0.0, 1.0])
    @pytest.mark.parametrize("left", [3, 5, 10, 25])
    def test_what_goes_on_as_it_did_has_a_z_of_one(self, left: int, noise: float) -> None:
        draws = noise * np.random.default_rng(left).normal(size=50) - 20.0 * np.arange(50)
        found = change(draws[:left], draws[left:])
        assert found.z == pytest.approx(-(left + 1.0) / 8 - 0.25 if left == 3 else -1.0, abs=0.25)
        assert told([found]) == ""

    def test_a_trend_that_begins_is_no_noise(self) -> None:
        draws = np.random.default_rng(1).normal(size=50)
        ramp = 2.0 * np.maximum(np.arange(50) - 24, 0)
        flat, rising = (change(one[:25], one[25:]) for one in (draws, draws + ramp))
        assert rising.delta - flat.delta == pytest.approx(6.0)
        assert rising.z / rising.delta == pytest.approx(flat.z / flat.delta, rel=1e-9)

    def test_one_spike_hardly_counts_as_noise(self) -> None:
        draws = np.random.default_rng(2).normal(size=50)
        spiked = draws.copy()
        spiked[10] = 1e4
        shift = 9.0 * (np.arange(50) >= 25)
        clean, hit = (change((one + shift)[:25], (one + shift)[25:]).z for one in (draws, spiked))
        assert clean > 6
        assert abs(hit - clean) < 0.25 * clean

    def test_with_too_few_points_the_standard_errors_stand_in(self) -> None:
        found = change([1.0, 3.0], [7.0], error=0.5)
        assert found.z == pytest.approx(5.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)
        assert math.isnan(change([1.0, 3.0], [7.0]).z)
        assert math.isnan(change([1.0, 3.0], [7.0], error=0.0).z)

    def test_and_count_for_nothing_where_the_series_says_it(self) -> None:
        before, after = [0.0, 0.1, 0.0, 0.2, 0.1], [3.0, 3.1, 3.0, 3.2, 3.1]
        assert change(before, after, error=50.0) == change(before, after, error=1e-9) == change(before, after)

    def test_an_error_that_is_unknown_once_is_taken_from_the_others(self) -> None:
        points = [(1.0, 0.5), (1.0, math.nan)]
        found = change_of("number", KEY, points, [(3.0, 0.5)], [])
        assert found is not None
        assert found.z == pytest.approx(2.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)
        assert found.end == 3.0

    def test_missing_points_are_passed_over(self) -> None:
        nan, inf = math.nan, math.inf
        assert change([1.0, nan, 3.0], [7.0, inf, 9.0]) == change([1.0, 3.0], [7.0, 9.0])
        assert compared([nan, nan], [1.0]) is None
        assert compared([1.0], []) is None

    @pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, 0.97, -4e20])
    def test_what_does_not_change_is_left_out(self, value: float) -> None:
        assert compared([value] * 7, [value] * 3) is None
        assert compared([value] * 7, [value * (1 + 1e-8)] * 3) is None, "rounding of single precision"

    def test_values_that_repeat_have_the_noise_of_rounding_and_no_infinite_z(self) -> None:
        one_step = change([0.5] * 9, [0.75] * 9)
        assert one_step.z == pytest.approx(math.sqrt(12) / math.sqrt(2 / 5))  # the only step is the change itself
        assert change([0.0] * 9, [1e9] * 9).z == pytest.approx(one_step.z)
        jittered = change([0.5, 0.5 + 1e-9] * 5, [0.75, 0.75 - 1e-9] * 5)
        assert jittered.z == pytest.approx(one_step.z, rel=1e-6)

    def test_where_most_differences_are_zero_the_others_are_the_noise(self) -> None:
        counts = [0.0] * 10 + [4.0] + [0.0] * 14
        found = change(counts, [2.0] * 25)
        sizes = np.array([4.0, -4.0])
        sigma = math.sqrt((sizes**2).sum() / 38) / math.sqrt(2) * (1 + 3 / 38)
        assert found.z == pytest.approx(2.0 / (sigma * math.sqrt(2 / 5)))


def correlated(rng: np.random.Generator, size: int, rho: float) -> Any:
    draws = rng.normal(size=(size, 70))
    for place in range(1, 70):
        draws[:, place] = rho * draws[:, place - 1] + math.sqrt(1 - rho**2) * draws[:, place]
    return draws[:, 20:]


@pytest.mark.parametrize(("rho", "most"), [(0.0, 0.01), (0.6, 0.04)])
@pytest.mark.parametrize("sides", [(25, 1), (3, 3), (4, 4), (5, 3), (5, 5), (10, 4), (25, 3), (25, 5), (25, 25)])
def test_where_nothing_changes_a_z_above_three_is_rare(rho: float, most: float, sides: tuple[int, int]) -> None:
    series = correlated(np.random.default_rng(sides), 1000, rho)
    left, right = sides
    found = [abs(change(row[:left], row[left : left + right]).z) for row in series]
    share = np.mean(np.array(found) > 3)
    assert share <= most + 3 * math.sqrt(most / 1000)
    assert np.median(found) > 0.2, "and it is no wider than it must be"


def test_a_shift_is_found_at_the_size_it_has() -> None:
    series = correlated(np.random.default_rng(0), 500, 0.0)
    found = [change(row[:25], row[25:] + 5.0).z for row in series]
    assert np.median(found) == pytest.approx(5.0 / math.sqrt(2 / 5) / (1 + 3 / 38), rel=0.05)
    assert np.mean(np.array(found) > 3) > 0.99


class TestRank:
    def test_the_largest_z_comes_first_and_an_unknown_one_last(self) -> None:
        sizes = {"a": (1.0, -2.0), "b": (0.1, 9.0), "c": (50.0, math.nan), "d": (7.0, math.nan), "e": (1.0, 2.5)}
        found = ranked(Change(name, name, 1.0, 1.0 + delta, 0.0, z) for name, (delta, z) in sizes.items())
        assert [one.name for one in found] == ["b", "e", "a", "c", "d"]

    def test_three_are_told_and_none_within_its_noise_or_twice(self) -> None:
        names = ("llc/mean", "llc/free_energy", "llc/variance_llc", "path/explained_3", "llc/h/mean", "own/x", "own/y")
        found = [Change(name, f"slt/{name}", 0.0, 1.0, 1.0, z) for name, z in zip(names, range(10, 3, -1), strict=True)]
        assert told(found) == "llc/mean up 1.0 (z 10); llc/h/mean up 1.0 (z 6.0); own/x 0.0 -> 1.0 (z 5.0)"
        assert told([Change("x", "x", 0.0, 1.0, 1.0, 1.9)]) == told([]) == ""
        assert told([Change("x", "x", 0.0, 1.0, 1.0)]) == "x 0.0 -> 1.0", "of an unknown noise nothing is said"

    def test_rows_are_builtins_with_their_boundary(self) -> None:
        found = BoundaryChanges(2, 30, 20, (change([0.0], [1.0]), change([0.0], [2.0])))
        assert found.rows(1) == [{"stage": 2, "step": 30, **found.changes[0].row()}]
        assert len(found.rows()) == 2
        row = found.rows()[1]
        assert (row["name"], row["key"], row["before"], row["after"], row["delta"]) == ("number", KEY, 0.0, 2.0, 2.0)
        assert {type(value) for value in row.values()} <= {str, int, float}


@pytest.mark.parametrize(
    ("key", "before", "after", "z", "text"),
    [
        ("slt/llc/mean", 3.0, 12.1, 14.2, "x up 9.1 (z 14)"),
        ("slt/llc/h/mean", 3.0, 0.78, -5.06, "x down 2.2 (z 5.1)"),
        ("slt/llc/mean", 0.0, 123.4, 1.0, "x up 123 (z 1.0)"),
        ("slt/llc/mean", 0.0, -9.96, 9.96, "x down 10 (z 10)"),
        ("slt/llc/mean", 0.0, 0.05, math.nan, "x up 0.050"),
        ("slt/behavior/accuracy", 0.52, 0.93, 8.0, "x 0.52 -> 0.93 (z 8.0)"),
        ("slt/own/count", 3.0, 4.0, 5.5, "x 3.0 -> 4.0 (z 5.5)"),
        ("slt/own/large", 1234.0, 98765.0, 5.5, "x 1234 -> 98765 (z 5.5)"),
        ("slt/own/small", 1e-9, 3e-9, 5.5, "x 1.00e-09 -> 3.00e-09 (z 5.5)"),
    ],
)
def test_a_change_is_told_with_two_figures(key: str, before: float, after: float, z: float, text: str) -> None:
    assert str(Change("x", key, before, after, after, z)) == text
