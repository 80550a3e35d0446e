"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def csv_bytes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    r"""A table with a header; a field that a row lacks is empty.

    Example:
        >>> csv_bytes([{"step": 3}], ["step", "z"])
        b'step,z\n3,\n'
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file as a whole: a process killed at any time leaves the old one or the new one.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "made" / "too" / "a.csv"
        >>> replace_file(path, b"step")
        >>> path.read_text()
        'step'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
