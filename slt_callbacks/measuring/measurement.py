"""What one measurement found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """What one measurement found.

    ``measurement["llc"]["mean"]`` reads the result ``mean`` of the observable with the key ``llc``; ``"health"`` and
    ``"cost"`` are always there.

    Attributes:
        step: Training step of the fork: optimizer steps done; 0 for a bare `estimate`.
        results: By observable, then by name: floats and ints, and tensors on the CPU.
        error: Why the measurement failed, or None.

    Example:
        >>> Measurement(step=3, results={"llc": {"mean": 1.5}})["llc"]["mean"]
        1.5
    """

    step: int
    results: Mapping[str, Mapping[str, Any]]
    error: str | None = None

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        """Results of one observable, or of "health" or "cost"."""
        if key not in self.results:
            raise KeyError(f"No observable {key!r} in this measurement; it has {sorted(self.results)}.")
        return self.results[key]

    @property
    def failed(self) -> bool:
        """Whether no chain survived, or the measurement raised."""
        return self.error is not None

    def scalars(self) -> dict[str, float]:
        """Every single number, keyed ``observable/name``."""
        return {
            f"{key}/{name}": value
            for key, result in self.results.items()
            for name, value in result.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
