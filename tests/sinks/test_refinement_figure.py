"""The picture of refined LLCs: the numbers behind its artists, and where it is shown."""

import csv
import json
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from slt_callbacks import Change, FileSink, Measurement, Refinement, WandbSink, refinement_figure
from slt_callbacks.figures.refined import RefinedCurve, refined_curves
from slt_callbacks.figures.refinements import refinement_report
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.stages import stage_figure
from slt_callbacks.sinks.base import Publication
from tests.callbacks.test_watch import PlantedLLC
from tests.sinks.test_figures import STAGES, STEPS, labelled, measured, spans
from tests.sinks.test_sinks import offline_logger, records
from tests.training import fit, monitor

Curves = dict[str, Any]


def history(curves: Curves, steps: Any = STEPS, whole: float = 1000.0, rhat: Any = 1.0, weights: Any = 64) -> Any:
    """A mean a measurement, or None where a refinement was not taken; its standard error is 0.25."""
    found = []
    for place, step in enumerate(steps):
        refined = {
            name: {
                "llc": {"mean": means[place], "stderr": 0.25},
                "health": {"rhat": rhat[place] if isinstance(rhat, list) else rhat},
                "num_parameters": weights[name] if isinstance(weights, dict) else weights,
            }
            for name, means in curves.items()
            if means[place] is not None
        }
        main = {"llc": {"mean": 9.0}, "health": {"num_parameters": whole}}
        found.append(Measurement(step, main, refinements=refined))
    return found


RISE, FALL = [1.0, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0], [6.0, 6.0, 6.0, 5.0, 3.0, 2.0, 2.0]
TWO = {"h0": RISE, "h1": FALL}


def axes_of(figure: Figure, label: str) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() == label]


def panel(figure: Figure, name: str) -> Axes:
    (axes,) = axes_of(figure, name)
    return axes


def mesh(axes: Axes) -> QuadMesh:
    (found,) = (one for one in axes.collections if isinstance(one, QuadMesh))
    return found


def values(axes: Axes) -> Any:
    return np.ma.filled(mesh(axes).get_array(), math.nan)  # type: ignore[arg-type]


class TestMap:
    def test_a_row_is_a_refinement_and_a_column_a_measurement(self) -> None:
        axes = panel(refinement_figure(history(TWO, weights={"h0": 64, "h1": 4096})), "map")
        np.testing.assert_array_equal(values(axes), [RISE, FALL])
        assert [label.get_text() for label in axes.get_yticklabels()] == ["h0  64", "h1  4,096"]
        assert axes.get_ylim() == (1.5, -0.5), "the first one above"

    def test_columns_meet_half_way_between_the_steps_as_the_axis_shows_them(self) -> None:
        steps = [1, 10, 100, 1000, 10000, 100000, 1000000]
        edges = mesh(panel(refinement_figure(history(TWO, steps)), "map")).get_coordinates()[0, :, 0]
        np.testing.assert_allclose(np.log10(edges), np.arange(-0.5, 7))
        linear = [100, 200, 300, 400, 500, 600, 700]
        edges = mesh(panel(refinement_figure(history(TWO, linear)), "map")).get_coordinates()[0, :, 0]
        np.testing.assert_allclose(edges, np.arange(50, 800, 100))

    def test_one_scale_from_zero_on_where_no_llc_is_negative(self) -> None:
        drawn = mesh(panel(refinement_figure(history(TWO)), "map"))
        assert drawn.get_clim() == (0.5, 6.5), "with the bands"
        assert drawn.get_cmap().name == "viridis"
        noise = {name: [-0.4, 0.0, 0.1, 4.0, 4.0, 4.0, 4.0] for name in TWO}  # by less than two standard errors
        assert mesh(panel(refinement_figure(history(noise)), "map")).get_clim() == (0.0, 4.5)

    def test_a_symmetric_one_where_one_is(self) -> None:
        below = {"h0": [-2.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], "h1": FALL}
        drawn = mesh(panel(refinement_figure(history(below)), "map"))
        assert drawn.get_clim() == (-6.5, 6.5)
        assert drawn.get_cmap().name == "blue, white, red"

    def test_what_was_not_taken_shows_the_last_measurement_and_what_has_failed_is_grey(self) -> None:
        turns = {"h0": [1.0, None, 2.0, None, math.nan, None, 5.0], "h1": [None, 6.0, None, 5.0, None, 2.0, None]}
        figure = refinement_figure(history(turns))
        nan = math.nan
        np.testing.assert_array_equal(
            values(panel(figure, "map")), [[1, 1, 2, 2, nan, nan, 5], [nan, 6, 6, 5, 5, 2, 2]]
        )
        assert "grey: no value" in panel(figure, "<colorbar>").get_xlabel()
        assert "grey" not in panel(refinement_figure(history(TWO)), "<colorbar>").get_xlabel()

    def test_it_has_no_shades_but_a_strip_of_the_stages_above_and_lines(self) -> None:
        axes = panel(refinement_figure(history(TWO), STAGES), "map")
        strip = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]
        assert strip == [(1, 32), (32, 316), (316, 1000)]
        assert all(patch.get_y() > 1 for patch in axes.patches)  # type: ignore[attr-defined]
        assert [line.get_xdata()[0] for line in axes.lines] == [32, 316]  # type: ignore[index]
        assert [text.get_text() for text in axes.texts] == ["weights", "A", "plateau", "B"]

    def test_stages_of_before_the_first_refinement_do_not_leave_it(self, tmp_path: Path) -> None:
        figure = refinement_figure(history(TWO)[4:], STAGES, tmp_path / "late.png", log_steps=True)
        axes = panel(figure, "map")
        low, high = axes.get_xlim()
        strip = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]  # type: ignore[attr-defined]
        assert strip == [(low, 316), (316, 1000)]
        assert [text.get_text() for text in axes.texts] == ["weights", "plateau", "B"]
        assert high > 1000


class TestPanels:
    def test_each_has_its_curve_and_band_on_one_scale(self) -> None:
        figure = refinement_figure(history(TWO))
        for name, means in TWO.items():
            axes = panel(figure, name)
            np.testing.assert_array_equal(axes.lines[0].get_xydata(), list(zip(STEPS, means, strict=True)))
            band = set(map(tuple, labelled(axes)["± 2 standard errors"].get_paths()[0].vertices.tolist()))
            assert {(s, m + side) for s, m in zip(STEPS, means, strict=True) for side in (-0.5, 0.5)} <= band
            assert axes.get_title(loc="left") == name
            assert axes.get_ylim() == (0.5, 6.5)

    def test_stages_are_shaded_as_in_the_figure_of_the_run(self) -> None:
        figure = refinement_figure(history(TWO), STAGES)
        wanted = spans(stage_figure(measured(), STAGES).axes[-1])
        assert [spans(panel(figure, name)) for name in TWO] == [wanted, wanted]
        (legend,) = figure.legends
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts == [
            "A: LLC up, loss down",
            "plateau: no clear trend of the LLC",
            "B: LLC down, loss down",
            "± 2 standard errors",
            "LLC",
        ]

    def test_points_whose_chains_disagree_are_hollow(self) -> None:
        axes = panel(refinement_figure(history(TWO, rhat=[1.1, 1.3, math.nan, 1.0, 1.21, 1.2, 1.0])), "h0")
        found = labelled(axes)
        assert found["chains disagree (R-hat > 1.2)"].get_offsets().tolist() == [[3, 1], [100, 5]]
        assert to_hex(found["chains disagree (R-hat > 1.2)"].get_facecolor()[0]) == "#ffffff"
        assert found["LLC"].get_offsets()[:, 0].tolist() == [1, 10, 32, 316, 1000]

    def test_lines_join_what_was_taken_and_break_at_what_has_failed(self) -> None:
        turns = {"h0": [1.0, None, 2.0, None, math.nan, None, 5.0], "h1": FALL}
        line = panel(refinement_figure(history(turns)), "h0").lines[0].get_xydata()
        np.testing.assert_array_equal(line, [(1, 1), (10, 2), (100, math.nan), (1000, 5)])

    def test_a_value_gone_astray_leaves_the_picture_only_if_its_chains_disagree(self) -> None:
        astray = {name: [1.0, 2.0, 1.0, 900.0, 1.0, 2.0, 1.0] for name in TWO}
        (low, high) = panel(
            refinement_figure(history(astray, rhat=[1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0])), "h0"
        ).get_ylim()
        assert (low, high) == (0.5, 3.0)
        figure = refinement_figure(history(astray))
        assert panel(figure, "h0").get_ylim()[1] == 900.5
        assert mesh(panel(figure, "map")).get_clim()[1] == 900.5

    def test_of_many_those_that_vary_most_have_a_panel(self) -> None:
        curves = {f"h{n:02}": [1.0 + (n * 7 % 30) * step / 6 for step in range(7)] for n in range(30)}
        figure = refinement_figure(history(curves))
        ranked = sorted(curves, key=lambda name: -np.std(curves[name]))[:24]
        panels = [axes.get_label() for axes in figure.axes if axes.get_label() not in ("map", "<colorbar>")]
        assert panels == [name for name in curves if name in ranked]
        assert len(values(panel(figure, "map"))) == 30, "the map has all of them"
        assert "the 24 of 30 that vary most" in all_texts(figure)
        few = refinement_figure(history({name: curves[name] for name in list(curves)[:24]}))
        assert len(few.axes) == 26
        assert "vary most" not in all_texts(few)


def all_texts(figure: Figure) -> str:
    return " | ".join(
        text.get_text() for part in figure.findobj(lambda one: hasattr(one, "_suptitle")) for text in part.texts
    )  # type: ignore[attr-defined]


THREE: Curves = {**TWO, "code": [40.0 + mean for mean in RISE]}
FOUR: Curves = {**THREE, "prose": [41.0] * 7}


class TestGroups:
    def test_those_that_move_all_weights_are_drawn_apart_on_scales_of_their_own(self) -> None:
        figure = refinement_figure(history(FOUR, weights={"h0": 64, "h1": 64, "code": 1000, "prose": 1000}))
        parts, others = axes_of(figure, "map")
        np.testing.assert_array_equal(values(parts), [RISE, FALL])
        np.testing.assert_array_equal(values(others), [FOUR["code"], FOUR["prose"]])
        assert (mesh(parts).get_clim(), mesh(others).get_clim()) == ((0.5, 6.5), (40.5, 45.5))
        assert (panel(figure, "h1").get_ylim(), panel(figure, "code").get_ylim()) == ((0.5, 6.5), (40.5, 45.5))

    def test_one_alone_is_a_curve_and_no_map_of_it(self) -> None:
        figure = refinement_figure(history(THREE, weights={"h0": 64, "h1": 64, "code": 1000}))
        assert len(axes_of(figure, "map")) == 1, "of the parts"
        axes = panel(figure, "code")
        assert (axes.get_title(loc="left"), axes.get_ylabel()) == ("", "LLC of code")
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), THREE["code"])
        low, high = axes.get_ylim()
        assert low < 40.5 < 45.5 < high, "the ends are whole"
        assert "1,000 weights" in figure.subfigs[1].get_suptitle()

    def test_where_it_is_unknown_they_stand_together(self) -> None:
        figure = refinement_figure(history(THREE, weights=math.nan, whole=math.nan))
        assert values(panel(figure, "map")).shape == (3, 7)
        assert [label.get_text() for label in panel(figure, "map").get_yticklabels()] == list(THREE)
        assert not panel(figure, "map").texts, "nothing to head"


def test_numbers_of_before_a_resume_are_drawn_with_the_weights_that_come_later() -> None:
    before, after = history(TWO)[:3], history(TWO)[3:]
    bare = [
        Measurement(m.step, {}, refinements={name: {"llc": dict(r["llc"])} for name, r in m.refinements.items()})
        for m in before
    ]
    first, _ = refined_curves([*bare, *after])
    assert (first.mean.tolist(), first.num_parameters, first.moves_all) == (RISE, 64.0, False)
    assert first.rhat[:3].tolist() == pytest.approx([math.nan] * 3, nan_ok=True)


def test_a_refinement_whose_record_holds_nothing_has_failed_there() -> None:
    told = history(TWO)
    told[1] = Measurement(3, {}, refinements={"h0": {"error": "diverged"}, "h1": told[1].refinements["h1"]})
    first, _ = refined_curves(told)
    assert first.mean.tolist() == pytest.approx([1.0, math.nan, *RISE[2:]], nan_ok=True)


def test_how_much_a_curve_varies_is_told_by_what_is_known() -> None:
    nothing = np.full(3, math.nan)
    curve = RefinedCurve("h", np.arange(3.0), np.array([1.0, math.nan, 3.0]), nothing, nothing, 8, False)
    assert curve.spread == 1.0
    alone = RefinedCurve("h", np.arange(3.0), np.array([1.0, math.nan, math.nan]), nothing, nothing, 8, False)
    assert alone.spread == -math.inf


@pytest.mark.parametrize("means", [[math.nan] * 7, [2.0] * 7, [2.0] + [None] * 6])
def test_no_spread_at_all_is_drawn_too(means: Any, tmp_path: Path) -> None:
    refinement_figure(history({"h0": means}), STAGES, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_a_schedule_that_begins_at_step_zero_has_a_place_for_it(tmp_path: Path) -> None:
    figure = refinement_figure(history(TWO, [0, 1, 10, 100, 1000, 10000, 100000]), path=tmp_path / "zero.png")
    assert {axes.get_xscale() for axes in figure.axes if axes.get_label() in ("map", "h0", "h1")} == {"symlog"}
    assert panel(figure, "map").get_xlim()[0] < 0 < mesh(panel(figure, "map")).get_coordinates()[0, 1, 0]


@pytest.mark.parametrize("told", [[], [Measurement(1, {"llc": {"mean": 1.0}})], history(TWO)])
def test_without_such_an_llc_it_is_refused(told: list[Measurement]) -> None:
    with pytest.raises(ValueError, match="Expected `history` to hold measurements of refinements with 'other'"):
        refinement_figure(told, key="other")


class TestReport:
    def test_it_is_drawn_of_the_observable_that_is_watched(self) -> None:
        record = {"llc": {"mean": 1.0}, "finer": {"mean": 7.0}}
        told = [Measurement(step, {}, refinements={"h0": record, "h1": record}) for step in STEPS]
        figure = refinement_report(Report(told, observable="finer"))
        assert figure is not None
        assert values(panel(figure, "map")).tolist() == [[7.0] * 7] * 2

    def test_without_refinements_or_matplotlib_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert refinement_report(Report(measured())) is None
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert refinement_report(Report(history(TWO))) is None
        with pytest.raises(ModuleNotFoundError, match=r"^refinement_figure draws with matplotlib"):
            refinement_figure(history(TWO))


def published(step: int, report: Report | None = None) -> Publication:
    rows = report.rows if report is not None else ()
    stages = report.stage_rows if report is not None else ()
    return Publication(Measurement(step, {}), {"slt/step": step}, step - 1, events=rows, stages=stages, report=report)


TOLD = Report(history(TWO), STAGES, rows=[{"step": 32}], observable="llc")


class TestFiles:
    def test_at_the_end_it_stands_beside_the_stages(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path)
        sink.open([], {})
        sink.finish(TOLD)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"changes.csv", "events.json", "stages.csv", "stages.png", "refinements.png"}
        with Image.open(tmp_path / "refinements.png") as image:
            assert image.width > 1000
        with (tmp_path / "stages.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["changed_most"] for row in rows] == [row["changed_most"] for row in TOLD.stage_rows]
        assert rows[1]["changed_most"] == "h1 down 2.0 (z 7.6)", "h0 was rising before"

    def test_without_refinements_nothing_is_new(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path)
        sink.open([], {})
        sink.finish(Report(measured(), STAGES, rows=[{"step": 32}], observable="llc"))
        assert {path.name for path in tmp_path.iterdir()} == {"changes.csv", "events.json", "stages.csv", "stages.png"}


class TestWandb:
    def rows(self, logger: Any) -> list[dict[str, Any]]:
        return [record["history"]["item"] for record in records(logger) if record["type"] == "history"]

    def test_it_is_shown_at_events_and_at_the_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        sink = WandbSink()
        sink.open([logger], {})
        sink.publish(published(316))
        sink.publish(published(1000, TOLD))
        sink.finish(TOLD)
        sink.close()
        folder = Path(logger.experiment.settings.sync_dir) / "files"
        shown = [row for row in self.rows(logger) if "slt/refinements._type" in row]
        assert [row.get("slt/step") for row in shown] == [1000, None], "at the event, and once more"
        for row in shown:
            assert row["slt/refinements.caption"] == "up to step 1000"
            assert row["slt/figure._type"] == "image-file"
            with Image.open(folder / row["slt/refinements.path"]) as image:
                assert image.width > 700
            table = (folder / row["slt/stages.path"]).read_text()
            assert "changed_most" in table
            assert "h1 down 2.0 (z 7.6)" in table
            changes = json.loads((folder / row["slt/changes.path"]).read_text())
            assert [dict(zip(changes["columns"], one, strict=True)) for one in changes["data"]] == TOLD.change_rows

    def test_without_an_event_it_is_shown_at_the_end_of_a_story(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        sink = WandbSink()
        sink.open([logger], {})
        sink.publish(published(1000))
        sink.finish(Report(history(TWO)[:4]))  # too short
        sink.finish(Report(history(TWO)))
        sink.finish(Report(measured()))  # has none
        sink.close()
        shown = [row for row in self.rows(logger) if "slt/refinements._type" in row]
        assert [row["slt/refinements.caption"] for row in shown] == ["up to step 1000"]
        assert all("slt/figure._type" not in row for row in shown)


def told(watched: Any) -> list[dict[str, Any]]:
    """What the monitor holds, as rows."""
    columns = ["stage", "step", *(field.name for field in fields(Change)), "delta"]
    return [{name: row[name] for name in columns} for one in watched.changes for row in one.rows()]


def test_a_whole_run_leaves_them_in_its_folder(tmp_path: Path) -> None:
    refinements = {"first": Refinement("net.0.*"), "last": Refinement("net.4.*")}
    watched = monitor(
        observables={"llc": PlantedLLC()}, refinements=refinements, refinements_at_once=1, every_n_train_steps=1
    )
    fit(watched, max_steps=20, default_root_dir=tmp_path)
    assert (tmp_path / "slt" / "refinements.png").exists()
    with (tmp_path / "slt" / "stages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert rows[0]["changed_most"] == ""
    parts = rows[1]["changed_most"].split("; ")
    assert sorted(part.partition(" (z ")[0] for part in parts) == ["LLC up 5.0", "first up 5.0", "last up 5.0"]
    with (tmp_path / "slt" / "changes.csv").open(newline="") as file:
        changed = list(csv.DictReader(file))
    assert {row["name"] for row in changed} >= {"LLC", "loss", "first", "last"}
    assert {row["step"] for row in changed} == {rows[1]["start_step"]}
    assert not any(row["key"].startswith(("slt/health", "slt/cost")) for row in changed)
    assert changed == [{name: str(value) for name, value in row.items()} for row in told(watched)]
