"""What moves chains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain


@dataclass(frozen=True)
class Point:
    """One chain at one SGLD step, before the update."""

    chain: int
    samples: torch.Tensor | None
    losses: torch.Tensor


class Engine(Protocol):
    """Moves chains. "sequential" takes them one by one; another may take a whole group in one program."""

    objective: Objective

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """Which chains go together through `advance`."""

    def advance(self, group: list[Chain], num_steps: int, keep: bool) -> Iterator[list[Point]]:
        """Take `num_steps` steps with a group, yielding its points before each; then keep the positions if asked."""

    def probe(self, objective: Objective) -> list[torch.Tensor]:
        """Losses ``(N,)`` of another set of samples where each chain of the group stands while `advance` yields."""
