"""What else is known of an event than its detector says: the detector has seen one number, the story has all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slt_callbacks.detection.records import StageEvent
from slt_callbacks.measuring.boundary_changes import changed_most
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.recording.watch import Watch


def explained(event: Any, history: Sequence[Measurement], watch: Watch) -> Any:
    """An announced boundary with what changed most there; any other event as it is.

    Args:
        event: Of a detector.
        history: Every measurement so far.
        watch: The detectors, which know the stages.

    Example:
        >>> explained("of my own kind", [], Watch())
        'of my own kind'
    """
    if not isinstance(event, StageEvent) or event.kind != "announced":
        return event
    stages = watch.stages if event.key == watch.main else []
    return replace(event, changed_most=changed_most(history, event, stages))
