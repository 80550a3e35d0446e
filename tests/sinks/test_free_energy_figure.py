"""The picture of loss against LLC: the numbers behind its artists, and where it is shown."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from PIL import Image

from slt_callbacks import LLC, FileSink, Measurement, MemorySink, WandbSink, free_energy_figure
from slt_callbacks.figures.free_energy import free_energy_report
from slt_callbacks.figures.report import Report
from slt_callbacks.observables.llc import free_energy
from slt_callbacks.sinks.base import Publication
from tests.sinks.test_figures import STAGES, STEPS
from tests.sinks.test_sinks import offline_logger, records
from tests.training import fit, monitor

N = 500
LLCS, LOSSES = [1.0, 2.0, 4.0, 9.0, 8.0, 7.0, 7.5], [2.0, 1.6, 1.2, 0.8, 0.7, 0.65, 0.64]


def measured(steps: Any = STEPS, rhat: Any = 1.0, llcs: Any = LLCS, n: int | None = N) -> list[Measurement]:
    told = []
    for place, step in enumerate(steps):
        llc: dict[str, Any] = {"mean": llcs[place], "stderr": 0.25, "reference_loss": LOSSES[place]}
        if n is not None:
            llc |= {"free_energy": free_energy(n, LOSSES[place], llcs[place]), "num_train_samples": n}
        told.append(
            Measurement(step, {"llc": llc, "health": {"rhat": rhat[place] if isinstance(rhat, list) else rhat}})
        )
    return told


def lines(axes: Axes) -> dict[float, Any]:
    """Those of equal free energy, by the nats above the lowest measurement."""
    drawn = [(str(line.get_label()), line.get_xydata()) for line in axes.lines]
    return {float(label[1:]): at for label, at in drawn if label[:2] in ("_+", "_-")}


def points(axes: Axes) -> PathCollection:
    return next(one for one in axes.collections if isinstance(one, PathCollection))


class TestFigure:
    def test_along_each_line_the_free_energy_is_what_it_says(self) -> None:
        lowest = min(free_energy(N, *point) for point in zip(LOSSES, LLCS, strict=True))
        found = lines(free_energy_figure(measured()).axes[0])
        assert len(found) > 3
        assert 0.0 in found
        for above, ends in found.items():
            for llc, loss in ends:
                assert free_energy(N, loss, llc) == pytest.approx(lowest + above, rel=1e-9)
        gaps = np.diff(sorted(found))
        np.testing.assert_allclose(gaps, gaps[0], err_msg="neighbours lie equally far apart")

    def test_the_path_is_loss_against_llc_coloured_by_step(self) -> None:
        axes = free_energy_figure(measured()).axes[0]
        np.testing.assert_array_equal(points(axes).get_offsets(), list(zip(LLCS, LOSSES, strict=True)))
        np.testing.assert_array_equal(points(axes).get_array(), STEPS)
        assert isinstance(points(axes).norm, LogNorm)
        assert (points(axes).norm.vmin, points(axes).norm.vmax) == (1, 1000)
        equal = points(free_energy_figure(measured(range(0, 700, 100))).axes[0])
        assert type(equal.norm) is Normalize
        zero = points(free_energy_figure(measured([0, 1, 10, 100, 1000, 10000, 100000])).axes[0])
        assert isinstance(zero.norm, SymLogNorm)

    def test_a_ring_shows_the_lowest_and_letters_where_stages_began(self) -> None:
        figure = free_energy_figure(measured(), STAGES)
        axes = figure.axes[0]
        best = int(np.argmin([free_energy(N, *point) for point in zip(LOSSES, LLCS, strict=True)]))
        (ring,) = (line for line in axes.lines if "lowest" in str(line.get_label()))
        np.testing.assert_array_equal(ring.get_xydata(), [(LLCS[best], LOSSES[best])])
        assert ring.get_label() == f"lowest free energy: step {STEPS[best]:,}"
        letters = {text.get_text(): text.xy for text in axes.texts if hasattr(text, "xy")}
        wanted = {"A": 0, "plateau": STEPS.index(32), "B": STEPS.index(316)}
        assert letters == {kind: (LLCS[place], LOSSES[place]) for kind, place in wanted.items()}

    def test_chains_that_disagree_are_hollow_win_nothing_and_stretch_no_axis(self) -> None:
        astray, rhat = [*LLCS[:2], -900.0, *LLCS[3:]], [1.0, 1.0, 1.3, 1.0, 1.3, 1.0, 1.0]
        figure = free_energy_figure(measured(rhat=rhat, llcs=astray))
        axes = figure.axes[0]
        sound, hollow = (one for one in axes.collections if isinstance(one, PathCollection))
        assert len(sound.get_offsets()) == 5
        np.testing.assert_array_equal(hollow.get_offsets(), [(-900.0, LOSSES[2]), (8.0, LOSSES[4])])
        assert axes.get_xlim()[0] > 0
        assert any(str(line.get_label()) == "lowest free energy: step 1,000" for line in axes.lines)

    def test_failed_measurements_are_left_out(self) -> None:
        failed = [math.nan if place == 3 else llc for place, llc in enumerate(LLCS)]
        assert len(points(free_energy_figure(measured(llcs=failed)).axes[0]).get_offsets()) == 6

    def test_n_may_be_given_and_the_figure_written(self, tmp_path: Path) -> None:
        figure = free_energy_figure(measured(n=None), (), tmp_path / "it.png", 10**6, title="mine")
        assert figure.axes[0].get_title() == "mine"
        above, ends = next(iter(lines(figure.axes[0]).items()))
        lowest = min(free_energy(10**6, *point) for point in zip(LOSSES, LLCS, strict=True))
        assert free_energy(10**6, ends[0][1], ends[0][0]) == pytest.approx(lowest + above)
        with Image.open(tmp_path / "it.png") as image:
            assert image.width > 900

    @pytest.mark.parametrize(("told", "settings"), [([], {}), (measured(n=None), {}), (measured(), {"key": "finer"})])
    def test_without_n_or_an_llc_it_says_what_to_measure(self, told: Any, settings: Any) -> None:
        with pytest.raises(
            ValueError, match=r"Expected `history` to hold losses and LLCs .* measure LLC\(num_train_sa"
        ):
            free_energy_figure(told, **settings)

    def test_one_point_alone_is_drawn(self) -> None:
        assert lines(free_energy_figure(measured()[:1]).axes[0])


class TestReport:
    def test_the_llc_of_the_stages_is_drawn_or_else_the_first_with_one(self) -> None:
        told = [Measurement(3, {"a": {"mean": 1.0}, "b": {"free_energy": 1.0}, "c": {"free_energy": 2.0}})]
        for observable, wanted in (("c", "c"), ("a", "b"), (None, "b")):
            assert Report(told, observable=observable).weighed == wanted

    def test_there_is_none_without_a_free_energy_or_with_failures_alone(self, caplog: Any) -> None:
        assert free_energy_report(Report(measured(n=None))) is None
        assert free_energy_report(Report(measured(llcs=[math.nan] * 7))) is None

    def test_without_matplotlib_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert free_energy_report(Report(measured())) is None


def published(report: Report | None = None) -> Publication:
    rows = () if report is None else report.rows
    return Publication(Measurement(1000, {}), {"slt/step": 1000}, log_step=999, events=rows, report=report)


def test_w_and_b_has_it_at_events_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = offline_logger(tmp_path, monkeypatch)
    sink, told = WandbSink(), Report(measured(), rows=[{"step": 32}])
    sink.open([logger], {})
    sink.publish(published(told))
    sink.finish(Report(measured()[:4]))  # too short
    sink.finish(Report(measured()))  # without an event too
    sink.finish(Report(measured(n=None)))  # has none
    sink.close()
    folder = Path(logger.experiment.settings.sync_dir) / "files"
    rows = [record["history"]["item"] for record in records(logger) if record["type"] == "history"]
    shown = [row for row in rows if "slt/free_energy._type" in row]
    assert [row.get("slt/step") for row in shown] == [1000, None]
    for row in shown:
        assert row["slt/free_energy.caption"] == "up to step 1000"
        with Image.open(folder / row["slt/free_energy.path"]) as image:
            assert image.width > 700


def test_a_run_logs_it_and_leaves_the_picture(tmp_path: Path) -> None:
    memory = MemorySink()
    watched = monitor(
        observables={"llc": LLC(num_train_samples=48)}, sinks=[memory, FileSink(tmp_path)], every_n_train_steps=1
    )
    fit(watched, max_steps=6)
    assert (tmp_path / "free_energy.png").exists()
    for publication in memory.publications:
        llc = publication.measurement["llc"]
        wanted = 48 * llc["reference_loss"] + llc["mean"] * math.log(48)
        assert publication.scalars["slt/llc/free_energy"] == pytest.approx(wanted, rel=1e-12)
