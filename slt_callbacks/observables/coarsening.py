"""Coarser weights, of a number from the coarsest on, and the search for the coarsest that will do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


def quantized(tensor: torch.Tensor, levels: int, width: float = 1.0) -> torch.Tensor:
    """The nearest points of a symmetric uniform grid.

    The grid has `levels` points from ``-m`` to ``m``, with ``m = width * max|tensor|``, 0 among them; what lies beyond
    goes to its ends.

    Args:
        tensor: Of any shape and floating-point type.
        levels: n, odd; 1 leaves 0 alone.
        width: c, the range of the grid as a share of the largest entry.

    Example:
        >>> quantized(torch.tensor([-1.0, -0.3, 0.2, 0.8]), levels=5)
        tensor([-1.0000, -0.5000,  0.0000,  1.0000])
    """
    half = (levels - 1) // 2
    if half == 0 or tensor.numel() == 0:
        return torch.zeros_like(tensor)
    step = (width * tensor.abs().max() / half).clamp_min(torch.finfo(tensor.dtype).tiny)
    return (tensor / step).round_().clamp_(-half, half).mul_(step)


class Truncation:
    """The largest singular values of several matrices, of each the same share.

    Args:
        matrices: Of two dimensions or more, the first against all others; none of them empty.

    Attributes:
        full: The largest number of singular values that one has; 0 without a matrix.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
        >>> truncation = Truncation([matrix])
        >>> truncation.full, truncation.kept(0, matrix, 1).diagonal().tolist()
        (3, [0.0, 3.0, 0.0])
    """

    def __init__(self, matrices: Sequence[torch.Tensor]) -> None:
        self._bases = [_basis(matrix) for matrix in matrices]
        self.full = max(map(len, self._bases), default=0)

    def kept(self, place: int, matrix: torch.Tensor, number: int) -> torch.Tensor:
        """One of the matrices with ``number / full`` of its r singular values, times r rounded up.

        Args:
            place: Which one, among those given.
            matrix: The same once more, for no copy of it is kept.
            number: From 0 to `full`.
        """
        basis, flat = self._bases[place], matrix.flatten(1)
        leading = basis[:, : math.ceil(number * len(basis) / self.full)]
        left = len(flat) == len(basis)
        projected: torch.Tensor = leading @ (leading.mT @ flat) if left else (flat @ leading) @ leading.mT
        return projected.reshape(matrix.shape)


def _basis(tensor: torch.Tensor) -> torch.Tensor:
    """Singular vectors of the shorter side ``(r, r)``, the largest first."""
    flat = tensor.detach().flatten(1)
    wide = flat.cpu() if flat.device.type == "mps" else flat  # which knows no double precision
    short = wide.double() if len(flat) <= flat[0].numel() else wide.double().mT
    vectors: torch.Tensor = torch.linalg.eigh(short @ short.mT).eigenvectors.flip(1)
    return vectors.to(tensor)


@dataclass
class Search:
    """Looks for the coarsest weights whose loss has risen by no more than the tolerance.

    Attributes:
        ask: The rise of the loss at a number, 0 for the coarsest weights, and a width of the grid.
        position: Of a number, on the scale on which its critical value is told; rises with the number.
        tolerance: The rise that is allowed.
        rises: What has been asked, by number and width.

    Example:
        The rise ``1 / number`` crosses .1 at 10; seven passes tell 10 from 11:

        >>> search = Search(lambda number, width: 1 / (number + 1e-9), position=float, tolerance=0.1)
        >>> search.narrow(0, 64, lambda low, high: (low + high) // 2, passes=6)
        (9, 10)
        >>> round(search.crossing(9, 10), 3), len(search.rises)
        (10.0, 6)
    """

    ask: Callable[[int, float], float]
    position: Callable[[int], float]
    tolerance: float
    rises: dict[tuple[int, float], float] = field(default_factory=dict)

    def rise(self, number: int, width: float = 1.0) -> float:
        """The rise of the loss, asked once."""
        if (number, width) not in self.rises:
            self.rises[number, width] = self.ask(number, width)
        return self.rises[number, width]

    def within(self, number: int, width: float = 1.0) -> bool:
        """Whether it is allowed; a loss that is not finite is not."""
        return self.rise(number, width) <= self.tolerance

    def narrow(
        self, low: int, high: int, middle: Callable[[int, int], int], passes: int, width: float = 1.0
    ) -> tuple[int, int]:
        """Halve a range, `low` too coarse and `high` not, until they are neighbours or no pass is left."""
        while passes > 0 and high - low > 1:
            number = min(max(middle(low, high), low + 1), high - 1)
            low, high = (low, number) if self.within(number, width) else (number, high)
            passes -= 1
        return low, high

    def least(self) -> dict[int, float]:
        """The least rise that was found at every number that was asked, from the coarsest on."""
        found: dict[int, float] = {}
        for (number, _), rise in sorted(self.rises.items()):
            found[number] = rise if math.isnan(found.get(number, math.nan)) else min(found[number], rise)
        return found

    def crossing(self, low: int, high: int) -> float:
        """The position at which the rise is the tolerance, linear between the two; `high` where `low` is not finite."""
        known = self.least()
        start, end = self.position(low), self.position(high)
        above, below = known.get(low, math.nan) - self.tolerance, known.get(high, 0.0) - self.tolerance
        if not (math.isfinite(above) and above > 0):
            return end
        return end + (start - end) * below / (below - above)
