"""What one measurement found: all of it, so that whoever gets the record needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from slt_callbacks.basics import keys
from slt_callbacks.observables.media import Media, Picture

Results = Mapping[str, Mapping[str, Any]]
"""By observable, then by name."""


@dataclass(frozen=True)
class Measurement:
    """What one measurement found.

    ``measurement["llc"]["mean"]`` reads the result ``mean`` of the observable with the key ``llc``; ``"health"`` and
    ``"cost"`` are always there.

    Attributes:
        step: Training step of the fork: optimizer steps done; 0 for a bare `estimate`.
        results: By observable, then by name: floats and ints, and tensors on the CPU.
        error: Why the measurement failed, or None.
        media: Pictures, matrices and tables that the observables made of it.

    Example:
        >>> Measurement(step=3, results={"llc": {"mean": 1.5}})["llc"]["mean"]
        1.5
    """

    step: int
    results: Results
    error: str | None = None
    media: Media = field(default_factory=Media)

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
    def pictures(self) -> Mapping[str, Picture]:
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

    def scalars(self) -> dict[str, float]:
        """Every single number, keyed ``observable/name``."""
        return {
            f"{key}/{name}": value
            for key, result in self.results.items()
            for name, value in result.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }

    def logged(self) -> dict[str, float]:
        """The same under their logged keys, with the training step.

        Example:
            >>> Measurement(step=3, results={"llc": {"mean": 1.5}}).logged()
            {'slt/step': 3, 'slt/llc/mean': 1.5}
        """
        return {keys.STEP: self.step} | {keys.key_of(key): value for key, value in self.scalars().items()}
