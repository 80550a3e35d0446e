"""Several processes share one measurement: each runs some of the chains, and all of them see every draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from slt_callbacks.basics.errors import Failure, RankFailedError, is_loss_fn_error, is_out_of_memory


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

    def gather(self, value: Any) -> list[Any]:
        """As `Ranks.gather`.

        Raises:
            RankFailedError: On every rank, where one has failed.
        """
        return self._told(None, value)

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
        except RankFailedError:
            raise
        except Exception as error:
            if self.size > 1:
                message = f"{type(error).__name__}: {error}"
                self._told(Failure(message, is_out_of_memory(error), is_loss_fn_error(error)), None)
            raise
        self.gather(None)

    def _told(self, failure: Failure | None, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        answers = self._ranks.gather((failure, value))
        failures = {rank: told for rank, (told, _) in enumerate(answers) if told is not None}
        if failures:
            raise RankFailedError(failures)
        return [given for _, given in answers]
