"""What observables show beside numbers: pictures, matrices for a file, and small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Media:
    """What a measurement shows, by keys such as ``kernel/map``: the observable's own, a slash, and a name.

    Attributes:
        pictures: To be shown.
        matrices: Tensors that belong into a file.
        tables: One row of builtins each.
        problem: Why there is nothing, where an observable raised over it.

    Example:
        >>> Media(tables={"own/top": [{"sample": 1}]}).pictures
        {}
    """

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    matrices: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    problem: str | None = None
