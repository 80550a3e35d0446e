"""What the stages of a series look like: their type, their ends, and how much the LLC and the loss change in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from slt_callbacks.detection.boundaries import Boundary
from slt_callbacks.detection.partition import Lines, Piece
from slt_callbacks.detection.records import Stage
from slt_callbacks.detection.series import Series

_FALL = 3.0  # standard errors by which the loss must fall, or not, over a stage


def describe(
    series: Series,
    losses: Sequence[float],
    found: Sequence[Piece],
    known: Mapping[int, Boundary],
    sigma: float,
    first: int = 0,
    final: bool = False,
) -> list[Stage]:
    """One record for each piece of a series.

    Args:
        series: the measurements.
        losses: loss at each of them, since the last break; NaN where unknown.
        found: the pieces that the points which are not missing are cut into.
        known: the announced boundaries by the point where a piece begins.
        sigma: long-run noise over the scales of the series.
        first: number of the first stage.
        final: whether the status is to be "final".

    Example:
        >>> describe(Series(), [], [], {}, sigma=1.0)
        []
    """
    starts = [0, *(series.noise.valid[piece.start] for piece in found[1:]), len(series)]
    told = [known.get(piece.start) for piece in found]
    out = []
    for k, piece in enumerate(found):
        own = told[k] if k else told[1] if len(told) > 1 else None
        status = "final" if final else "provisional" if own is None else "confirmed"
        out.append(_record(series, losses, piece, (starts[k], starts[k + 1]), sigma, first + k, status, told[k]))
    return out


def _record(
    series: Series,
    losses: Sequence[float],
    piece: Piece,
    ends: tuple[int, int],
    sigma: float,
    number: int,
    status: str,
    known: Boundary | None,
) -> Stage:
    start, end = ends
    first, last = piece.parts[0].line, piece.parts[-1].line
    llc = first.at(start), last.at(end - 1)
    variance = first.variance(start) + last.variance(end - 1)
    if len(piece.parts) == 1:
        variance = (end - 1 - start) ** 2 / first.spread if first.spread > 0 else math.inf
    begin, stop = series.step(start), series.step(end - 1)
    loss, falls = _loss_line(losses[start:end])
    log_steps = math.log1p(max(stop, 0)) - math.log1p(max(begin, 0))
    return Stage(
        stage=number,
        type={1: "A" if falls else "C", -1: "B" if falls else "D"}.get(piece.direction, "plateau"),
        status=status,
        start_step=begin,
        end_step=stop,
        n_points=end - start,
        llc_start=llc[0],
        llc_end=llc[1],
        delta_llc=llc[1] - llc[0],
        delta_llc_se=sigma * math.sqrt(variance),
        loss_start=loss[0],
        loss_end=loss[1],
        delta_loss=loss[1] - loss[0],
        slope_per_log_step=(llc[1] - llc[0]) / log_steps if log_steps > 0 else math.nan,
        evidence=piece.evidence,
        announced_at_step=known.step if known else None,
        revised=bool(known and known.revised),
        open=end == len(series),
    )


def _loss_line(losses: Sequence[float]) -> tuple[tuple[float, float], bool]:
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
