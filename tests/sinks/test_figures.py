import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from slt_callbacks import (
    Calibration,
    JumpEvent,
    Measurement,
    SamplerConfig,
    Stage,
    StageEvent,
    calibration_figure,
    stage_figure,
)
from slt_callbacks.figures import stages as figures
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.stages import report_figure

STEPS = [1, 3, 10, 32, 100, 316, 1000]


def measured(steps: Sequence[int] = STEPS, rhat: Any = 1.05, **llc: Any) -> list[Measurement]:
    return [
        Measurement(
            step,
            {
                "llc": {"mean": 2.0 + k, "stderr": 0.25, "reference_loss": 4.0 / (k + 1), **llc},
                "health": {"rhat": rhat[k] if isinstance(rhat, list) else rhat},
            },
        )
        for k, step in enumerate(steps)
    ]


def stage(number: int, kind: str, start: int, end: int, announced: int | None = None) -> Stage:
    numbers = {"llc_start": 1.0, "llc_end": 2.0, "delta_llc": 1.0, "delta_llc_se": 0.1, "loss_start": 2.0}
    numbers |= {"loss_end": 1.0, "delta_loss": -1.0, "slope_per_log_step": 0.5, "evidence": 40.0}
    record: dict[str, Any] = {"stage": number, "type": kind, "status": "final", "start_step": start, "end_step": end}
    return Stage(**record, **numbers, n_points=2, announced_at_step=announced, revised=False, open=False)


STAGES = [stage(0, "A", 1, 10), stage(1, "plateau", 32, 100, 316), stage(2, "B", 316, 1000, 1000)]
UP = JumpEvent(step=10, index=2, direction=1, delta=3.0, z=6.0, onset_step=3, onset_index=1)
DOWN = JumpEvent(step=1000, index=6, direction=-1, delta=3.0, z=6.0, onset_step=316, onset_index=5)
TOLD = StageEvent("announced", 0, 3, 32)


def labelled(axes: Axes) -> dict[str, Any]:
    handles, labels = axes.get_legend_handles_labels()
    assert len(set(labels)) == len(labels)
    return dict(zip(labels, handles, strict=True))


def spans(axes: Axes) -> list[tuple[float, float, str]]:
    """Shaded stretches: from, to, colour."""
    found = [patch for patch in axes.patches if patch.get_alpha() == 0.2]
    return [(patch.get_x(), patch.get_x() + patch.get_width(), to_hex(patch.get_facecolor())) for patch in found]  # type: ignore[attr-defined]


def test_it_writes_a_png_that_shows_something(tmp_path: Path) -> None:
    stage_figure(measured(), STAGES, [UP, TOLD], tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as image:
        assert image.format == "PNG"
        assert 1000 < image.width < 2000
        assert 600 < image.height < 2000
        assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 50


def test_loss_llc_and_error_band_are_the_numbers_of_the_history() -> None:
    loss, llc = stage_figure(measured()).axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(s, 4 / (k + 1)) for k, s in enumerate(STEPS)])
    np.testing.assert_allclose(llc.lines[0].get_xydata(), [(s, 2 + k) for k, s in enumerate(STEPS)])
    band = labelled(llc)["± 2 standard errors"].get_paths()[0].vertices
    assert {(s, 2 + k + side) for k, s in enumerate(STEPS) for side in (-0.5, 0.5)} <= set(map(tuple, band.tolist()))


def test_stages_are_shaded_in_every_panel_up_to_the_next_one_and_labelled() -> None:
    figure = stage_figure(measured(), STAGES)
    for axes in figure.axes:
        assert [span[:2] for span in spans(axes)] == [(1, 32), (32, 316), (316, 1000)]
        assert len({colour for *_, colour in spans(axes)}) == 3
    assert [text.get_text() for text in figure.axes[0].texts] == ["A: LLC up, loss down", "plateau", "B"], "by the room"
    assert {"A: LLC up, loss down", "B: LLC down, loss down", "plateau: no clear trend of the LLC"} <= labelled(
        figure.axes[-1]
    ).keys()
    assert labelled(figure.axes[-1])["boundary announced"].get_xdata().tolist() == [316, 1000]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(labelled(figure.axes[-1]))


def test_a_type_that_comes_twice_has_one_colour_and_one_line_in_the_legend() -> None:
    axes = stage_figure(measured(), [stage(0, "C", 1, 10), stage(1, "D", 32, 100), stage(2, "C", 316, 1000)]).axes[-1]
    first, second, third = (colour for *_, colour in spans(axes))
    assert first == third != second
    labels = labelled(axes)
    assert [label[0] for label in labels if label[1] == ":"] == ["C", "D"]


def test_a_plateau_that_is_all_there_is_is_no_finding() -> None:
    alone = stage_figure(measured(), [stage(0, "plateau", 1, 1000)])
    assert not any(spans(axes) for axes in alone.axes)
    assert not alone.axes[0].texts
    assert spans(stage_figure(measured(), [stage(0, "A", 1, 1000)]).axes[0])


def test_what_would_flatten_the_rest_is_marked_at_the_edge_if_its_chains_disagree() -> None:
    rhat = [1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0]
    history = measured(rhat=rhat)
    history[2].results["llc"]["mean"] = -500.0
    fell = replace(DOWN, onset_step=10)
    axes = stage_figure(history, (), [fell]).axes[-1]
    low, high = axes.get_ylim()
    assert -10 < low < 2
    assert 8 < high < 15
    assert labelled(axes)["far below the picture, chains disagree"].get_xdata().tolist() == [10]
    assert low <= labelled(axes)["jump down"].get_ydata()[0] <= high, "not lost"
    history[2].results["health"]["rhat"] = 1.0
    assert stage_figure(history).axes[-1].get_ylim()[0] < -500
    assert "far below the picture, chains disagree" not in labelled(stage_figure(measured()).axes[-1])


def test_jumps_are_marked_at_their_first_point_and_other_events_are_not() -> None:
    found = labelled(stage_figure(measured(), (), [TOLD, UP, DOWN]).axes[-1])
    assert found["jump up"].get_xydata().tolist() == [[3, 3]]
    assert found["jump down"].get_xydata().tolist() == [[316, 7]]
    assert found["jump up"].get_marker() != found["jump down"].get_marker()
    assert not {"jump up", "jump down"} & labelled(stage_figure(measured(), (), [TOLD]).axes[-1]).keys()


def test_jumps_of_another_key_are_not_marked_on_the_llc() -> None:
    other, own = (replace(UP, key=key) for key in ("slt/kernel/class_contrast", "slt/llc/mean"))
    assert "jump up" not in labelled(stage_figure(measured(), (), [other]).axes[-1])
    assert "jump up" in labelled(stage_figure(measured(), (), [own]).axes[-1])


def test_a_report_is_drawn_with_the_observable_that_is_watched() -> None:
    results = {"other": {"mean": 5.0}, "finer": {"mean": 7.0}}
    history = [Measurement(step, results) for step in STEPS]
    for observable, level in (("finer", 7.0), (None, 5.0), ("gone", 5.0)):
        figure = report_figure(Report(history, observable=observable))
        assert figure is not None
        assert set(figure.axes[-1].lines[0].get_ydata()) == {level}


def test_points_whose_chains_disagree_are_hollow_and_an_unknown_rhat_is_not() -> None:
    axes = stage_figure(measured(rhat=[1.1, 1.3, math.nan, 1.0, 1.21, 1.2, 1.0])).axes[-1]
    found = labelled(axes)
    assert found["chains disagree (R-hat > 1.2)"].get_offsets()[:, 0].tolist() == [3, 100]
    assert to_hex(found["chains disagree (R-hat > 1.2)"].get_facecolor()[0]) == "#ffffff"
    assert found["LLC"].get_offsets()[:, 0].tolist() == [1, 10, 32, 316, 1000]


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        (STEPS, "log"),
        ([0, *STEPS], "symlog"),
        ([1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500], "log"),  # log_linear_steps
        (range(100, 2000, 100), "linear"),
        ([10, 20, 30, 60, 70, 90, 100], "linear"),  # some measurements skipped
        ([5, 50], "linear"),
        ([5], "linear"),
    ],
)
def test_the_axis_is_logarithmic_where_the_steps_are(steps: Sequence[int], scale: str) -> None:
    figure = stage_figure(measured(list(steps)))
    assert {axes.get_xscale() for axes in figure.axes} == {scale}
    low, high = figure.axes[0].get_xlim()
    assert low < min(steps)
    assert high > max(steps)


def test_the_caller_may_decide_on_the_axis() -> None:
    assert stage_figure(measured(), log_steps=False).axes[0].get_xscale() == "linear"
    assert stage_figure(measured(range(9)), log_steps=True).axes[0].get_xscale() == "symlog"


def test_further_panels_stand_above_with_their_curves_and_a_title() -> None:
    curves = {"train": (STEPS, [1.0] * 7), "test": (STEPS, [0.5] * 7)}
    figure = stage_figure(measured(), STAGES, panels={"accuracy": curves}, title="Grokking")
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss", "local learning coefficient"]
    assert list(labelled(figure.axes[0])) == ["train", "test"]
    assert figure.get_suptitle() == "Grokking"
    assert [text.get_text() for text in figure.axes[0].texts] == ["A: LLC up, loss down", "plateau", "B"], "by the room"


def test_failed_measurements_and_unknown_numbers_leave_a_gap(tmp_path: Path) -> None:
    history = measured()
    history[3] = Measurement(32, {"llc": {"mean": math.nan, "stderr": math.nan}, "health": {}}, error="diverged")
    figure = stage_figure(history, path=tmp_path / "run.png")
    assert np.isnan(figure.axes[-1].lines[0].get_ydata()[3])  # type: ignore[arg-type,index]
    assert stage_figure([Measurement(1, {"llc": {"mean": math.nan}})]).axes


@pytest.mark.parametrize("history", [[], [Measurement(1, {"kernel": {}})]])
def test_a_history_without_the_observable_is_refused(history: list[Measurement]) -> None:
    with pytest.raises(ValueError, match="Expected `history` to hold measurements of 'llc'"):
        stage_figure(history)


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    needed = r"draws with matplotlib, which is not installed: pip install 'slt-callbacks\[examples\]'"
    with pytest.raises(ModuleNotFoundError, match=f"^stage_figure {needed}"):
        figures.stage_figure(measured())
    with pytest.raises(ModuleNotFoundError, match=f"^calibration_figure {needed}"):
        calibration_figure(Calibration((), None, SamplerConfig()))


def test_importing_the_package_does_not_import_matplotlib_and_drawing_not_pyplot() -> None:
    code = (
        "import sys, slt_callbacks; from slt_callbacks import Measurement, stage_figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figure = stage_figure([Measurement(1, {'llc': {'mean': 1.0}})])\n"
        "assert type(figure.canvas).__name__ == 'FigureCanvasBase'\n"
        "import io; figure.savefig(io.BytesIO())\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(figures.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"]


def test_it_returns_a_figure() -> None:
    assert isinstance(stage_figure(measured()), Figure)
