"""Pictures of susceptibilities: which data each part works for, and how alike samples are to the parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from slt_callbacks.observables.media import Picture, Scatter
from slt_callbacks.observables.responses import components

_ENDS = ("part works for the data", "part works against the data")
_MOST_ROWS = 2000  # samples that a picture shows: there may be hundreds of thousands of tokens
# Of many entries, each with tails, the largest would leave the others white; of a few means none may be cut.
_SHARE_WITHIN = 0.98


def response_pictures(
    standardized: torch.Tensor,
    parts: Sequence[str],
    label_names: Sequence[str] = (),
    labels: torch.Tensor | None = None,
    means: torch.Tensor | None = None,
) -> dict[str, Picture | Scatter]:
    """What can be shown of a matrix of standardized susceptibilities.

    Args:
        standardized: ``(N, K)``; columns of NaN were not measured, and are grey.
        parts: Names of the K columns.
        label_names: Of the A classes.
        labels: Class numbers of the samples, ``(N,)``; None without classes.
        means: Over each class, ``(A, K)``; None without classes.

    In a map blue is where a part works for the data, red where against it.

    Returns:
        ``map``: labels by parts, or without labels samples by parts, these sorted by their first component;
        ``components``: the samples on the first two principal components, where there are two columns. Nothing where no
        column was measured.

    Example:
        >>> matrix = torch.tensor([[-1.5, 1.5], [1.5, -1.5]])
        >>> found = response_pictures(matrix, ["h0", "h1"], ["cat", "dog"], torch.tensor([0, 1]), matrix)
        >>> found["map"].row_names, found["map"].limit, found["components"].axis_labels[0]
        (['cat', 'dog'], 2.0, '1st component, 100 % of the variance')
    """
    if bool(standardized.isnan().any(0).all()) or not len(standardized):
        return {}
    coordinates, shares = components(standardized, 2)
    found: dict[str, Picture | Scatter] = {"map": _map(standardized, coordinates[:, 0], parts, label_names, means)}
    if bool(coordinates.isfinite().all()):  # one part spans no plane
        found["components"] = _scatter(coordinates, shares, label_names, labels)
    return found


def _map(
    standardized: torch.Tensor,
    first: torch.Tensor,
    parts: Sequence[str],
    label_names: Sequence[str],
    means: torch.Tensor | None,
) -> Picture:
    size = len(standardized)
    if means is not None:
        caption = f"which data each part works for: mean susceptibility by label, {size} samples{_missing(means)}"
        limit = _round_limit(_largest(means, 1.0))
        return Picture(means, caption, limit, list(label_names), list(parts), _ENDS)
    shown = first.argsort()[_few(size)]
    what = f"{_told(len(shown), size)}, sorted by the first component{_missing(standardized)}"
    caption = f"which data each part works for: {what}"
    limit = _round_limit(_largest(standardized, _SHARE_WITHIN))
    return Picture(standardized[shown], caption, limit, column_names=list(parts), ends=_ENDS)


def _scatter(
    coordinates: torch.Tensor, shares: Sequence[float], label_names: Sequence[str], labels: torch.Tensor | None
) -> Scatter:
    rows = _few(len(coordinates))
    first, second = (
        f"{place} component, {share:.0%} of the variance".replace("%", " %")
        for place, share in zip(("1st", "2nd"), shares, strict=True)
    )
    caption = f"{_told(len(rows), len(coordinates))}: close together lie those that the same parts work for"
    classes = None if labels is None else labels[rows]
    return Scatter(coordinates[rows], caption, (first, second), classes, list(label_names))


def _few(size: int) -> torch.Tensor:
    """Places of at most `_MOST_ROWS` samples, evenly spread."""
    return torch.arange(0, size, -(-size // _MOST_ROWS), device="cpu")


def _told(shown: int, size: int) -> str:
    return f"{size} samples" if shown == size else f"{shown} of {size} samples"


def _missing(values: torch.Tensor) -> str:
    return ", grey: not measured this time" if bool(values.isnan().any()) else ""


def _largest(values: torch.Tensor, share: float) -> float:
    """The size that this share of the known entries does not pass."""
    sizes = values[values.isfinite()].abs().double().sort().values
    return float(sizes[math.ceil(share * len(sizes)) - 1]) if len(sizes) else 0.0


def _round_limit(size: float) -> float:
    """The next of 1, 2, 5, 10, 20 ...: the colours of one measurement mostly mean what those of the last one did."""
    if not size > 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(size))
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= size * (1 - 1e-9))
