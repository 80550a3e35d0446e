"""Every measurement as one line of a file, written when it is made: what a killed run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from slt_callbacks.basics.keys import STEP, key_of, parts_of
from slt_callbacks.basics.plain import as_json
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.writing import replace_file

MEASUREMENTS, SETTINGS = "measurements.jsonl", "settings.json"
TABLES = ("stages.csv", "events.json", "changes.csv")
"""What is told of a run beside its measurements; of another run it must not be told."""

_PACKAGES = ("slt-callbacks", "torch", "lightning", "pytorch-lightning", "torchmetrics", "numpy", "scipy", "wandb")


class Journal:
    """Keeps ``measurements.jsonl`` and ``settings.json`` in a folder.

    Each line of the first is one measurement: ``step``, ``time`` (UTC), ``error``, ``scalars`` by logged key,
    and ``refinements`` by name, then observable, where there are some; NaN is null. Numbers of a failed
    measurement are there as far as it had any. A run that goes on from step s in the same folder replaces the lines of
    step s and later, which an earlier process has written and training has gone back behind. One that begins anew
    replaces all of them, and the tables of the run before it.

    The second holds the ``config`` that the monitor was given, the ``versions`` of the packages, and whether the run
    has ``ended`` or its process was killed (or still runs).

    Args:
        folder: Made when there is something to keep.
        config: The settings, builtins only.

    Attributes:
        begun: Whether there is something to keep.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> measurement = Measurement(3, {"llc": {"mean": float("nan")}}, error="all chains diverged")
        >>> Journal(folder, {"seed": 0}).add(Publication(measurement, measurement.logged(), log_step=2))
        >>> [row["scalars"] for row in read_rows(folder)]
        [{'slt/step': 3, 'slt/llc/mean': None}]
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._config = dict(config)
        self.begun = False

    def add(self, publication: Publication) -> None:
        """Append one measurement."""
        if not self.begun:
            self._begin(publication.measurement.step)
        with (self._folder / MEASUREMENTS).open("ab") as file:
            file.write(_line(_row(publication.measurement, publication.scalars)))

    def end(self, history: Sequence[Measurement]) -> None:
        """The run has ended: its lines are those of the whole story, also where a resumed run has another folder.

        Args:
            history: Every measurement of the run in order, those from before a resume included.
        """
        if not self.begun:
            return
        written = {row["step"]: row for row in read_rows(self._folder)}
        rows = [written.get(one.step) or _row(one, one.logged(), timed=False) for one in history]
        if [row["step"] for row in rows] != list(written):
            self._replace(rows)
        self._write_settings(ended=True)

    def _begin(self, step: int) -> None:
        """What stands here already is of before this step, or of another run."""
        self.begun = True
        there = read_rows(self._folder)
        kept = [row for row in there if row["step"] < step]
        self._replace(kept)
        if there and not kept:
            for name in TABLES:
                (self._folder / name).unlink(missing_ok=True)
        self._write_settings(ended=False)

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        replace_file(self._folder / MEASUREMENTS, b"".join(map(_line, rows)))

    def _write_settings(self, ended: bool) -> None:
        content = {"config": self._config, "versions": versions(), "ended": ended}
        text = json.dumps(_finite(content), indent=2, default=repr)
        replace_file(self._folder / SETTINGS, f"{text}\n".encode())


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of a journal, in order; one that a killed process has left half is not there.

    Example:
        >>> read_rows(Path("no such folder"))
        []
    """
    file = folder / MEASUREMENTS
    rows: list[dict[str, Any]] = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def measurement_of(row: Mapping[str, Any]) -> Measurement:
    """The numbers of one line, as a record; null is NaN again.

    Example:
        >>> measurement_of({"step": 3, "scalars": {"slt/llc/mean": None}}).results
        {'llc': {'mean': nan}}
    """
    results: dict[str, dict[str, float]] = {}
    for key, value in row.get("scalars", {}).items():
        observable, name = parts_of(key)
        if name:  # a number of the run, such as its stage, is no observable's
            results.setdefault(observable, {})[name] = _number(value)
    refinements = {part: _numbers(record) for part, record in row.get("refinements", {}).items()}
    return Measurement(row["step"], results, row.get("error"), refinements=refinements)


def versions() -> dict[str, str]:
    """Of this package and of those that decide its numbers, as far as they are installed.

    Example:
        >>> "torch" in versions()
        True
    """
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _row(measurement: Measurement, scalars: Mapping[str, float], timed: bool = True) -> dict[str, Any]:
    """Of a measurement from before a resume nobody knows when it was made."""
    refined = measurement.refined_numbers()
    elsewhere = measurement.scalars().keys() - measurement.main_scalars().keys()
    own = scalars.keys() - {key_of(key) for key in elsewhere}
    row: dict[str, Any] = {"step": measurement.step}
    if timed:
        row["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    row |= {"error": measurement.error, "scalars": {key: scalars[key] for key in (STEP, *scalars) if key in own}}
    if refined:
        row["refinements"] = {
            part: {**numbers, **{name: measurement.refinements[part].get(name) for name in ("num_parameters", "error")}}
            for part, numbers in refined.items()
        }
    return row


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(_finite(row), default=repr) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return as_json(value)


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """As in ``Measurement.refinements``, where what is not known is not there."""
    known = {name: value for name, value in record.items() if value is not None}
    return {
        name: {inner: _number(number) for inner, number in value.items()} if isinstance(value, Mapping) else value
        for name, value in known.items()
    }


def _number(value: Any) -> float:
    return float("nan") if value is None else value
