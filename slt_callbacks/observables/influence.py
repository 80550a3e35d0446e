"""Bayesian influence: which training sample helps or harms which query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.labels import Labels, check_order, display_order, given_order
from slt_callbacks.observables.media import Picture
from slt_callbacks.observables.pairs import Snapshot, SnapshotObservable, check_entries, matrix_of
from slt_callbacks.observables.shifts import Course, Turns, cosine, follow
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.intervals import moderated_variance, sign_quantile
from slt_callbacks.stats.moments import ChainSummary, Moments, Spread

_MOST_EVENTS = 20  # rows of the table of movers
_MOST_GROUPS = 100  # logged one by one: ten classes against ten
# A turn is a difference to the most extreme of all measurements before; runs have some hundred.
_COMPARED_WITH = 100
# Fisher's z of a correlation of 1 is infinite; beyond this one the sign is beyond doubt.
_STRONGEST = 0.999


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
        >>> from slt_callbacks import ReferencePoint
        >>> influence, rows = Influence([torch.zeros(1, 2)]), torch.arange(2)
        >>> influence.reset(ReferencePoint(0, 1.0, torch.zeros(2), rows, 1.0, 0.0, 1, 2, "influence", rows[:1]))
        >>> for index, (i, j, query) in enumerate([(1.0, 5.0, 2.0), (3.0, 4.0, 3.0)]):
        ...     drawn, asked = torch.tensor([i, j]), {"influence": torch.tensor([query])}
        ...     influence.update(Draw(0, index, None, drawn, drawn.mean(), drawn.mean(), drawn, asked))
        >>> influence.compute()["bif"].tolist()  # the first sample's loss rises with the query's: training on it helps
        [[-1.0], [0.5]]
    """

    reference_losses = True

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
        self.queries = queries
        self.order = self._given_order = given_order(order)
        self.query_order = self._given_query_order = given_order(query_order)
        self.labels = None if labels is None else Labels(labels, "labels")
        self._query_labels = None if query_labels is None else Labels(query_labels, "query_labels")

    def check(self, reference: ReferenceSet, queries: ReferenceSet | None) -> None:
        """Refuse, before training, labels, an order or a size that do not fit.

        Raises:
            ValueError: If so.
        """
        if self.labels is not None:
            self.labels.check(reference.source_size, reference.indices, "reference")
        check_order(self._given_order, len(reference))
        if queries is None:
            return
        if self._query_labels is not None:
            self._query_labels.check(queries.source_size, queries.indices, "queries")
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
        rows, columns = (torch.arange(size) for size in matrices["correlation"].shape)
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
        return self._of_chain

    def _of_chain(self, chain: Moments) -> torch.Tensor:
        """What each chain has an opinion on: Fisher's z of every pair, then the group means."""
        correlation = chain.correlation()
        groups = self._group_means(correlation)
        z = correlation.clamp(-_STRONGEST, _STRONGEST).atanh().flatten()
        return z if groups is None else torch.cat([z, groups.flatten()])

    def _summarize(self, summary: ChainSummary, last: Snapshot | None) -> tuple[dict[str, Any], Snapshot]:
        correlation = summary.pooled.correlation()
        groups = self._group_means(correlation)
        result: dict[str, Any] = {
            "bif": -summary.pooled.covariance().cpu(),
            "correlation": correlation.cpu(),
            "within_bif": -summary.within.covariance().cpu(),
            "within_correlation": summary.within.correlation().cpu(),
            "shift": math.nan if last is None else 1 - cosine(correlation, last["correlation"]),
        }
        levels = self._levels(summary)
        courses, turns = self._follow(levels, summary.spread, last)
        # Single precision here as in a checkpoint, so that a resumed run compares with the same numbers.
        snapshot = {"correlation": correlation.float()} | courses
        snapshot |= {f"{kind}level": level.float() for kind, level in levels.items()}
        result |= {f"{kind}{what}": _count(turns.get(kind), what) for kind in levels for what in _COUNTED}
        result["sign_flips"] = result.pop("flips")
        if groups is not None:
            result |= {"group_means": groups.cpu()} | self._group_scalars(groups)
        result["events"] = self._events(snapshot, last, turns) if last is not None else []
        return result, snapshot

    def _levels(self, summary: ChainSummary) -> dict[str, torch.Tensor]:
        """What is followed over the measurements, flat: z of the pairs under "", and means of the groups."""
        mean = self._of_chain(summary.within) if summary.spread is None else summary.spread.mean
        return {kind: mean[part] for kind, part in self._parts().items()}

    def _parts(self) -> dict[str, slice]:
        """Where each kind of statistic stands in what `_of_chain` gives."""
        num_pairs = len(self._point.indices) * len(self._point.query_indices)
        pairs = {"": slice(num_pairs)}
        return pairs | {"group_": slice(num_pairs, None)} if self.labels or self._query_labels else pairs

    def _follow(
        self, levels: Mapping[str, torch.Tensor], spread: Spread | None, last: Snapshot | None
    ) -> tuple[Snapshot, dict[str, Turns]]:
        """The course of pairs and of groups after this measurement, and what it showed of each."""
        courses: Snapshot = {}
        turns: dict[str, Turns] = {}
        for kind, part in self._parts().items():
            before = _course_from(last, kind, len(levels[kind]))
            if spread is None or spread.count < 2:  # one chain cannot tell: what was certain stays so
                course = before
            else:
                variance, degrees = moderated_variance(spread.variance()[part], spread.count - 1)
                error = (variance / spread.count).sqrt()
                limits = (sign_quantile(len(error) * times, degrees) for times in (1, _COMPARED_WITH))
                course, turned = follow(before, levels[kind], error, *limits)
                turns |= {} if turned is None else {kind: turned}
            courses |= {} if course is None else {f"{kind}{name}": value for name, value in course.tensors().items()}
        return courses, turns

    def _codes(self) -> tuple[torch.Tensor, list[str], torch.Tensor, list[str]]:
        """Class numbers and names of reference samples and of queries; a side without labels is one class."""
        rows, queries = self._point.indices, self._point.query_indices
        return (
            self.labels.of(rows) if self.labels else torch.zeros_like(rows),
            self.labels.names if self.labels else ["all"],
            self._query_labels.of(queries) if self._query_labels else torch.zeros_like(queries),
            self._query_labels.names if self._query_labels else ["all"],
        )

    def _group_means(self, correlation: torch.Tensor) -> torch.Tensor | None:
        """Mean correlation by label ``(A, B)``; NaN for a class with no sample; None without labels."""
        if not (self.labels or self._query_labels):
            return None
        rows, row_names, columns, column_names = self._codes()
        left = torch.nn.functional.one_hot(rows, len(row_names)).to(correlation)
        right = torch.nn.functional.one_hot(columns, len(column_names)).to(correlation)
        return left.mT @ correlation @ right / (left.sum(0)[:, None] * right.sum(0)[None, :])

    def _group_scalars(self, groups: torch.Tensor) -> dict[str, float]:
        _, row_names, _, column_names = self._codes()
        if groups.numel() > _MOST_GROUPS:
            return {}
        return {
            f"group/{a}_to_{b}": value
            for a, row in zip(row_names, groups.tolist(), strict=True)
            for b, value in zip(column_names, row, strict=True)
        }

    def _events(self, now: Snapshot, last: Snapshot, turns: Mapping[str, Turns]) -> list[dict[str, Any]]:
        """Groups and pairs that flipped or peaked, then the largest movements: what moved most first within each."""
        _, row_names, _, column_names = self._codes()
        names = {
            "": (self._point.indices.tolist(), self._point.query_indices.tolist()),
            "group_": (row_names, column_names),
        }
        events: list[dict[str, Any]] = []
        for kind in self._parts():
            level, before = now[f"{kind}level"], last.get(f"{kind}level")
            if before is not None and len(before) == len(level):  # other labels than before a resume do not compare
                events += _movers(kind, names[kind], level, before, turns.get(kind))
        events.sort(key=lambda event: (not (event["flipped"] or event["peaked"]), -abs(event["change"])))
        return events[:_MOST_EVENTS]

    def _empty(self) -> dict[str, Any]:
        rows, row_names, columns, column_names = self._codes()
        nothing = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64)
        result: dict[str, Any] = dict.fromkeys(("bif", "correlation", "within_bif", "within_correlation"), nothing)
        result |= dict.fromkeys(("shift", "sign_flips", "peaks"), math.nan) | {"events": []}
        if self.labels or self._query_labels:
            groups = nothing.new_full((len(row_names), len(column_names)), math.nan)
            result |= {"group_means": groups, "group_flips": math.nan, "group_peaks": math.nan}
            result |= self._group_scalars(groups)
        return result

    def _keep_order(self, correlation: torch.Tensor) -> None:
        num_rows, num_columns = correlation.shape
        if self.order is None or len(self.order) != num_rows:
            self.order = display_order(correlation, self._codes()[0])
        if self.query_order is None or len(self.query_order) != num_columns:
            self.query_order = display_order(correlation.mT, self._codes()[2])


_COUNTED = ("flips", "peaks")


def _count(turns: Turns | None, what: str) -> float:
    if turns is None:
        return math.nan
    return int((turns.flipped if what == "flips" else turns.peaked).sum())


def _course_from(last: Snapshot | None, kind: str, size: int) -> Course | None:
    if last is None or f"{kind}certain" not in last or len(last[f"{kind}certain"]) != size:
        return None  # other labels than before a resume start afresh
    return Course(**{item.name: last[f"{kind}{item.name}"] for item in fields(Course)})


def _movers(
    kind: str, names: tuple[list[Any], list[Any]], now: torch.Tensor, before: torch.Tensor, turns: Turns | None
) -> list[dict[str, Any]]:
    """The statistics of one kind that turned, then those that moved most, told as correlations."""
    flipped = peaked = torch.zeros_like(now, dtype=torch.bool)
    if turns is not None:
        flipped, peaked = turns.flipped, turns.peaked
        before = torch.where(flipped | peaked, turns.before.float(), before)
    if not kind:
        now, before = now.tanh(), before.tanh()
    change = now - before
    # A turn comes before any movement; no correlation moves by more than 2.
    weight = torch.where(change.isfinite(), change.abs() + 4.0 * (flipped | peaked), -1.0)
    top = weight.topk(min(_MOST_EVENTS, len(weight))).indices
    columns = [top, now[top], before[top], change[top], flipped[top], peaked[top]]
    return [
        {
            "kind": "group" if kind else "pair",
            "source": str(names[0][place // len(names[1])]),
            "target": str(names[1][place % len(names[1])]),
            "before": old,
            "after": new,
            "change": moved,
            "flipped": flip,
            "peaked": peak,
        }
        for place, new, old, moved, flip, peak in zip(*(column.tolist() for column in columns), strict=True)
        if not math.isnan(moved)
    ]
