"""A test that waits for another process must not wait for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

LIMIT = 240  # seconds; a start of a worker takes some five on a quiet core, and many times that on a busy machine


@pytest.fixture(autouse=True)
def _within_its_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"the test has taken more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
