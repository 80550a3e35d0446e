"""One observable at work: every verb it may be asked for, whichever of them it has left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from slt_callbacks.basics.plain import as_number
from slt_callbacks.data.drawing import Reference, draw_reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.base import ForkObservable, Observable, Part, ReferencePoint
from slt_callbacks.observables.fork_view import ForkView
from slt_callbacks.observables.media import Picture, Scatter
from slt_callbacks.observables.needs import Needs, needs_of
from slt_callbacks.sampling.draws import Draw


class Member:
    """An observable under its key.

    Args:
        key: Its own.
        observable: An `Observable`, a `ForkObservable`, or both.

    Attributes:
        key: As given.
        observable: As given.
        needs: What it declares.
        reads_draws: Whether it is a statistic of draws.
        reads_fork: Whether it looks at the fork.
        queries: The samples that it brings, or None.
        samples: Those that it brings for its look at the fork, or None.

    Raises:
        TypeError: If its queries or samples are nothing to draw samples from.
        ValueError: If they are empty or not finite.

    Example:
        >>> class Count:
        ...     def reset(self, reference):
        ...         self.count = 0
        ...     def update(self, draw):
        ...         self.count += 1
        ...     def compute(self):
        ...         return {"count": self.count}
        >>> member, none = Member("own", Count()), torch.empty(0)
        >>> member.reset(ReferencePoint(0, 1.0, none, none, 1.0, 0.0, num_chains=2, num_draws=1))
        >>> for chain in (0, 1):
        ...     member.update(Draw(chain, 0, None, none, none, none))
        >>> member.end_chains({1})  # its draws were held back, and are forgotten
        >>> member.compute()
        {'count': 1}
    """

    def __init__(self, key: str, observable: Any) -> None:
        self.key = key
        self.observable = observable
        self.needs = needs_of(observable)
        self.reads_draws = isinstance(observable, Observable)
        self.reads_fork = isinstance(observable, ForkObservable)
        self.queries = _drawn(key, "queries", self.needs.queries)
        self.samples = _drawn(key, self.needs.samples_name, self.needs.samples)
        self._held: list[Draw] = []
        self._seen: dict[str, Any] = {}  # what the fork has shown
        self._shown_before: list[str] = []  # names of the numbers among it

    @property
    def functions(self) -> list[Any]:
        """What it calls, and what it holds beside its samples: there the user's own functions are among it."""
        held = [value for value in getattr(self.observable, "__dict__", {}).values() if not isinstance(value, Needs)]
        kind = type(self.observable)
        return [*(getattr(kind, verb) for verb in ("inspect", "update", "compute") if hasattr(kind, verb)), *held]

    def check(self, reference: ReferenceSet) -> None:
        """Let it refuse samples that it cannot work with."""
        if self._has("check"):
            self.observable.check(reference, self.samples if self.queries is None else self.queries)

    def check_tokens(self, num_tokens: int) -> None:
        """Let it refuse so many tokens."""
        if self._has("check_tokens"):
            self.observable.check_tokens(num_tokens)

    def refine(self, parts: Sequence[Part]) -> Mapping[str, Any]:
        """What it wants to read of the posteriors beside the main one, by their names."""
        return self.observable.refine(parts) if self._has("refine") else {}

    def reset(self, point: ReferencePoint) -> None:
        """Start a measurement; it is told its key and its queries."""
        self._held = []
        if self.reads_draws:
            rows = torch.empty(0, dtype=torch.int64, device="cpu") if self.queries is None else self.queries.indices
            self.observable.reset(replace(point, key=self.key, query_indices=rows))

    def inspect(self, fork: ForkView) -> None:
        """Let it look at the fork."""
        self._seen = {name: as_number(value) for name, value in self.observable.inspect(fork).items()}
        self._shown_before = [name for name, value in self._seen.items() if isinstance(value, (int, float))]

    def rehearse(self, fork: ForkView) -> None:
        """Let it refuse, before training, what it will not be able to read there.

        Raises:
            TypeError: Whatever it raises, with its key.
            ValueError: Likewise.
        """
        try:
            if self._has("rehearse"):
                self.observable.rehearse(fork)
        except (TypeError, ValueError) as error:
            raise type(error)(f"observables[{self.key!r}]: {error}") from error

    def forget_fork(self) -> None:
        """What it has seen there is no longer of use; the numbers are NaN until there are others."""
        self._seen = dict.fromkeys(self._shown_before, math.nan)

    def update(self, draw: Draw) -> None:
        """Take one draw; one that could not be taken back is held back until its chain has ended well."""
        if not self.reads_draws:
            return
        if self._has("discard"):
            self.observable.update(draw)
        else:
            self._held.append(draw)

    def end_chains(self, failed: set[int]) -> None:
        """The chains whose draws came since the last call have ended; some of them failed."""
        if self.reads_draws and self._has("discard"):
            for chain in sorted(failed):
                self.observable.discard(chain)
        for draw in self._held:
            if draw.chain not in failed:
                self.observable.update(draw)
        self._held = []

    def compute(self) -> dict[str, Any]:
        """The result, single numbers as builtins."""
        result = self.observable.compute() if self.reads_draws else {}
        return {name: as_number(value) for name, value in result.items()} | self._seen

    def state_dict(self) -> dict[str, Any] | None:
        """Its state, if it has one."""
        return self.observable.state_dict() if self._has("state_dict") else None

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken."""
        if self._has("load_state_dict"):
            self.observable.load_state_dict(state)

    def pictures(self, result: Mapping[str, Any]) -> dict[str, Picture | Scatter]:
        """What it shows of a result, by key."""
        return self._named(self.observable.images(result)) if self._has("images") else {}

    def matrices(self, result: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What of a result belongs into a file, by key."""
        return self._named(self.observable.matrices(result)) if self._has("matrices") else {}

    def tables(self, result: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Lists of dicts in a result, by key."""
        lists = {name: value for name, value in result.items() if isinstance(value, list) and value}
        return self._named({name: rows for name, rows in lists.items() if isinstance(rows[0], Mapping)})

    def _named(self, content: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{self.key}/{name}": value for name, value in content.items()}

    def _has(self, verb: str) -> bool:
        return hasattr(self.observable, verb)


def keys_with_matrices(observables: Mapping[str, Any]) -> set[str]:
    """Keys of those whose results hold matrices, which weigh more than numbers."""
    return {key for key, observable in observables.items() if hasattr(observable, "matrices")}


def _drawn(key: str, argument: str, source: Reference | ReferenceSet | None) -> ReferenceSet | None:
    if source is None or isinstance(source, ReferenceSet):
        return source
    try:
        return draw_reference(source)
    except (TypeError, ValueError) as error:
        message = str(error).replace("`reference`", f"`{argument}`")
        raise type(error)(f"observables[{key!r}]: {message}") from error
