"""How to walk through one flat vector without a temporary of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# On a CPU a piece fits a core's cache, and PyTorch runs elementwise work of this size on the calling thread: no barrier
# to wait at while data loaders keep the other cores busy (measured: 100 times slower at 2**16 on a loaded machine).
_CPU_PIECE = 2**15


# On a GPU a launch costs microseconds, so pieces are a sixteenth of the vector, which bounds the temporaries, but never
# so small that launching takes longer than working.
_GPU_PIECES, _SMALLEST_GPU_PIECE = 16, 2**20


@dataclass(frozen=True)
class Piece:
    """A slice of the flat vector: some whole neighbouring parameters, or a part of one large parameter."""

    start: int
    stop: int
    members: tuple[int, ...]  # which parameters
    offset: int  # where the piece starts in its first member

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        """The piece of a flat tensor ``(..., P)``, as a view ``(..., n)``."""
        return flat[..., self.start : self.stop]

    def gather(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The piece of one flat vector a parameter: a view where it lies in one of them, else a copy."""
        if len(self.members) == 1:
            return vectors[self.members[0]][self.offset : self.offset + self.stop - self.start]
        return torch.cat([vectors[member] for member in self.members])


def pieces_of(sizes: list[int], device_type: str) -> list[Piece]:
    """Cut parameters of these sizes, one after the other, into pieces that suit the device."""
    limit = _CPU_PIECE if device_type == "cpu" else max(sum(sizes) // _GPU_PIECES, _SMALLEST_GPU_PIECE)
    pieces: list[Piece] = []
    members: list[int] = []
    start = position = 0

    def close() -> None:
        if members:
            pieces.append(Piece(start, position, tuple(members), 0))
            members.clear()

    for number, size in enumerate(sizes):
        if position + size - start > limit:
            close()
            start = position
        if size > limit:
            for offset in range(0, size, limit):
                stop = position + min(offset + limit, size)
                pieces.append(Piece(position + offset, stop, (number,), offset))
            position += size
            start = position
        else:
            members.append(number)
            position += size
    close()
    return pieces
