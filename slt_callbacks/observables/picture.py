"""A matrix to be shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Picture:
    """A matrix to be shown.

    Attributes:
        matrix: ``(rows, columns)`` within [-1, 1], on the CPU, rows and columns already in their lasting order.
        caption: What it shows.
    """

    matrix: torch.Tensor
    caption: str
