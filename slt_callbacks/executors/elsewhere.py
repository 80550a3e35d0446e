"""Forks that are measured elsewhere: which of them waits, which is under way, and what is given back when."""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from slt_callbacks.basics.plain import shown
from slt_callbacks.executors.worker import Answer, Outlook
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.weights.snapshot import Snapshot

_BREATH = 0.5  # seconds that a wait lasts before it looks around
_MOST_LOSSES = 2  # of one worker in a row: what ends it twice would end it for ever
_STATE_SECONDS = 60.0  # that writing a checkpoint waits for the chains at most
_LAST_SECONDS = 10.0  # that the end of a fit does, for a next one of the same trainer


class WorkerLostError(RuntimeError):
    """A worker has ended, or cannot be reached, and what it was measuring with it."""


class Workers(Protocol):
    """Whoever measures, seen from the training process; the workers are numbered from 0."""

    def rehearse(self, estimator: Estimator, module: nn.Module) -> nn.Module:
        """The module as a worker will see it, before any is started.

        Raises:
            TypeError: If it, or what is to be measured, cannot be given to one.
        """

    def start(self, number: int, estimator: Estimator) -> None:
        """Start a worker, or another one in the place of one that was lost, on an estimator of its own."""

    def load(self, module: nn.Module) -> Any:
        """A copy of a module, in a form that can be sent."""

    def unload(self, load: Any) -> None:
        """It has been measured, or never will be."""

    def send(self, number: int, order: int, step: int, load: Any) -> None:
        """Let a worker that is idle measure; does not wait.

        Raises:
            WorkerLostError: If there is none.
        """

    def ready(self, numbers: Sequence[int], timeout: float) -> list[int]:
        """Those that have answered, or are lost; waits for the first at most so many seconds."""

    def answer(self, number: int) -> Answer:
        """What one of these has found.

        Raises:
            WorkerLostError: If it is lost.
        """

    def state(self, number: int, order: int, chains: bool, timeout: float) -> dict[str, Any]:
        """The estimator's state after a measurement, one of the last two.

        Raises:
            Exception: If there is none, or it does not come in time.
        """

    def close(self) -> None:
        """End them all, whatever they are doing."""


@dataclass
class _Fork:
    """A fork that has been submitted."""

    order: int
    step: int
    load: Any
    tries: int = 0


class Elsewhere:
    """An executor over workers: the bookkeeping that all of them share.

    Args:
        workers: Whoever measures.
        num_workers: How many.
        max_pending: Forks that may wait while all workers are busy.

    Attributes:
        num_workers: As given. Several take the forks in turn: then each measurement stands alone (`Apart`).
        outlook: What the next measurement will take; None before the first.
        end_timeout: Seconds that the end of training waits for what is not finished; None for as long as it takes.
    """

    def __init__(self, workers: Workers, num_workers: int, max_pending: int, end_timeout: float | None = None) -> None:
        self.num_workers = check_count("num_workers", num_workers, 1)
        self._max_pending = check_count("max_pending", max_pending, 0)
        self.end_timeout = _checked_timeout(end_timeout)
        self.outlook: Outlook | None = None
        self._workers = workers
        self._estimator: Estimator | None = None
        self._begin()

    def _begin(self) -> None:
        self._waiting: deque[_Fork] = deque()
        self._running: dict[int, _Fork] = {}
        self._done: dict[int, tuple[Measurement, int | None]] = {}  # by order, and by whom
        self._count = self._given = 0
        self._losses = [0] * self.num_workers
        self._starts = [0] * self.num_workers
        self._known: bytes | None = b""  # the estimator's state at the last answer, without chains; empty before one
        self._last: tuple[int, int] | None = None  # the worker's start, and the order, of what was given back last

    @property
    def pending(self) -> int:
        """Forks that have been submitted and are not finished."""
        return len(self._waiting) + len(self._running)

    @property
    def full(self) -> bool:
        """Whether `submit` would have to wait."""
        return not self._free() and len(self._waiting) >= self._max_pending and bool(self._running)

    def rehearse(self, estimator: Estimator, module: nn.Module) -> nn.Module:
        """The module as a worker will see it, to try the loss on before training.

        Args:
            estimator: What will measure.
            module: The live one.

        Raises:
            TypeError: If one of them cannot be given to another process, in words that say what to write instead.
        """
        return self._workers.rehearse(estimator, module)

    def open(self, estimator: Estimator) -> None:
        """As in `Executor`.

        Raises:
            Exception: If the workers cannot be started.
        """
        if self._estimator is not None:  # a fit has ended without a word: what it waits for must not come now
            self._workers.close()
        self._begin()
        self._estimator, self.outlook = estimator, None
        try:
            for number in range(self.num_workers):
                self._start(number)
        except BaseException:
            self._workers.close()
            self._estimator = None
            raise

    def submit(self, snapshot: Snapshot) -> None:
        """As in `Executor`; waits where more forks are pending than may be.

        Raises:
            RuntimeError: If it has not been opened, or no worker is left.
            Exception: If the module cannot be pickled.
        """
        if self._estimator is None:
            raise RuntimeError("Expected `open(estimator)` before `submit`: nothing to measure with.")
        self._advance(0.0)
        while self.full:
            self._advance(_BREATH)
        if not self._alive():
            raise RuntimeError(f"No worker is left, after {sum(self._losses)} in a row were lost")
        self._waiting.append(_Fork(self._count, snapshot.step, self._workers.load(snapshot.module)))
        self._count += 1
        self._advance(0.0)

    def poll(self) -> list[Measurement]:
        """As in `Executor`."""
        self._advance(0.0)
        return self._take()

    def drain(self, timeout: float | None = None) -> list[Measurement]:
        """As in `Executor`; what has not come in time may be asked for again."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.pending:
            left = _BREATH if end is None else min(end - time.monotonic(), _BREATH)
            self._advance(max(left, 0.0))
            if left <= 0:
                break
        return self._take()

    def state_dict(self, chains: bool = True, timeout: float = _STATE_SECONDS) -> dict[str, Any]:
        """What a resumed run needs, as it was after the measurement that was given back last.

        Args:
            chains: Whether to include the chains' positions (chains x parameters).
            timeout: Seconds that the worker has for it.

        Raises:
            Exception: If the worker cannot say.
        """
        estimator = self._estimator
        if estimator is None:
            raise RuntimeError("Expected `open(estimator)` before `state_dict`: there is no state.")
        if isinstance(estimator, Apart) or self._last is None or self._last[0] != self._starts[0]:
            return estimator.state_dict(chains)  # no worker knows more
        return self._workers.state(0, self._last[1], chains, timeout)

    def close(self) -> None:
        """As in `Executor`: no process and no shared memory is left; the estimator knows what the worker knew."""
        estimator = self._estimator
        try:
            if estimator is not None and self._last is not None and not isinstance(estimator, Apart):
                estimator.load_state_dict(self.state_dict(timeout=_LAST_SECONDS))
        except Exception:
            if estimator is not None:
                estimator.forget()  # what it has is of the fit before
            raise
        finally:
            self._estimator = None
            self._begin()
            self._workers.close()

    def _alive(self) -> list[int]:
        return [number for number, losses in enumerate(self._losses) if losses < _MOST_LOSSES]

    def _free(self) -> list[int]:
        return [number for number in self._alive() if number not in self._running]

    def _start(self, number: int) -> None:
        assert self._estimator is not None  # for the type: it is open
        self._workers.start(number, self._estimator)
        self._starts[number] += 1

    def _advance(self, timeout: float) -> None:
        """Take what has come, waiting for the first, and send what waits."""
        if self._running:
            for number in self._workers.ready(list(self._running), timeout):
                self._receive(number)
        for number in self._free():
            while self._waiting and number in self._free():
                self._send(number, self._waiting.popleft())

    def _send(self, number: int, fork: _Fork) -> None:
        self._running[number] = fork
        try:
            self._workers.send(number, fork.order, fork.step, fork.load)
        except WorkerLostError as error:
            self._lose(number, error)

    def _receive(self, number: int) -> None:
        try:
            answer = self._workers.answer(number)
        except WorkerLostError as error:
            self._lose(number, error)
            return
        self._losses[number], self.outlook, self._known = 0, answer.outlook, answer.known
        self._finish(self._running.pop(number), answer.measurement, self._starts[number])

    def _lose(self, number: int, error: WorkerLostError) -> None:
        """A worker has ended: its fork is lost with it, unless nothing but the fork was."""
        fork = self._running.pop(number)
        self._losses[number] += 1
        estimator = self._estimator
        assert estimator is not None  # as above
        again = isinstance(estimator, Apart) and not fork.tries
        reason = f"WorkerLostError: {error}"
        if not again:
            told = "; another is started"
            told += "" if isinstance(estimator, Apart) else f", whose {self._recall(estimator)} begin afresh"
            self._fail(fork, reason + (told if number in self._alive() else "; it is not started again"))
        if number in self._alive():
            try:
                self._start(number)
            except Exception as refused:  # noqa: BLE001  # no memory, no cluster
                self._losses[number] = _MOST_LOSSES
                reason += f"; another could not be started: {type(refused).__name__}: {refused}"
        if again:
            fork.tries += 1
            self._waiting.appendleft(fork)
        while self._waiting and not self._alive():
            self._fail(self._waiting.popleft(), f"{reason}; none is left")

    def _recall(self, estimator: Estimator) -> str:
        """Give the estimator here what the lost worker knew, for the next to start with; says what is not known."""
        try:
            if self._known:
                estimator.load_state_dict(pickle.loads(self._known))
        except Exception:  # noqa: BLE001  # what an observable of the user's own remembers
            self._known = None
        return "chains" if self._known is not None else "chains and observables"

    def _fail(self, fork: _Fork, reason: str) -> None:
        assert self._estimator is not None  # as above
        self._finish(fork, self._estimator.failed(fork.step, reason), None)

    def _finish(self, fork: _Fork, measurement: Measurement, start: int | None) -> None:
        self._workers.unload(fork.load)
        self._done[fork.order] = measurement, start

    def _take(self) -> list[Measurement]:
        """What can be given back in the order of the forks."""
        found = []
        while self._given in self._done:
            measurement, start = self._done.pop(self._given)
            if start is not None:
                self._last = start, self._given
            found.append(measurement)
            self._given += 1
        return found


def check_count(name: str, value: Any, least: int) -> int:
    """A number of workers, threads or forks.

    Raises:
        ValueError: If it is no integer, or too small.

    Example:
        >>> check_count("max_pending", -1, 0)
        Traceback (most recent call last):
        ValueError: Expected `max_pending` to be an integer of at least 0, but got -1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected `{name}` to be an integer of at least {least}, but got {shown(value)}.")
    return value


def _checked_timeout(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ValueError(f"Expected `end_timeout` to be a positive number of seconds or None, but got {shown(value)}.")
    return float(value)
