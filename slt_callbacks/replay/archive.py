"""The output folder of a replay: tables to read, and what is needed to go on after a stop."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slt_callbacks.basics import keys
from slt_callbacks.basics.plain import to_builtins
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.media import Media
from slt_callbacks.recording.explaining import explained
from slt_callbacks.recording.story import Story
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.files import write_tables
from slt_callbacks.sinks.writing import csv_bytes, replace_file

_STATE_VERSION = 1


class Archive:
    """Measurements, events and stages of a replay in a folder, and the state of its chains and detectors.

    ``measurements.csv``, ``events.json``, ``stages.csv`` and ``changes.csv`` are for readers; the folder ``state`` is
    for the next call. Every file is replaced as a whole, so that a process killed at any time leaves the old one or the
    new one.

    Args:
        folder: Made when it is needed.
        settings: What must be the same for the measurements to belong together, builtins only, and the ``detectors``,
            which may change.

    Attributes:
        measurements: The finished ones, in step order.

    Raises:
        ValueError: If the folder holds a replay with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.measurements: list[Measurement] = []
        self._settings = dict(settings)
        self._rows: list[dict[str, Any]] = []
        self._state: dict[str, Any] | None = None
        if self._state_file.is_file():
            self._state = torch.load(self._state_file, map_location="cpu", weights_only=True)
            self._check(self._state)
            self._rows = self._state["rows"]
            self.measurements = [self._read(row[keys.STEP]) for row in self._rows]

    def restore(self, estimator: Estimator, watch: Watch) -> None:
        """Chains and detectors go on where the folder's last measurement left them.

        Other detectors than the folder's see its measurements first: those need no measuring again.
        """
        if self._state is None:
            return
        estimator.load_state_dict(self._state["estimator"])
        if self._state["settings"]["detectors"] == self._settings["detectors"]:
            watch.load_state_dict(self._state["watch"])
            return
        self._rows = []
        for place, measurement in enumerate(self.measurements, 1):
            watch.update(measurement, partial(explained, history=self.measurements[:place], watch=watch))
            self._rows.append(_row(measurement, measurement.logged() | watch.scalars()))

    def add(self, publication: Publication, estimator: Estimator, story: Story) -> None:
        """Keep a measurement; with the state, written last, it is finished."""
        measurement = replace(publication.measurement, media=Media())  # a picture weighs more than its numbers
        self.measurements.append(measurement)
        self._rows.append(_row(measurement, publication.scalars))
        record = {"results": to_builtins(measurement.results, tensors=True), "error": measurement.error}
        if measurement.refinements:
            record["refinements"] = to_builtins(measurement.refinements, tensors=True)
        replace_file(self._measurement_file(measurement.step), _saved(record))
        self.write_tables(story)
        state = {
            "version": _STATE_VERSION,
            "settings": self._settings,
            "rows": self._rows,
            "estimator": estimator.state_dict(),
            "watch": story.state_dict(),
        }
        replace_file(self._state_file, _saved(state))

    def write_tables(self, story: Story) -> None:
        """Write what a person reads."""
        columns = list(dict.fromkeys(name for row in self._rows for name in row if name != "error"))
        replace_file(self.folder / "measurements.csv", csv_bytes(self._rows, [*columns, "error"]))
        write_tables(self.folder, story.report())

    @property
    def _state_file(self) -> Path:
        return self.folder / "state" / "state.pt"

    def _measurement_file(self, step: int) -> Path:
        return self.folder / "state" / f"measurement-{step:08d}.pt"

    def _read(self, step: int) -> Measurement:
        return Measurement(step, **torch.load(self._measurement_file(step), map_location="cpu", weights_only=True))

    def _check(self, state: Mapping[str, Any]) -> None:
        before, now = {"version": state["version"], **state["settings"]}, {"version": _STATE_VERSION, **self._settings}
        changed = [name for name in {**before, **now} if name != "detectors" and before.get(name) != now.get(name)]
        if changed:
            told = "; ".join(f"`{name}` was {before.get(name)} and is {now.get(name)}" for name in changed)
            raise ValueError(
                f"Expected the replay in {self.folder} to go on with its settings, but {told}: give another `output`, "
                "or delete the folder to begin again."
            )


def _row(measurement: Measurement, scalars: Mapping[str, float]) -> dict[str, Any]:
    return {**scalars, "error": measurement.error}


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
