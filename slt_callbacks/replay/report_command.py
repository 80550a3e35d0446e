"""The command `report`, which makes one HTML page of the folder of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from slt_callbacks.sinks.report import write_report


def parser() -> argparse.ArgumentParser:
    """Of its one argument; it needs no jsonargparse, for there is nothing to build."""
    made = argparse.ArgumentParser(
        prog="python -m slt_callbacks report",
        description="Write report.html into the folder of a run: its story, figures, maps, health and settings.",
        epilog="A run writes its report when it ends; this is for one that still goes on or was killed.",
    )
    made.add_argument(
        "folder", metavar="FOLDER", help="a logger's version folder, the slt folder in it, or a replay's output"
    )
    return made


def run(made: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Write the page, and print where it is.

    Args:
        made: From `parser`.
        arguments: Of the command line, without the command.

    Returns:
        The exit code, 0.

    Raises:
        FileNotFoundError: If the folder holds no measurements.
    """
    print(f"The report: {write_report(made.parse_args(arguments).folder)}")
    return 0
