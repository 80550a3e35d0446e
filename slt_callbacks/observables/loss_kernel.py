"""The loss kernel: which samples the model treats alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.labels import Labels, check_order, display_order, given_order
from slt_callbacks.observables.media import Picture
from slt_callbacks.observables.needs import Needs
from slt_callbacks.observables.pairs import Snapshot, SnapshotObservable, check_entries, matrix_of
from slt_callbacks.observables.shifts import alignment, class_contrast, effective_rank, label_kernel
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.moments import ChainSummary


class LossKernel(SnapshotObservable):
    r"""Loss kernel: how the losses of the reference samples move together, as the weights move about the fork.

    .. math:: covariance_{ij} = Cov(\ell_i, \ell_j), \quad
              correlation_{ij} = covariance_{ij} / \sqrt{covariance_{ii} covariance_{jj}}

    over the draws, accumulated in float64 in O(N^2) memory. Where the SGLD step sees the whole reference set the losses
    cost nothing; with minibatches they take one forward pass over the reference set a draw.

    `compute` returns, with N reference samples in the order of the data:

    * ``covariance``: ``(N, N)`` float64, about one mean over all draws of all chains, in the loss's unit squared;
    * ``correlation``: the same divided by the standard deviations; 1 on the diagonal, 0 where a loss never varied;
    * ``within_covariance``: the same as ``covariance`` with every chain about its own mean: without what is between
      chains, such as different basins, or chains that have not met yet;
    * ``trace``: of ``covariance``: the summed variances;
    * ``effective_rank``: of ``correlation``, so that a few samples of large variance do not decide it; see
      `slt_callbacks.observables.shifts.effective_rank`;
    * ``alignment``: CKA of ``correlation`` with that of the last good measurement; NaN at the first;
    * ``class_contrast``, ``label_alignment``: with `labels`: mean correlation within classes minus between, and CKA
      with the kernel that is 1 within classes.

    Args:
        labels: A class a sample of the whole data set, integers or strings, in its order.
        order: Order of the samples in pictures, a permutation of the N drawn ones; None for labels first, then by
            likeness at the first snapshot, and kept. One that is given wins over that of a checkpoint.
        per_token: Whether rows are the tokens of the samples, N x T of them, sample by sample. The loss function must
            return ``(B, T)``, and a forward pass a draw is spent on them. Labels are each token's sample's.

    Attributes:
        order: Order of the rows: the given one, or that of the first snapshot from there on; or None.
        labels: The given ones as `Labels`, or None.

    Raises:
        TypeError: If `labels` are no integers or strings.
        ValueError: From `check`: labels or order of the wrong length, or more rows than memory has room for.

    Source: Adam et al. (arXiv 2509.26537).

    Example:
        >>> from slt_callbacks import ReferencePoint
        >>> kernel, losses = LossKernel(), torch.tensor([[1.0, 5.0], [3.0, 5.0]])
        >>> rows = torch.arange(2)
        >>> kernel.reset(ReferencePoint(0, 1.0, losses[0], rows, 1.0, 0.0, num_chains=1, num_draws=2))
        >>> for index, drawn in enumerate(losses):
        ...     kernel.update(Draw(0, index, None, drawn, drawn.mean(), drawn.mean(), reference_losses=drawn))
        >>> kernel.compute()["covariance"].tolist(), kernel.compute()["trace"]
        ([[2.0, 0.0], [0.0, 0.0]], 2.0)
    """

    def __init__(
        self, labels: Any = None, order: Sequence[int] | torch.Tensor | None = None, per_token: bool = False
    ) -> None:
        self.needs = Needs(reference_losses=not per_token, reference_tokens=per_token, rows=labels is not None)
        self.order = self._given_order = given_order(order)
        self.labels = None if labels is None else Labels(labels, "labels")

    def check(self, reference: ReferenceSet, queries: ReferenceSet | None) -> None:
        """Begin a run, and refuse, before training, labels, an order or a size that do not fit.

        Raises:
            ValueError: If so.
        """
        self.begin()
        self.order = self._given_order
        if self.labels is not None:
            self.labels.check(reference.source_size, reference.indices, "reference")
        check_entries(len(reference), len(reference), "a loss kernel", "lower `num_samples`")
        check_order(self._given_order, len(reference))

    def check_tokens(self, num_tokens: int) -> None:
        """Refuse, before training, more tokens than memory has room for.

        Raises:
            ValueError: If so.
        """
        remedy = "lower `num_samples`, or leave `per_token` at False"
        check_entries(num_tokens, num_tokens, "a loss kernel of tokens", remedy)

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        losses = draw.query_losses[self._point.key] if self.needs.reference_tokens else draw.reference_losses
        if losses is None:
            raise ValueError("Expected the draw to carry `reference_losses`, but it has none: sample through a Panel.")
        if self.needs.reference_tokens:
            check_entries(
                len(losses), len(losses), "a loss kernel", "lower `num_samples`, or leave `per_token` at False"
            )
        self._moments.update(draw.chain, losses)

    def images(self, result: Mapping[str, Any]) -> dict[str, Picture]:
        """The correlation as a picture named ``map``; nothing for a failed measurement.

        Raises:
            ValueError: If `result` has no matrices.
        """
        correlation = matrix_of(result, "correlation")
        if not bool(correlation.isfinite().all()):
            return {}
        self._keep_order(correlation)
        return {"map": Picture(correlation[self.order][:, self.order], f"loss correlation, {len(correlation)} samples")}

    def matrices(self, result: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What belongs into a file of numbers, with the rows of the data set and the order of the picture.

        Raises:
            ValueError: If `result` has no matrices.
        """
        matrices = {name: matrix_of(result, name) for name in ("covariance", "within_covariance", "correlation")}
        order = torch.arange(len(matrices["correlation"]), device="cpu") if self.order is None else self.order
        return matrices | {"indices": self._point.indices, "order": order}

    def state_dict(self) -> dict[str, Any]:
        """The last good correlation, and the order of the rows."""
        last = self._last_good()
        if last is not None:
            self._keep_order(last["correlation"].cpu())
        return super().state_dict() | {"order": self.order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; an order that was given stays."""
        super().load_state_dict(state)
        self.order = state["order"] if self._given_order is None else self._given_order

    def _summarize(self, summary: ChainSummary, last: Snapshot | None) -> tuple[dict[str, Any], Snapshot]:
        covariance = _symmetric(summary.pooled.covariance())
        correlation = _symmetric(summary.pooled.correlation())
        square = summary.pooled.square_x
        correlation.diagonal().copy_(torch.where(square == 0, 0.0, square / square))  # exactly 1, and NaN stays
        result: dict[str, Any] = {
            "covariance": covariance.cpu(),
            "correlation": correlation.cpu(),
            "within_covariance": _symmetric(summary.within.covariance()).cpu(),
            "trace": float(covariance.trace()),
            "effective_rank": effective_rank(correlation),
            "alignment": math.nan if last is None else alignment(correlation, last["correlation"]),
        }
        return result | self._contrasts(result["correlation"]), {"correlation": correlation}

    def _contrasts(self, correlation: torch.Tensor) -> dict[str, float]:
        labels = self._row_labels(len(correlation))
        if labels is None:
            return {}
        return {
            "class_contrast": class_contrast(correlation, labels),
            "label_alignment": alignment(correlation, label_kernel(labels)),
        }

    def _empty(self) -> dict[str, Any]:
        size = len(self._point.indices)
        names = ["trace", "effective_rank", "alignment"]
        names += ["class_contrast", "label_alignment"] if self.labels is not None else []
        matrices = ("covariance", "correlation", "within_covariance")
        nothing = torch.full((size, size), torch.nan, dtype=torch.float64, device="cpu")
        return dict.fromkeys(matrices, nothing) | dict.fromkeys(names, math.nan)

    def _row_labels(self, num_rows: int) -> torch.Tensor | None:
        if self.labels is None:
            return None
        labels = self.labels.of(self._point.indices)
        return labels.repeat_interleave(num_rows // len(labels))  # a token has its sample's

    def _keep_order(self, correlation: torch.Tensor) -> None:
        size = len(correlation)
        if (
            self.order is not None
            and self.needs.reference_tokens
            and len(self.order) == len(self._point.indices) < size
        ):
            tokens = torch.arange(size // len(self.order), device="cpu")  # an order of samples: their tokens follow
            self.order = (self.order[:, None] * len(tokens) + tokens).flatten()
        if self.order is None or len(self.order) != size:
            self.order = display_order(correlation, self._row_labels(size))


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    return (matrix + matrix.mT) / 2
