"""The output folder of a replay: tables to read, and what is needed to go on after a stop."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from slt_callbacks.basics.plain import to_builtins
from slt_callbacks.data.batches import map_leaves
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.recording.watch import Watch
from slt_callbacks.sinks.base import publish_scalars
from slt_callbacks.sinks.files import csv_bytes, replace_file, write_tables

_STATE_VERSION = 1


class Archive:
    """Measurements, events and stages of a replay in a folder, and the state of its chains and detectors.

    ``measurements.csv``, ``events.json`` and ``stages.csv`` are for readers; the folder ``state`` is for the next call.
    Every file is replaced as a whole, so that a process killed at any time leaves the old one or the new one.

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
            self.measurements = [self._read(row["slt/step"]) for row in self._rows]

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
        for measurement in self.measurements:
            watch.update(measurement)
            self._rows.append(_row(measurement, publish_scalars(measurement) | watch.scalars()))

    def add(self, measurement: Measurement, scalars: Mapping[str, float], estimator: Estimator, watch: Watch) -> None:
        """Keep a measurement; with the state, written last, it is finished."""
        self.measurements.append(measurement)
        self._rows.append(_row(measurement, scalars))
        record = {"results": to_builtins(measurement.results, tensors=True), "error": measurement.error}
        replace_file(self._measurement_file(measurement.step), _saved(record))
        self.write_tables(watch)
        state = {
            "version": _STATE_VERSION,
            "settings": self._settings,
            "rows": self._rows,
            "estimator": estimator.state_dict(),
            "watch": watch.state_dict(),
        }
        replace_file(self._state_file, _saved(state))

    def write_tables(self, watch: Watch) -> None:
        """Write what a person reads."""
        columns = list(dict.fromkeys(name for row in self._rows for name in row if name != "error"))
        replace_file(self.folder / "measurements.csv", csv_bytes(self._rows, [*columns, "error"]))
        write_tables(self.folder, watch.stages, [found.row() for found in watch.found])

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


def settings_of(
    module: type, loss_fn: Any, observables: Sequence[str], estimator: Estimator, watch: Watch, seed: int
) -> dict[str, Any]:
    """What two measurements must share to be points of one curve, and the detectors.

    Args:
        module: The class.
        loss_fn: The loss function, or None.
        observables: Their keys.
        estimator: With the reference set and the settings of the chains.
        watch: With the detectors.
        seed: Of the chains.
    """
    config = {field.name: getattr(estimator.config, field.name) for field in fields(estimator.config)}
    dynamics = config.pop("dynamics")
    return {
        "module": _name(module),
        "loss_fn": None if loss_fn is None else _name(loss_fn),
        "observables": ",".join(sorted(observables)),
        # the repr of an object of one's own may hold its address
        "dynamics": repr(dynamics) if is_dataclass(dynamics) else _name(type(dynamics)),
        **config,
        "seed": seed,
        "reference": f"{len(estimator.reference)} samples {_digest(estimator.reference)}",
        "detectors": watch.settings(),
    }


def _row(measurement: Measurement, scalars: Mapping[str, float]) -> dict[str, Any]:
    return {**scalars, "error": measurement.error}


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _digest(reference: ReferenceSet) -> str:
    """A short hash of the samples: a reference function that shuffles gives other ones at every call."""
    digest = hashlib.sha256(reference.indices.numpy().tobytes())

    def add(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(leaf.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
        return leaf

    for batch, _ in reference.batches():
        map_leaves(add, batch)
    return digest.hexdigest()[:12]


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
