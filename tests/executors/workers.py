"""Workers in this process, which take as long as a test says and end when it says."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from slt_callbacks import Estimator
from slt_callbacks.executors.elsewhere import Elsewhere, WorkerLostError
from slt_callbacks.executors.packing import Packing
from slt_callbacks.executors.worker import Answer, Worker


class FakeWorkers:
    """Answers after being looked at `looks` times, and is lost at the orders in `loses`, each time one is named."""

    def __init__(self, looks: int = 1, loses: Sequence[int] = (), no_more: bool = False) -> None:
        self.looks, self.loses, self.no_more = looks, list(loses), no_more
        self.workers: dict[int, Worker] = {}
        self.jobs: dict[int, Any] = {}
        self.seen: dict[int, int] = {}
        self.told: list[Any] = []
        self.loads = 0
        self.most_loads = 0

    def rehearse(self, estimator: Estimator, module: nn.Module) -> nn.Module:
        return Packing().check(estimator, module)

    def start(self, number: int, estimator: Estimator) -> None:
        if self.no_more and ("start", number) in self.told:
            raise OSError("no memory")
        self.told.append(("start", number))
        self.workers[number] = Worker(pickle.loads(Packing().packed(estimator)))

    def load(self, module: nn.Module) -> Any:
        memory: list[torch.Tensor] = []

        def room(size: int) -> torch.Tensor:
            memory.append(torch.zeros(size, dtype=torch.uint8))
            return memory[0]

        end = Packing().carry(module, room)
        self.loads += 1
        self.most_loads = max(self.loads, self.most_loads)
        return memory[0], end

    def unload(self, load: Any) -> None:
        self.loads -= 1

    def send(self, number: int, order: int, step: int, load: Any) -> None:
        assert number not in self.jobs, "one at a time"
        self.told.append((number, step))
        self.jobs[number], self.seen[number] = (order, step, *load), 0

    def ready(self, numbers: Sequence[int], timeout: float) -> list[int]:
        for number in numbers:
            self.seen[number] += 1
        return [number for number in numbers if self.seen[number] >= self.looks]

    def answer(self, number: int) -> Answer:
        order, step, memory, end = self.jobs.pop(number)
        if order in self.loses:
            self.loses.remove(order)
            raise WorkerLostError("it was ended")
        answer: Answer = pickle.loads(self.workers[number].measure(order, step, memory, end))
        return answer

    def state(self, number: int, order: int, chains: bool, timeout: float) -> dict[str, Any]:
        state: dict[str, Any] = pickle.loads(self.workers[number].state(order, chains))
        return state

    def close(self) -> None:
        self.told.append("close")
        self.workers, self.jobs = {}, {}


def elsewhere(max_pending: int = 1, num_workers: int = 1, end_timeout: float | None = None, **options: Any) -> Any:
    """An executor over such workers."""
    return Elsewhere(FakeWorkers(**options), num_workers, max_pending, end_timeout)
