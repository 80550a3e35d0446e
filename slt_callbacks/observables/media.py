"""What observables show beside numbers: pictures, matrices for a file, and small tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Picture:
    """A matrix to be shown.

    Attributes:
        matrix: ``(rows, columns)``, on the CPU, rows and columns already in their lasting order; NaN is shown grey.
        caption: What it shows.
        limit: The value of the darkest red, in the matrix's unit; the darkest blue is minus that.
        row_names: A name a row; none for a map without.
        column_names: A name a column; none for a map without.
        ends: In words, what the darkest blue and the darkest red mean.

    Raises:
        ValueError: If there are names, but not one a row or a column.

    Example:
        >>> Picture(torch.eye(2), "two heads", row_names=("cat", "dog")).is_named
        True
    """

    matrix: torch.Tensor
    caption: str
    limit: float = 1.0
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    ends: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for side, names in enumerate((self.row_names, self.column_names)):
            if names and len(names) != self.matrix.shape[side]:
                argument, what = (("row_names", "rows"), ("column_names", "columns"))[side]
                raise ValueError(
                    f"Expected `{argument}` to name each of the {self.matrix.shape[side]} {what}, but got {len(names)}."
                )

    @property
    def is_named(self) -> bool:
        """Whether rows or columns have names, which a map of pixels has no room for."""
        return bool(self.row_names or self.column_names)


@dataclass(frozen=True)
class Scatter:
    """Points in a plane to be shown.

    Attributes:
        points: ``(N, 2)``, on the CPU.
        caption: What it shows.
        axis_labels: Of the horizontal and of the vertical one.
        classes: Class numbers ``(N,)``, which choose the colours; None for one colour.
        class_names: A name a class.

    Raises:
        ValueError: If `points` are not two numbers each, or `classes` not one a point.

    Example:
        >>> Scatter(torch.zeros(3, 2), "three samples", ("first", "second")).classes is None
        True
    """

    points: torch.Tensor
    caption: str
    axis_labels: tuple[str, str]
    classes: torch.Tensor | None = None
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 2:
            raise ValueError(f"Expected `points` to have the shape (N, 2), but got {tuple(self.points.shape)}.")
        if self.classes is not None and len(self.classes) != len(self.points):
            raise ValueError(f"Expected `classes` of {len(self.points)} points, but got {len(self.classes)}.")


@dataclass(frozen=True)
class Track(Scatter):
    """Points that something moves through, one after the other.

    Attributes:
        steps: Training step of every point ``(N,)``, shown as colour.
        marks: Other points by name, such as where a known predictor stands.
        box: What the axes show: left, right, bottom, top; None for what the points need.

    Raises:
        ValueError: If `steps` are not one a point.

    Example:
        >>> Track(torch.zeros(2, 2), "two steps", ("1st", "2nd"), steps=torch.tensor([0, 5])).steps.tolist()
        [0, 5]
    """

    steps: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.steps) != len(self.points):
            raise ValueError(f"Expected `steps` of {len(self.points)} points, but got {len(self.steps)}.")


@dataclass(frozen=True)
class Curve(Scatter):
    """A number against another, from left to right.

    Attributes:
        level: Where the curve is looked at, a line across. The scale is linear below a tenth of it, else logarithmic.
        crossing: Where it is there, a mark; NaN where nowhere.

    Raises:
        ValueError: If `level` is not positive.

    Example:
        >>> Curve(torch.tensor([[1.0, 3.0], [2.0, 0.5]]), "a loss", ("bits", "loss"), level=1.0, crossing=1.8).crossing
        1.8
    """

    level: float = 1.0
    crossing: float = math.nan

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.level > 0:
            raise ValueError(f"Expected `level` to be positive, but got {self.level!r}.")


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

    pictures: Mapping[str, Picture | Scatter] = field(default_factory=dict)
    matrices: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    problem: str | None = None
