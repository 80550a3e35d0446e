"""Susceptibilities: which data each part of the network works for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from slt_callbacks.data.drawing import Reference, draw_reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.base import Part, ReferencePoint
from slt_callbacks.observables.labels import Labels
from slt_callbacks.observables.needs import Needs
from slt_callbacks.observables.pairs import check_entries, matrix_of
from slt_callbacks.observables.response_pictures import response_pictures
from slt_callbacks.observables.responses import Column, Response, asked_losses, components, standardize
from slt_callbacks.sampling.draws import Draw
from slt_callbacks.stats.intervals import moderated_variance, sign_quantile
from slt_callbacks.stats.moments import RunningMoments

if TYPE_CHECKING:
    from slt_callbacks.observables.media import Picture, Scatter

_COMPONENTS = 3  # whose shares are told


class Susceptibility:
    r"""Per-sample susceptibilities: how the loss of a sample answers to a part of the network.

    .. math:: \chi_{iC} = -\mathrm{Cov}_C[\phi_C,\, \ell_i - L], \quad \phi_C = L(w) - L(w^*)

    over the draws of chains that move the weights of the part C alone, the others at w*, where L is the mean of the
    losses of all probes at the same draw; so every column sums to 0. Below 0 the part works for predicting the sample:
    what hurts the part hurts this sample more than others. Above 0 it works against it. Every weight refinement (a
    `Refinement` without data or loss of its own) is a part, a column in the order given.

    `compute` returns, with N probes and K parts, float64:

    * ``matrix``: ``(N, K)``, in the loss's unit squared; NaN in the columns of parts that were not measured this time;
    * ``stderr``: ``(N, K)``, from the spread over chains; NaN with one chain;
    * ``standardized``: every column less its mean, over its standard deviation (parts of different size are not on one
      scale), and then every row less its mean over parts, which leaves how parts differ; of one part the column alone;
    * ``columns``: names of the parts;
    * ``uniform_share``: of the squares of the columns so scaled, what all parts have in common, which that mean takes
      away;
    * ``pc1_share``, ``pc2_share``, ``pc3_share``: of the squares of ``standardized``, its principal components. A first
      share above .95 is common, and says that much happens everywhere at once: look at the next ones;
    * ``significant``: share of the entries that differ from 0 by more than a 5 % test of each allows; about .05 where
      there is nothing;
    * ``<label>_to_<part>``: with `labels`, means of ``standardized`` over a class, where they are at most 100.

    Args:
        probes: Samples whose losses are asked, whatever a monitor takes as `reference`; None for the reference set.
        labels: A class a probe of the whole data set, integers or strings, in its order.
        per_token: Whether rows are the tokens of the reference samples, N x T of them, sample by sample; the loss has
            to return ``(B, T)``. Labels are each token's sample's.
        estimator: "one_chain" is the formula above. "two_chain" takes the mean loss of a sample from the chains that
            move all weights, :math:`-E_C[\phi_C (\ell_i - L)] + E_C[\phi_C] E[\ell_i - L]`, whose burn-in it inherits.

    Attributes:
        labels: The given ones as `Labels`, or None.
        columns: Names of the parts, of the run that was last begun.

    Raises:
        TypeError: If `labels` are no integers or strings.
        ValueError: If `estimator` is another, or `per_token` comes with `probes`; from `refine` if there is no part, or
            two means would have one name; from `check` if labels do not fit, or there are more rows than memory has
            room for.

    Source: Baker et al. (arXiv 2504.18274), definitions 3.1 and 3.4; "two_chain" is their estimator.

    Example:
        >>> from slt_callbacks import LeimkuhlerMatthews, Refinement, SamplerConfig, estimate
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(net.weight)
        >>> samples = torch.tensor([[2.0, 0.0], [0.0, 2.0]])  # one for each of two weights
        >>> measurement = estimate(
        ...     net, [samples], lambda net, x: net(x).square()[:, 0], observables={"chi": Susceptibility()},
        ...     sampler=SamplerConfig(LeimkuhlerMatthews(0.01), nbeta=9.0, localization=1.0, num_draws=200),
        ...     refinements={name: Refinement("weight", slices={"weight": (0, n)}) for n, name in enumerate("ab")})
        >>> (measurement["chi"]["matrix"] < 0).tolist()
        [[True, False], [False, True]]
    """

    def __init__(
        self,
        probes: Reference | None = None,
        labels: Any = None,
        per_token: bool = False,
        estimator: Literal["one_chain", "two_chain"] = "one_chain",
    ) -> None:
        if estimator not in ("one_chain", "two_chain"):
            raise ValueError(f'Expected `estimator` to be "one_chain" or "two_chain", but got {estimator!r}.')
        if per_token and probes is not None:
            raise ValueError("Expected `per_token` without `probes`: the tokens are those of the reference samples.")
        self.labels = None if labels is None else Labels(labels, "labels")
        self.columns: list[str] = []
        self._probes: Reference | ReferenceSet | None = probes
        self._per_token = per_token
        self._two_chain = estimator == "two_chain"
        self._responses: dict[str, Response] = {}
        self._whole: dict[int, RunningMoments] = {}

    @property
    def needs(self) -> Needs:
        """Of the main posterior's draws: nothing, where the parts' own chains say it all."""
        rows = self.labels is not None and self._probes is None
        return replace(self._asked, rows=rows) if self._two_chain else Needs(rows=rows)

    @property
    def _asked(self) -> Needs:
        """Of the draws of every part."""
        probes = self._drawn_probes()
        of_samples = probes is None and not self._per_token
        return Needs(reference_losses=of_samples, reference_tokens=self._per_token, queries=probes)

    def refine(self, parts: Sequence[Part]) -> dict[str, Response]:
        """What reads the draws of every part.

        Raises:
            ValueError: If there is none, or the means of two classes over two parts would have one name.
        """
        asked = self._asked
        self._responses = {part.name: Response(asked) for part in parts if part.of_weights}
        self.columns = list(self._responses)
        if not self._responses:
            raise ValueError(
                "Expected `refinements` to hold parts of the network for a Susceptibility to be of, such as "
                '{"head": Refinement("head.*")} without data or a loss of its own, but got '
                f"{[part.name for part in parts] or 'none'}."
            )
        if self.labels is not None:
            self.labels.paired_with(self.columns)  # two that are the same are refused
        return dict(self._responses)

    def check(self, reference: ReferenceSet, queries: ReferenceSet | None) -> None:
        """Refuse, before training, labels or a size that do not fit.

        Raises:
            ValueError: If so.
        """
        probes = self._drawn_probes()
        rows = reference if probes is None else probes
        if self.labels is not None:
            self.labels.check(rows.source_size, rows.indices, "reference" if probes is None else "probes")
        check_entries(len(rows), max(len(self.columns), 1), "susceptibilities", "take fewer samples")

    def check_tokens(self, num_tokens: int) -> None:
        """Refuse, before training, more tokens than memory has room for.

        Raises:
            ValueError: If so.
        """
        check_entries(num_tokens, max(len(self.columns), 1), "susceptibilities of tokens", "lower `num_samples`")

    def reset(self, reference: ReferencePoint) -> None:
        """Start a measurement; parts whose turn it is not have no column."""
        self._point = reference
        self._whole = {}
        for response in self._responses.values():
            response.clear()

    def update(self, draw: Draw) -> None:
        """Take one draw of the chains that move all weights."""
        if self._two_chain:
            losses = asked_losses(draw, self._asked, self._point.key)
            self._whole.setdefault(draw.chain, RunningMoments()).update(losses)

    def discard(self, chain: int) -> None:
        """Take back the draws of a chain that failed."""
        self._whole.pop(chain, None)

    def compute(self) -> dict[str, Any]:
        """The matrix and its summaries; see the class."""
        found = {name: self._entries(response.column()) for name, response in self._responses.items()}
        known = [entries for entries in found.values() if entries is not None]
        size = known[0].shape[1] if known else len(self._rows())
        nothing = torch.full((1, size), torch.nan, dtype=torch.float64, device="cpu")
        per_chain = [nothing if entries is None else entries for entries in found.values()]
        matrix = torch.stack([entries.mean(0) for entries in per_chain], dim=1)
        error = torch.stack([_stderr(entries) for entries in per_chain], dim=1)
        standardized, uniform = standardize(matrix)
        _, shares = components(standardized, _COMPONENTS)
        return {
            "matrix": matrix,
            "stderr": error,
            "standardized": standardized,
            "columns": list(found),
            "uniform_share": uniform,
            **{f"pc{place + 1}_share": share for place, share in enumerate(shares)},
            "significant": _significant(matrix, error, [len(entries) for entries in per_chain]),
            **self._means(standardized),
        }

    def matrices(self, result: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What belongs into a file of numbers, with the rows of the data set.

        Raises:
            ValueError: If `result` has no matrices.
        """
        matrices = {name: matrix_of(result, name) for name in ("matrix", "stderr", "standardized")}
        return matrices | {"indices": self._rows()}

    def images(self, result: Mapping[str, Any]) -> dict[str, Picture | Scatter]:
        """The pictures ``map``, labels (or samples) by parts, and ``components``; see `response_pictures`.

        Blue, below 0, where the part works for the data, red where against it. Nothing where no part was measured.

        Raises:
            ValueError: If `result` has no matrices.
        """
        matrix = matrix_of(result, "standardized")
        names = () if self.labels is None else self.labels.names
        return response_pictures(matrix, self.columns, names, self.row_labels(len(matrix)), self.class_means(matrix))

    def _entries(self, column: Column | None) -> torch.Tensor | None:
        """Those of every chain, ``(C, N)``; None for a part that was not measured."""
        if column is None or not self._two_chain:
            return None if column is None else column.per_chain
        whole = [running.value() for running in self._whole.values()]
        if not whole:
            return torch.full_like(column.per_chain, torch.nan)
        mean = torch.stack([moments.mean_x for moments in whole]).mean(0).cpu()
        return column.per_chain - column.excess * (column.mean_losses - (mean - mean.mean()))

    def _drawn_probes(self) -> ReferenceSet | None:
        """Once for all parts."""
        if self._probes is not None and not isinstance(self._probes, ReferenceSet):
            self._probes = draw_reference(self._probes)
        return self._probes

    def _rows(self) -> torch.Tensor:
        """Rows of the probes in their data, int64 ``(N,)``."""
        return self._probes.indices if isinstance(self._probes, ReferenceSet) else self._point.indices

    def _means(self, standardized: torch.Tensor) -> dict[str, float]:
        """Of every class and part; none where they are many."""
        means = self.class_means(standardized)
        if means is None or self.labels is None:
            return {}
        return dict(zip(self.labels.paired_with(self.columns), means.flatten().tolist(), strict=False))

    def class_means(self, standardized: torch.Tensor) -> torch.Tensor | None:
        """Means ``(A, K)`` over the A classes; None without labels, NaN for a class without a row."""
        labels = self.row_labels(len(standardized))
        if labels is None or self.labels is None:
            return None
        share = torch.nn.functional.one_hot(labels, len(self.labels.names)).to(standardized)
        return share.mT @ standardized / share.sum(0)[:, None]

    def row_labels(self, num_rows: int) -> torch.Tensor | None:
        """Class numbers ``(N,)``; None without labels."""
        if self.labels is None:
            return None
        labels = self.labels.of(self._rows())
        return labels.repeat_interleave(num_rows // len(labels))  # a token has its sample's


def _stderr(per_chain: torch.Tensor) -> torch.Tensor:
    if len(per_chain) < 2:
        return torch.full_like(per_chain[0], torch.nan)
    return per_chain.std(0) / math.sqrt(len(per_chain))


def _significant(matrix: torch.Tensor, error: torch.Tensor, num_chains: Sequence[int]) -> float:
    """Share of the entries that a 5 % test of each calls different from 0; NaN where no chain can be compared."""
    beyond: list[torch.Tensor] = []
    for column, own, count in zip(matrix.mT, error.mT, num_chains, strict=True):
        if count > 1 and bool(own.isfinite().all()):
            variance, degrees = moderated_variance(own.square(), count - 1)
            beyond.append(column.abs() > sign_quantile(1, degrees) * variance.sqrt())
    return float(torch.cat(beyond).double().mean()) if beyond else math.nan
