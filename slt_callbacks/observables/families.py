"""What an influence follows over the measurements: the family of all pairs, and that of all means by label.

Statistics of one family are alike, so their errors are moderated together, their level is one, and one name in the
state of the observable and in its result stands for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch

from slt_callbacks.observables.groups import Groups
from slt_callbacks.observables.pairs import Snapshot
from slt_callbacks.observables.shifts import Course, Turns, follow
from slt_callbacks.stats.intervals import moderated_variance, sign_quantile
from slt_callbacks.stats.moments import Moments, Spread

_MOST_EVENTS = 20  # rows of the table of movers
# A turn is a difference to the most extreme of all measurements before; runs have some hundred.
_COMPARED_WITH = 100
# Fisher's z of a correlation of 1 is infinite; beyond this one the sign is beyond doubt.
_STRONGEST = 0.999


@dataclass(frozen=True)
class Followed:
    """A family after a measurement.

    Attributes:
        level: Its statistics ``(K,)``, in single precision as in a checkpoint, so that a resumed run compares with the
            same numbers.
        course: How they have moved until now; None where nothing was ever certain.
        turns: What the measurement has shown; None at the first, or where one chain cannot tell.

    Example:
        >>> Followed(torch.zeros(2), course=None, turns=None).level.tolist()
        [0.0, 0.0]
    """

    level: torch.Tensor
    course: Course | None
    turns: Turns | None


@dataclass(frozen=True)
class Family:
    """Alike statistics ``(K,)``, one for every source and target.

    Attributes:
        kind: What an event calls one of them.
        place: Where they stand in `statistics`.
        sources: The rows, as an event names them.
        targets: The columns; K is their product, row by row.
        flips: Under which name a result counts those that flipped.
        peaks: Under which those that peaked.
        in_state: What the names of its state begin with.
        of_fisher: Whether a statistic is Fisher's z of the correlation that an event tells.

    Example:
        >>> family = Family("pair", slice(2), [7], [0, 3], "sign_flips", "peaks")
        >>> last = family.state(family.after(torch.tensor([0.5, 0.25]), None, None))
        >>> now = family.after(torch.tensor([0.5, 0.75]), None, last)
        >>> mover, _ = family.movers(now, last)
        >>> mover["source"], mover["target"], mover["before"], mover["after"]
        ('7', '3', 0.25, 0.75)
        >>> family.counts(now.turns)  # without a spread over chains nothing is certain
        {'sign_flips': nan, 'peaks': nan}
    """

    kind: str
    place: slice
    sources: list[Any]
    targets: list[Any]
    flips: str
    peaks: str
    in_state: str = ""
    of_fisher: bool = False

    def after(self, values: torch.Tensor, spread: Spread | None, last: Snapshot | None) -> Followed:
        """Go on with one more measurement.

        Args:
            values: All statistics, as `statistics` orders them.
            spread: Of them over chains; None without one.
            last: What the last good measurement has left.
        """
        level, before = values[self.place], self._course(last)
        if spread is None or spread.count < 2:  # one chain cannot tell: what was certain stays so
            return Followed(level.float(), before, None)
        variance, degrees = moderated_variance(spread.variance()[self.place], spread.count - 1)
        error = (variance / spread.count).sqrt()
        limits = (sign_quantile(len(error) * times, degrees) for times in (1, _COMPARED_WITH))
        return Followed(level.float(), *follow(before, level, error, *limits))

    def state(self, now: Followed) -> Snapshot:
        """What the next measurement is compared with, under names of its own."""
        course = {} if now.course is None else now.course.tensors()
        return {self._name(item): value for item, value in (course | {"level": now.level}).items()}

    def counts(self, turns: Turns | None) -> dict[str, float]:
        """How many flipped and how many peaked, for the result; NaN where that is unknown."""
        if turns is None:
            return {self.flips: math.nan, self.peaks: math.nan}
        return {self.flips: int(turns.flipped.sum()), self.peaks: int(turns.peaked.sum())}

    def movers(self, now: Followed, last: Snapshot) -> list[dict[str, Any]]:
        """Those that turned, then those that moved most, told as correlations: at most 20, in no order."""
        level, before = now.level, last.get(self._name("level"))
        if before is None or len(before) != len(level):  # other labels than before a resume do not compare
            return []
        flipped = peaked = torch.zeros_like(level, dtype=torch.bool)
        if now.turns is not None:
            flipped, peaked = now.turns.flipped, now.turns.peaked
            before = torch.where(flipped | peaked, now.turns.before.float(), before)
        if self.of_fisher:
            level, before = level.tanh(), before.tanh()
        change = level - before
        # A turn comes before any movement; no correlation moves by more than 2.
        weight = torch.where(change.isfinite(), change.abs() + 4.0 * (flipped | peaked), -1.0)
        top = weight.topk(min(_MOST_EVENTS, len(weight))).indices
        columns = [top, level[top], before[top], change[top], flipped[top], peaked[top]]
        return [
            {
                "kind": self.kind,
                "source": str(self.sources[place // len(self.targets)]),
                "target": str(self.targets[place % len(self.targets)]),
                "before": old,
                "after": new,
                "change": moved,
                "flipped": flip,
                "peaked": peak,
            }
            for place, new, old, moved, flip, peak in zip(*(column.tolist() for column in columns), strict=True)
            if not math.isnan(moved)
        ]

    def _course(self, last: Snapshot | None) -> Course | None:
        names = {item.name: self._name(item.name) for item in fields(Course)}
        size = len(self.sources) * len(self.targets)
        if last is None or names["certain"] not in last or len(last[names["certain"]]) != size:
            return None  # other labels than before a resume start afresh
        return Course(**{item: last[name] for item, name in names.items()})

    def _name(self, item: str) -> str:
        return self.in_state + item


def statistics(moments: Moments, groups: Groups) -> torch.Tensor:
    """What a chain has an opinion on: Fisher's z of every pair, then the mean correlations by label, flat.

    Args:
        moments: Of N samples and Q queries.
        groups: Of both.

    Example:
        >>> from slt_callbacks.observables.groups import groups_of
        >>> from slt_callbacks.stats.moments import moments_of
        >>> x, rows = torch.tensor([[1.0], [2.0], [2.0]]).double(), torch.arange(1)
        >>> y = torch.tensor([[1.0], [0.0], [2.0]]).double()  # the correlation is 0
        >>> statistics(moments_of(x, y), groups_of(None, rows, None, rows))
        tensor([0.], dtype=torch.float64)
    """
    correlation = moments.correlation()
    z = correlation.clamp(-_STRONGEST, _STRONGEST).atanh().flatten()
    return torch.cat([z, groups.means(correlation).flatten()]) if groups.labelled else z


def families_of(samples: torch.Tensor, queries: torch.Tensor, groups: Groups) -> list[Family]:
    """The families in `statistics`.

    Args:
        samples: Rows of the reference samples in their data, int64 ``(N,)``.
        queries: Rows of the queries in theirs, int64 ``(Q,)``.
        groups: Of both.

    Example:
        >>> from slt_callbacks.observables.groups import groups_of
        >>> rows = torch.arange(3)
        >>> [family.flips for family in families_of(rows, rows[:1], groups_of(None, rows, None, rows[:1]))]
        ['sign_flips']
    """
    num_pairs = len(samples) * len(queries)
    pairs = Family("pair", slice(num_pairs), samples.tolist(), queries.tolist(), "sign_flips", "peaks", of_fisher=True)
    if not groups.labelled:
        return [pairs]
    place, names = slice(num_pairs, None), (groups.row_names, groups.column_names)
    return [pairs, Family("group", place, *names, "group_flips", "group_peaks", in_state="group_")]


def after(
    families: Iterable[Family], values: torch.Tensor, spread: Spread | None, last: Snapshot | None
) -> tuple[Snapshot, dict[str, float], list[dict[str, Any]]]:
    """Go on with one more measurement in all families.

    Args:
        families: As `families_of` gives them.
        values: As in `Family.after`.
        spread: Likewise.
        last: Likewise.

    Returns:
        What the next measurement is compared with, the counts for the result, and at most 20 events: those that turned,
        then the others, what moved most first within each.

    Example:
        >>> family = Family("pair", slice(2), [7], [0, 3], "sign_flips", "peaks")
        >>> last, *_ = after([family], torch.tensor([0.5, 0.25]), None, None)
        >>> _, counts, events = after([family], torch.tensor([0.75, 1.0]), None, last)
        >>> counts  # without a spread over chains nothing is certain
        {'sign_flips': nan, 'peaks': nan}
        >>> [(event["source"], event["target"], event["change"]) for event in events]
        [('7', '3', 0.75), ('7', '0', 0.25)]
    """
    snapshot: Snapshot = {}
    counts: dict[str, float] = {}
    movers: list[dict[str, Any]] = []
    for family in families:
        now = family.after(values, spread, last)
        snapshot |= family.state(now)
        counts |= family.counts(now.turns)
        movers += [] if last is None else family.movers(now, last)
    movers.sort(key=lambda event: (not (event["flipped"] or event["peaked"]), -abs(event["change"])))
    return snapshot, counts, movers[:_MOST_EVENTS]
