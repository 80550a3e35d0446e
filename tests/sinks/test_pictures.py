"""Pictures with names and points: what is drawn, what is written, and what is left without matplotlib."""

import logging
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from slt_callbacks import FileSink, Measurement, WandbSink
from slt_callbacks.figures.curves import curve_figure
from slt_callbacks.figures.images import correlation_map
from slt_callbacks.figures.pictures import image_of, map_figure, scale_of, scatter_figure
from slt_callbacks.figures.tracks import track_figure
from slt_callbacks.observables.media import Curve, Media, Picture, Scatter, Track
from slt_callbacks.sinks.base import Publication
from tests.sinks.test_sinks import offline_logger, records

MATRIX = torch.tensor([[-0.5, 0.25, math.nan], [0.0, 0.5, math.nan]], dtype=torch.float64)
NAMED = Picture(MATRIX, "two labels", 0.5, ["cat", "dog"], ["h0", "h1", "h2"], ("works for", "works against"))
PLAIN = Picture(torch.tensor([[1.0, -0.5], [0.0, math.nan]]), "two samples")
POINTS = torch.tensor([[0.0, 1.0], [2.0, 1.0], [-3.0, 0.5], [4.0, 4.0]])
SCATTER = Scatter(POINTS, "four samples", ("first", "second"), torch.tensor([1, 1, 0, 1]), ["cat", "dog"])


def texts(labels: Any) -> list[str]:
    return [label.get_text() for label in labels]


def pixels(image: Image.Image | None) -> Any:
    assert image is not None
    return np.asarray(image)


class TestMap:
    def test_the_numbers_the_names_and_the_scale_are_those_of_the_picture(self) -> None:
        axes, bar = map_figure(NAMED).axes
        (drawn,) = axes.images
        np.testing.assert_array_equal(np.ma.filled(drawn.get_array(), math.nan), MATRIX.numpy())  # type: ignore[arg-type]
        assert drawn.get_clim() == (-0.5, 0.5)
        assert texts(axes.get_yticklabels()) == ["cat", "dog"]
        assert texts(axes.get_xticklabels()) == ["h0", "h1", "h2"]
        assert (bar.get_xlabel(), bar.get_title()) == ("works for", "works\nagainst")

    def test_the_colours_are_those_of_the_maps_of_pixels(self) -> None:
        drawn = map_figure(NAMED).axes[0].images[0]
        wanted = correlation_map(MATRIX, limit=0.5).convert("RGB")
        side = wanted.width // 3
        for row in range(2):
            for column in range(3):
                colour = drawn.cmap(drawn.norm(np.ma.masked_invalid(MATRIX.numpy()))[row, column], bytes=True)[:3]  # type: ignore[operator,index]
                there: Any = wanted.getpixel((side * column, side * row))
                assert np.abs(np.subtract(colour, there, dtype=int)).max() <= 3  # one level of 255

    def test_names_that_would_run_into_one_another_stand_upright(self) -> None:
        long = [f"blocks.{number}.attention" for number in range(12)]
        upright = map_figure(Picture(torch.zeros(2, 12), "own", column_names=long)).axes[0].get_xticklabels()
        assert {label.get_rotation() for label in upright} == {90.0}
        assert {label.get_rotation() for label in map_figure(NAMED).axes[0].get_xticklabels()} == {0.0}

    def test_a_map_without_row_names_has_no_ticks_there(self) -> None:
        axes = map_figure(Picture(torch.zeros(300, 2), "own", column_names=["a", "b"])).axes[0]
        assert (len(axes.get_yticks()), texts(axes.get_xticklabels())) == (0, ["a", "b"])


class TestScatter:
    def test_every_class_has_its_points_its_colour_and_its_name_in_the_middle(self) -> None:
        figure = scatter_figure(SCATTER)
        (axes,) = figure.axes
        cats, dogs = axes.collections
        assert cats.get_offsets().tolist() == [[-3.0, 0.5]]  # type: ignore[union-attr]
        assert dogs.get_offsets().tolist() == [[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]]  # type: ignore[union-attr]
        assert to_hex(cats.get_facecolor()[0]) != to_hex(dogs.get_facecolor()[0])  # type: ignore[index]
        assert [(text.get_text(), *text.get_position()) for text in axes.texts] == [("cat", -3, 0.5), ("dog", 2, 1)]
        assert texts(figure.legends[0].get_texts()) == ["cat", "dog"]
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_aspect()) == ("first", "second", 1.0)

    def test_names_that_would_lie_on_one_another_stand_in_the_legend_alone(self) -> None:
        classes = torch.tensor([0, 1, 0, 1])
        mixed = Scatter(torch.tensor([[-5.0, 0], [-5, 0.1], [5, 0], [5, 0.1]]), "own", ("x", "y"), classes, ["a", "b"])
        figure = scatter_figure(mixed)
        assert not figure.axes[0].texts
        assert texts(figure.legends[0].get_texts()) == ["a", "b"]

    def test_without_classes_all_points_look_alike(self) -> None:
        figure = scatter_figure(Scatter(POINTS, "four samples", ("first", "second")))
        (all_of_them,) = figure.axes[0].collections
        assert all_of_them.get_offsets().tolist() == POINTS.tolist()  # type: ignore[union-attr]
        assert figure.legends == []

    def test_of_very_many_classes_the_rarest_are_grey_and_no_two_look_alike(self) -> None:
        classes = torch.cat([torch.arange(30), torch.arange(20), torch.tensor([29])])  # 20 to 28 come once
        points = torch.stack([torch.arange(51.0), torch.zeros(51)], dim=1)
        names = [f"c{number}" for number in range(30)]
        figure = scatter_figure(Scatter(points, "many", ("x", "y"), classes, names))
        rest, *shown = figure.axes[0].collections
        assert rest.get_offsets()[:, 0].tolist() == list(range(20, 29))  # type: ignore[call-overload,index]
        assert texts(figure.legends[0].get_texts()) == ["9 others", *names[:20], "c29"]
        looks = {(to_hex(one.get_facecolor()[0]), str(one.get_paths()[0].vertices)) for one in shown}  # type: ignore[index]
        assert len(looks) == 21
        assert not figure.axes[0].texts, "too many to be written in the plot"


class TestCurve:
    def test_it_goes_through_the_crossing_which_was_found_on_straight_lines(self) -> None:
        points = torch.tensor([[0.5, 0.3], [0.6, 0.2], [0.7, 0.001]], dtype=torch.float64)
        axes = curve_figure(Curve(points, "own", ("x", "y"), level=0.02, crossing=0.69)).axes[0]
        _, line, dots, mark = axes.lines
        assert line.get_xydata().tolist() == [[0.5, 0.3], [0.6, 0.2], [0.69, 0.02], [0.7, 0.001]]  # type: ignore[union-attr]
        assert dots.get_xydata().tolist() == points.tolist()  # type: ignore[union-attr]
        assert mark.get_xydata().tolist() == [[0.69, 0.02]]  # type: ignore[union-attr]

    def test_without_a_crossing_it_goes_through_its_points(self) -> None:
        points = torch.tensor([[1.0, 0.5], [2.0, 0.25]])
        axes = curve_figure(Curve(points, "own", ("x", "y"), level=0.1)).axes[0]
        assert axes.lines[1].get_xydata().tolist() == points.tolist()  # type: ignore[union-attr]


class TestTrack:
    def drawn(self, steps: list[int], marks: dict[str, tuple[float, float]], box: Any = (-1, 11, -1, 11)) -> Any:
        along = torch.linspace(0, 10, len(steps))
        points = torch.stack([along, along], dim=1)
        shown = Track(points, "own", ("x", "y"), steps=torch.tensor(steps), marks=marks, box=box)
        figure = track_figure(shown)
        figure.draw_without_rendering()
        return figure

    def test_no_name_lies_on_another_or_on_the_bar(self) -> None:
        marks = {"uniform": (0.0, 0.0), "unigram": (10.0, 6.0), "bigram": (10.2, 10.2)}
        axes, bar = self.drawn(list(range(0, 1000, 100)), marks).axes
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 5
        assert not [one for place, one in enumerate(boxes) for other in boxes[:place] if one.overlaps(other)]
        assert max(box.x1 for box in boxes) < bar.get_window_extent().x0

    def test_the_steps_of_the_bar_do_not_run_into_one_another(self) -> None:
        for steps in ([1, 2, 3, 5, 10, 30, 100, 400, 1500], list(range(0, 1000, 100)), [0, 1, 2]):
            _, bar = self.drawn(steps, {}).axes
            boxes = [label.get_window_extent() for label in bar.get_yticklabels() if label.get_text()]
            assert len(boxes) > 1
            assert not [one for one, other in pairwise(boxes) if one.overlaps(other)]


class TestImage:
    def test_a_map_without_names_is_what_it_always_was(self) -> None:
        image = image_of(PLAIN)
        assert image is not None
        assert image.mode == "P"
        assert image.tobytes() == correlation_map(PLAIN.matrix).tobytes()
        assert image.getpalette() == correlation_map(PLAIN.matrix).getpalette()

    def test_its_limit_holds_without_names_too(self) -> None:
        quarter = Picture(torch.tensor([[0.25]]), "own", limit=0.25)
        assert pixels(image_of(quarter)).tolist() == pixels(correlation_map(torch.ones(1, 1))).tolist()

    @pytest.mark.parametrize("shown", [NAMED, SCATTER], ids=["map", "points"])
    def test_what_has_names_is_drawn(self, shown: Picture | Scatter) -> None:
        image = image_of(shown)
        assert image is not None
        assert image.mode == "RGB"
        assert min(image.size) > 300
        assert len(image.getcolors(maxcolors=2**24) or []) > 20

    def test_without_matplotlib_a_map_loses_its_names_and_points_are_left_out(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for module in ("figure", "colors"):
            monkeypatch.setitem(sys.modules, f"matplotlib.{module}", None)
        with caplog.at_level(logging.INFO, logger="slt_callbacks.figures.pictures"):
            assert pixels(image_of(NAMED)).tolist() == pixels(correlation_map(MATRIX, limit=0.5)).tolist()
            assert image_of(SCATTER) is None
        assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
        assert "which is not installed: pip install" in caplog.text

    def test_the_scale_in_words(self) -> None:
        assert scale_of(PLAIN) == "blue -1, white 0, red 1"
        assert scale_of(NAMED) == "blue -0.5 (works for), white 0, red 0.5 (works against)"
        assert scale_of(SCATTER) == ""


def publication() -> Publication:
    pictures = {"kernel/map": PLAIN, "chi/map": NAMED, "chi/components": SCATTER}
    return Publication(Measurement(7, {}, media=Media(pictures)), {"slt/step": 7}, log_step=6)


CAPTIONS = {
    "kernel/map": "step 7: two samples; blue -1, white 0, red 1",
    "chi/map": "step 7: two labels; blue -0.5 (works for), white 0, red 0.5 (works against)",
    "chi/components": "step 7: four samples",
}


def test_files_have_the_captions_with_the_scale(tmp_path: Path) -> None:
    sink = FileSink(tmp_path)
    sink.open([], {})
    sink.publish(publication())
    for key, caption in CAPTIONS.items():
        with Image.open(tmp_path / f"{key}-00000007.png") as image:
            assert image.text["Description"] == caption  # type: ignore[attr-defined]
            assert image.mode == ("P" if key == "kernel/map" else "RGB")
            assert pixels(image).tolist() == pixels(image_of(publication().pictures[key])).tolist()


def test_without_matplotlib_the_folder_has_no_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    sink = FileSink(tmp_path)
    sink.open([], {})
    sink.publish(publication())
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert names == ["chi/map-00000007.png", "kernel/map-00000007.png"]


@pytest.mark.parametrize("installed", [True, False])
def test_a_wandb_run_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    logger = offline_logger(tmp_path, monkeypatch)
    sink = WandbSink()
    sink.open([logger], {})
    sink.publish(publication())
    sink.close()
    folder = Path(logger.experiment.settings.sync_dir) / "files"
    (row,) = [record["history"]["item"] for record in records(logger) if record["type"] == "history"]
    found = {key: row[f"slt/{key}.caption"] for key in CAPTIONS if f"slt/{key}.caption" in row}
    assert found == {key: told for key, told in CAPTIONS.items() if installed or key != "chi/components"}
    assert installed or not any(key.startswith("slt/chi/components") for key in row)
    for key in found:
        with Image.open(folder / row[f"slt/{key}.path"]) as image:
            wanted = image_of(publication().pictures[key])
            assert wanted is not None
            np.testing.assert_array_equal(image.convert("RGB"), wanted.convert("RGB"))
