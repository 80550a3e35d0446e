"""What moves chains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.dynamics import Dynamics


@dataclass(frozen=True)
class Point:
    """One chain at one SGLD step, before the update."""

    chain: int
    samples: torch.Tensor | None
    losses: torch.Tensor


@dataclass(frozen=True)
class Halt:
    """A group of chains before an update; it holds until the engine goes on.

    Attributes:
        points: What each chain of the group has just seen.
        losses: Losses ``(N,)`` of another set of samples where each chain stands.
        positions: Weights ``(P,)`` of each chain, as copies. Whoever moves the fork puts it back.
    """

    points: list[Point]
    losses: Callable[[Objective], list[torch.Tensor]]
    positions: Callable[[], list[torch.Tensor]]


class Engine(Protocol):
    """Moves chains. "sequential" takes them one by one; another may take a whole group in one program.

    Attributes:
        objective: The losses.
        dynamics: How the chains move; at a halt another step size may take its place.
    """

    objective: Objective
    dynamics: Dynamics

    def groups(self, chains: Sequence[Chain]) -> list[list[Chain]]:
        """Which chains go together through `advance`."""

    def advance(self, group: list[Chain], steps: Iterable[object], keep: bool) -> Iterator[Halt]:
        """Take as many steps with a group as `steps` has, with a halt before each; then keep the positions if asked."""


def put_back(position: torch.Tensor, anchor: torch.Tensor, still: torch.Tensor) -> None:
    """Put weights ``(..., n)`` back to the anchor ``(n,)`` where they do not move, which bool ``(n,)`` `still` says."""
    torch.where(still, anchor, position, out=position)
