"""What a process that has measured elsewhere may not leave behind."""

from __future__ import annotations

import os
import tempfile
import time
from multiprocessing import resource_tracker
from pathlib import Path

import pytest


def here() -> dict[str, set[str]]:
    """Processes that this one has started, what it has open, and shared memory."""
    resource_tracker.ensure_running()  # type: ignore[no-untyped-call]
    pid = os.getpid()
    children = {
        child: Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    }
    places = {Path("/dev/shm"), Path(tempfile.gettempdir())}
    opened = {f"{fd} {_target(fd)}" for fd in os.listdir("/proc/self/fd")}
    return {
        # Python's own, one for all, which ends with the process
        "processes": {child for child, line in children.items() if "resource_tracker" not in line},
        "open": {one for one in opened if "pipe" in one or "socket" in one or "slt-callbacks" in one},
        "memory": {str(path) for place in places for path in place.glob(f"slt-callbacks-{pid}-*")},
    }


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "gone"


def nothing_since(before: dict[str, set[str]], within: float = 20.0) -> None:
    """Fail unless there is nothing more than `before`, at once or soon."""
    end = time.monotonic() + within
    while more := {name: found - before[name] for name, found in here().items() if found - before[name]}:
        if time.monotonic() > end:
            pytest.fail(f"left behind: {more}")
        time.sleep(0.1)
