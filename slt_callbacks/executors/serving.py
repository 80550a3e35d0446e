"""The other end: what a worker's process does with what it is sent."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from slt_callbacks.executors.numerics import Numerics
from slt_callbacks.executors.slots import mapped
from slt_callbacks.executors.worker import Worker

_PATIENCE = 5.0  # seconds in which what has been sent is read

Begin = tuple[str, Path, int]
"""``("begin", file, bytes)``: an estimator to own from here on."""
Measure = tuple[str, int, int, Path, int]
"""``("measure", order, step, file, end)``: a fork; see `Worker.measure`."""


class Measures(Protocol):
    """A `Worker`, or what reaches one that is farther away."""

    def measure(self, order: int, step: int, memory: Any, end: int) -> bytes:
        """As `Worker.measure`; raises where the worker is lost."""

    def state(self, order: int, chains: bool) -> bytes:
        """As `Worker.state`."""


def serve_here(channels: list[tuple[Connection, Connection]], numerics: Numerics, device: str | None) -> None:
    """The whole life of a worker process: it measures itself.

    Args:
        channels: One pair: for work, and for questions in the middle of it.
        numerics: How to compute.
        device: Where.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal: training decides
    numerics.apply()
    ((work, questions),) = channels
    serve(work, questions, lambda packed: Worker(pickle.loads(packed), device))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # without taking the interpreter apart, for which training would wait


def serve(work: Connection, questions: Connection, make: Callable[[bytes], Measures]) -> None:
    """Answer until the training process has had enough, or is gone.

    Args:
        work: Where forks come, one at a time, and each is answered.
        questions: Where a checkpoint asks for the state, at any time.
        make: Makes the worker from an estimator's bytes.
    """
    desk = _Desk(questions)
    worker: Measures | None = None
    reason = "it was never begun"
    while True:
        try:
            message = pickle.loads(work.recv_bytes())
        except (EOFError, OSError):
            desk.clear()
            return
        if message is None:
            return
        kind, *content = message
        desk.know(content[-2].parent)
        if kind == "begin":
            path, size = content
            try:
                worker = desk.worker = make(mapped(path)[:size].numpy().tobytes())
            except Exception as error:  # noqa: BLE001  # whatever importing the user's code raises; told when asked
                worker, reason = None, f"it could not begin: {type(error).__name__}: {error}"
            continue
        work.send_bytes(pickle.dumps(_measured(worker, reason, *content)))


def _measured(worker: Measures | None, reason: str, order: int, step: int, path: Path, end: int) -> tuple[str, Any]:
    if worker is None:
        return "lost", reason
    try:
        return "answer", worker.measure(order, step, mapped(path), end)
    except Exception as error:  # noqa: BLE001  # a worker of its own answers always: this is one that is far away
        return "lost", f"{type(error).__name__}: {error}"


class _Desk:
    """Answers questions while the worker measures; ends the process when nobody is left to ask."""

    def __init__(self, questions: Connection) -> None:
        self.worker: Measures | None = None
        self._folders: set[Path] = set()  # of the shared memory, which nobody else would delete
        self._told = threading.Event()  # of the first of them
        self._questions = questions
        threading.Thread(target=self._answer, daemon=True).start()

    def know(self, folder: Path) -> None:
        """There is shared memory here."""
        self._folders.add(folder)
        self._told.set()

    def clear(self) -> None:
        """The training process is gone, and cannot do it."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _answer(self) -> None:
        while True:
            try:
                order, chains = pickle.loads(self._questions.recv_bytes())
            except (EOFError, OSError):
                self._told.wait(_PATIENCE)  # what was sent before can still be read
                self.clear()
                os._exit(0)  # in the middle of a measurement that nobody waits for
            try:
                if self.worker is None:
                    raise RuntimeError("it has not begun")
                told: tuple[str, Any] = ("state", self.worker.state(order, chains))
            except Exception as error:  # noqa: BLE001  # whatever a `state_dict` raises
                told = ("error", f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError):  # whoever has asked is gone, as the next look will find
                self._questions.send_bytes(pickle.dumps(told))
