"""Where a path of many dimensions goes: principal components of its rows, and what a random walk would show there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

_ROUNDING = 1e-12  # of the largest eigenvalue: below it there is no direction, only the arithmetic
_AT_ONCE = 2**20  # values in double precision: 8 MiB


@dataclass(frozen=True)
class Components:
    """Principal components of T rows, from their inner products alone.

    Attributes:
        coordinates: Of every row, ``(T, K)`` float64, in the unit of the rows; 0 beyond the rank.
        explained: Share of the variance of each component, ``(K,)`` float64; NaN where there is no variance.
        weights: What makes coordinates of inner products with the centred rows, ``(T, K)``.
    """

    coordinates: torch.Tensor
    explained: torch.Tensor
    weights: torch.Tensor

    def project(self, products: torch.Tensor) -> torch.Tensor:
        """Coordinates of other vectors, ``(R, K)``: they are projected onto the components, and never fitted.

        Args:
            products: Inner products of each with every row, both about the mean of the rows, ``(R, T)``.
        """
        return products @ self.weights

    def flipped(self, signs: torch.Tensor) -> Components:
        """The same with some axes turned round: `signs` are 1 or -1, ``(K,)``."""
        return Components(self.coordinates * signs, self.explained, self.weights * signs)


def components_of(gram: torch.Tensor, num_components: int) -> Components:
    r"""Principal components of rows whose inner products are known.

    .. math:: C G C = U S^2 U', \quad \mathrm{coordinates} = U S, \quad C = 1 - \tfrac1T

    The ``(T, D)`` rows of a network's outputs have far more columns than rows, so that the T x T matrix is all that
    has to be decomposed.

    Args:
        gram: Inner products G of the rows about any common origin, ``(T, T)`` float64.
        num_components: How many to give, K; those beyond the rank are 0.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]]).double()
        >>> found = components_of(rows @ rows.mT, 2)
        >>> found.explained.tolist()
        [0.5, 0.5]
        >>> found.coordinates.square().sum(1).tolist()  # squared distances to the mean, (1, 0)
        [1.0, 1.0, 1.0, 1.0]
    """
    centred = _centred(gram.double())
    values, vectors = torch.linalg.eigh(centred)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    missing = max(num_components - len(values), 0)
    top = torch.nn.functional.pad(values[:num_components], (0, missing))
    top = torch.where(top > _ROUNDING * top[0], top, 0.0)
    axes = torch.nn.functional.pad(vectors[:, :num_components], (0, missing))
    size = top.sqrt()
    weights = axes * torch.where(size > 0, 1 / size, 0.0)
    return Components(axes * size, top / centred.trace(), weights)


def random_walk_shares(steps: torch.Tensor, num_components: int) -> torch.Tensor:
    r"""Shares of the variance that principal components of a random walk have, in very many dimensions.

    Its rows have the inner products :math:`\min(t_i, t_j)`, up to a factor; the shares are the eigenvalues of that
    matrix, centred. Of evenly spaced steps the k-th is close to :math:`6 / (\pi k)^2`: .608, .152, .068. So a first
    component of 60 %, and a parabola in the plane of the first two, are no evidence of a direction.

    Args:
        steps: At which the walk is looked at, ``(T,)``.
        num_components: How many shares to give, K; those beyond the rank are 0, and NaN for a single step.

    Source: Antognini and Sohl-Dickstein (arXiv 1806.08805).

    Example:
        >>> [round(share, 3) for share in random_walk_shares(torch.arange(200), 3).tolist()]
        [0.608, 0.152, 0.068]
    """
    time = steps.double()
    return components_of(torch.minimum(time[:, None], time), num_components).explained


def agreeing_signs(coordinates: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Signs of the axes, ``(K,)``, with which coordinates are like those of the same rows before.

    Args:
        coordinates: ``(T, K)``.
        before: Of the first n of the same rows, in as many components as were told then, ``(n, any)``. Where they do
            not tell, the last row is put on the positive side of the first.

    Example:
        >>> agreeing_signs(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.tensor([[-1.0, 0.0]])).tolist()
        [-1.0, 1.0]
    """
    both = min(coordinates.shape[1], before.shape[1])
    told = coordinates[-1] - coordinates[0]
    likeness = (coordinates[: len(before), :both] * before[:, :both]).sum(0)
    told[:both] = torch.where(likeness != 0, likeness, told[:both])
    return torch.where(told < 0, -1.0, 1.0).to(coordinates)


def turn_onto(points: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    r"""The rotation or reflection R that brings points closest to where they were before (orthogonal Procrustes).

    .. math:: \min_R \| (P - \bar P) R - (B - \bar B) \|, \quad R = U V' \text{ of the SVD of } P'B \text{ centred}

    Args:
        points: ``(n, K)``.
        before: Where they were, ``(n, K)``.

    Returns:
        ``(K, K)``, orthogonal; in directions that the points do not tell, the identity if it can be.

    Source: Schönemann 1966 (Psychometrika 31, 1).

    Example:
        >>> square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0]]).double()
        >>> quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
        >>> torch.allclose(turn_onto(square @ quarter, square), quarter.mT)
        True
    """
    product = (points - points.mean(0)).mT @ (before - before.mean(0))
    size = torch.linalg.matrix_norm(product, 2)
    undecided = torch.where(size > 0, _ROUNDING * size, 1.0).expand(len(product)).diag()
    left, _, right = torch.linalg.svd(product + undecided)
    turn: torch.Tensor = left @ right
    return turn


@dataclass(frozen=True)
class JointTrajectory:
    """Several runs in one set of components.

    Attributes:
        coordinates: By run, ``(T_run, K)`` float64.
        explained: Share of the variance over all rows of each component, ``(K,)``.
        references: Coordinates of each reference predictor, ``(K,)``, by name.
    """

    coordinates: dict[str, torch.Tensor]
    explained: torch.Tensor
    references: dict[str, torch.Tensor]


def joint_trajectory(
    trajectories: Mapping[str, Any], references: Mapping[str, Any] | None = None, num_components: int = 3
) -> JointTrajectory:
    """Principal components of the outputs of several runs on the same probes: all rows are stacked, and fitted once.

    Args:
        trajectories: By run, its rows ``(T_run, D)``: `TrajectoryPCA.rows` of the observable itself, or what a
            `FileSink` has written, ``np.load("matrices-00001500.npz")["trajectory/rows"]``. Runs may differ in length.
        references: Outputs of reference predictors on the same probes, of any shape of D numbers, by name: projected
            onto the components of the runs, and never fitted.
        num_components: How many, K.

    Raises:
        TypeError: If `trajectories` is no mapping.
        ValueError: If there is none, one is not finite or has other columns than the first, or a reference other
            numbers.

    Source: Carroll et al. (arXiv 2501.17745), joint trajectory PCA.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0], [4.0, 0.0]]), torch.tensor([[0.0, 1.0], [4.0, 1.0]])
        >>> joint = joint_trajectory({"a": one, "b": other}, {"between": [2.0, 0.5]}, num_components=2)
        >>> (joint.coordinates["a"] - joint.coordinates["b"]).abs().round(decimals=9).tolist()  # they run side by side
        [[0.0, 1.0], [0.0, 1.0]]
        >>> joint.references["between"].tolist()
        [0.0, 0.0]
    """
    rows = _stackable(trajectories)
    others = {name: _tensor(value).flatten() for name, value in (references or {}).items()}
    columns = next(iter(rows.values())).shape[1]
    for name, other in others.items():
        if len(other) != columns:
            raise ValueError(
                f"Expected `references[{name!r}]` to have {columns} numbers as the rows have, but got {len(other)}."
            )
    stacked = torch.cat(list(rows.values()))
    projected = torch.stack(list(others.values())) if others else stacked[:0]
    gram, products = _products(stacked, projected)
    found = components_of(gram, num_components)
    found = found.flipped(agreeing_signs(found.coordinates, found.coordinates[:0]))
    parts = torch.split(found.coordinates, [len(own) for own in rows.values()])
    return JointTrajectory(
        coordinates=dict(zip(rows, parts, strict=True)),
        explained=found.explained,
        references=dict(zip(others, found.project(products), strict=True)),
    )


def about_mean(products: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Inner products of vectors with rows about the mean of the rows, ``(R, T)``, from those about another origin.

    Args:
        products: ``(R, T)``.
        gram: Of the rows, ``(T, T)``, about the same origin.
    """
    return products - products.mean(1, keepdim=True) - gram.mean(0) + gram.mean()


def _centred(gram: torch.Tensor) -> torch.Tensor:
    centred = about_mean(gram, gram)
    return (centred + centred.mT) / 2


def _products(rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of the rows, and of others with them, about the mean of the rows, some columns at a time."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device="cpu")
    products = torch.zeros(len(others), len(rows), dtype=torch.float64, device="cpu")
    width = max(_AT_ONCE // len(rows), 1)
    for part, other in zip(torch.split(rows, width, 1), torch.split(others, width, 1), strict=True):
        mean = part.double().mean(0)
        centred = part.double() - mean
        gram += centred @ centred.mT
        products += (other.double() - mean) @ centred.mT
    return gram, products


def _stackable(trajectories: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    if not isinstance(trajectories, Mapping):
        raise TypeError(
            f'Expected `trajectories` to be a mapping such as {{"a": rows}}, but got a {type(trajectories).__name__}.'
        )
    rows = {name: _tensor(value) for name, value in trajectories.items()}
    if not rows:
        raise ValueError("Expected `trajectories` to hold the rows of at least one run.")
    for name, own in rows.items():
        if own.ndim != 2 or not own.numel():
            raise ValueError(
                f"Expected `trajectories[{name!r}]` to have the shape (measurements, output values), but got "
                f"{tuple(own.shape)}."
            )
        if not bool(own.isfinite().all()):
            raise ValueError(f"Expected `trajectories[{name!r}]` to be finite, but some of it is not.")
    first, *others = rows
    for name in others:
        if rows[name].shape[1] != rows[first].shape[1]:
            raise ValueError(
                f"Expected all runs to be of the same probes, but `trajectories[{name!r}]` has {rows[name].shape[1]} "
                f"output values and {first!r} {rows[first].shape[1]}."
            )
    return rows


def _tensor(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, device="cpu").detach()
