"""What the folder of a run says of it: all that a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slt_callbacks.figures.report import Report


@dataclass(frozen=True)
class Frame:
    """One picture of one training step.

    Attributes:
        key: Such as ``kernel/map``.
        step: Training step of the fork.
        png: The file's content.
        caption: What it shows.
        pixels: Whether it is a map of pixels, whose entries stay squares when it is enlarged.
    """

    key: str
    step: int
    png: bytes
    caption: str
    pixels: bool = False


@dataclass(frozen=True)
class Recorded:
    """A run, as its folder has it.

    Attributes:
        name: Of the run.
        report: Its story: measurements without matrices, stages, and rows of events.
        changed: What changed most where a stage began, in words, by the step of the boundary.
        frames: Pictures, those of one key in step order.
        figures: Pictures of the whole run, by name, as PNG.
        changes: Rows of what changed at the boundaries of the stages, by column, as text.
        num_pictured: At how many training steps there are pictures in the folder, of which `frames` may hold a part.
        config: The settings that the monitor was given, builtins only.
        versions: Of the packages.
        ended: Whether the run has ended; False where it was killed, or still runs.
        written: When the last measurement was written, UTC; empty where that is not known.

    Example:
        >>> Recorded("digits/version_0", Report([])).frames
        ()
    """

    name: str
    report: Report
    changed: Mapping[int, str] = field(default_factory=dict)
    frames: Sequence[Frame] = ()
    figures: Mapping[str, bytes] = field(default_factory=dict)
    changes: Sequence[Mapping[str, str]] = ()
    num_pictured: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    ended: bool = True
    written: str = ""
