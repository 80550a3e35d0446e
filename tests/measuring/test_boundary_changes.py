"""Which refinements changed most at a boundary: the arithmetic, by hand."""

import math
from typing import Any

import pytest

from slt_callbacks import Measurement, Stage
from slt_callbacks.figures.report import Report
from slt_callbacks.measuring.boundary_changes import Change, changed_most, changes_between


def stage(number: int, start: int, end: int) -> Stage:
    numbers = dict.fromkeys(("llc_start", "llc_end", "delta_llc", "delta_llc_se", "loss_start", "loss_end"), 0.0)
    numbers |= {"delta_loss": 0.0, "slope_per_log_step": 0.0, "evidence": 40.0}
    record: dict[str, Any] = {"stage": number, "type": "A", "status": "final", "start_step": start, "end_step": end}
    return Stage(**record, **numbers, n_points=2, announced_at_step=None, revised=False, open=False)


def history(**curves: Any) -> list[Measurement]:
    """Steps 0, 10, 20, ...; an entry is a mean, a pair of mean and stderr, or None where it was not taken."""
    found = []
    for place, entries in enumerate(zip(*curves.values(), strict=True)):
        records: dict[str, Any] = {}
        for name, entry in zip(curves, entries, strict=True):
            if entry is not None:
                mean, stderr = entry if isinstance(entry, tuple) else (entry, 0.5)
                records[name] = {"llc": {"mean": mean, "stderr": stderr}}
        found.append(Measurement(10 * place, {"llc": {"mean": 9.0}}, refinements=records))
    return found


def test_five_before_are_compared_with_five_after_and_z_is_by_their_errors() -> None:
    # The first and the last value lie outside the windows.
    told = history(head=[99.0, 1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 8.0, 8.0, 8.0, 13.0, 99.0])
    (change,) = changes_between(told, stage(0, 0, 50), stage(1, 60, 110))
    assert change.name == "head"
    assert change.delta == 9.0 - 3.0
    assert change.z == pytest.approx(6.0 / math.sqrt(0.25 / 5 + 0.25 / 5), rel=1e-15)
    assert str(change) == "head +6 (z 19.0)"


def test_a_stage_shorter_than_the_window_is_not_left() -> None:
    told = history(head=[99.0, 99.0, 1.0, 3.0, 7.0, 99.0, 99.0])
    (change,) = changes_between(told, stage(1, 20, 30), stage(2, 40, 40))
    assert change.delta == 7.0 - 2.0
    assert change.z == pytest.approx(5.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)


def test_taken_in_turn_each_has_its_own_nearest_measurements() -> None:
    first = [1.0, None] * 6 + [None, 5.0] * 6
    other = [None, 2.0] * 6 + [2.5, None] * 6
    found = changes_between(history(first=first, other=other), stage(0, 0, 110), stage(1, 120, 230))
    assert [(change.name, change.delta) for change in found] == [("first", 4.0), ("other", 0.5)]
    assert found[0].z == pytest.approx(4.0 / math.sqrt(2 * 0.25 / 5), rel=1e-15)


def test_failed_measurements_count_for_nothing() -> None:
    told = history(head=[1.0, math.nan, 3.0, math.nan, 6.0])
    (change,) = changes_between(told, stage(0, 0, 20), stage(1, 30, 40))
    assert change.delta == 6.0 - 2.0
    assert change.z == pytest.approx(4.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)
    gone = history(head=[1.0, 1.0, math.nan, math.nan], other=[1.0, 1.0, None, None])
    assert changes_between(gone, stage(0, 0, 10), stage(1, 20, 30)) == []


def test_the_largest_z_comes_first_and_an_unknown_one_last() -> None:
    told = history(
        small=[(0.0, 0.1), (1.0, 0.1)],
        large=[(0.0, 9.0), (-4.0, 9.0)],
        one_chain=[(0.0, math.nan), (7.0, math.nan)],
        still=[(0.0, 0.0), (50.0, 0.0)],
    )
    found = changes_between(told, stage(0, 0, 0), stage(1, 10, 10))
    assert [change.name for change in found] == ["small", "large", "still", "one_chain"]
    assert [math.isnan(change.z) for change in found] == [False, False, True, True]
    assert found[1].z == pytest.approx(-4.0 / math.sqrt(162), rel=1e-15)


def test_an_error_that_is_unknown_once_is_taken_from_the_others() -> None:
    told = history(head=[(1.0, 0.5), (1.0, math.nan), (3.0, 0.5)])
    (change,) = changes_between(told, stage(0, 0, 10), stage(1, 20, 20))
    assert change.z == pytest.approx(2.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)


def test_three_are_told_of_each_boundary_and_none_of_the_first_stage() -> None:
    jumps = {f"h{number}": [0.0, 0.0, float(number), float(number), 0.0, 0.0] for number in range(5)}
    told = changed_most(history(**jumps), [stage(0, 0, 10), stage(1, 20, 30), stage(2, 40, 50)])
    assert told == [
        "",
        "h4 +4 (z 8.0), h3 +3 (z 6.0), h2 +2 (z 4.0)",
        "h4 -4 (z 8.0), h3 -3 (z 6.0), h2 -2 (z 4.0)",
    ]


def test_of_long_stages_only_what_is_near_the_boundary_is_read() -> None:
    read: list[int] = []

    class Counted(dict[str, Any]):
        def items(self) -> Any:
            read.append(1)
            return super().items()

    told = [Measurement(step, {}, refinements=Counted(one={"llc": {"mean": 1.0}})) for step in range(2000)]
    (change,) = changes_between(told, stage(0, 0, 999), stage(1, 1000, 1999))
    assert change.delta == 0.0
    assert len(read) == 10


@pytest.mark.parametrize(
    ("delta", "z", "text"),
    [
        (2.24, 5.06, "h +2.2 (z 5.1)"),
        (-0.8, -2.0, "h -0.8 (z 2.0)"),
        (123.4, 1.0, "h +123 (z 1.0)"),
        (-9.96, 1.0, "h -10 (z 1.0)"),
        (0.05, math.nan, "h +0.05"),
    ],
)
def test_a_change_is_told_with_two_figures(delta: float, z: float, text: str) -> None:
    assert str(Change("h", delta, z)) == text


class TestRows:
    STAGES = (stage(0, 0, 10), stage(1, 20, 30))

    def test_with_refinements_a_stage_says_what_changed_most(self) -> None:
        report = Report(history(head=[0.0, 0.0, 2.0, 2.0]), self.STAGES, observable="llc")
        assert [row["changed_most"] for row in report.stage_rows] == ["", "head +2 (z 4.0)"]
        assert [row["start_step"] for row in report.stage_rows] == [0, 20]

    def test_without_them_the_rows_are_as_before(self) -> None:
        report = Report([Measurement(0, {"llc": {"mean": 1.0}})], self.STAGES, observable="llc")
        assert all("changed_most" not in row for row in report.stage_rows)
        assert [list(row)[:3] for row in report.stage_rows] == [["stage", "type", "status"]] * 2

    def test_the_llc_that_is_watched_is_compared_and_else_the_first(self) -> None:
        record = {name: {"mean": 0.0, "stderr": 0.5} for name in ("llc", "finer")}
        told = [Measurement(step, {}, refinements={"head": record}) for step in (0, 20)]
        for observable, wanted in (("finer", "finer"), (None, "llc"), ("gone", "llc")):
            assert Report(told, observable=observable).refined == wanted
