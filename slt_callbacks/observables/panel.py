"""All observables of a measurement, fed from one stream of draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from slt_callbacks.basics.keys import RESERVED_NAMES
from slt_callbacks.basics.plain import as_number
from slt_callbacks.data.batches import Batch, as_lists, map_leaves
from slt_callbacks.data.drawing import Reference, draw_reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.base import Observable, ReferencePoint
from slt_callbacks.observables.llc import LLC
from slt_callbacks.sampling.draws import Draw


class Panel:
    """Hands every draw to every observable, and takes back those of a chain that failed.

    Args:
        observables: By key; None for ``{"llc": LLC()}``.

    Attributes:
        observables: By key.
        queries: The samples of observables that bring their own, by the observable's key.
        reference_losses: Whether an observable asks for the losses of the whole reference set at every draw.
        reference_tokens: Keys of observables that ask for the loss of every token of the reference set.

    Raises:
        TypeError: If `observables` is no mapping from names to objects with `reset`, `update` and `compute`, or queries
            are nothing to draw samples from.
        ValueError: If it is empty, a name is reserved, or queries are empty or not finite.

    Example:
        >>> Panel(None).observables.keys()
        dict_keys(['llc'])
    """

    def __init__(self, observables: Mapping[str, Observable] | None) -> None:
        self.observables = check_observables({"llc": LLC()} if observables is None else observables)
        self.queries: dict[str, ReferenceSet] = {
            key: _draw_queries(key, queries)
            for key, observable in self.observables.items()
            if (queries := getattr(observable, "queries", None)) is not None
        }
        self.reference_losses = any(getattr(o, "reference_losses", False) for o in self.observables.values())
        self.reference_tokens = [k for k, o in self.observables.items() if getattr(o, "reference_tokens", False)]
        self._held: list[tuple[Observable, Draw]] = []

    def share_queries(self, first: Callable[[dict[str, ReferenceSet]], dict[str, ReferenceSet]]) -> None:
        """Take those of rank 0, as `first` gives them: what draws them may answer otherwise on another rank."""
        self.queries = first(self.queries)

    def check(self, reference: ReferenceSet) -> None:
        """Let every observable refuse a reference set, or queries, that it cannot work with.

        Raises:
            ValueError: If one does, or if queries have another structure than the reference set.
        """
        for key, observable in self.observables.items():
            queries = self.queries.get(key)
            if queries is not None and _structure(queries) != _structure(reference):
                raise ValueError(
                    f"Expected the queries of `observables[{key!r}]` to have the structure of the reference samples, "
                    f"{_described(reference)}, but got {_described(queries)}: one `loss_fn` has to take both."
                )
            if hasattr(observable, "check"):
                observable.check(reference, queries)

    def state_dict(self) -> dict[str, Any]:
        """The state of every observable that has one, by key."""
        return {key: o.state_dict() for key, o in self.observables.items() if hasattr(o, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; observables that were not there start afresh."""
        for key, observable in self.observables.items():
            if key in state and hasattr(observable, "load_state_dict"):
                observable.load_state_dict(state[key])

    def reset(self, point: ReferencePoint, lenient: bool = False) -> None:
        """Start a measurement; every observable is told its key and its queries.

        Args:
            point: Of the fork.
            lenient: Whether an observable that raises is passed over, as for a measurement that has failed already.
        """
        self._held = []
        none = torch.empty(0, dtype=torch.int64)
        for key, observable in self.observables.items():
            rows = self.queries[key].indices if key in self.queries else none
            try:
                observable.reset(replace(point, key=key, query_indices=rows))
            except Exception:
                if not lenient:
                    raise

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        for observable in self.observables.values():
            if hasattr(observable, "discard"):
                observable.update(draw)
            else:
                self._held.append((observable, draw))

    def end_chains(self, failed: set[int]) -> None:
        """The chains whose draws came since the last call have ended; some of them failed."""
        for observable in self.observables.values():
            if hasattr(observable, "discard"):
                for chain in sorted(failed):
                    observable.discard(chain)
        for observable, draw in self._held:
            if draw.chain not in failed:
                observable.update(draw)
        self._held = []

    def compute(self, lenient: bool = False) -> dict[str, dict[str, Any]]:
        """Every result by key, single numbers as builtins.

        Args:
            lenient: Whether an observable that raises gives an empty result: a user's own may need a draw to compute.
        """
        results = {}
        for key, observable in self.observables.items():
            try:
                results[key] = {name: as_number(value) for name, value in observable.compute().items()}
            except Exception:
                if not lenient:
                    raise
                results[key] = {}
        return results


def check_observables(observables: Mapping[str, Observable]) -> dict[str, Observable]:
    """`observables` as a dict; the errors are those of `Panel`."""
    if not isinstance(observables, Mapping):
        raise TypeError(f'Expected `observables` to be a mapping such as {{"llc": LLC()}}, but got {observables!r}.')
    if not observables:
        raise ValueError('Expected `observables` to hold at least one observable, such as {"llc": LLC()}.')
    for key, observable in observables.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise ValueError(f"Expected the keys of `observables` to be names without a slash, but got {key!r}.")
        if key in RESERVED_NAMES:
            raise ValueError(
                f"Expected `observables` to leave the keys {RESERVED_NAMES} to the monitor, but got {key!r}: "
                "choose another name."
            )
        if not isinstance(observable, Observable) or isinstance(observable, type):
            raise TypeError(
                f"Expected `observables[{key!r}]` to be an object with `reset`, `update` and `compute`, but got "
                f"{observable!r}."
            )
    return dict(observables)


def _draw_queries(key: str, queries: Reference) -> ReferenceSet:
    try:
        return draw_reference(queries)
    except (TypeError, ValueError) as error:
        message = str(error).replace("`reference`", "`queries`")
        raise type(error)(f"observables[{key!r}]: {message}") from error


def _structure(samples: ReferenceSet) -> str:
    """Containers and the type of every leaf; sizes may differ, as with texts of other lengths.

    Every floating-point tensor is cast to the precision of the fork, so that these are of one kind.
    """

    def kind(leaf: Any) -> str:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf).__name__
        return "floating" if leaf.is_floating_point() else str(leaf.dtype)

    return repr(as_lists(map_leaves(kind, _first(samples))))


def _described(samples: ReferenceSet) -> str:
    def shape_and_type(leaf: Any) -> str:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf).__name__
        return f"Tensor{list(leaf.shape)} of {str(leaf.dtype).removeprefix('torch.')}"

    return repr(map_leaves(shape_and_type, _first(samples)))


def _first(samples: ReferenceSet) -> Batch:
    return samples.batches(torch.arange(1))[0][0]
