"""What is made known: events of the detectors, of the sampler, and of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slt_callbacks.basics.plain import to_builtins
from slt_callbacks.detection.jumps import JumpEvent
from slt_callbacks.detection.records import StageEvent


@dataclass(frozen=True)
class FailureEvent:
    """Several measurements in a row have failed: look at the sampler's settings, not at the LLC.

    Attributes:
        step: Training step of the last of them.
        count: How many in a row.
        error: Why the last one failed.
    """

    step: int
    count: int
    error: str


@dataclass(frozen=True)
class StepSizeEvent:
    """An "auto" step size was changed, because the curvature has: the series has a break here, and no jump.

    Attributes:
        step: Training step of the first measurement with the new one.
        before: Step size so far.
        after: Step size from here on.
    """

    step: int
    before: float
    after: float


_KINDS = {kind.__name__: kind for kind in (JumpEvent, StageEvent, FailureEvent, StepSizeEvent)}


@dataclass(frozen=True)
class Found:
    """An event, and when and where it was found.

    Attributes:
        key: The watched key.
        detected_at: Training step of the measurement that gave it.
        event: What the detector returned.
    """

    key: str
    detected_at: int
    event: Any

    def row(self) -> dict[str, Any]:
        """As builtins, for a table."""
        content = to_builtins(self.event)
        fields = content if isinstance(content, dict) else {"event": content}
        return {"key": self.key, "detected_at": self.detected_at, "type": type(self.event).__name__, **fields}

    def state_dict(self) -> dict[str, Any]:
        """As builtins, for a checkpoint."""
        kind = next((name for name, known in _KINDS.items() if type(self.event) is known), None)
        content = to_builtins(self.event) if kind is None else asdict(self.event)
        return {"key": self.key, "detected_at": self.detected_at, "kind": kind, "event": content}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Found:
        """What `state_dict` was taken of."""
        event = state["event"] if state["kind"] is None else _KINDS[state["kind"]](**state["event"])
        return cls(state["key"], state["detected_at"], event)
