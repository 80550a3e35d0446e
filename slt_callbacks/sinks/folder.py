"""The folder of a run, read back: also that of one that was killed."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from slt_callbacks.basics.keys import PREFIX, is_mean, parts_of
from slt_callbacks.detection.records import Stage
from slt_callbacks.figures.recorded import Frame, Recorded
from slt_callbacks.figures.report import Report
from slt_callbacks.sinks.journal import MEASUREMENTS, SETTINGS, measurement_of, read_rows

# Of a page: so many training steps of a slider can be told apart, and so much a browser opens at once.
_MOST_STEPS = 48
_MOST_BYTES = 8 * 2**20
_PICTURE = re.compile(r"(?P<key>.+)-(?P<step>\d{8,})\.png")
_WHOLE = ("free_energy",)  # figures of the run that the page does not draw itself
# Fields of a `Stage` by their type, from the text that a table has.
_READ: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: text == "True",
    "int | None": lambda text: int(text) if text else None,
}


def read_folder(folder: str | Path) -> Recorded:
    """What a `FileSink` has written, as far as it has come.

    Of many pictures those of 48 training steps, evenly chosen, are read, or of fewer where they are more than 8 MiB.

    Args:
        folder: A logger's version folder, or the ``slt`` in it.

    Raises:
        FileNotFoundError: If there are no measurements.

    Example:
        >>> read_folder("no such folder")
        Traceback (most recent call last):
        FileNotFoundError: Expected `folder` to be the folder of a run ... but there is no folder no such folder.
    """
    place = place_of(folder)
    rows = read_rows(place)
    if not rows:
        raise FileNotFoundError(_nothing("its measurements.jsonl has no measurement yet"))
    history = [measurement_of(row) for row in rows]
    last = history[-1].step
    events = [row for row in _json(place / "events.json", []) if row.get("detected_at", 0) <= last]
    stages = [row for row in _table(place / "stages.csv") if int(row["start_step"]) <= last]
    settings = _json(place / SETTINGS, {})
    config = settings.get("config", {})
    frames, num_pictured = _frames(place, {one.step for one in history})
    return Recorded(
        name=_name(place),
        report=Report(history, [_stage(row) for row in stages], (), events, _watched(config)),
        changed={int(row["start_step"]): row["changed_most"] for row in stages if row.get("changed_most")},
        frames=frames,
        figures={name: file.read_bytes() for name in _WHOLE if (file := place / f"{name}.png").is_file()},
        changes=[row for row in _table(place / "changes.csv") if int(row["step"]) <= last],
        num_pictured=num_pictured,
        config=config,
        versions=settings.get("versions", {}),
        ended=settings.get("ended", False),
        written=next((row["time"][:16].replace("T", " ") + " UTC" for row in reversed(rows) if "time" in row), ""),
    )


def evenly(count: int, most: int) -> list[int]:
    """Places of a series of which not all can be shown; the first and the last are among them.

    Example:
        >>> evenly(7, 3), evenly(2, 3)
        ([0, 3, 6], [0, 1])
    """
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def place_of(folder: str | Path) -> Path:
    """Where the measurements are.

    Args:
        folder: A logger's version folder, or the ``slt`` in it.

    Raises:
        FileNotFoundError: If there are none.

    Example:
        >>> place_of("no such folder")
        Traceback (most recent call last):
        FileNotFoundError: Expected `folder` to be the folder of a run ... but there is no folder no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(_nothing(f"there is no folder {folder}"))
    for place in (folder, folder / PREFIX):
        if (place / MEASUREMENTS).is_file():
            return place
    raise FileNotFoundError(_nothing(f"there is no {MEASUREMENTS} in {folder}"))


def _nothing(reason: str) -> str:
    return (
        "Expected `folder` to be the folder of a run that a FileSink has written to, such as "
        f"lightning_logs/version_0 or lightning_logs/version_0/{PREFIX}, but {reason}."
    )


def _name(place: Path) -> str:
    """Of the run: the last two parts of its folder, as loggers name theirs."""
    whole = place.resolve()
    return "/".join((whole.parent if whole.name == PREFIX else whole).parts[-2:])


def _watched(config: Mapping[str, Any]) -> str | None:
    """The observable whose stages are told; see `Watch.main`."""
    detectors = config.get("detectors")
    keys = detectors if isinstance(detectors, Mapping) else {}
    return next((parts_of(key)[0] for key in keys if is_mean(key)), None)


def _json(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_bytes()) if file.is_file() else otherwise


def _table(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def _stage(row: Mapping[str, str]) -> Stage:
    """A row of ``stages.csv`` as the record that it was."""
    values: dict[str, Any] = {field.name: _READ[str(field.type)](row[field.name]) for field in fields(Stage)}
    return Stage(**values)


def _frames(place: Path, steps: set[int]) -> tuple[list[Frame], int]:
    """Those of the steps that were measured, evenly thinned, and at how many steps there are some."""
    found: dict[int, list[tuple[str, Path]]] = {}
    for file in sorted(place.rglob("*.png")):
        name = _PICTURE.fullmatch(file.relative_to(place).as_posix())
        if name is not None and int(name["step"]) in steps:
            found.setdefault(int(name["step"]), []).append((name["key"], file))
    there = sorted(found)
    chosen = _affordable([sum(file.stat().st_size for _, file in found[step]) for step in there])
    frames = (_frame(step, *one) for step in (there[number] for number in chosen) for one in found[step])
    return [frame for frame in frames if frame is not None], len(there)


def _affordable(sizes: Sequence[int]) -> list[int]:
    """Places of as many steps as the page has room for."""
    most = _MOST_STEPS
    while (places := evenly(len(sizes), most)) and sum(sizes[place] for place in places) > _MOST_BYTES and most > 1:
        most = min(most, len(places)) - 1
    return places


def _frame(step: int, key: str, file: Path) -> Frame | None:
    """One picture with its caption; None of a file that is no picture."""
    try:
        with Image.open(file) as image:
            caption = str(getattr(image, "text", {}).get("Description", f"step {step}"))
            pixels = image.mode == "P"
        return Frame(key, step, file.read_bytes(), caption, pixels)
    except OSError:  # as PIL says that it cannot read it
        return None
