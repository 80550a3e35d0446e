"""Labels of samples, and the order in which a matrix of samples is shown."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from slt_callbacks.basics.keys import as_part


class Labels:
    """One class a sample of a whole data set; the drawn samples pick theirs.

    Args:
        values: Integers or strings, ``(size,)``: a list, also of NumPy's, a tensor or an array.
        name: What to call them in messages.

    Attributes:
        names: The classes, sorted, as they appear in logged keys.

    Raises:
        TypeError: If `values` is not one-dimensional or holds anything but integers and strings.
        ValueError: If two classes would be logged under one name, such as 1 and "1".

    Example:
        >>> labels = Labels(["cat", "dog", "cat"], "labels")
        >>> labels.names, labels.of(torch.tensor([1, 2])).tolist()
        (['cat', 'dog'], [1, 0])
    """

    def __init__(self, values: Any, name: str) -> None:
        items = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(items, (list, tuple)):
            items = [item.tolist() if hasattr(item, "tolist") else item for item in items]
        if not isinstance(items, Sequence) or isinstance(items, str) or not all(map(_is_label, items)):
            raise TypeError(
                f"Expected `{name}` to hold one integer or string a sample, but got {type(values).__name__} of "
                f"{_first_unfit(items)}: give a list or a one-dimensional tensor of class numbers."
            )
        classes = sorted(set(items), key=lambda item: (isinstance(item, str), item))
        code = {item: number for number, item in enumerate(classes)}
        self.names = [as_part(str(item)) for item in classes]
        _refuse_twins(classes, self.names, name)
        self._name = name
        self._codes = torch.tensor([code[item] for item in items], dtype=torch.int64, device="cpu")

    def of(self, indices: torch.Tensor) -> torch.Tensor:
        """Class numbers, int64 ``(N,)``, of the samples in the rows `indices` of the data set."""
        return self._codes[indices]

    def paired_with(self, columns: Sequence[str]) -> list[str]:
        """As `pair_names`, of its classes and others."""
        return pair_names(self.names, columns)

    def check(self, size: int | None, indices: torch.Tensor, samples: str) -> None:
        """Refuse labels that cannot belong to a data set.

        Args:
            size: Samples in the whole data set, if it is known.
            indices: Rows of the drawn samples.
            samples: The argument that holds the data set, for the message.

        Raises:
            ValueError: If there is not one label a sample of the whole data set.
        """
        needed = int(indices.max()) + 1 if size is None else size
        if len(self._codes) < needed or (size is not None and len(self._codes) != size):
            raise ValueError(
                f"Expected `{self._name}` to hold one label for each of the {needed} samples of the whole `{samples}` "
                f"data, in its order, but got {len(self._codes)}: give the labels of all of them; the drawn samples "
                "pick their own."
            )


MOST_PAIRS = 100
"""Pairs that are logged one by one: ten classes against ten."""


def pair_names(rows: Sequence[str], columns: Sequence[str]) -> list[str]:
    """What each pair is logged as, ``<row>_to_<column>``, row by row; nothing where they are more than `MOST_PAIRS`.

    Raises:
        ValueError: If two pairs would be logged under one name.

    Example:
        >>> pair_names(["cat", "dog"], ["all"])
        ['cat_to_all', 'dog_to_all']
    """
    if len(rows) * len(columns) > MOST_PAIRS:
        return []
    pairs: dict[str, tuple[str, str]] = {}
    for pair in itertools.product(rows, columns):
        name = "_to_".join(pair)
        other = pairs.setdefault(name, pair)
        if other is not pair:
            raise ValueError(
                "Expected every pair of classes, or of a class and a part, to have a name of its own in logged keys, "
                f"but {other[0]!r} with {other[1]!r} and {pair[0]!r} with {pair[1]!r} are both {name!r} there: rename "
                "one of the four."
            )
    return list(pairs)


def given_order(order: Sequence[int] | torch.Tensor | None) -> torch.Tensor | None:
    """A user's order as int64, or None."""
    return None if order is None else torch.as_tensor(order, dtype=torch.int64, device="cpu")


def check_order(order: torch.Tensor | None, size: int, name: str = "order", what: str = "rows") -> None:
    """Refuse an order that is no permutation of `size` rows or columns.

    Raises:
        ValueError: If so.
    """
    if order is not None and sorted(order.tolist()) != list(range(size)):
        raise ValueError(
            f"Expected `{name}` to name each of the {size} {what} once, from 0 to {size - 1}, but got "
            f"{len(order)} entries: leave it out to sort by label and likeness."
        )


def display_order(rows: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """An order that puts like next to like: by label first, then as the leaves of a hierarchical clustering.

    Args:
        rows: One vector a sample, ``(N, F)``, on the CPU; rows are compared by their Euclidean distance.
        labels: Class numbers ``(N,)``; None for one class.

    Returns:
        A permutation of the samples, int64 ``(N,)``.

    Example:
        >>> rows = torch.tensor([[0.0], [5.0], [0.1], [5.1]])
        >>> display_order(rows).tolist(), display_order(rows, torch.tensor([1, 0, 0, 1])).tolist()
        ([1, 3, 0, 2], [1, 2, 0, 3])
    """
    classes = torch.zeros(len(rows), dtype=torch.int64, device="cpu") if labels is None else labels
    parts = [(classes == number).nonzero().flatten() for number in sorted(set(classes.tolist()))]
    return torch.cat([part[_leaves(rows[part])] for part in parts])


def _leaves(rows: torch.Tensor) -> torch.Tensor:
    from scipy.cluster.hierarchy import leaves_list, linkage  # half a second to import, and only pictures need it

    if len(rows) < 2:
        return torch.arange(len(rows), device="cpu")
    return torch.as_tensor(leaves_list(linkage(rows.double().numpy(), method="average")).astype("int64"), device="cpu")


def _refuse_twins(classes: Sequence[int | str], names: Sequence[str], argument: str) -> None:
    first: dict[str, int | str] = {}
    for item, name in zip(classes, names, strict=True):
        twin = first.setdefault(name, item)
        if twin != item:
            raise ValueError(
                f"Expected the classes of `{argument}` to have names of their own in logged keys, but got {twin!r} and "
                f"{item!r}, both {name!r} there: rename one of them."
            )


def _is_label(item: Any) -> bool:
    return isinstance(item, (int, str)) and not isinstance(item, bool)


def _first_unfit(items: Any) -> str:
    if not isinstance(items, Sequence) or isinstance(items, str):
        return type(items).__name__
    return next((type(item).__name__ for item in items if not _is_label(item)), "nothing")
