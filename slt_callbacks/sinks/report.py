"""The report of a run: one HTML file made from what a `FileSink` has written."""

from __future__ import annotations

from pathlib import Path

from slt_callbacks.figures.page import page
from slt_callbacks.sinks.folder import place_of, read_folder
from slt_callbacks.sinks.writing import replace_file

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run: its story, figures, maps, health and settings in one file.

    The page needs nothing beside itself and no network, so it can be sent to somebody. A `FileSink` writes it at the
    end of a run; this writes it again, or for a run that still goes on or was killed, from what is there. A slider
    shows the pictures of 48 training steps at most, evenly chosen, and fewer where they are large.

    Args:
        folder: A logger's version folder, such as ``lightning_logs/version_0``, or the ``slt`` in it; or the output
            of a replay.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If the folder holds no measurements.

    Example:
        >>> import tempfile
        >>> from slt_callbacks import FileSink, Measurement
        >>> from slt_callbacks.sinks.base import Publication
        >>> folder = Path(tempfile.mkdtemp()) / "slt"
        >>> sink = FileSink(folder)
        >>> sink.open([], {"seed": 0})
        >>> measurement = Measurement(10, {"llc": {"mean": 2.5, "stderr": 0.1}})
        >>> sink.publish(Publication(measurement, measurement.logged(), log_step=9))
        >>> path = write_report(folder.parent)  # nothing has told it that the run has ended
        >>> path.relative_to(folder).name, "One measurement, too few to tell stages." in path.read_text()
        ('report.html', True)
    """
    path = place_of(folder) / REPORT
    replace_file(path, page(read_folder(folder)).encode())
    return path
