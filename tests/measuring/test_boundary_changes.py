"""Which numbers are compared where a stage begins, and what becomes of it."""

import math
from dataclasses import replace
from typing import Any

import pytest

from slt_callbacks import Measurement, Stage, StageEvent
from slt_callbacks.figures.report import Report
from slt_callbacks.measuring.boundary_changes import changed_most, changes_between, changes_of
from slt_callbacks.measuring.naming import in_words


def stage(number: int, start: int, end: int, **told: Any) -> Stage:
    numbers = dict.fromkeys(("llc_start", "llc_end", "delta_llc", "delta_llc_se", "loss_start", "loss_end"), 0.0)
    numbers |= {"delta_loss": 0.0, "slope_per_log_step": 0.0, "evidence": 40.0}
    record: dict[str, Any] = {"stage": number, "type": "A", "status": "final", "start_step": start, "end_step": end}
    record |= {"n_points": 2, "announced_at_step": None, "revised": False, "open": False}
    return Stage(**(record | numbers | told))


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


def told(**curves: Any) -> list[Measurement]:
    """Steps 0, 10, 20, ... of numbers by ``observable__name``."""
    found: list[dict[str, Any]] = [{} for _ in next(iter(curves.values()))]
    for key, values in curves.items():
        observable, _, name = key.partition("__")
        for place, value in enumerate(values):
            found[place].setdefault(observable, {})[name] = value
    return [Measurement(10 * place, results) for place, results in enumerate(found)]


STEP = [0.0, 0.0, 5.0, 5.0]


class TestWhatCounts:
    def test_every_number_of_observables_and_refinements(self) -> None:
        whole = told(llc__mean=STEP, llc__reference_loss=STEP, behavior__accuracy=STEP, kernel__trace=STEP)
        refined = history(head=[0.0, 0.0, 1.0, 1.0])
        both = [replace(one, refinements=other.refinements) for one, other in zip(whole, refined, strict=True)]
        found = changes_between(both, stage(0, 0, 10), stage(1, 20, 30))
        names = {"slt/llc/mean": "LLC", "slt/llc/reference_loss": "loss", "slt/behavior/accuracy": "accuracy"}
        names |= {"slt/kernel/trace": "summed variance of the losses", "slt/llc/head/mean": "head"}
        assert {one.key: one.name for one in found} == names

    def test_no_settings_no_costs_no_errors_and_no_constants(self) -> None:
        numbers = ("health__rhat", "health__step_size", "cost__seconds", "llc__stderr", "llc__std", "own__slope_stderr")
        numbers += ("llc__num_train_samples", "trajectory__null_1", "detection__phi")
        whole = told(**dict.fromkeys(numbers, STEP), own__constant=[3.0] * 4)
        assert changes_between(whole, stage(0, 0, 10), stage(1, 20, 30)) == []

    def test_a_name_of_the_users_own_that_looks_like_one_of_a_random_walk(self) -> None:
        parts = [{"trajectory": {"distance/null": x, "null_2": x}, "own": {"null_accuracy": x}} for x in STEP]
        whole = [Measurement(10 * place, results) for place, results in enumerate(parts)]
        names = {one.name for one in changes_between(whole, stage(0, 0, 10), stage(1, 20, 30))}
        assert names == {"distance to null", "own null accuracy"}

    def test_a_loss_at_the_fork_is_told_once(self) -> None:
        losses = [2.0, 2.0, 1.0, 1.0]
        whole = told(llc__reference_loss=losses, finer__reference_loss=losses)
        parts = [{"head": {"llc": {"reference_loss": x}}, "code": {"llc": {"reference_loss": 3 * x}}} for x in losses]
        both = [replace(one, refinements=record) for one, record in zip(whole, parts, strict=True)]
        found = changes_between(both, stage(0, 0, 10), stage(1, 20, 30))
        assert {one.name: one.delta for one in found} == {"loss": -1.0, "loss of code": -3.0}

    def test_a_number_that_is_new_or_gone_has_nothing_to_be_compared_with(self) -> None:
        nan = math.nan
        whole = told(own__new=[nan, nan, 1.0, 1.0], own__gone=[1.0, 1.0, nan, nan])
        assert changes_between(whole, stage(0, 0, 10), stage(1, 20, 30)) == []

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("finer/mean", "finer"),
            ("finer/head0.1/mean", "head0.1 (finer)"),
            ("llc/blocks.0.attn.h1/mean", "blocks.0.attn.h1"),
            ("llc/free_energy", "free energy"),
            ("llc/code/reference_loss", "loss of code"),
            ("compressibility/critical_bits", "critical bits"),
            ("trajectory/speed", "speed of the trajectory"),
            ("path/explained_12", "12th component's share of the path"),
            ("path/speed", "path speed"),
            ("susceptibility/code_to_head", "susceptibility of head to code"),
            ("own/code_to_head", "own code to head"),
            ("influence/group/cats_dogs_to_b", "influence of cats_dogs on b"),
        ],
    )
    def test_names_are_words(self, key: str, name: str) -> None:
        assert in_words(key) == name


class TestWhere:
    def test_a_stage_shorter_than_the_window_is_not_left(self) -> None:
        (change,) = changes_between(
            history(head=[99.0, 99.0, 1.0, 3.0, 7.0, 99.0, 99.0]), stage(1, 20, 30), stage(2, 40, 40)
        )
        assert change.delta == 7.0 - 2.0
        assert change.z == pytest.approx(5.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)

    def test_taken_in_turn_each_has_its_own_nearest_measurements(self) -> None:
        first = [1.0, None] * 6 + [None, 5.0] * 6
        other = [None, 2.0] * 6 + [2.5, None] * 6
        found = changes_between(history(first=first, other=other), stage(0, 0, 110), stage(1, 120, 230))
        assert {change.name: (change.delta, change.n_before, change.n_after) for change in found} == {
            "first": (4.0, 5, 5),
            "other": (0.5, 5, 5),
        }

    def test_failed_measurements_count_for_nothing(self) -> None:
        (change,) = changes_between(
            history(head=[1.0, math.nan, 3.0, math.nan, 6.0]), stage(0, 0, 20), stage(1, 30, 40)
        )
        assert change.delta == 6.0 - 2.0
        assert change.z == pytest.approx(4.0 / math.sqrt(0.25 / 2 + 0.25), rel=1e-15)

    def test_the_end_of_the_stage_is_beside_what_it_began_with(self) -> None:
        ramp = [0.0] * 10 + [float(x) for x in range(1, 31)]
        (change,) = changes_between(told(llc__mean=ramp), stage(0, 0, 90), stage(1, 100, 390))
        assert (change.after, change.end) == (3.0, 28.0)

    def test_of_long_stages_only_what_is_near_the_boundary_is_read(self) -> None:
        read: list[int] = []

        class Counted(dict[str, Any]):
            def items(self) -> Any:
                read.append(1)
                return super().items()

        whole = [Measurement(step, {}, refinements=Counted(one={"llc": {"mean": step / 2}})) for step in range(9000)]
        (change,) = changes_between(whole, stage(0, 0, 4999), stage(1, 5000, 8999))
        assert change.delta == 2.5
        assert len(read) <= 2 * 75

    def test_of_a_number_that_is_seldom_taken_no_more_than_so_many_are_read(self) -> None:
        read: list[int] = []

        class Counted(dict[str, Any]):
            def items(self) -> Any:
                read.append(1)
                return super().items()

        whole = [Measurement(step, Counted(own={"x": step} if step else {"x": 0, "once": 1})) for step in range(9000)]
        assert len(changes_between(whole, stage(0, 0, 4999), stage(1, 5000, 8999))) == 1
        assert len(read) < 9000


class TestBoundaries:
    STAGES = (stage(0, 0, 10), stage(1, 20, 30, announced_at_step=30), stage(2, 40, 50, announced_at_step=50))
    CURVES = history(**{f"h{number}": [0.0, 0.0, float(number), float(number), 0.0, 0.0] for number in range(5)})

    def test_each_has_its_changes_and_three_of_them_in_words(self) -> None:
        found = changes_of(self.CURVES, self.STAGES)
        assert [(one.stage, one.step, one.previous_step) for one in found] == [(1, 20, 10), (2, 40, 30)]
        assert [len(one.changes) for one in found] == [4, 4]
        assert [str(one) for one in found] == [
            "h4 up 4.0 (z 8.0); h3 up 3.0 (z 6.0); h2 up 2.0 (z 4.0)",
            "h4 down 4.0 (z 8.0); h3 down 3.0 (z 6.0); h2 down 2.0 (z 4.0)",
        ]

    def test_not_before_it_is_announced_and_not_across_a_break(self) -> None:
        provisional = [replace(one, status="provisional") for one in self.STAGES]
        assert [one.stage for one in changes_of(self.CURVES, provisional)] == [1, 2]
        unknown = replace(provisional[1], announced_at_step=None)
        assert [one.stage for one in changes_of(self.CURVES, [provisional[0], unknown, provisional[2]])] == [2]
        afresh = replace(self.STAGES[1], evidence=0.0)
        assert [one.stage for one in changes_of(self.CURVES, [self.STAGES[0], afresh, self.STAGES[2]])] == [2]

    def test_an_announcement_is_explained_from_its_own_stages_or_else_from_all(self) -> None:
        curve = history(head=[9.0, 9.0, 0.0, 0.0, 4.0, 4.0])
        event = StageEvent("announced", 1, 4, 40)
        assert changed_most(curve, event, self.STAGES) == "head up 4.0 (z 8.0)"
        assert changed_most(curve, event, []) == "", "all four before it are no more than noise around 4.5"
        assert changed_most(curve[2:], event, []) == "head up 4.0 (z 8.0)"

    def test_rows_of_the_tables(self) -> None:
        report = Report(self.CURVES, self.STAGES, observable="llc")
        assert [row["changed_most"] for row in report.stage_rows] == ["", *map(str, report.changes)]
        assert [row["start_step"] for row in report.stage_rows] == [0, 20, 40]
        assert [(row["stage"], row["name"]) for row in report.change_rows][:5] == [
            *((1, f"h{number}") for number in (4, 3, 2, 1)),
            (2, "h4"),
        ]

    def test_of_a_hundred_changes_the_table_has_the_thirty_largest(self) -> None:
        many = history(**{f"h{number}": [0.0, 0.0, 1.0 + number, 1.0 + number] for number in range(100)})
        report = Report(many, self.STAGES[:2])
        assert [row["name"] for row in report.change_rows] == [f"h{number}" for number in range(99, 69, -1)]
        assert len(report.changes[0].changes) == 100

    def test_the_refined_llc_that_is_watched_is_shown_and_else_the_first(self) -> None:
        record = {name: {"mean": 0.0, "stderr": 0.5} for name in ("llc", "finer")}
        both = [Measurement(step, {}, refinements={"head": record}) for step in (0, 20)]
        for observable, wanted in (("finer", "finer"), (None, "llc"), ("gone", "llc")):
            assert Report(both, observable=observable).refined == wanted
