"""Pictures and matrices as files in the folder of the run, for those who use no W&B, and for later."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo

from slt_callbacks.basics.plain import as_json
from slt_callbacks.detection.changes import Change
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.free_energy import free_energy_report
from slt_callbacks.figures.pictures import image_of, scale_of
from slt_callbacks.figures.refinements import refinement_report
from slt_callbacks.figures.report import Report
from slt_callbacks.figures.stages import report_figure
from slt_callbacks.observables.media import Picture, Scatter
from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.journal import Journal
from slt_callbacks.sinks.report import write_report
from slt_callbacks.sinks.seldom import Seldom
from slt_callbacks.sinks.writing import csv_bytes, replace_file

A_STORY = 5  # measurements: fewer have no stages


class FileSink:
    """Writes every picture as ``<observable>/<name>-<step>.png``, and the matrices behind them as one ``.npz``.

    Tables of a measurement, such as the pairs whose influence moved most, stand beside the pictures as
    ``<observable>/<name>-<step>.csv``. Every measurement is a line of ``measurements.jsonl`` as soon as it is made, and
    the settings stand in ``settings.json``; a run that goes on in the folder goes on in these files. When training has
    ended, ``report.html`` shows all of it; see `write_report`.

    The matrices are written where the detectors have found something (of many events, ever fewer) and at the end, as
    ``matrices-<step>.npz`` with names such as ``kernel/correlation``, in the order of the data; ``kernel/order`` is
    that of the picture. At events, and when training has ended, the story of the run follows: ``stages.csv``,
    ``changes.csv`` and ``events.json``; in the end, where there were measurements enough for one (five), also
    ``stages.png``, with refinements ``refinements.png``, and with a free energy ``free_energy.png``.

    Args:
        dirpath: Where; None for ``slt`` beside Lightning's ``checkpoints`` in the folder of the first logger. A monitor
            without a logger writes to ``slt`` under `default_root_dir`: then give every run a folder of its own.

    Example:
        >>> import tempfile
        >>> from slt_callbacks import Measurement
        >>> from slt_callbacks.observables.media import Media, Picture
        >>> folder = Path(tempfile.mkdtemp())
        >>> sink = FileSink(folder)
        >>> sink.open([], {})
        >>> pictures = {"kernel/map": Picture(torch.eye(3), "three samples")}
        >>> sink.publish(Publication(Measurement(5, {}, media=Media(pictures)), {}, log_step=4))
        >>> sink.close()
        >>> [path.name for path in (folder / "kernel").iterdir()]
        ['map-00000005.png']
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        self._dirpath = dirpath
        self._folder = Path()
        self._pending: Publication | None = None
        self._seldom = Seldom()
        self._journal = Journal(self._folder, {})

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Choose the folder."""
        self._seldom = Seldom()
        self._folder = Path(self._dirpath) if self._dirpath is not None else _folder_of(loggers)
        self._journal = Journal(self._folder, config)

    def publish(self, publication: Publication) -> None:
        """Write the numbers, pictures and tables, and at an event the story so far and the matrices."""
        self._journal.add(publication)
        step = publication.measurement.step
        for key, picture in publication.pictures.items():
            image = image_of(picture)
            if image is None:
                continue
            text, buffer = PngInfo(), io.BytesIO()
            text.add_text("Description", caption(step, picture))
            image.save(buffer, format="png", pnginfo=text)
            replace_file(self._folder / f"{key}-{step:08d}.png", buffer.getvalue())
        for key, rows in publication.tables.items():
            columns = list(dict.fromkeys(name for row in rows for name in row))
            replace_file(self._folder / f"{key}-{step:08d}.csv", csv_bytes(rows, columns))
        if publication.matrices:
            self._pending = publication
        if publication.events and self._seldom.due(len(publication.events)):
            self._write_matrices()
            if publication.report is not None:
                write_tables(self._folder, publication.report)

    def finish(self, report: Report) -> None:
        """Write the story of the run, and a page that shows all of it."""
        self._journal.end(report.history)
        try:
            if len(report.history) >= A_STORY:
                self._tell(report)
        finally:  # a page without a figure is worth having
            if self._journal.begun:
                write_report(self._folder)

    def _tell(self, report: Report) -> None:
        write_tables(self._folder, report)
        figures = {"stages": report_figure, "refinements": refinement_report, "free_energy": free_energy_report}
        for name, draw in figures.items():
            figure = draw(report)
            if figure is not None:
                figure.savefig(self._folder / f"{name}.png", dpi=150)

    def close(self) -> None:
        """Write the last matrices."""
        self._write_matrices()

    def _write_matrices(self) -> None:
        if self._pending is None:
            return
        step, matrices = self._pending.measurement.step, self._pending.matrices
        self._pending = None
        self._folder.mkdir(parents=True, exist_ok=True)
        write_matrices(self._folder / f"matrices-{step:08d}.npz", step, matrices)


def caption(step: int, shown: Picture | Scatter) -> str:
    """What a picture shows, with the training step (W&B's sliders know another) and the scale.

    Example:
        >>> caption(3, Picture(torch.eye(2), "two samples", limit=0.5))
        'step 3: two samples; blue -0.5, white 0, red 0.5'
    """
    return "; ".join(filter(None, (f"step {step}: {shown.caption}", scale_of(shown))))


def write_matrices(file: Any, step: int, matrices: Mapping[str, torch.Tensor]) -> None:
    """One compressed ``.npz``, single precision where the matrix is not of integers, with the step as ``step``.

    Args:
        file: A path or an open binary file.
        step: Training step of the fork.
        matrices: By name.
    """
    arrays = {
        name: (matrix.float() if matrix.is_floating_point() else matrix).cpu().numpy()
        for name, matrix in matrices.items()
    }
    np.savez_compressed(file, allow_pickle=False, step=np.asarray(step), **arrays)


def write_tables(folder: Path, report: Report) -> None:
    """``stages.csv``, ``changes.csv`` (what changed where a stage began) and ``events.json``, for a person to read.

    Args:
        folder: Made where it is missing.
        report: The story so far.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_tables(folder, Report([], rows=[{"step": 3, "z": float("nan")}]))
        >>> json.loads((folder / "events.json").read_text())  # JSON has no NaN
        [{'step': 3, 'z': None}]
        >>> (folder / "stages.csv").read_text()[:25]
        'stage,type,status,start_s'
    """
    stages = report.stage_rows
    columns = dict.fromkeys([*(f.name for f in fields(Stage)), *(name for row in stages for name in row)])
    replace_file(folder / "stages.csv", csv_bytes(stages, list(columns)))
    changes = Change("", "", 0.0, 0.0, 0.0).row()
    replace_file(folder / "changes.csv", csv_bytes(report.change_rows, ["stage", "step", *changes]))
    events = [{key: as_json(value) for key, value in row.items()} for row in report.rows]
    replace_file(folder / "events.json", (json.dumps(events, indent=2) + "\n").encode())


def _folder_of(loggers: Sequence[Any]) -> Path:
    for logger in loggers:
        if getattr(logger, "save_dir", None):
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            return Path(logger.save_dir) / str(logger.name) / version / "slt"
    return Path("slt")
