"""Workers in processes of their own, reached through pipes and shared memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from torch import multiprocessing as torch_multiprocessing
from torch import nn

from slt_callbacks.executors.elsewhere import WorkerLostError
from slt_callbacks.executors.packing import Packing
from slt_callbacks.executors.slots import Slot, Slots
from slt_callbacks.executors.worker import Answer
from slt_callbacks.measuring.estimator import Estimator

_PATIENCE = 10.0  # seconds for a process to end by itself


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A process that is started here never hears of Ctrl-C, not even while it imports; this one does afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: there it ignores the signal as soon as it serves
        yield
        return
    resource_tracker.ensure_running()  # its own start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Channel:
    """The way to one worker."""

    process: SpawnProcess
    work: Connection
    questions: Connection
    busy: bool = False
    answered: bool = False


@dataclass(frozen=True)
class _Load:
    """A module in shared memory."""

    slot: Slot
    end: int


class Processes:
    """Workers, each in a process of its own or all behind one.

    Args:
        num_workers: How many.
        target: What such a process does; takes its ends of the channels, and the `arguments`.
        arguments: Gives them, when a process is started.
        packing: How estimators and modules are pickled.
        behind_one: Whether one process serves all workers, for they are farther away.
    """

    def __init__(
        self,
        num_workers: int,
        target: Callable[..., None],
        arguments: Callable[[], tuple[Any, ...]],
        packing: Packing | None = None,
        behind_one: bool = False,
    ) -> None:
        numbers = list(range(num_workers))
        self._behind_one = behind_one
        self._groups = [numbers] if behind_one else [[number] for number in numbers]
        self._target, self._arguments = target, arguments
        self._packing = Packing() if packing is None else packing
        self._begin()

    def _begin(self) -> None:
        self._slots = Slots()
        self._channels: dict[int, _Channel] = {}
        self._asked: dict[int, _Channel] = {}  # whom the fork of a worker was sent through
        self._estimators: dict[int, Slot] = {}
        self._answered = False

    def rehearse(self, estimator: Estimator, module: nn.Module) -> nn.Module:
        """As in `Workers`."""
        _refuse_inside()
        return self._packing.check(estimator, module)

    def start(self, number: int, estimator: Estimator) -> None:
        """As in `Workers`."""
        _refuse_inside()
        packed = self._packing.packed(estimator)
        self._put_back(self._estimators.pop(number, None))
        slot = self._estimators[number] = self._slots.take(len(packed))
        slot.memory.numpy()[: len(packed)] = memoryview(packed)
        if number not in self._channels or not self._channels[number].process.is_alive():
            self._spawn(next(group for group in self._groups if number in group))
        try:
            self._channels[number].work.send_bytes(pickle.dumps(("begin", slot.path, len(packed))))
        except OSError as error:
            raise WorkerLostError(self._why(self._channels[number])) from error

    def load(self, module: nn.Module) -> _Load:
        """As in `Workers`."""
        taken: list[Slot] = []

        def memory(num_bytes: int) -> torch.Tensor:
            taken.append(self._slots.take(num_bytes))
            return taken[0].memory

        try:
            end = self._packing.carry(module, memory)
        except BaseException:
            for slot in taken:
                self._slots.give_back(slot)
            raise
        return _Load(taken[0], end)

    def unload(self, load: _Load) -> None:
        """As in `Workers`."""
        self._slots.give_back(load.slot)

    def send(self, number: int, order: int, step: int, load: _Load) -> None:
        """As in `Workers`."""
        channel = self._asked[number] = self._channels[number]
        try:
            channel.work.send_bytes(pickle.dumps(("measure", order, step, load.slot.path, load.end)))
        except OSError as error:
            raise WorkerLostError(self._why(channel)) from error
        channel.busy = True

    def ready(self, numbers: Sequence[int], timeout: float) -> list[int]:
        """As in `Workers`."""
        lost = [number for number in numbers if self._asked[number] is not self._channels.get(number)]
        asked = {number: self._asked[number] for number in numbers if number not in lost}
        # A process's end is not always the end of its pipe: another one of the same parent may hold it open.
        waited = {part for channel in asked.values() for part in (channel.work, channel.process.sentinel)}
        found = wait(list(waited), 0.0 if lost else timeout) if waited else []
        done = [n for n, channel in asked.items() if channel.work in found or channel.process.sentinel in found]
        return sorted(lost + done)

    def answer(self, number: int) -> Answer:
        """As in `Workers`."""
        channel = self._asked.pop(number)
        if channel is not self._channels.get(number):
            raise WorkerLostError("the process that reached it has ended")
        try:
            if not channel.work.poll():
                raise EOFError
            kind, content = pickle.loads(channel.work.recv_bytes())
        except (EOFError, OSError) as error:
            raise WorkerLostError(self._why(channel)) from error
        channel.busy, channel.answered = False, True
        if kind == "lost":
            raise WorkerLostError(content)
        self._answered = True
        try:
            answer: Answer = pickle.loads(content)
        except Exception as error:  # whatever the user's classes raise
            raise WorkerLostError(f"its answer cannot be read here: {type(error).__name__}: {error}") from error
        return answer

    def state(self, number: int, order: int, chains: bool, timeout: float) -> dict[str, Any]:
        """As in `Workers`."""
        channel = self._channels[number]
        try:
            while channel.questions.poll():
                channel.questions.recv_bytes()  # an answer that came too late
            channel.questions.send_bytes(pickle.dumps((order, chains)))
            if not channel.questions.poll(timeout):
                raise TimeoutError(f"the worker has not answered within {timeout:.0f} s")
            kind, content = pickle.loads(channel.questions.recv_bytes())
        except (EOFError, ConnectionError) as error:
            raise WorkerLostError(self._why(channel)) from error
        if kind == "error":
            raise RuntimeError(content)
        state: dict[str, Any] = pickle.loads(content)
        return state

    def close(self) -> None:
        """As in `Workers`."""
        channels = list(self._channels.values())
        processes = {id(channel.process): channel.process for channel in channels}
        # One that is still being started would be waited for as well, and has nothing to end in good order.
        busy = {id(one.process) for one in channels if one.busy or not (one.answered or self._behind_one)}
        try:
            for channel in channels:
                _dismiss(channel, id(channel.process) in busy)
            for process in processes.values():
                end(process)
        finally:
            for channel in channels:
                channel.work.close()
                channel.questions.close()
            self._slots.close()
            self._begin()

    def _spawn(self, group: list[int]) -> None:
        """A process for these workers; those of one that has ended are reached no more."""
        context = torch_multiprocessing.get_context("spawn")
        pairs = {number: (context.Pipe(), context.Pipe()) for number in group}
        theirs = [(work[1], questions[1]) for work, questions in pairs.values()]
        process = context.Process(target=self._target, args=(theirs, *self._arguments()), daemon=True)
        try:
            with _without_ctrl_c():
                process.start()
        except BaseException:
            for (work, _), (questions, _) in pairs.values():
                work.close()
                questions.close()
            raise
        finally:
            for end_of_work, end_of_questions in theirs:
                end_of_work.close()
                end_of_questions.close()
        for number, ((work, _), (questions, _)) in pairs.items():
            old = self._channels.get(number)
            self._channels[number] = _Channel(process, work, questions)
            if old is not None:
                old.work.close()
                old.questions.close()

    def _why(self, channel: _Channel) -> str:
        """How a worker's process has ended."""
        channel.process.join(_PATIENCE)
        code = channel.process.exitcode
        text = f"the worker process has ended with exit code {code}"
        if code is not None and code < 0:
            text = f"the worker process was ended by {signal.Signals(-code).name}"
        if not self._answered:
            text += (
                " before its first answer (does its memory suffice? a script that trains at its top level has to do so "
                'below `if __name__ == "__main__":`, for the worker imports it)'
            )
        return text

    def _put_back(self, slot: Slot | None) -> None:
        if slot is not None:
            self._slots.give_back(slot)


def _dismiss(channel: _Channel, busy: bool) -> None:
    """Ask a worker to end, and a busy one without waiting."""
    if busy:
        channel.process.terminate()
        return
    with contextlib.suppress(OSError):  # it has ended
        channel.work.send_bytes(pickle.dumps(None))


def end(process: SpawnProcess) -> None:
    """See to it that a process has ended, the hard way if need be."""
    process.join(_PATIENCE)
    for harder in (process.terminate, process.kill):
        if process.is_alive():
            harder()
            process.join(_PATIENCE)
    process.close()


def _refuse_inside() -> None:
    """Where a worker imports the script that started it, the script must not train again.

    Raises:
        SystemExit: There.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds out
        raise SystemExit(
            "A worker process of slt_callbacks imports the script that has started it, and the script trains at its "
            'top level: put what is to run once below `if __name__ == "__main__":`.'
        )
