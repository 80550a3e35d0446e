"""Several processes share one measurement: each runs some of the chains, or its part of each; all see every draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from slt_callbacks.basics.errors import Failure, RankFailedError, is_loss_fn_error, is_out_of_memory
from slt_callbacks.basics.gate import Gate, OutOfStepError

_T = TypeVar("_T")


class Ranks(Protocol):
    """The processes of a run, seen from one of them."""

    @property
    def rank(self) -> int:
        """Which one this is, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, in order, on every rank; waits until all of them have called."""


class Alone:
    """One process."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        """A list of one."""
        return [value]


class Exchange:
    """Gathers values, and errors with them: a rank that fails says so where the others wait for its value.

    Without that the others would wait for ever. Whatever runs inside `together` may gather as often as it likes, as
    long as every rank that does not fail does so equally often, and last of all at the end of `together` itself.

    Args:
        ranks: The processes; None for this one alone.

    Attributes:
        rank: Which one this is.
        size: How many there are.
        gate: Where they are in step: every process takes every step of every chain, on its shards of the weights, and
            what rank 0 has seen is what all go by. None where each has chains of its own.

    Example:
        >>> exchange = Exchange(Alone())
        >>> with exchange.together():
        ...     values = exchange.gather(3)
        >>> values
        [3]
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = Alone() if ranks is None else ranks
        self.rank, self.size = self._ranks.rank, self._ranks.size
        self.gate: Gate | None = None

    def own(self, chains: Sequence[_T]) -> list[_T]:
        """Those that this process runs: every so many'th, so that ranks in order give chains in order; in step, all."""
        return list(chains) if self.gate is not None else list(chains[self.rank :: self.size])

    def gather(self, value: Any) -> list[Any]:
        """As `Ranks.gather`; in step only that of rank 0, because all have done the same.

        Raises:
            RankFailedError: On every rank, where one has failed.
            OutOfStepError: In step, likewise.
        """
        answers = self._told(None, value)
        return answers if self.gate is None else answers[:1]

    def common(self, values: set[_T]) -> set[_T]:
        """Those that every process in step has; without, one's own."""
        return values if self.gate is None else set.intersection(*self._told(None, values))

    def first(self, value: Any) -> Any:
        """The value of rank 0, on every rank: what is decided once must not differ by a rounding error."""
        return value if self.size == 1 else self.gather(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends on every rank alike: with the block done on all of them, or with an error on all.

        Raises:
            RankFailedError: On every rank, where one has failed and there are several.
        """
        try:
            yield
            if self.gate is not None:
                self.gate("end")
        except RankFailedError:
            raise
        except KeyboardInterrupt:
            if self.gate is not None:
                self.gate.fail(interrupted=True)
            raise
        except Exception as error:
            if self.size > 1:
                self._fail(error)
            raise
        if self.gate is None:
            self.gather(None)

    def _fail(self, error: Exception) -> None:
        """Tell the others, and raise what everybody has told.

        Raises:
            RankFailedError: Always.
        """
        failure = Failure(f"{type(error).__name__}: {error}", is_out_of_memory(error), is_loss_fn_error(error))
        if self.gate is None:
            self._told(failure, None)
            return
        self.gate.fail()
        answers = self._ranks.gather((failure, isinstance(error, OutOfStepError)))
        self.gate.open()
        told = {rank: failed for rank, (failed, _) in enumerate(answers)}
        raise RankFailedError({rank: told[rank] for rank, (_, after) in enumerate(answers) if not after} or told)

    def _told(self, failure: Failure | None, value: Any) -> list[Any]:
        if self.gate is not None:
            self.gate("exchange")
        if self.size == 1:
            return [value]
        answers = self._ranks.gather((failure, value))
        failures = {rank: told for rank, (told, _) in enumerate(answers) if told is not None}
        if failures:
            raise RankFailedError(failures)
        return [given for _, given in answers]
