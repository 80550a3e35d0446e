"""Ranks as threads: what several processes do, in one, and ended where they would wait for ever."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATIENCE = 20.0  # seconds until a rank that waits for the others gives up


class _Meeting:
    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)


class ThreadRank:
    """One of several ranks; a rank that nobody meets raises BrokenBarrierError."""

    def __init__(self, meeting: _Meeting, rank: int, size: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, size

    def gather(self, value: Any) -> list[Any]:
        self._meeting.values[self.rank] = value
        self._meeting.barrier.wait()
        values = copy.deepcopy(self._meeting.values)  # what comes from another process is a copy
        self._meeting.barrier.wait()
        return values


def on_ranks(size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """What `work` returns, or the exception that it raises, on each rank."""
    meeting = _Meeting(size)

    def run(rank: int) -> Any:
        try:
            return work(ThreadRank(meeting, rank, size))
        except Exception as error:  # noqa: BLE001  # it is the result
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
