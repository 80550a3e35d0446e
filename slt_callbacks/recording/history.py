"""The measurements of a run, of which the older ones keep their numbers only."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.observables.media import Media

_MOST_KEPT = 16  # measurements with matrices, however small these are: a run may have thousands


class History:
    """Every measurement of a run; matrices, such as a kernel's covariance, of the last ones alone.

    Args:
        heavy: Keys of the observables whose results hold matrices.
        most_bytes: Of these, in all; the newest measurement keeps its own in any case.

    Attributes:
        measurements: In order, without their pictures.
    """

    def __init__(self, heavy: Collection[str], most_bytes: int) -> None:
        self._of = frozenset(heavy)
        self._most_bytes = most_bytes
        self._heavy: deque[tuple[int, int]] = deque()  # places of measurements with matrices, and their bytes
        self.measurements: list[Measurement] = []

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement; the oldest ones give up their matrices where they are too many."""
        matrices = [*self._matrices(measurement).values(), *_traces(measurement)]
        size = sum(matrix.nbytes for matrix in matrices)
        self._heavy.append((len(self.measurements), size))
        self.measurements.append(replace(measurement, media=Media()))
        while len(self._heavy) > 1 and (len(self._heavy) > _MOST_KEPT or self._bytes() > self._most_bytes):
            place, _ = self._heavy.popleft()
            old = self.measurements[place]
            self.measurements[place] = _lightened(old, self._matrices(old).keys())

    def _bytes(self) -> int:
        return sum(size for _, size in self._heavy)

    def _matrices(self, measurement: Measurement) -> dict[tuple[str, str], torch.Tensor]:
        return {
            (key, name): value
            for key in self._of & measurement.results.keys()
            for name, value in measurement[key].items()
            if _is_matrix(value)
        }


def remembered(
    step: int,
    scalars: Mapping[str, float],
    error: str | None,
    refined: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Measurement:
    """A measurement of before a resume, of which a checkpoint holds the numbers alone.

    Args:
        step: Of its fork.
        scalars: Those of the main posterior.
        error: Why it failed, or None.
        refined: Those of the posteriors beside it, by their names, as in ``Measurement.refinements``.
        metrics: Those of the trainer.

    Example:
        >>> remembered(3, {"llc/mean": 1.0, "llc/std": 0.5}, None).results
        {'llc': {'mean': 1.0, 'std': 0.5}}
    """
    return Measurement(step, _by_observable(scalars), error, refinements=refined or {}, metrics=metrics or {})


def completed(
    measurement: Measurement, before: Sequence[Measurement], asked: Collection[str] | None = None
) -> Measurement:
    """What has failed, with NaN for every number that it lacks and that the last one like it gave.

    An observable that had nothing to look at cannot say what it would have told, and one that was never asked, because
    a worker was lost, still less: their curves would miss a step where others show a gap.

    Args:
        measurement: As it was made; one that has succeeded, and its refinements, are left as they are.
        before: Those before it, in order.
        asked: Keys of the observables: a run may have been resumed without one that it had. None for whatever it had.

    Example:
        >>> good = Measurement(1, {"llc": {"mean": 1.5}, "behavior": {"accuracy": 0.5}})
        >>> completed(Measurement(2, {"llc": {"mean": 0.0}}, error="lost"), [good]).results
        {'llc': {'mean': 0.0}, 'behavior': {'accuracy': nan}}
    """
    results, refinements = measurement.results, dict(measurement.refinements)
    last = next((one for one in reversed(before) if not one.failed), None) if measurement.failed else None
    if last is not None:
        like = _by_observable(last.main_scalars())
        known = like.keys() if asked is None else {*asked, "health"} & like.keys()
        results = _with_gaps(results, {key: numbers for key, numbers in like.items() if key in known})
    for name, record in measurement.refinements.items():
        if "error" in record:
            there = (one.refined_numbers()[name] for one in reversed(before) if _has_measured(one, name))
            refinements[name] = _with_gaps(record, next(there, {}))
    return replace(measurement, results=results, refinements=refinements)


def _has_measured(measurement: Measurement, name: str) -> bool:
    return name in measurement.refinements and not measurement.failed and "error" not in measurement.refinements[name]


def _with_gaps(results: Mapping[str, Any], like: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    gaps = {key: dict.fromkeys(numbers, math.nan) for key, numbers in like.items() if key != "cost"}
    return {**results, **{key: {**nothing, **results.get(key, {})} for key, nothing in gaps.items()}}


def _by_observable(scalars: Mapping[str, float]) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    for key, value in scalars.items():
        observable, _, name = key.partition("/")
        results.setdefault(observable, {})[name] = value
    return results


def _lightened(old: Measurement, gone: Collection[tuple[str, str]]) -> Measurement:
    results = {
        key: _Lightened(
            {name: value for name, value in result.items() if (key, name) not in gone},
            {name for owner, name in gone if owner == key},
        )
        for key, result in old.results.items()
    }
    refinements = {
        name: {key: _without_matrices(result) for key, result in record.items()}
        for name, record in old.refinements.items()
    }
    return replace(old, results=results, refinements=refinements)


def _traces(measurement: Measurement) -> list[torch.Tensor]:
    """The matrices of refinements, of which there may be a hundred: the losses of their draws."""
    results = [result for record in measurement.refinements.values() for result in record.values()]
    return [
        value for result in results if isinstance(result, Mapping) for value in result.values() if _is_matrix(value)
    ]


def _without_matrices(result: Any) -> Any:
    if not isinstance(result, Mapping):
        return result
    gone = {name for name, value in result.items() if _is_matrix(value)}
    return _Lightened({name: value for name, value in result.items() if name not in gone}, gone)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2


class _Lightened(dict[str, Any]):
    """A result without its matrices, which says where they are when it is asked for one."""

    def __init__(self, result: Mapping[str, Any], gone: set[str]) -> None:
        super().__init__(result)
        self._gone = gone

    def __missing__(self, name: str) -> Any:
        if name in self._gone:
            raise KeyError(
                f"{name!r} has left the history, which keeps the matrices of the last measurements alone: a MemorySink "
                "among the `sinks` keeps all of them."
            )
        raise KeyError(name)
