"""Behind a process that speaks to Ray: actors that measure, and what happens when they, or the cluster, go away.

Training never speaks to Ray itself: joining a cluster moves Python's generator and handlers of signals, and a cluster
that is lost ends the process that has joined it.
"""

from __future__ import annotations

import os
import pickle
import platform
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from slt_callbacks.executors.numerics import Numerics
from slt_callbacks.executors.serving import serve
from slt_callbacks.executors.worker import Worker

_GLANCE = 0.05  # seconds between two looks at whether there is still work
_QUESTIONS = "questions"  # what an actor answers while it measures


@dataclass(frozen=True)
class Cluster:
    """What is asked of Ray.

    Attributes:
        num_workers: Actors.
        num_cpus: Of each.
        num_gpus: Of each.
        address: Of the cluster; None for what RAY_ADDRESS says, one that runs here, or one that is started.
        runtime_env: As ``ray.init`` takes it.
    """

    num_workers: int
    num_cpus: float
    num_gpus: float
    address: str | None
    runtime_env: dict[str, Any] | None = None

    @property
    def num_threads(self) -> int:
        """Of an actor."""
        return max(int(self.num_cpus), 1)

    @property
    def device(self) -> str:
        """Where an actor measures: Ray shows it its own GPUs, and no others."""
        return "cuda" if self.num_gpus else "cpu"

    def join(self) -> None:
        """Speak to the cluster from here on; starts one where there is none.

        Raises:
            ValueError: If a cluster that was started here is too small.
            Exception: Whatever Ray raises.
        """
        import ray

        started = self.address == "local" or not (self.address or os.environ.get("RAY_ADDRESS"))
        more: dict[str, Any] = {"include_dashboard": False} if started else {}
        ray.init(self.address, runtime_env=self.runtime_env, logging_level="warning", **more)
        for kind, each in (("CPU", self.num_cpus), ("GPU", self.num_gpus)):
            there = ray.cluster_resources().get(kind, 0)
            if started and there < self.num_workers * each:
                raise ValueError(
                    f"Expected {self.num_workers} workers with `num_{kind.lower()}s={each}` to fit on this machine, "
                    f"but it has {there:g}: ask for fewer, or give the `address` of a cluster"
                )


def serve_cluster(channels: list[tuple[Connection, Connection]], numerics: Numerics, cluster: Cluster) -> None:
    """The whole life of the process between training and Ray.

    Args:
        channels: A pair for each actor, as `serve` takes them.
        numerics: How they are to compute.
        cluster: Where.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    refused: list[Exception] = []
    try:
        cluster.join()
    except Exception as error:  # noqa: BLE001  # told as soon as a worker is asked
        refused.append(error)

    def make(packed: bytes) -> _Remote:
        if refused:
            raise refused[0]
        return _Remote(packed, numerics, cluster)

    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    threads = [threading.Thread(target=serve, args=(*channel, make), daemon=True) for channel in channels]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not ended.wait(_GLANCE):
        pass
    import ray

    ray.shutdown()
    os._exit(0)  # threads may still wait for an answer


class _Remote:
    """A worker that is an actor."""

    def __init__(self, packed: bytes, numerics: Numerics, cluster: Cluster) -> None:
        import ray

        made = ray.remote(num_cpus=cluster.num_cpus, num_gpus=cluster.num_gpus, concurrency_groups={_QUESTIONS: 1})
        self._actor = made(Actor).remote(versions(), numerics, cluster.device)
        ray.get(self._actor.begin.remote(ray.put(packed)))

    def measure(self, order: int, step: int, memory: torch.Tensor, end: int) -> bytes:
        """As `Worker.measure`: the bytes go into Ray's store once, and from there to the actor's node."""
        import ray

        answer: bytes = ray.get(self._actor.measure.remote(order, step, ray.put(memory.numpy()), end))
        return answer

    def state(self, order: int, chains: bool) -> bytes:
        """As `Worker.state`."""
        import ray

        asked = self._actor.state.options(concurrency_group=_QUESTIONS)
        state: bytes = ray.get(asked.remote(order, chains))
        return state


class Actor:
    """A `Worker` on some node.

    Args:
        expected: The `versions` of the training process.
        numerics: How to compute.
        device: Where.

    Raises:
        RuntimeError: If the node has others.

    Example:
        >>> actor = Actor(versions(), Numerics.here(num_threads=1), "cpu")
        >>> Actor(versions() | {"torch": "1.0"}, Numerics.here(num_threads=1), "cpu")
        Traceback (most recent call last):
        RuntimeError: Expected the nodes of the cluster to have the versions of the training process, but this one has
        torch ... instead of 1.0
    """

    def __init__(self, expected: dict[str, str], numerics: Numerics, device: str) -> None:
        other = [
            f"{name} {own} instead of {expected[name]}" for name, own in versions().items() if own != expected[name]
        ]
        if other:
            raise RuntimeError(
                "Expected the nodes of the cluster to have the versions of the training process, but this one has "
                f"{', '.join(other)}"
            )
        numerics.apply()
        self._device = device
        self._worker: Worker | None = None

    def begin(self, packed: bytes) -> None:
        """Own this estimator from here on."""
        self._worker = Worker(pickle.loads(packed), self._device)

    def measure(self, order: int, step: int, memory: Any, end: int) -> bytes:
        """As `Worker.measure`.

        Args:
            order: As there.
            step: As there.
            memory: The bytes, an array uint8 of Ray's store, which may not be written to.
            end: As there.
        """
        if self._worker is None:
            raise RuntimeError("Expected `begin` before `measure`: nothing to measure with.")
        return self._worker.measure(order, step, torch.from_numpy(memory.copy()), end)

    def state(self, order: int, chains: bool) -> bytes:
        """As `Worker.state`."""
        if self._worker is None:
            raise RuntimeError("Expected `begin` before `state`: there is none.")
        return self._worker.state(order, chains)


def versions() -> dict[str, str]:
    """What has to be the same on every node: Python, whose functions are pickled by value, and who computes.

    Example:
        >>> sorted(versions())
        ['Python', 'slt_callbacks', 'torch']
    """
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "slt_callbacks": sys.modules["slt_callbacks"].__version__,
    }
