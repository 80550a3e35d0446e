"""The outputs of a run, one row a measurement: as many as memory has been promised for, and their inner products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

MOST_VALUES = 2**17
"""Output values of a measurement: 512 KiB in single precision."""
MOST_ROWS = 512
"""Measurements that are kept: with the most values each, 256 MiB."""

_AT_ONCE = 2**20  # values in double precision: 8 MiB


class Path:
    """Rows in the order of their steps; of `MOST_ROWS` every second one between the first and the last goes.

    Inner products are about the first row, which always stays: rows of one run are close to one another and may be far
    from 0, where single precision would leave little of their differences.

    Attributes:
        steps: Training steps of the rows, int64 ``(T,)``.
        gram: Inner products, float64 ``(T, T)``.

    Example:
        >>> path = Path()
        >>> for step, row in enumerate([[1.0, 1.0], [4.0, 5.0]]):
        ...     path.add(step, torch.tensor(row))
        >>> path.gram.tolist(), path.rows.shape
        ([[0.0, 0.0], [0.0, 25.0]], torch.Size([2, 2]))
    """

    def __init__(self) -> None:
        self.steps = torch.empty(0, dtype=torch.int64, device="cpu")
        self.gram = torch.empty(0, 0, dtype=torch.float64, device="cpu")
        self._room = torch.empty(0, 0, device="cpu")  # the rows, and room for more: a view of it may be given away

    def __len__(self) -> int:
        """Number of rows T."""
        return len(self.steps)

    @property
    def rows(self) -> torch.Tensor:
        """All rows, float32 ``(T, D)``; a view that no later row changes."""
        return self._room[: len(self)]

    def add(self, step: int, row: torch.Tensor) -> None:
        """Append a row, float32 ``(D,)``, of a later step than all."""
        if len(self) >= MOST_ROWS:
            self._keep(torch.tensor([0, *range(1, len(self), 2)], device="cpu"))
        size = len(self)
        if size == len(self._room):
            room = torch.empty(min(max(2 * size, 8), MOST_ROWS), len(row), device="cpu")
            room[:size] = self.rows if size else room[:0]
            self._room = room
        self._room[size] = row
        self.steps = torch.cat([self.steps, torch.tensor([step], device="cpu")])
        products = self.products(row[None])[0]
        grown = torch.zeros(size + 1, size + 1, dtype=torch.float64, device="cpu")
        grown[:size, :size], grown[size], grown[:, size] = self.gram, products, products
        self.gram = grown

    def products(self, vectors: torch.Tensor) -> torch.Tensor:
        """Inner products of vectors ``(R, D)`` with every row, about the first row, float64 ``(R, T)``."""
        origin = self._room[0].double()
        others = (vectors.double() - origin).mT
        some = torch.split(self.rows, max(_AT_ONCE // len(origin), 1))
        return torch.cat([(part.double() - origin) @ others for part in some]).mT

    def forget_from(self, step: int) -> None:
        """Leave out the rows of this step and of later ones."""
        kept = (self.steps < step).nonzero().flatten()
        if len(kept) < len(self):
            self._keep(kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """For a checkpoint: 4 T D bytes, and what is small beside it."""
        return {"rows": self.rows.clone(), "steps": self.steps, "gram": self.gram}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._room, self.steps, self.gram = (state[name].cpu() for name in ("rows", "steps", "gram"))

    def _keep(self, places: torch.Tensor) -> None:
        """In new memory, for views of the old may still be looked at."""
        self._room, self.steps = self.rows[places], self.steps[places]
        self.gram = self.gram[places][:, places]
