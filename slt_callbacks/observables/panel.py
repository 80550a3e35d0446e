"""All observables of a measurement, fed from one stream of draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from slt_callbacks.basics.keys import RESERVED_NAMES
from slt_callbacks.basics.plain import shown
from slt_callbacks.basics.rng import isolated_rng
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.data.structure import check_structure
from slt_callbacks.losses.generators import own_generators, put_back, source_of
from slt_callbacks.losses.objective import Objective
from slt_callbacks.observables.base import ForkObservable, Observable, ReferencePoint
from slt_callbacks.observables.fork_view import ForkView
from slt_callbacks.observables.llc import LLC
from slt_callbacks.observables.media import Media
from slt_callbacks.observables.member import Member
from slt_callbacks.sampling.draws import Draw

Observables = Mapping[str, Observable | ForkObservable]
"""By the key they are logged under."""

_Brought = tuple[ReferenceSet | None, ReferenceSet | None]


class Panel:
    """Hands every draw to every observable, and takes back those of a chain that failed.

    Args:
        observables: By key; None for ``{"llc": LLC()}``.

    Attributes:
        members: The observables at work, in the order given.
        queries: The samples of observables that bring their own, by the observable's key.
        reads_draws: Whether there is a statistic of draws among them.
        reads_fork: Whether one of them looks at the fork.
        reference_losses: Whether an observable asks for the losses of the whole reference set at every draw.
        reference_tokens: Keys of observables that ask for the loss of every token of the reference set.

    Raises:
        TypeError: If `observables` is no mapping from names to observables, or queries are nothing to draw from.
        ValueError: If it is empty, a name is reserved, two keys have one object, or queries are empty or not finite.

    Example:
        >>> [member.key for member in Panel(None).members]
        ['llc']
    """

    def __init__(self, observables: Mapping[str, Any] | None) -> None:
        checked = check_observables(observables)
        self.members = [Member(key, observable) for key, observable in checked.items()]
        self.reads_draws = any(member.reads_draws for member in self.members)
        self.reads_fork = any(member.reads_fork for member in self.members)
        self.reference_losses = any(member.needs.reference_losses for member in self.members)
        self.reference_tokens = [member.key for member in self.members if member.needs.reference_tokens]

    @property
    def queries(self) -> dict[str, ReferenceSet]:
        """See the class."""
        return {member.key: member.queries for member in self.members if member.queries is not None}

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put generators back after a block that functions of the user's reach which observables call."""
        functions = [function for member in self.members for function in member.functions]
        with put_back(map(source_of, own_generators(None, *functions))):
            yield

    def share_samples(self, first: Callable[[list[_Brought]], list[_Brought]]) -> None:
        """Take those of rank 0, as `first` gives them: what draws them may answer otherwise on another rank."""
        shared = first([(member.queries, member.samples) for member in self.members])
        for member, (queries, samples) in zip(self.members, shared, strict=True):
            member.queries, member.samples = queries, samples

    def check(self, reference: ReferenceSet) -> None:
        """Let every observable refuse a reference set, or queries, that it cannot work with.

        Raises:
            ValueError: If one does, or if queries have another structure than the reference set.
        """
        for member in self.members:
            if member.queries is not None:
                check_structure(f"the queries of `observables[{member.key!r}]`", member.queries, reference)
            member.check(reference)

    def check_tokens(self, num_tokens: int) -> None:
        """Let those that ask for the loss of every token refuse so many."""
        for member in self.members:
            if member.needs.reference_tokens:
                member.check_tokens(num_tokens)

    def state_dict(self) -> dict[str, Any]:
        """The state of every observable that has one, by key."""
        states = {member.key: member.state_dict() for member in self.members}
        return {key: state for key, state in states.items() if state is not None}

    def load_state_dict(self, state: Mapping[str, Any], same_queries: Collection[str]) -> None:
        """Go on where `state_dict` was taken; observables that were not there start afresh.

        Args:
            state: By key.
            same_queries: Keys of observables whose queries are those of the state: what others remember is of no use.
        """
        for member in self.members:
            if member.key in state and (member.queries is None or member.key in same_queries):
                member.load_state_dict(state[member.key])

    def reset(self, point: ReferencePoint, lenient: bool = False) -> None:
        """Start a measurement.

        Args:
            point: Of the fork.
            lenient: Whether an observable that raises is passed over, as for a measurement that has failed already.
        """
        for member in self.members:
            try:
                member.reset(point)
            except Exception:
                if not lenient:
                    raise

    def samples_at_fork(self, size: int) -> int:
        """Samples that its observables of the fork go through in a measurement, of a reference set of this size."""
        passes = [(member.needs.forward_passes, member.samples) for member in self.members]
        return sum(count * (size if samples is None else len(samples)) for count, samples in passes)

    def inspect(self, objective: Objective, point: ReferencePoint, seed: int, rehearsal: bool = False) -> None:
        """Let every observable of the fork look at it, each in its own world, and put the fork back.

        Args:
            objective: The losses of the reference set, its fork at w*.
            point: Of the fork.
            seed: Of the random numbers that one of them may draw.
            rehearsal: Whether this is before training, and they may refuse what they find.
        """
        self.forget_fork()
        for member in self.members:
            if member.reads_fork:
                with isolated_rng(seed):
                    look = member.rehearse if rehearsal else member.inspect
                    look(ForkView(objective, point, member.samples))
                objective.take_gradients()  # that it may have left, and nobody else is to find
                objective.fork.reset()

    def forget_fork(self) -> None:
        """What was read at the last fork is not of this measurement."""
        for member in self.members:
            member.forget_fork()

    def update(self, draw: Draw) -> None:
        """Take one draw."""
        for member in self.members:
            member.update(draw)

    def end_chains(self, failed: set[int]) -> None:
        """The chains whose draws came since the last call have ended; some of them failed."""
        for member in self.members:
            member.end_chains(failed)

    def compute(self, lenient: bool = False) -> dict[str, dict[str, Any]]:
        """Every result by key, single numbers as builtins.

        Args:
            lenient: Whether an observable that raises gives an empty result: a user's own may need a draw to compute.
        """
        results = {}
        for member in self.members:
            try:
                results[member.key] = member.compute()
            except Exception:
                if not lenient:
                    raise
                results[member.key] = {}
        return results

    def media(self, results: Mapping[str, Mapping[str, Any]]) -> Media:
        """What the observables show of a measurement that has succeeded; nothing where one of them raises over it."""
        try:
            pictures, matrices, tables = (
                {key: value for found in several for key, value in found.items()}
                for several in zip(*(_shown(member, results[member.key]) for member in self.members), strict=True)
            )
        except Exception as error:  # noqa: BLE001  # it may be the user's own, and must not cost the numbers
            return Media(problem=f"{type(error).__name__}: {error}")
        return Media(pictures, matrices, tables)


def _shown(member: Member, result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    return member.pictures(result), member.matrices(result), member.tables(result)


def check_observables(observables: Mapping[str, Any] | None) -> dict[str, Any]:
    """`observables` as a dict, the LLC for None; the errors are those of `Panel`."""
    if observables is None:
        return {"llc": LLC()}
    if not isinstance(observables, Mapping):
        raise TypeError(
            f'Expected `observables` to be a mapping such as {{"llc": LLC()}}, but got {shown(observables)}.'
        )
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
        if not isinstance(observable, (Observable, ForkObservable)) or isinstance(observable, type):
            raise TypeError(
                f"Expected `observables[{key!r}]` to be an object with `reset`, `update` and `compute`, or with "
                f"`inspect`, but got {shown(observable)}."
            )
    _check_distinct(observables)
    return dict(observables)


def _check_distinct(observables: Mapping[str, Any]) -> None:
    """Refuse one object under two keys, which would take every draw twice."""
    keys: dict[int, str] = {}
    for key, observable in observables.items():
        other = keys.setdefault(id(observable), key)
        if other != key:
            raise ValueError(
                f"Expected every key of `observables` to have an object of its own, but got one as {other!r} and as "
                f"{key!r}: make a second one."
            )
