"""Samples and queries by their labels: which class stands for what, and means over two classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from slt_callbacks.observables.labels import Labels, pair_names


@dataclass(frozen=True)
class Groups:
    """The classes of N reference samples and of Q queries; a side without labels is one class.

    Attributes:
        labelled: Whether a side has labels.
        rows: Class numbers of the samples, int64 ``(N,)``.
        row_names: Names of their A classes.
        columns: Class numbers of the queries, int64 ``(Q,)``.
        column_names: Names of their B classes.
    """

    labelled: bool
    rows: torch.Tensor
    row_names: list[str]
    columns: torch.Tensor
    column_names: list[str]

    def means(self, matrix: torch.Tensor) -> torch.Tensor:
        """Means ``(A, B)`` of a matrix ``(N, Q)`` over two classes; NaN for a class with no sample.

        Example:
            >>> groups = groups_of(Labels([1, 2, 1], "labels"), torch.arange(3), None, torch.arange(1))
            >>> groups.means(torch.tensor([[0.5], [0.25], [0.75]])).tolist()
            [[0.625], [0.25]]
        """
        left = torch.nn.functional.one_hot(self.rows, len(self.row_names)).to(matrix)
        right = torch.nn.functional.one_hot(self.columns, len(self.column_names)).to(matrix)
        return left.mT @ matrix @ right / (left.sum(0)[:, None] * right.sum(0)[None, :])

    def scalars(self, means: torch.Tensor) -> dict[str, float]:
        """Means ``(A, B)`` as numbers ``group/<a>_to_<b>``; none where there are more than 100."""
        names = pair_names(self.row_names, self.column_names)
        return {f"group/{name}": value for name, value in zip(names, means.flatten().tolist(), strict=False)}


def groups_of(
    labels: Labels | None, indices: torch.Tensor, query_labels: Labels | None, query_indices: torch.Tensor
) -> Groups:
    """The groups of the samples in the rows `indices` ``(N,)`` of their data, and of the queries in theirs ``(Q,)``.

    Example:
        >>> groups = groups_of(Labels(["b", "a"], "labels"), torch.tensor([0]), None, torch.arange(2))
        >>> groups.rows.tolist(), groups.row_names, groups.columns.tolist(), groups.column_names
        ([1], ['a', 'b'], [0, 0], ['all'])
    """
    rows, columns = _classes(labels, indices), _classes(query_labels, query_indices)
    return Groups(bool(labels or query_labels), rows, _names(labels), columns, _names(query_labels))


def check_names(labels: Labels | None, query_labels: Labels | None) -> None:
    """Refuse classes whose means would be logged under one name.

    Raises:
        ValueError: As `pair_names`.

    Example:
        >>> check_names(Labels(["a", "a_to_b"], "labels"), None)
    """
    pair_names(_names(labels), _names(query_labels))


def _names(labels: Labels | None) -> list[str]:
    return ["all"] if labels is None else labels.names


def _classes(labels: Labels | None, indices: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(indices) if labels is None else labels.of(indices)
