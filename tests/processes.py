"""Ranks as threads: what several processes do, in one, and ended where they would wait for ever."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.utils.checkpoint

PATIENCE = 20.0  # seconds until a rank that waits for the others gives up


def unseeded() -> dict[str, str]:
    """An environment for processes of their own, without a seed, with which Lightning's ranks alone would begin.

    `seed_everything` leaves it there, and whatever ran before in this process may have called that.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(("PL_GLOBAL_SEED", "PL_SEED"))}


class _Globals:
    """What each process has for itself and threads share: a rank that goes on finds its own as it left it."""

    def __init__(self) -> None:
        self._rng = torch.get_rng_state()
        self._fast_attention = torch.backends.mha.get_fastpath_enabled()
        self._checkpoint = torch.utils.checkpoint.CheckpointFunction

    def put_back(self) -> None:
        torch.set_rng_state(self._rng)
        torch.backends.mha.set_fastpath_enabled(self._fast_attention)
        torch.utils.checkpoint.CheckpointFunction = self._checkpoint  # type: ignore[misc]


class _Meeting:
    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)
        self.turn = threading.Lock()


class ThreadRank:
    """One of several ranks, of which one runs at a time; a rank that nobody meets raises BrokenBarrierError."""

    def __init__(self, meeting: _Meeting, rank: int, size: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, size

    def gather(self, value: Any) -> list[Any]:
        self._meeting.values[self.rank] = value
        self._wait()
        values = copy.deepcopy(self._meeting.values)  # what comes from another process is a copy
        self._wait()
        return values

    def _wait(self) -> None:
        own = _Globals()
        self._meeting.turn.release()
        try:
            self._meeting.barrier.wait()
        finally:
            self._meeting.turn.acquire()
            own.put_back()


def on_ranks(size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """What `work` returns, or the exception that it raises, on each rank."""
    meeting = _Meeting(size)
    at_start = _Globals()

    def run(rank: int) -> Any:
        with meeting.turn:
            at_start.put_back()
            try:
                return work(ThreadRank(meeting, rank, size))
            except Exception as error:  # noqa: BLE001  # it is the result
                return error
            finally:
                at_start.put_back()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
