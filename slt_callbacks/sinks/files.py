"""Pictures and matrices as files in the folder of the run, for those who use no W&B, and for later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo

from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.images import correlation_map


class FileSink:
    """Writes every picture as ``<observable>/<name>-<step>.png``, and the matrices behind them as one ``.npz``.

    The matrices are written where the detectors have found something and at the end of the run, as
    ``matrices-<step>.npz`` with names such as ``kernel/correlation``, in the order of the data; ``kernel/order`` is
    that of the picture. Nothing is written, and no folder made, without an observable that has pictures or matrices.

    Args:
        dirpath: Where; None for ``slt`` beside Lightning's ``checkpoints`` in the folder of the first logger.

    Example:
        >>> import tempfile
        >>> from slt_callbacks.estimate import Measurement
        >>> from slt_callbacks.observables import Picture
        >>> folder = Path(tempfile.mkdtemp())
        >>> sink = FileSink(folder)
        >>> sink.open([], {})
        >>> pictures = {"kernel/map": Picture(torch.eye(3), "three samples")}
        >>> sink.publish(Publication(Measurement(5, {}), {}, log_step=4, pictures=pictures))
        >>> sink.close()
        >>> [path.name for path in (folder / "kernel").iterdir()]
        ['map-00000005.png']
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        self._dirpath = dirpath
        self._folder = Path()
        self._pending: Publication | None = None

    def open(self, loggers: Sequence[Any], config: Mapping[str, Any]) -> None:
        """Choose the folder."""
        self._folder = Path(self._dirpath) if self._dirpath is not None else _folder_of(loggers)

    def publish(self, publication: Publication) -> None:
        """Write the pictures, and at an event the matrices."""
        step = publication.measurement.step
        for key, picture in publication.pictures.items():
            path = self._folder / f"{key}-{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = PngInfo()
            text.add_text("Description", caption(step, picture.caption))
            correlation_map(picture.matrix).save(path, pnginfo=text)
        if publication.matrices:
            self._pending = publication
            if publication.events:
                self._write_matrices()

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


def caption(step: int, shown: str) -> str:
    """What a picture shows, with the training step (W&B's sliders know another) and the scale."""
    return f"step {step}: {shown}; blue -1, white 0, red 1"


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


def _folder_of(loggers: Sequence[Any]) -> Path:
    for logger in loggers:
        if getattr(logger, "save_dir", None):
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            return Path(logger.save_dir) / str(logger.name) / version / "slt"
    return Path("slt")
