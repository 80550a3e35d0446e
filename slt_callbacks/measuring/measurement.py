"""What one measurement found: all of it, so that whoever gets the record needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slt_callbacks.basics import keys
from slt_callbacks.observables.media import Media, Picture, Scatter

Results = Mapping[str, Mapping[str, Any]]
"""By observable, then by name."""

TOLD = ("rhat", "failed_chains", "step_size")
"""What is logged of a refinement's health; all of it is in the record."""


@dataclass(frozen=True)
class Measurement:
    """What one measurement found.

    ``measurement["llc"]["mean"]`` reads the result ``mean`` of the observable with the key ``llc``; ``"health"`` and
    ``"cost"`` are always there. ``measurement.refinements["head"]["llc"]["mean"]`` reads the same of a posterior beside
    the main one.

    Attributes:
        step: Training step of the fork: optimizer steps done; 0 for a bare `estimate`.
        results: By observable, then by name: floats and ints, and tensors on the CPU.
        error: Why the measurement failed, or None.
        media: Pictures, matrices and tables that the observables made of it.
        refinements: By name, of the posteriors beside the main one that were measured this time: results by observable,
            ``"health"``, ``"cost"``, ``"num_parameters"``, and ``"error"`` where one has failed.
        metrics: What the trainer's callbacks saw at the fork of the metrics that are to be compared with all this, by
            their names; NaN where one was not there. They are logged already, by whoever logs them.

    Example:
        >>> Measurement(step=3, results={"llc": {"mean": 1.5}})["llc"]["mean"]
        1.5
    """

    step: int
    results: Results
    error: str | None = None
    media: Media = field(default_factory=Media)
    refinements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        """Results of one observable, or of "health" or "cost"."""
        if key not in self.results:
            raise KeyError(f"No observable {key!r} in this measurement; it has {sorted(self.results)}.")
        return self.results[key]

    @property
    def failed(self) -> bool:
        """Whether no chain survived, or the measurement raised."""
        return self.error is not None

    @property
    def pictures(self) -> Mapping[str, Picture | Scatter]:
        """What observables show, by a key such as ``kernel/map``."""
        return self.media.pictures

    @property
    def matrices(self) -> Mapping[str, torch.Tensor]:
        """What belongs into a file, by a key such as ``kernel/correlation``; tensors."""
        return self.media.matrices

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Small tables, by a key such as ``influence/events``: one row of builtins each."""
        return self.media.tables

    def of(self, observable: str, name: str) -> tuple[Mapping[str, Any], str]:
        """The result that a number of a logged key belongs to, and its name there; an empty one where it is of nothing.

        Example:
            >>> refined = {"head": {"llc": {"mean": 0.5}}}
            >>> Measurement(3, {"llc": {"mean": 1.5}}, refinements=refined).of("llc", "head/mean")
            ({'mean': 0.5}, 'mean')
        """
        result = self.results.get(observable, {})
        part, _, number = name.partition("/")
        if name in result or part not in self.refinements:
            return result, name
        return self.refinements[part].get(observable, {}), number

    def failed_refinements(self) -> list[tuple[str, str]]:
        """Names of the refinements that have failed where the main posterior has not, and why."""
        records = {} if self.failed else self.refinements
        return [(name, record["error"]) for name, record in records.items() if "error" in record]

    def scalars(self) -> dict[str, float]:
        """Every single number, keyed ``observable/name``; of a refinement ``observable/refinement/name``."""
        refined = {
            f"{observable}/{part}/{name}": value
            for part, results in self.refined_numbers().items()
            for observable, result in results.items()
            for name, value in result.items()
        }
        return self.main_scalars() | refined

    def main_scalars(self) -> dict[str, float]:
        """Those of the main posterior, keyed ``observable/name``."""
        return {
            f"{key}/{name}": value for key, result in _numbers(self.results).items() for name, value in result.items()
        }

    def refined_numbers(self) -> dict[str, dict[str, dict[str, float]]]:
        """Those of each refinement, by observable: what has been found, and of the health what tells most."""
        found = {}
        for part, record in self.refinements.items():
            results = {key: result for key, result in record.items() if isinstance(result, Mapping) and key != "cost"}
            health = results.get("health", {})
            found[part] = _numbers(results | {"health": {name: health[name] for name in TOLD if name in health}})
        return found

    def logged(self) -> dict[str, float]:
        """The same under their logged keys, with the training step.

        Example:
            >>> Measurement(step=3, results={"llc": {"mean": 1.5}}).logged()
            {'slt/step': 3, 'slt/llc/mean': 1.5}
        """
        return {keys.STEP: self.step} | {keys.key_of(key): value for key, value in self.scalars().items()}


def _numbers(results: Results) -> dict[str, dict[str, float]]:
    return {
        key: {name: value for name, value in result.items() if _is_number(value)} for key, result in results.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
