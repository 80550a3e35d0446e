"""A gate that processes in step pass together, before whatever each of them would else wait in for the others."""

from __future__ import annotations

import signal
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed

_FINE, _FAILED, _INTERRUPTED = 0, 1, 2
_NOWHERE = -(2**62)


class OutOfStepError(RuntimeError):
    """Another process has failed, or is elsewhere: nobody goes on."""


class Gate:
    """Asked before every exchange of processes in step: each says where it is, and all go on, or none does.

    Processes that share every forward and backward pass wait for each other many times in each. One that raises in
    between would let the others wait for ever, so it says so at the gate, where they are on their way to the next
    exchange. It takes an exchange of three numbers among CPUs, which no GPU has to wait for.

    Args:
        size: How many processes there are; one passes as it likes.
        group: Those of the gate, with a backend for CPUs; None for all of them where there is one.

    Attributes:
        closed: Whether the processes have been told that one has failed: nobody passes until `open`.

    Example:
        >>> gate = Gate(1)
        >>> gate("losses")
        >>> gate.fail()
        >>> gate("losses")
        Traceback (most recent call last):
            ...
        slt_callbacks.basics.gate.OutOfStepError: another process has failed, or asked for something else
    """

    def __init__(self, size: int, group: Any = None) -> None:
        self._size = size
        self._group = group
        self._passes = 0
        self._interrupted = False
        self.closed = False

    def open(self) -> None:
        """Let processes pass again, which all know of the failure, and count their passes anew."""
        self.closed = False
        self._passes = 0

    def begin(self) -> None:
        """Another pass begins; one that began it without the others is not where they are."""
        self._passes += 1

    def __call__(self, where: str) -> None:
        """Go on with the others.

        Args:
            where: What comes next, the same on every process.

        Raises:
            OutOfStepError: On every process, where one has failed or is elsewhere.
            KeyboardInterrupt: On every process, where one was interrupted.
        """
        if self.closed:
            raise OutOfStepError("another process has failed, or asked for something else")
        place = zlib.crc32(f"{self._passes} {where}".encode())
        self._agree(_INTERRUPTED if self._interrupted else _FINE, place)

    def fail(self, interrupted: bool = False) -> None:
        """Tell the others, at whatever gate they come to, that this process does not go on."""
        if not self.closed:
            with suppress(OutOfStepError, KeyboardInterrupt):  # as it was told
                self._agree(_INTERRUPTED if interrupted else _FAILED, None)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Ctrl-C waits for the next gate, where it is every process's; without one until the end of the block."""
        self._interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield  # whose signals are another's
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)
            if self._interrupted:
                raise KeyboardInterrupt

    def _note(self, *_: Any) -> None:
        self._interrupted = True

    def _agree(self, code: int, place: int | None) -> None:
        places = [_NOWHERE, _NOWHERE] if place is None else [place, -place]
        told = torch.tensor([code, *places], dtype=torch.int64, device="cpu")
        if self._size > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._group)
        worst, last, first = told.tolist()
        if worst == _INTERRUPTED:
            self.closed = True
            raise KeyboardInterrupt
        if worst == _FAILED or last != -first:
            self.closed = True
            raise OutOfStepError("another process has failed, or asked for something else")


def gate_of(size: int) -> Gate:
    """A gate of all processes, which have to ask for it together."""
    return Gate(size, torch.distributed.new_group(backend="gloo") if size > 1 else None)
