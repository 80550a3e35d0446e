"""What changed where a stage began: every logged number of the measurements before and after."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from slt_callbacks.basics.keys import key_of
from slt_callbacks.detection.changes import (
    NOISE_WINDOW,
    WINDOW,
    BoundaryChanges,
    Change,
    Point,
    change_of,
    ranked,
    told,
)
from slt_callbacks.detection.records import Stage, StageEvent
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.measuring.naming import in_words

# What is no news of the network: the sampler, the clock, errors of other numbers, settings, what a random walk gives.
_NOT_OBSERVED = ("health", "cost", "detection")
_NOT_NEWS = ("stderr", "std", "num_train_samples")
_OURS = key_of("")
_MOST_READ = 2000  # measurements on one side: a run may have many more, and every event asks


def changes_between(history: Sequence[Measurement], before: Stage, after: Stage) -> list[Change]:
    """The change of every number from one stage to the next, those with the largest abs(z) first.

    The numbers are those that are logged of the observables and of the refinements, each taken where it was measured,
    and the metrics of the trainer that were asked for.
    What does not count: ``health``, ``cost`` and ``detection``, the names ``stderr``, ``std``, ``num_train_samples``,
    ``null_1`` and so on, names that end with ``_stderr``, a loss at the fork that is another's as well, and what has
    not changed.

    Args:
        history: Measurements in order, as in ``monitor.history``.
        before: The earlier stage.
        after: The next one.

    Example:
        >>> from slt_callbacks import StageDetector
        >>> detector, history = StageDetector(), []
        >>> for step in range(60):  # flat, and from step 30 on a ramp
        ...     heads = {"h0": {"llc": {"mean": 4.0 * (step > 30)}}, "h1": {"llc": {"mean": 1.0}}}
        ...     history.append(Measurement(step, {}, refinements=heads))
        ...     _ = detector.update(step, max(0, step - 30) + step % 2, 0.5, loss=-step)
        >>> [str(change) for change in changes_between(history, *detector.finish())]
        ['h0 up 4.0 (z 5.5)']
    """
    return _compared(history, before.start_step, after.start_step, after.end_step)


def changes_of(history: Sequence[Measurement], stages: Sequence[Stage]) -> list[BoundaryChanges]:
    """What changed at each boundary that is announced, or final.

    A stage that begins because settings have changed has nothing before it to be compared with.

    Args:
        history: As in `changes_between`.
        stages: In order.

    Example:
        >>> changes_of([], [])
        []
    """
    return [
        BoundaryChanges(after.stage, after.start_step, before.end_step, tuple(changes_between(history, before, after)))
        for before, after in pairwise(stages)
        if after.evidence > 0 and (after.announced_at_step is not None or after.status == "final")
    ]


def changed_most(history: Sequence[Measurement], event: StageEvent, stages: Sequence[Stage]) -> str:
    """What changed most where an announced stage begins, as it looks now, in words.

    Args:
        history: As in `changes_between`.
        event: The announcement.
        stages: Those of the same number, as they look now; empty where they are not known.

    Example:
        >>> changed_most([], StageEvent("announced", 0, 3, 30), [])
        ''
    """
    starts = [stage.start_step for stage in stages]
    place = starts.index(event.step) if event.step in starts else 0
    first = starts[place - 1] if place else -math.inf
    return told(_compared(history, first, event.step, math.inf))


def _compared(history: Sequence[Measurement], start: float, boundary: float, end: float) -> list[Change]:
    first, middle, last = (
        bisect_left(history, start, key=_step),
        bisect_left(history, boundary, key=_step),
        bisect_right(history, end, key=_step),
    )
    left, right, newest = (
        _nearest(history[place] for place in places)
        for places in (
            range(middle - 1, first - 1, -1),
            range(middle, last),
            range(last - 1, middle - 1, -1),
        )
    )
    found = (change_of(_named(key), key, left[key], right[key], newest[key]) for key in right if key in left)
    return ranked(change for change in found if change is not None)


def _step(measurement: Measurement) -> int:
    return measurement.step


def _nearest(measurements: Iterable[Measurement]) -> dict[str, list[Point]]:
    """Of each number the measurements nearest to a boundary, seen from there."""
    found: dict[str, list[Point]] = {}
    for count, measurement in enumerate(measurements, 1):
        for key, point in _numbers(measurement).items():
            found.setdefault(key, []).append(point)
        full = count >= NOISE_WINDOW and (not found or min(map(len, found.values())) >= WINDOW)
        if full or count == _MOST_READ:
            break
    return found


def _numbers(measurement: Measurement) -> dict[str, Point]:
    """Those that count, with their standard errors, by logged key; failed ones are left out."""
    scalars = measurement.scalars()
    found: dict[str, Point] = {}
    losses: list[float] = []
    for key, value in scalars.items():
        if not _counts(key) or not math.isfinite(value):
            continue
        owner, _, name = key.rpartition("/")
        if name == "reference_loss":
            if any(math.isclose(value, other, rel_tol=1e-6) for other in losses):
                continue
            losses.append(value)
        found[key_of(key)] = (value, scalars.get(f"{owner}/stderr", math.nan) if name == "mean" else math.nan)
    return found | {name: (value, math.nan) for name, value in measurement.metrics.items() if math.isfinite(value)}


def _named(key: str) -> str:
    """Our own in words; the user's as they are."""
    return in_words(key.removeprefix(_OURS)) if key.startswith(_OURS) else key


@lru_cache(maxsize=4096)
def _counts(key: str) -> bool:
    observable, name = key.partition("/")[0], key.rpartition("/")[2]
    of_walk = name.startswith("null_") and name.removeprefix("null_").isdigit()
    settled = name in _NOT_NEWS or of_walk or name.endswith("_stderr")
    return observable not in _NOT_OBSERVED and not settled
