"""In the training process: a measurement is finished before training goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.weights.snapshot import Snapshot

Progress = Callable[[Snapshot, int], AbstractContextManager[Callable[[int], None] | None]]
"""From what is measured, and how many SGLD steps that will take, to a block that is told of those just taken."""


class InlineExecutor:
    """Measures at `submit`, on the live weights themselves.

    Args:
        progress: Shows how far a measurement is; None for not at all.

    Example:
        >>> import torch
        >>> from slt_callbacks import SamplerConfig
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> config = SamplerConfig(num_chains=1, num_draws=2, num_burnin_steps=0)
        >>> loss_fn = lambda net, x: net(x).square().mean(1)
        >>> executor = InlineExecutor()
        >>> executor.open(Estimator(draw_reference([torch.zeros(4, 2)]), loss_fn, None, config))
        >>> executor.submit(Snapshot(7, torch.nn.Linear(2, 1)))
        >>> [measurement.step for measurement in executor.poll()], executor.poll()
        ([7], [])
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress: Progress = (lambda snapshot, total: nullcontext()) if progress is None else progress
        self._estimator: Estimator | None = None
        self._finished: list[Measurement] = []

    def open(self, estimator: Estimator) -> None:
        """As in `Executor`."""
        self._estimator = estimator

    def submit(self, snapshot: Snapshot) -> None:
        """As in `Executor`.

        Raises:
            RuntimeError: If it has not been opened.
        """
        if self._estimator is None:
            raise RuntimeError("Expected `open(estimator)` before `submit`: nothing to measure with.")
        try:
            with self._progress(snapshot, self._estimator.expected_steps) as on_steps:
                measurement = self._estimator.attempt(snapshot.module, snapshot.step, on_steps)
        except Exception as error:  # noqa: BLE001  # a bar that breaks costs the measurement, and the record says why
            measurement = self._estimator.failed(snapshot.step, f"{type(error).__name__}: {error}")
        self._finished.append(measurement)

    def poll(self) -> list[Measurement]:
        """As in `Executor`."""
        finished, self._finished = self._finished, []
        return finished

    def drain(self, timeout: float | None = None) -> list[Measurement]:
        """As in `Executor`: there is nothing to wait for."""
        return self.poll()

    def close(self) -> None:
        """As in `Executor`."""
        self._estimator = None
