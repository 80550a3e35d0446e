"""Developmental stages of a training run: where the trend of the LLC changes, found while it happens.

The series is cut into straight lines (`partition`), lines of one direction are merged into stages, and a boundary
between two stages is announced once, when the evidence for it holds. Types A and B are those of Hoogland et al.
(arXiv 2402.02364); C and D are our extension to stages in which the loss does not fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from slt_callbacks.detection.jumps import check_step
from slt_callbacks.detection.noise import NoiseModel, isolated_spikes
from slt_callbacks.detection.partition import Lines, Partition, Piece, pieces
from slt_callbacks.detection.records import Stage, StageEvent

_EVIDENCE = 36.0  # chi-square units (six sigma) that announce a boundary; many places are tried
_HOLD = 2  # updates in a row that must show it
_MIN_POINTS = 7  # as for jumps
_EARLY = 6.0  # points' worth of doubt about the noise scale: it is widened by 1 + 6 / n
_NEAR = 0.15  # of the points so far: how far a later estimate may lie and still revise an announced boundary
_LOST = 20  # updates without any break near it after which an announced boundary is withdrawn
_FALL = 3.0  # standard errors by which the loss must fall, or not, over a stage


class StageDetector:
    """Online stage boundaries of a scalar, usually the LLC.

    Source: the optimal partition of Jackson et al. 2005 (arXiv math/0309285) with lines for constants; the types of
    stages of Hoogland et al. (arXiv 2402.02364). When a boundary is announced, revised or withdrawn is ours.

    Example:
        >>> stages = StageDetector()
        >>> events = []
        >>> for step in range(60):
        ...     events += stages.update(step, max(0, step - 30) + step % 2, stderr=0.5)
        >>> [(event.kind, event.index) for event in events][:1]
        [('announced', 31)]
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._origin = 0
        self._closed: list[Stage] = []
        self._next_id = 0
        self._reset()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _reset(self) -> None:
        self._noise = NoiseModel()
        self._partition = Partition()
        self._known: list[dict[str, Any]] = []  # announced boundaries; "at" is a place among the valid points
        self._pending: list[tuple[int, int]] = []  # places with enough evidence, and for how many updates
        self._pieces: list[Piece] | None = None

    @property
    def phi(self) -> float:
        """Calibration of the standard errors in force, dimensionless; NaN before it is known.

        Example:
            >>> StageDetector().phi
            nan
        """
        return self._noise.phi

    @property
    def stages(self) -> list[Stage]:
        """The stages as they look now.

        Example:
            >>> StageDetector().stages
            []
        """
        return [*self._closed, *self._records(self._pieces or self._segment(self._partition))]

    def finish(self) -> list[Stage]:
        """The final stages: the whole series cut again at the final noise scale. Changes nothing; may be repeated.

        Example:
            >>> StageDetector().finish()
            []
        """
        return [*self._closed, *self._finished()]

    def update(
        self,
        step: int,
        value: float,
        stderr: float | None = None,
        loss: float | None = None,
        num_chains: int | None = None,
        per_chain: Sequence[float] | None = None,
    ) -> list[StageEvent]:
        """Take in one measurement.

        Args:
            step: training step, larger than the last one.
            value: the LLC, or any scalar; NaN is a missing point.
            stderr: its standard error, same unit; None, NaN or not above 0 where unknown.
            loss: the loss at that step, for the types; None or NaN where unknown.
            num_chains: chains behind the value.
            per_chain: the chains' own estimates, shape (C,). Not used: a standard error from the chains' differences to
                the measurement before, which has none of their persistent offsets, is no better in the place of
                `stderr`. F1 of the final boundaries .875, .856, .852 against .869, .862, .843, on 3 times 240
                simulated runs.

        Returns:
            What became known with this measurement, usually nothing.

        Raises:
            ValueError: where `step` is not larger than the last one.

        Example:
            >>> StageDetector().update(0, 1.0, stderr=0.1)
            []
        """
        check_step(step, self._steps)
        self._steps.append(int(step))
        self._losses.append(float(loss) if loss is not None and math.isfinite(loss) else math.nan)
        self._noise.add(value, stderr, num_chains)
        if math.isnan(self._noise.values[-1]) or not math.isfinite(self._sigma()):
            return []
        lines = self._lines()
        self._partition.extend(lines, self._sigma() ** 2)
        self._pieces = pieces(lines, self._partition.breaks(), self._sigma())
        return self._track(self._pieces)

    def mark_break(self) -> None:
        """Say that settings changed: the stages so far are final, and a new series begins without any event.

        Example:
            >>> stages = StageDetector()
            >>> for step in range(20):
            ...     _ = stages.update(step, step % 2, 0.5)
            >>> stages.mark_break()
            >>> sum((stages.update(step, 90 + step % 2, 0.5) for step in range(20, 40)), [])
            []
        """
        self._closed += [replace(stage, open=False) for stage in self._finished()]
        self._reset()
        self._origin = len(self._steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as builtins that survive JSON and ``torch.load(weights_only=True)``.

        Example:
            >>> StageDetector().state_dict()["steps"]
            []
        """
        rows = self._partition
        return {
            "steps": list(self._steps),
            "losses": list(self._losses),
            "origin": self._origin,
            "closed": [asdict(stage) for stage in self._closed],
            "next_id": self._next_id,
            "noise": self._noise.state_dict(),
            "partition": [list(rows.rss), list(rows.count), list(rows.back)],
            "known": [dict(boundary) for boundary in self._known],
            "pending": [list(pair) for pair in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Example:
            >>> stages = StageDetector()
            >>> stages.load_state_dict(StageDetector().state_dict())
            >>> stages.stages
            []
        """
        self._reset()
        self._steps, self._losses = list(state["steps"]), list(state["losses"])
        self._origin, self._next_id = state["origin"], state["next_id"]
        self._closed = [Stage(**record) for record in state["closed"]]
        self._noise.load_state_dict(state["noise"])
        self._partition.rss, self._partition.count, self._partition.back = map(list, state["partition"])
        self._known = [dict(boundary) for boundary in state["known"]]
        self._pending = [(place, seen) for place, seen in state["pending"]]

    def _sigma(self) -> float:
        """Long-run noise over `scales`; infinite, so that nothing is significant, while it is unknown."""
        known = len(self._noise.valid)
        if known < _MIN_POINTS or math.isnan(self._noise.phi):
            return math.inf
        return self._noise.phi_lr * (1 + _EARLY / known)

    def _lines(self) -> Lines:
        """The valid points with their weights; a spike has none."""
        valid = self._noise.valid
        y = np.array([self._noise.values[i] for i in valid])
        scale = np.array([self._noise.scales[i] for i in valid])
        spikes = isolated_spikes(y, self._noise.phi * scale)
        return Lines(np.array(valid, dtype=float), y, np.where(spikes, 0.0, scale**-2.0))

    def _reach(self) -> float:
        return max(4.0, _NEAR * len(self._noise.valid))

    def _matched(self, places: list[int]) -> dict[int, int]:
        """Announced boundary of each place: pairs in the order of their distance, each used once."""
        pairs = sorted(
            (abs(boundary["at"] - place), k, place) for k, boundary in enumerate(self._known) for place in places
        )
        reach = self._reach()
        out: dict[int, int] = {}
        for distance, k, place in pairs:
            if distance <= reach and place not in out and k not in out.values():
                out[place] = k
        return out

    def _track(self, found: list[Piece]) -> list[StageEvent]:
        """Compare the boundaries found with the ones announced."""
        matched = self._matched([piece.start for piece in found[1:]])
        events = [self._revise(self._known[k], place) for place, k in matched.items()]
        events += self._withdraw(set(matched.values()))
        pending = []
        for number, piece in enumerate(found[1:], 1):
            if piece.start in matched or piece.evidence < _EVIDENCE:
                continue
            seen = 1 + next((n for place, n in self._pending if abs(place - piece.start) <= self._reach()), 0)
            if seen < _HOLD or len(self._noise.valid) - piece.start < 2:
                pending.append((piece.start, seen))
            else:
                events.append(self._announce(found, number))
        self._pending = pending
        return [event for event in events if event is not None]

    def _event(self, kind: str, boundary: dict[str, Any]) -> StageEvent:
        index = self._origin + self._noise.valid[boundary["at"]]
        return StageEvent(kind, boundary["id"], index, self._steps[index])

    def _announce(self, found: list[Piece], number: int) -> StageEvent:
        """Make the boundary before piece `number` known, with what it divides."""
        before, stage = self._records(found)[number - 1 : number + 1]
        place = found[number].start
        self._known.append({"id": self._next_id, "at": place, "step": self._steps[-1], "revised": False, "missing": 0})
        self._next_id += 1
        return replace(
            self._event("announced", self._known[-1]),
            stage_type=stage.type,
            previous_type=before.type,
            previous_step=before.end_step,
            value_before=before.llc_end,
            value_now=stage.llc_end,
        )

    def _revise(self, boundary: dict[str, Any], place: int) -> StageEvent | None:
        boundary["missing"] = 0
        if boundary["at"] == place:
            return None
        boundary["at"], boundary["revised"] = place, True
        return self._event("revised", boundary)

    def _withdraw(self, seen: set[int]) -> list[StageEvent | None]:
        """Take back what has had no break near it for long; a break whose two sides now look alike may return."""
        breaks, reach = self._partition.breaks()[1:-1], self._reach()
        for k, boundary in enumerate(self._known):
            near = k in seen or any(abs(place - boundary["at"]) <= reach for place in breaks)
            boundary["missing"] = 0 if near else boundary["missing"] + 1
        gone = [boundary for boundary in self._known if boundary["missing"] >= _LOST]
        self._known = [boundary for boundary in self._known if boundary["missing"] < _LOST]
        return [self._event("withdrawn", boundary) for boundary in gone]

    def _segment(self, partition: Partition) -> list[Piece]:
        if not self._noise.valid:
            return []
        lines = self._lines()
        rows = partition.breaks()
        return pieces(lines, rows if rows[-1] == len(lines) else [0, len(lines)], self._sigma())

    def _finished(self) -> list[Stage]:
        partition = Partition()
        if math.isfinite(self._sigma()):
            partition.extend(self._lines(), self._sigma() ** 2)
        return self._records(self._segment(partition), final=True)

    def _records(self, found: list[Piece], final: bool = False) -> list[Stage]:
        matched = self._matched([piece.start for piece in found[1:]])
        starts = [0, *(self._noise.valid[piece.start] for piece in found[1:]), len(self._noise.values)]
        known = [self._known[matched[p.start]] if p.start in matched else None for p in found]
        out = []
        for k, piece in enumerate(found):
            told = known[k] if k else known[1] if len(known) > 1 else None
            status = "final" if final else "provisional" if told is None else "confirmed"
            out.append(self._record(len(self._closed) + k, piece, starts[k], starts[k + 1], status, known[k]))
        return out

    def _record(
        self, number: int, piece: Piece, start: int, end: int, status: str, known: dict[str, Any] | None
    ) -> Stage:
        first, last = piece.parts[0].line, piece.parts[-1].line
        llc = first.at(start), last.at(end - 1)
        variance = first.variance(start) + last.variance(end - 1)
        if len(piece.parts) == 1:
            variance = (end - 1 - start) ** 2 / first.spread if first.spread > 0 else math.inf
        begin, stop = self._steps[self._origin + start], self._steps[self._origin + end - 1]
        loss, falls = _loss_line(self._losses[self._origin + start : self._origin + end])
        log_steps = math.log1p(max(stop, 0)) - math.log1p(max(begin, 0))
        kind = {1: "A" if falls else "C", -1: "B" if falls else "D"}.get(piece.direction, "plateau")
        return Stage(
            stage=number,
            type=kind,
            status=status,
            start_step=begin,
            end_step=stop,
            n_points=end - start,
            llc_start=llc[0],
            llc_end=llc[1],
            delta_llc=llc[1] - llc[0],
            delta_llc_se=self._sigma() * math.sqrt(variance),
            loss_start=loss[0],
            loss_end=loss[1],
            delta_loss=loss[1] - loss[0],
            slope_per_log_step=(llc[1] - llc[0]) / log_steps if log_steps > 0 else math.nan,
            evidence=piece.evidence,
            announced_at_step=known["step"] if known else None,
            revised=bool(known and known["revised"]),
            open=end == len(self._noise.values),
        )


def _loss_line(losses: list[float]) -> tuple[tuple[float, float], bool]:
    """Fitted loss at both ends of a stage, and whether it falls by more than its noise."""
    y = np.array(losses)
    valid = np.isfinite(y)
    if not valid.any():
        return (math.nan, math.nan), False
    x = np.arange(len(y), dtype=float)
    line = Lines(x[valid], y[valid], np.ones(int(valid.sum()))).line(0, int(valid.sum()))
    noise = math.sqrt(line.rss / max(int(valid.sum()) - 2, 1))
    falls = line.slope < 0 and -line.slope * math.sqrt(line.spread) > _FALL * noise
    return (line.at(0.0), line.at(len(y) - 1.0)), falls
