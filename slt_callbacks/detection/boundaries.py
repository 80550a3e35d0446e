"""Boundaries between stages over time: when one is announced, moved by later points, or taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slt_callbacks.detection.partition import Piece
from slt_callbacks.detection.records import StageEvent
from slt_callbacks.detection.series import Series

_EVIDENCE = 36.0  # chi-square units (six sigma) that announce a boundary; many places are tried
_HOLD = 2  # updates in a row that must show it
_NEAR = 0.15  # of the points so far: how far a later estimate may lie and still revise an announced boundary
_LOST = 20  # updates without any break near it after which an announced boundary is withdrawn


@dataclass
class Boundary:
    """An announced boundary.

    Attributes:
        id: its number in the order of announcement, from 0.
        at: where the new stage begins, among the points that are not missing.
        step: training step at which it was announced.
        revised: whether it was moved after that.
        missing: updates in a row without any break near it.

    Example:
        >>> Boundary(id=0, at=30, step=360).revised
        False
    """

    id: int
    at: int
    step: int
    revised: bool = False
    missing: int = 0


class Boundaries:
    """Compares the boundaries that each update finds with those announced; none is announced twice.

    Attributes:
        announced: those that are not withdrawn.

    Example:
        >>> Boundaries().announced
        []
    """

    def __init__(self) -> None:
        self.announced: list[Boundary] = []
        self._pending: list[tuple[int, int]] = []  # places with enough evidence, and for how many updates
        self._next_id = 0

    def restart(self) -> None:
        """Begin another series; numbers go on.

        Example:
            >>> Boundaries().restart()
        """
        self.announced, self._pending = [], []

    def track(self, series: Series, found: Sequence[Piece], breaks: Sequence[int]) -> list[StageEvent]:
        """Take in what an update has found.

        Args:
            series: the measurements.
            found: the pieces it looks cut into.
            breaks: ends of the lines they are made of, from 0 to the number of points.

        Returns:
            What has become known; an announcement without what it divides.

        Example:
            >>> Boundaries().track(Series(), [], [0])
            []
        """
        size = len(series.noise.valid)
        matched = self.matched(found, size)
        events = [self._revise(series, known, place) for place, known in matched.items()]
        events += self._withdraw(series, [known.id for known in matched.values()], breaks)
        pending = []
        for piece in found[1:]:
            if piece.start in matched or piece.evidence < _EVIDENCE:
                continue
            near = (n for place, n in self._pending if abs(place - piece.start) <= _reach(size))
            seen = 1 + next(near, 0)
            if seen < _HOLD or size - piece.start < 2:
                pending.append((piece.start, seen))
            else:
                events.append(self._announce(series, piece.start))
        self._pending = pending
        return [event for event in events if event is not None]

    def matched(self, found: Sequence[Piece], size: int) -> dict[int, Boundary]:
        """The announced boundary of each place where a piece begins: in the order of their distance, each used once.

        Example:
            >>> Boundaries().matched([], 10)
            {}
        """
        places = [piece.start for piece in found[1:]]
        pairs = sorted((abs(known.at - place), k, place) for k, known in enumerate(self.announced) for place in places)
        out: dict[int, int] = {}
        for distance, k, place in pairs:
            if distance <= _reach(size) and place not in out and k not in out.values():
                out[place] = k
        return {place: self.announced[k] for place, k in out.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as builtins.

        Example:
            >>> Boundaries().state_dict()
            {'next_id': 0, 'known': [], 'pending': []}
        """
        return {
            "next_id": self._next_id,
            "known": [asdict(known) for known in self.announced],
            "pending": [list(pair) for pair in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; other entries of `state` are left alone.

        Example:
            >>> Boundaries().load_state_dict(Boundaries().state_dict())
        """
        self._next_id = state["next_id"]
        self.announced = [Boundary(**known) for known in state["known"]]
        self._pending = [(place, seen) for place, seen in state["pending"]]

    def _announce(self, series: Series, place: int) -> StageEvent:
        self.announced.append(Boundary(self._next_id, place, series.steps[-1]))
        self._next_id += 1
        return _event("announced", series, self.announced[-1])

    def _revise(self, series: Series, known: Boundary, place: int) -> StageEvent | None:
        known.missing = 0
        if known.at == place:
            return None
        known.at, known.revised = place, True
        return _event("revised", series, known)

    def _withdraw(self, series: Series, seen: Sequence[int], breaks: Sequence[int]) -> list[StageEvent | None]:
        """Take back what has had no break near it for long; a break whose two sides now look alike may return."""
        reach = _reach(len(series.noise.valid))
        for known in self.announced:
            near = known.id in seen or any(abs(place - known.at) <= reach for place in breaks[1:-1])
            known.missing = 0 if near else known.missing + 1
        gone = [known for known in self.announced if known.missing >= _LOST]
        self.announced = [known for known in self.announced if known.missing < _LOST]
        return [_event("withdrawn", series, known) for known in gone]


def _reach(size: int) -> float:
    """How many of `size` points an estimate may be away from a boundary and still belong to it."""
    return max(4.0, _NEAR * size)


def _event(kind: str, series: Series, known: Boundary) -> StageEvent:
    place = series.noise.valid[known.at]
    return StageEvent(kind, known.id, series.index(place), series.step(place))
