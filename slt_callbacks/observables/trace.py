"""The one table that scalar observables need: a number a draw, by chain."""

from __future__ import annotations

import torch


class Trace:
    """Numbers of a measurement, ``(chain, draw)``, NaN where there is none.

    Writing is one small copy on the device of the numbers; nothing waits for the device before `values`.

    Args:
        num_chains: C.
        num_draws: T.

    Example:
        >>> trace = Trace(1, 2)
        >>> trace.put(0, 1, torch.tensor(3.0))
        >>> trace.values()
        tensor([[nan, 3.]], dtype=torch.float64)
    """

    def __init__(self, num_chains: int, num_draws: int) -> None:
        self._shape = num_chains, num_draws
        self._table: torch.Tensor | None = None

    def put(self, chain: int, index: int, value: torch.Tensor) -> None:
        """Write one number, shape ``()``."""
        if self._table is None:
            self._table = torch.full(self._shape, torch.nan, dtype=value.dtype, device=value.device)
        self._table[chain, index] = value

    def drop(self, chain: int) -> None:
        """Forget a chain."""
        if self._table is not None:
            self._table[chain] = torch.nan

    def values(self) -> torch.Tensor:
        """All numbers, float64 on the CPU, ``(C, T)``."""
        if self._table is None:
            return torch.full(self._shape, torch.nan, dtype=torch.float64, device="cpu")
        return self._table.cpu().double()
