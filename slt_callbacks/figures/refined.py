"""The refined LLCs of a history as arrays, a curve a refinement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slt_callbacks.figures.steps import Array, common_limits
from slt_callbacks.measuring.measurement import Measurement


@dataclass(frozen=True)
class RefinedCurve:
    """One refinement over the M measurements that took it; NaN where it has failed.

    Attributes:
        name: Of the refinement.
        steps: Training steps, ``(M,)``.
        mean: The refined LLC, ``(M,)``.
        stderr: Its standard error, ``(M,)``.
        rhat: R-hat of its chains, ``(M,)``.
        num_parameters: Weights that move, in the last measurement that says so; NaN if none does.
        moves_all: Whether these are all that the main posterior moves: it differs in its data or its loss.
    """

    name: str
    steps: Array
    mean: Array
    stderr: Array
    rhat: Array
    num_parameters: float
    moves_all: bool

    @property
    def spread(self) -> float:
        """Standard deviation over the measurements; minus infinity with fewer than two."""
        known = self.mean[np.isfinite(self.mean)]
        return float(known.std()) if len(known) > 1 else -math.inf

    @property
    def below_zero(self) -> bool:
        """Whether it is anywhere negative by more than two standard errors: noise around 0 is not."""
        return bool((self.mean + 2 * np.nan_to_num(self.stderr) < 0).any())

    def at(self, steps: Array) -> Array:
        """The LLC at other steps: of the last measurement until then, NaN before the first.

        Refinements taken in turn are absent from most measurements, and a map of gaps would show nothing else; what was
        asked and has failed stays NaN, for the value before that is no longer known to hold.

        Args:
            steps: Sorted, ``(T,)``.

        Example:
            >>> nothing = np.full(2, np.nan)
            >>> curve = RefinedCurve("head", np.array([2.0, 5.0]), np.array([1.0, 3.0]), nothing, nothing, 8, False)
            >>> curve.at(np.array([1.0, 2.0, 4.0, 5.0])).tolist()
            [nan, 1.0, 1.0, 3.0]
        """
        place = np.searchsorted(self.steps, steps, side="right") - 1
        return np.where(place < 0, np.nan, self.mean[place])


@dataclass(frozen=True)
class RefinedGroup:
    """Refinements whose LLCs are on one scale."""

    title: str
    curves: Sequence[RefinedCurve]

    @property
    def limits(self) -> tuple[float, float]:
        """Of that scale."""
        mean, stderr, rhat = (
            np.concatenate([getattr(curve, name) for curve in self.curves]) for name in ("mean", "stderr", "rhat")
        )
        return common_limits(mean, stderr, rhat)


def refined_curves(history: Sequence[Measurement], key: str = "llc") -> list[RefinedCurve]:
    """The curve of every refinement that has an LLC, in the order in which they first come.

    Args:
        history: Measurements in order.
        key: The observable, by its key in the refinements' records.

    Example:
        >>> refined = {"head": {"llc": {"mean": 0.5}, "num_parameters": 8}}
        >>> [(curve.name, curve.mean.tolist()) for curve in refined_curves([Measurement(3, {}, refinements=refined)])]
        [('head', [0.5])]
    """
    records: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for measurement in history:
        for name, record in measurement.refinements.items():
            records.setdefault(name, []).append((measurement.step, record))
    whole = _last([one.results.get("health", {}).get("num_parameters", math.nan) for one in history])
    return [_curve(name, several, key, whole) for name, several in records.items() if any(key in r for _, r in several)]


def refined_groups(curves: Sequence[RefinedCurve]) -> list[RefinedGroup]:
    """Parts of the network, and what moves all of it: the LLC of a part and that of other data do not compare.

    Example:
        >>> refined_groups([])
        []
    """
    parts = [curve for curve in curves if not curve.moves_all]
    others = [curve for curve in curves if curve.moves_all]
    groups = [RefinedGroup("Refined LLC of parts of the network", parts)] if parts else []
    return groups + ([RefinedGroup("Refined LLC on other data, or of another loss", others)] if others else [])


def most_varying(curves: Sequence[RefinedCurve], most: int) -> list[RefinedCurve]:
    """Those that vary most over the run, in their order.

    Args:
        curves: Of one group.
        most: How many.

    Example:
        >>> most_varying([], 24)
        []
    """
    ranked = sorted(curves, key=lambda curve: -curve.spread)[:most]
    return [curve for curve in curves if any(curve is one for one in ranked)]


def refined_key(history: Sequence[Measurement], preferred: str | None = None) -> str | None:
    """The observable whose refined LLC is shown: the preferred one, or else the first that has one; None without.

    Example:
        >>> refined_key([]) is None
        True
    """
    if any(preferred in record for one in history for record in one.refinements.values()):
        return preferred
    found = ((key, result) for one in history for record in one.refinements.values() for key, result in record.items())
    return next((key for key, result in found if isinstance(result, Mapping) and "mean" in result), None)


def _curve(name: str, records: Sequence[tuple[int, Mapping[str, Any]]], key: str, whole: float) -> RefinedCurve:
    def column(observable: str, number: str) -> Array:
        return np.array([record.get(observable, {}).get(number, math.nan) for _, record in records], dtype=float)

    moved = _last([record.get("num_parameters", math.nan) for _, record in records])
    steps = np.array([step for step, _ in records], dtype=float)
    return RefinedCurve(
        name, steps, column(key, "mean"), column(key, "stderr"), column("health", "rhat"), moved, moved == whole
    )


def _last(numbers: Sequence[float]) -> float:
    """The last one that is known."""
    return next((float(number) for number in reversed(numbers) if math.isfinite(number)), math.nan)
