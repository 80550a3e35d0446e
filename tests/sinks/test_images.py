import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from slt_callbacks import FileSink, Influence, LossKernel, Measurement, MemorySink, WandbSink, estimate
from slt_callbacks.figures.images import correlation_map
from slt_callbacks.observables.media import Media, Picture
from slt_callbacks.sinks.base import Publication
from tests.sinks.test_sinks import offline_logger, records
from tests.training import QUICK, Regression, data, fit, monitor, square_error


def colour(image: Image.Image, x: int, y: int) -> Any:
    return image.convert("RGB").getpixel((x, y))


class TestCorrelationMap:
    def test_every_value_has_the_same_colour_in_every_image(self) -> None:
        values = torch.linspace(-1, 1, 256)
        alone = correlation_map(values.expand(256, 256))
        beside = correlation_map(torch.cat([values, torch.tensor([0.0] * 256)]).expand(512, 512))
        assert [colour(alone, x, 0) for x in range(256)] == [colour(beside, x, 0) for x in range(256)]

    def test_zero_is_white_red_is_positive_and_the_scale_is_symmetric(self) -> None:
        image = correlation_map(torch.tensor([[0.0, 0.5], [-0.5, 1.0]]))
        assert colour(image, 0, 0) == (255, 255, 255)
        red, blue, darkest = colour(image, 200, 0), colour(image, 0, 200), colour(image, 200, 200)
        assert red[0] > 150 > red[2]
        assert blue[2] > 150 > blue[0]
        assert sum(darkest) < sum(red)
        levels = np.asarray(image).astype(int)
        assert levels[0, 200] - levels[0, 0] == levels[0, 0] - levels[200, 0]

    def test_values_beyond_the_scale_and_nan_show(self) -> None:
        image = correlation_map(torch.tensor([[7.0, -7.0], [math.inf, math.nan]]))
        assert colour(image, 0, 0) == colour(image, 0, 200) == (103, 0, 31)
        assert colour(image, 200, 0) == (5, 48, 97)
        assert colour(image, 200, 200) == (160, 160, 160)

    def test_rows_go_down_columns_across_in_the_order_given(self) -> None:
        matrix = torch.diag(torch.tensor([1.0, 0.0, -1.0]))
        image = correlation_map(matrix, order=torch.tensor([2, 1, 0]))
        side = image.width // 3
        assert [colour(image, side * k, side * k)[0] for k in range(3)] == [5, 255, 103]
        wide = correlation_map(torch.tensor([[1.0, 0.0, -1.0]]))
        assert wide.width == 3 * wide.height

    def test_small_matrices_are_enlarged_evenly_and_large_ones_are_pixel_by_pixel(self) -> None:
        assert correlation_map(torch.eye(100)).size == (300, 300)
        assert correlation_map(torch.eye(256)).size == (256, 256)
        assert correlation_map(torch.zeros(300, 20)).size == (80, 300)

    def test_the_limit_is_the_darkest_value(self) -> None:
        assert colour(correlation_map(torch.full((2, 2), 3.0), limit=3.0), 0, 0) == (103, 0, 31)
        assert colour(correlation_map(torch.full((2, 2), 3.0), limit=30.0), 0, 0) != (103, 0, 31)

    def test_what_is_no_matrix_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"rows and columns, but got shape \(3,\)"):
            correlation_map(torch.zeros(3))
        with pytest.raises(ValueError, match="`limit` to be positive"):
            correlation_map(torch.eye(2), limit=0.0)

    def test_a_map_stays_a_palette_of_one_byte_a_pixel(self) -> None:
        assert correlation_map(torch.eye(256)).mode == "P"


PICTURE = Picture(torch.diag(torch.tensor([1.0, -1.0])), "two samples")
MATRICES = {"kernel/correlation": PICTURE.matrix.double(), "kernel/order": torch.tensor([1, 0])}


def publication(step: int, events: Any = (), **media: Any) -> Publication:
    measurement = Measurement(step, {}, media=Media(**media))
    return Publication(measurement, {"slt/step": step}, log_step=step - 1, events=events)


class TestFileSink:
    def test_pictures_are_written_with_their_step_and_caption(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path / "out")
        sink.open([], {})
        for step in (5, 1000):
            sink.publish(publication(step, pictures={"kernel/map": PICTURE}))
        sink.close()
        names = [path.relative_to(tmp_path / "out").as_posix() for path in sorted((tmp_path / "out").rglob("*.*"))]
        names = [name for name in names if name.endswith(".png")]
        assert names == ["kernel/map-00000005.png", "kernel/map-00001000.png"]
        with Image.open(tmp_path / "out" / names[1]) as image:
            assert image.size == (256, 256)
            assert image.mode == "P"
            assert image.text["Description"] == "step 1000: two samples; blue -1, white 0, red 1"  # type: ignore[attr-defined]

    def test_matrices_are_written_at_events_and_at_the_end_once(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path)
        sink.open([], {})
        sink.publish(publication(1, matrices=MATRICES))
        sink.publish(publication(2, matrices=MATRICES, events=[{"step": 2}]))
        assert [path.name for path in tmp_path.glob("*.npz")] == ["matrices-00000002.npz"]
        sink.publish(publication(3, matrices=MATRICES))
        sink.close()
        sink.close()
        names = sorted(path.name for path in tmp_path.glob("*.npz"))
        assert names == ["matrices-00000002.npz", "matrices-00000003.npz"]
        with np.load(tmp_path / "matrices-00000003.npz", allow_pickle=False) as file:
            assert file["step"] == 3
            assert file["kernel/correlation"].tolist() == [[1.0, 0.0], [0.0, -1.0]]
            assert file["kernel/order"].tolist() == [1, 0]

    def test_tables_are_written_beside_the_pictures(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path)
        sink.open([], {})
        rows = [{"source": "a, b", "change": -0.5}, {"source": "c", "peaked": True}]
        sink.publish(publication(123, tables={"influence/events": rows}))
        with (tmp_path / "influence" / "events-00000123.csv").open(newline="") as file:
            assert list(csv.DictReader(file)) == [
                {"source": "a, b", "change": "-0.5", "peaked": ""},
                {"source": "c", "change": "", "peaked": "True"},
            ]

    def test_without_a_measurement_there_is_no_folder_and_without_pictures_there_are_the_numbers_alone(
        self, tmp_path: Path
    ) -> None:
        sink = FileSink(tmp_path / "out")
        sink.open([], {})
        assert not (tmp_path / "out").exists()
        sink.publish(publication(1))
        sink.close()
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["measurements.jsonl", "settings.json"]

    def test_it_goes_beside_lightnings_checkpoints(self, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path, name="mine")
        sink = FileSink()
        sink.open([logger], {})
        sink.publish(publication(1, pictures={"kernel/map": PICTURE}))
        assert (tmp_path / "mine" / "version_0" / "slt" / "kernel" / "map-00000001.png").exists()


def test_a_failed_measurement_has_no_media() -> None:
    def broken(module: Any, batch: Any) -> torch.Tensor:
        return square_error(module, batch) * math.nan

    with pytest.warns(UserWarning, match="not finite"):
        failed = estimate(Regression(), data(), broken, observables={"kernel": LossKernel()}, sampler=QUICK)
    assert failed.media == Media()


def observed() -> dict[str, Any]:
    labels = [i % 3 for i in range(48)]
    return {"kernel": LossKernel(labels), "influence": Influence(data(12), labels, [i % 2 for i in range(12)])}


class TestRun:
    def test_a_wandb_run_holds_the_maps_the_table_and_the_numbers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        memory = MemorySink()
        fit(monitor(observables=observed(), sinks=[WandbSink(), memory]), logger=logger)
        folder = Path(logger.experiment.settings.sync_dir)
        found = records(logger)
        rows = [r["history"]["item"] for r in found if r["type"] == "history" and "slt/step" in r["history"]["item"]]
        assert [row["slt/step"] for row in rows] == [2, 4, 6], "one row a measurement"
        for key, size in (("kernel", (288, 288)), ("influence", (72, 288))):
            for row, published in zip(rows, memory.publications, strict=True):
                media = _flat(row, f"slt/{key}/map")
                assert media["caption"].startswith(f"step {row['slt/step']}: loss correlation, 48 samples")
                with Image.open(folder / "files" / media["path"]) as image:
                    assert image.size == size
                    assert len(image.getcolors() or []) > 20, "not constant"
                    # the same as the numbers, in the order of the first snapshot
                    wanted = correlation_map(_ordered(published, key))
                    assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(wanted.convert("RGB")))
        orders = [[p.matrices[f"{key}/order"].tolist() for key in observed()] for p in memory.publications]
        assert orders[0] == orders[1] == orders[2]
        assert _flat(rows[-1], "slt/influence/events")["nrows"] == 20
        assert all(math.isfinite(row["slt/influence/group/1_to_0"]) for row in rows)
        assert math.isfinite(rows[-1]["slt/kernel/alignment"])
        (artifact,) = [
            r["artifact"] for r in found if r["type"] == "artifact" and r["artifact"]["type"] == "slt-matrices"
        ]
        (entry,) = artifact["manifest"]["contents"]
        assert entry["path"] == "matrices.npz"
        with np.load(entry["local_path"], allow_pickle=False) as file:
            last = memory.publications[-1].matrices
            assert set(file.files) == {"step", *last}
            assert file["step"] == 6
            for name, matrix in last.items():
                np.testing.assert_allclose(file[name], matrix, rtol=2**-23, atol=1e-30)
            assert [file[f"{key}/order"].tolist() for key in observed()] == orders[0], "that of the first picture"

    def test_files_lie_in_the_folder_of_a_run_without_a_logger(self, tmp_path: Path) -> None:
        watched = monitor(observables=observed())
        fit(watched, default_root_dir=tmp_path)
        names = sorted(path.relative_to(tmp_path / "slt").as_posix() for path in (tmp_path / "slt").rglob("*.*"))
        assert names == [
            *(f"influence/events-0000000{step}.csv" for step in (4, 6)),
            *(f"influence/map-0000000{step}.png" for step in (2, 4, 6)),
            *(f"kernel/map-0000000{step}.png" for step in (2, 4, 6)),
            "matrices-00000006.npz",
            "measurements.jsonl",
            "report.html",
            "settings.json",
        ]
        with (tmp_path / "slt" / names[1]).open(newline="") as table:
            events = list(csv.DictReader(table))
        wanted_events = watched.history[-1]["influence"]["events"]
        assert [(e["source"], float(e["after"])) for e in events] == [(e["source"], e["after"]) for e in wanted_events]
        with np.load(tmp_path / "slt" / "matrices-00000006.npz") as file:
            wanted = watched.history[-1]["kernel"]["covariance"]
            np.testing.assert_allclose(file["kernel/covariance"], wanted, rtol=1e-6, atol=1e-12)
            assert file["kernel/indices"].tolist() == list(range(48))

    def test_pictures_that_cannot_be_made_cost_no_numbers(self) -> None:
        class Careless(LossKernel):
            def images(self, result: Any) -> Any:
                raise RuntimeError("no paint")

        memory = MemorySink()
        with pytest.warns(UserWarning, match="The pictures could not be made: RuntimeError: no paint"):
            fit(monitor(observables={"kernel": Careless()}, sinks=[memory]))
        assert all(math.isfinite(p.scalars["slt/kernel/trace"]) for p in memory.publications)


def _ordered(published: Publication, key: str) -> torch.Tensor:
    correlation = published.measurement[key]["correlation"]
    rows = published.matrices[f"{key}/order"]
    columns = published.matrices.get(f"{key}/query_order", rows)
    return correlation[rows][:, columns]


def _flat(row: dict[str, Any], key: str) -> dict[str, Any]:
    """A media record, which the reader prints nested or with dotted keys."""
    if key in row:
        return dict(row[key])
    return {name.removeprefix(f"{key}."): value for name, value in row.items() if name.startswith(f"{key}.")}


def test_beside_a_logger_without_a_folder_the_files_go_where_the_trainer_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    observables = {"kernel": LossKernel()}
    fit(monitor(observables=observables), logger=DummyLogger(), default_root_dir=str(tmp_path / "root"))
    assert list((tmp_path / "root" / "slt" / "kernel").glob("map-*.png"))
    assert not (tmp_path / "slt").exists()
