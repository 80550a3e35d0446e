"""How far weights can be coarsened before the loss rises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from slt_callbacks.basics.plain import shown
from slt_callbacks.observables.coarsening import Search, Truncation, quantized
from slt_callbacks.observables.fork_view import ForkView
from slt_callbacks.observables.media import Curve
from slt_callbacks.observables.needs import Needs

Method = Literal["quantization", "factorization"]

_FINEST = 2**15 - 1  # levels are 2 * number + 1, 65535 at most: 16 bits
_WIDTHS = (1 / math.sqrt(2), 1 / 2, 1 / math.sqrt(8))  # of the grid, tried in turn while the loss falls
_HALVINGS, _MORE_HALVINGS = 7, 2  # from 16 bits to 1/8; from the half bit that a narrower grid can save to 1/8
# At most: the halvings, an end of the range, and for every width one at the old place and the halvings from there.
_PASSES: dict[str, int] = {
    "quantization": _HALVINGS + 1 + len(_WIDTHS) * (1 + _MORE_HALVINGS),
    "factorization": _HALVINGS + 1,
}
_LABELS = {"quantization": "bits a weight", "factorization": "share of rank kept"}
_DONE = {"quantization": "weights rounded", "factorization": "ranks of matrices cut"}
_AT = {"quantization": "bits a weight", "factorization": "of the rank"}
_CRITICAL = {"quantization": "critical_bits", "factorization": "critical_rank"}


class Compressibility:
    r"""The coarsest weights whose loss on the reference set is still :math:`L(w^*) + tolerance`, in two ways.

    `inspect` returns, for the methods asked for:

    * ``critical_bits``: :math:`\log_2 n` for the coarsest grid. Every trainable tensor, biases and norms too, is
      rounded to the nearest of n points from -m to m, n odd and 0 among them; m is c max|w| of the tensor, with one c
      for all, tried from 1 down in steps of a factor of :math:`\sqrt 2` while the loss falls, to .35 at least. It is
      interpolated between two numbers of points at most 1/8 bit apart. 0 where even weights that are all 0 are within
      the tolerance; NaN where 65535 points are not;
    * ``critical_rank``: the smallest share of their rank, one for all trainable matrices, that singular values have to
      be kept of (of r of them share times r, rounded up), interpolated between shares at most 1/128 apart. Tensors of
      more than two dimensions are matrices of the first against all others, vectors stay whole. 0 where matrices that
      are all 0 are within the tolerance; NaN where there is none;
    * ``quantization``, ``factorization``: what was asked, ``(K, 2)`` float64: bits, or share, and
      :math:`L - L(w^*)`, in the unit of the loss.

    Tied weights count once. Both are found by bisection, which takes the loss to rise as weights get coarser: where it
    does not, it is one of the crossings that is found. That costs at most 25 forward passes of the reference set, no
    gradient, and for the rank one eigendecomposition a matrix. The weights are put back.

    Rounding with a step s adds :math:`\mathrm{Tr}(H) s^2 / 24` to the loss of a quadratic, so that
    :math:`s = \sqrt{24\, tolerance / \mathrm{Tr}(H)}`: there bits follow the trace of the Hessian, while the LLC
    counts directions. How far the two go together in a network is a matter of experience, and of one training run at a
    time: `rank_correlation` tells it.

    Args:
        tolerance: How much the loss may rise, in its unit.
        methods: "quantization", "factorization", or both.

    Raises:
        ValueError: If `tolerance` is no positive number, or `methods` are others, twice the same, or none.

    Source: Urdshals et al. (arXiv 2510.12077) relate both to the LLC. The details of the grid, of the shares and of the
    interpolation are ours.

    Example:
        >>> from slt_callbacks import estimate
        >>> net = torch.nn.Linear(4, 4, bias=False)
        >>> _ = net.weight.data.copy_(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))  # of rank 2, and of three values
        >>> loss_fn = lambda net, x: (net(x) - x[:, :4] * torch.tensor([1.0, 1.0, 0.0, 0.0])).square().sum(1)
        >>> measurement = estimate(net, [torch.eye(4)], loss_fn, observables={"rank": Compressibility(1e-6)})
        >>> round(measurement["rank"]["critical_rank"], 3), round(2 ** measurement["rank"]["critical_bits"])
        (0.5, 3)
    """

    def __init__(self, tolerance: float = 0.1, methods: Sequence[Method] = ("quantization", "factorization")) -> None:
        number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
        if not (number and 0 < tolerance < math.inf):
            raise ValueError(
                f"Expected `tolerance` to be a positive number, in the unit of the loss, but got {shown(tolerance)}."
            )
        asked = (methods,) if isinstance(methods, str) else tuple(methods)
        if not asked or len(set(asked)) < len(asked) or not set(asked) <= _PASSES.keys():
            raise ValueError(
                'Expected `methods` to be "quantization", "factorization", or a tuple of both, but got '
                f"{shown(methods)}."
            )
        self.tolerance = float(tolerance)
        self.methods: tuple[str, ...] = asked
        self.needs = Needs(forward_passes=sum(_PASSES[method] for method in asked))

    @torch.no_grad()
    def inspect(self, fork: ForkView) -> dict[str, Any]:
        """The critical values, and the curves that they were read from; see the class."""
        found: dict[str, Any] = {}
        for method in self.methods:
            critical, search = _SEARCHES[method](fork, self.tolerance)
            curve = [(search.position(number), rise) for number, rise in search.least().items()]
            found[_CRITICAL[method]] = critical
            found[method] = torch.tensor(curve, dtype=torch.float64, device="cpu").reshape(-1, 2)
        return found

    def images(self, result: Mapping[str, Any]) -> dict[str, Curve]:
        """The rise of the loss against bits, and against the share of rank, with the tolerance and where it is met."""
        found = {}
        for method in self.methods:
            critical, points = result[_CRITICAL[method]], result[method]
            points = points[points.isfinite().all(1)]
            caption = f"{_DONE[method]}: the loss {self._met(method, critical)}"
            if len(points):
                labels = (_LABELS[method], "rise of the loss")
                found[method] = Curve(points, caption, labels, level=self.tolerance, crossing=critical)
        return found

    def _met(self, method: str, critical: float) -> str:
        """Where the tolerance is met, in words."""
        if not math.isfinite(critical):
            return f"is nowhere within {self.tolerance:g} of that of the model"
        way = "rises by" if critical > 0 else "rises by less than"
        return f"{way} {self.tolerance:g} at {critical:.2f} {_AT[method]}"


def _critical_bits(fork: ForkView, tolerance: float) -> tuple[float, Search]:
    """Bits of the coarsest grid within the tolerance, and what was asked; the fork is left moved."""

    def ask(number: int, width: float) -> float:
        fork.reset()
        for parameter in fork.parameters:
            parameter.copy_(quantized(parameter, 2 * number + 1, width))
        return fork.loss() - fork.point.loss

    search = Search(ask, _bits, tolerance)
    low, high = search.narrow(0, _FINEST, _middle, _HALVINGS)
    if low == 0 and search.within(0):
        return 0.0, search
    if high == _FINEST and not search.within(_FINEST):
        return math.nan, search
    before = 1.0
    for width in _WIDTHS if low > 0 else ():
        known = search.rises.get((low, before), math.inf)  # not asked where every halving was within the tolerance
        if not search.rise(low, width) < known:
            break
        if search.within(low, width):
            # A grid of this width is as fine with so many fewer points, and cuts off more.
            fewer = int(low * width / before)
            low, high = search.narrow(fewer, low, _middle, _MORE_HALVINGS, width)
        elif known == math.inf:
            break  # to see whether it falls would cost one pass more than was promised
        before = width
    return search.crossing(low, high), search


def _critical_rank(fork: ForkView, tolerance: float) -> tuple[float, Search]:
    """The share of their rank that matrices need, and what was asked; the fork is left moved."""
    fork.reset()
    matrices = [parameter for parameter in fork.parameters if parameter.ndim > 1 and parameter.numel()]
    truncation = Truncation(matrices)

    def ask(number: int, width: float) -> float:
        fork.reset()
        for place, parameter in enumerate(matrices):
            parameter.copy_(truncation.kept(place, parameter, number))
        return fork.loss() - fork.point.loss

    search = Search(ask, lambda number: number / truncation.full, tolerance)
    if truncation.full == 0:
        return math.nan, search
    low, high = search.narrow(0, truncation.full, lambda low, high: (low + high) // 2, _HALVINGS)
    if low == 0 and search.within(0):
        return 0.0, search
    return search.crossing(low, high), search


def _bits(number: int) -> float:
    return math.log2(2 * number + 1)


def _middle(low: int, high: int) -> int:
    """The number of points half way between in bits."""
    return round((2 ** ((_bits(low) + _bits(high)) / 2) - 1) / 2)


_SEARCHES = {"quantization": _critical_bits, "factorization": _critical_rank}
