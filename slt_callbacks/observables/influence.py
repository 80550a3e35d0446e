"""Bayesian influence: which training sample helps or harms which query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.families import after, families_of, statistics
from slt_callbacks.observables.groups import Groups, check_names, groups_of
from slt_callbacks.observables.labels import Labels, check_order, display_order, given_order
from slt_callbacks.observables.media import Picture
from slt_callbacks.observables.needs import Needs
from slt_callbacks.observables.pairs import Snapshot, SnapshotObservable, check_entries, matrix_of
from slt_callbacks.observables.shifts import cosine

if TYPE_CHECKING:
    from slt_callbacks.sampling.draws import Draw
    from slt_callbacks.stats.moments import ChainSummary


class Influence(SnapshotObservable):
    r"""Bayesian influence function (BIF): what more weight on reference sample i would do to the loss of query q.

    .. math:: bif_{iq} = -Cov(\ell_i, \ell_q)

    over the draws. A negative entry says that training on i lowers the loss of q: it helps. Covariances of different
    checkpoints are not on one scale, so whatever is compared over time is the correlation of the two losses, where a
    positive entry helps.

    `compute` returns, with N reference samples and Q queries in the order of their data:

    * ``bif``: ``(N, Q)`` float64, about one mean over all draws of all chains, with the minus sign, in the loss's unit
      squared;
    * ``correlation``: plain correlation of the losses, without the minus sign; 0 where a loss never varied;
    * ``within_bif``, ``within_correlation``: the same with every chain about its own mean;
    * ``shift``: 1 - cosine of ``correlation`` and that of the last good measurement; NaN at the first;
    * ``sign_flips``, ``peaks``: pairs whose correlation has certainly changed its sign, or certainly turned, since it
      was last certain; NaN at the first measurement, and with fewer than two chains;
    * with labels: ``group_means``, mean correlation by label ``(A, B)``; the same as numbers ``group/<a>_to_<b>`` for
      at most 100 groups; ``group_flips``, ``group_peaks``: likewise for these means;
    * ``events``: at most 20 pairs and groups that flipped, peaked or moved most, as dicts of builtins for a table. They
      are told in the numbers that decide a flip, the mean over chains of each one's correlation: ``after`` is that of
      this measurement, ``before`` the last certain one at a flip, the highest or lowest one at a peak, and that of the
      last measurement where neither is certain.

    **What is certain.** Every chain gives each pair a correlation about its own mean, on Fisher's scale z = atanh r,
    where its error hardly depends on r. The chains are independent, so their spread is the error of the mean whatever
    the autocorrelation of their draws, and it can be had without a stored trace: a block bootstrap over draws would
    need one, and a block length that few draws cannot tell. Variances of few chains are drawn towards their common
    value (`slt_callbacks.stats.moderated_variance`), and the level is Bonferroni's, so that without any influence 0.1
    certain signs are expected among all pairs; a false flip needs two of them, with opposite signs.

    **Cost.** A forward pass over the queries at every draw; those that are reference samples as well, to the last bit
    of everything in them, cost none, for their losses are known. Where a loss compares the samples of its batch,
    queries that are no reference samples are compared among themselves.

    **Memory.** A measurement takes 31 matrices of N x Q doubles at its peak (16 MB at N = Q = 256). A checkpoint holds
    29 bytes a pair (1.9 MB): in single precision the last correlation, and what was certain until then.

    Args:
        queries: Samples to ask about: whatever a monitor takes as `reference`; all of them are used.
        labels: A class a sample of the whole reference data, in its order.
        query_labels: A class a sample of the queries.
        order: Order of the rows in pictures, a permutation of the N drawn samples; None for labels first, then by
            likeness at the first snapshot, and kept. One that is given wins over that of a checkpoint.
        query_order: Order of the columns, a permutation of the Q queries; likewise.

    Attributes:
        order: Order of the rows: the given one, or that of the first snapshot from there on; or None.
        query_order: That of the columns.
        labels: The given ones as `Labels`, or None.

    Raises:
        TypeError: If `queries` is None, or labels are no integers or strings.
        ValueError: If labels collide in logged keys. From `check`: labels or an order of the wrong length, or more
            pairs than memory has room for.

    Source: Kreer et al. (arXiv 2509.26544), definition of the BIF; Lee et al. (arXiv 2510.12071), influence over
    training.

    Example:
        >>> from slt_callbacks import Draw, ReferencePoint
        >>> influence, rows = Influence([torch.zeros(1, 2)]), torch.arange(2)
        >>> influence.reset(ReferencePoint(0, 1.0, torch.zeros(2), rows, 1.0, 0.0, 1, 2, "influence", rows[:1]))
        >>> for index, (i, j, query) in enumerate([(1.0, 5.0, 2.0), (3.0, 4.0, 3.0)]):
        ...     drawn, asked = torch.tensor([i, j]), {"influence": torch.tensor([query])}
        ...     influence.update(Draw(0, index, None, drawn, drawn.mean(), drawn.mean(), drawn, asked))
        >>> influence.compute()["bif"].tolist()  # the first sample's loss rises with the query's: training on it helps
        [[-1.0], [0.5]]
    """

    def __init__(
        self,
        queries: Reference,
        labels: Any = None,
        query_labels: Any = None,
        order: Sequence[int] | torch.Tensor | None = None,
        query_order: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        if queries is None:
            raise TypeError(
                "Expected `queries` to be the samples to ask about, whatever a monitor takes as `reference`, but got "
                "None: give a Dataset, a DataLoader or a list of batches."
            )
        self.needs = Needs(reference_losses=True, queries=queries, rows=labels is not None)
        self.order = self._given_order = given_order(order)
        self.query_order = self._given_query_order = given_order(query_order)
        self.labels = None if labels is None else Labels(labels, "labels")
        self._query_labels = None if query_labels is None else Labels(query_labels, "query_labels")

    def check(self, reference: ReferenceSet, queries: ReferenceSet | None) -> None:
        """Begin a run, and refuse, before training, labels, an order or a size that do not fit.

        Raises:
            ValueError: If so.
        """
        self.begin()
        self.order, self.query_order = self._given_order, self._given_query_order
        if self.labels is not None:
            self.labels.check(reference.source_size, reference.indices, "reference")
        check_order(self._given_order, len(reference))
        if queries is None:
            return
        if self._query_labels is not None:
            self._query_labels.check(queries.source_size, queries.indices, "queries")
        check_names(self.labels, self._query_labels)
        check_order(self._given_query_order, len(queries), "query_order", "columns")
        check_entries(len(reference), len(queries), "an influence", "lower `num_samples`, or give fewer `queries`")

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        if draw.reference_losses is None:
            raise ValueError("Expected the draw to carry `reference_losses`, but it has none: sample through a Panel.")
        self._moments.update(draw.chain, draw.reference_losses, draw.query_losses[self._point.key])

    def images(self, result: Mapping[str, Any]) -> dict[str, Picture]:
        """The correlation as a picture named ``map``; nothing for a failed measurement.

        Raises:
            ValueError: If `result` has no matrices.
        """
        correlation = matrix_of(result, "correlation")
        if not bool(correlation.isfinite().all()):
            return {}
        self._keep_order(correlation)
        size = f"{correlation.shape[0]} samples (down) by {correlation.shape[1]} queries"
        return {"map": Picture(correlation[self.order][:, self.query_order], f"loss correlation, {size}, red helps")}

    def matrices(self, result: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What belongs into a file of numbers, with the rows of both data sets and the order of the picture.

        Raises:
            ValueError: If `result` has no matrices.
        """
        names = ("bif", "within_bif", "correlation", "within_correlation")
        matrices = {name: matrix_of(result, name) for name in names}
        rows, columns = (torch.arange(size, device="cpu") for size in matrices["correlation"].shape)
        return matrices | {
            "indices": self._point.indices,
            "query_indices": self._point.query_indices,
            "order": rows if self.order is None else self.order,
            "query_order": columns if self.query_order is None else self.query_order,
        }

    def state_dict(self) -> dict[str, Any]:
        """The last good correlation, what was certain until then, and the order of the picture."""
        last = self._last_good()
        if last is not None:
            self._keep_order(last["correlation"].cpu())
        return super().state_dict() | {"order": self.order, "query_order": self.query_order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; an order that was given stays."""
        super().load_state_dict(state)
        self.order = state["order"] if self._given_order is None else self._given_order
        self.query_order = state["query_order"] if self._given_query_order is None else self._given_query_order

    def _statistic(self) -> Any:
        return partial(statistics, groups=self._groups())

    def _summarize(self, summary: ChainSummary, last: Snapshot | None) -> tuple[dict[str, Any], Snapshot]:
        correlation, groups, spread = summary.pooled.correlation(), self._groups(), summary.spread
        result: dict[str, Any] = {
            "bif": -summary.pooled.covariance().cpu(),
            "correlation": correlation.cpu(),
            "within_bif": -summary.within.covariance().cpu(),
            "within_correlation": summary.within.correlation().cpu(),
            "shift": math.nan if last is None else 1 - cosine(correlation, last["correlation"]),
        }
        values = statistics(summary.within, groups) if spread is None else spread.mean
        families = families_of(self._point.indices, self._point.query_indices, groups)
        state, counts, events = after(families, values, spread, last)
        result |= counts
        result["sign_flips"] = result.pop("sign_flips")  # where its column stands in the table of a replay
        if groups.labelled:
            means = groups.means(correlation)
            result |= {"group_means": means.cpu()} | groups.scalars(means)
        return result | {"events": events}, {"correlation": correlation.float()} | state

    def _groups(self) -> Groups:
        return groups_of(self.labels, self._point.indices, self._query_labels, self._point.query_indices)

    def _empty(self) -> dict[str, Any]:
        groups = self._groups()
        nothing = torch.full((len(groups.rows), len(groups.columns)), torch.nan, dtype=torch.float64, device="cpu")
        result: dict[str, Any] = dict.fromkeys(("bif", "correlation", "within_bif", "within_correlation"), nothing)
        result |= {"shift": math.nan, "events": []}
        for family in families_of(self._point.indices, self._point.query_indices, groups):
            result |= family.counts(None)
        if groups.labelled:
            means = nothing.new_full((len(groups.row_names), len(groups.column_names)), math.nan)
            result |= {"group_means": means} | groups.scalars(means)
        return result

    def _keep_order(self, correlation: torch.Tensor) -> None:
        num_rows, num_columns = correlation.shape
        if self.order is None or len(self.order) != num_rows:
            self.order = display_order(correlation, self._groups().rows)
        if self.query_order is None or len(self.query_order) != num_columns:
            self.query_order = display_order(correlation.mT, self._groups().columns)
