"""What measures in another process: it owns the estimator, and answers in bytes."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import torch

from slt_callbacks.executors.carried import unpacked
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement

_KEPT = 2  # states: that of the last measurement, and of the one before, which may be the last that has been recorded


@dataclass(frozen=True)
class Outlook:
    """What the next measurement will take, as far as its estimator knows.

    Attributes:
        expected_steps: Gradient steps, if warm chains do not drift.
        stored_bytes: Memory of the chains that wait for it.
    """

    expected_steps: int
    stored_bytes: int


@dataclass(frozen=True)
class Answer:
    """A measurement, and what the estimator knows of the next.

    Attributes:
        measurement: As it was made.
        outlook: Of the next.
        known: The estimator's state after it without the chains, pickled, for the one that takes the place of a worker
            that is lost; None where an observable could not say.
    """

    measurement: Measurement
    outlook: Outlook
    known: bytes | None


class Worker:
    """Measures one fork after the other, and remembers what a checkpoint needs.

    Args:
        estimator: Its own from here on.
        device: Where it measures; None for where the weights were.

    Example:
        >>> from slt_callbacks import SamplerConfig
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> from slt_callbacks.executors.carried import carry
        >>> config = SamplerConfig(num_chains=1, num_draws=2, num_burnin_steps=0)
        >>> loss_fn = lambda net, x: net(x).square().mean(1)
        >>> worker = Worker(Estimator(draw_reference([torch.zeros(4, 2)]), loss_fn, None, config))
        >>> memory = torch.zeros(2**16, dtype=torch.uint8)
        >>> end = carry(torch.nn.Linear(2, 1), lambda size: memory)
        >>> answer = pickle.loads(worker.measure(0, step=7, memory=memory, end=end))
        >>> answer.measurement.step, answer.measurement.failed
        (7, False)
    """

    def __init__(self, estimator: Estimator, device: str | None = None) -> None:
        self._estimator = estimator
        self._device = device
        self._states: dict[int, list[Any]] = {}

    def measure(self, order: int, step: int, memory: torch.Tensor, end: int) -> bytes:
        """Measure a fork; whatever it meets, there is an answer.

        Args:
            order: Which fork it is, counted over the run.
            step: Training step of it.
            memory: The bytes of the module, as `carry` has written them.
            end: Where its weights end there.

        Returns:
            The `Answer`, pickled.
        """
        try:
            module = unpacked(memory, end, self._device)
        except Exception as error:  # noqa: BLE001  # whatever the user's classes raise
            return self._answer(self._failed(step, error))
        measurement = self._estimator.attempt(module, step)
        if not isinstance(self._estimator, Apart):
            self._remember(order)
        try:
            return self._answer(measurement, self._known(order))
        except Exception as error:  # noqa: BLE001  # what an observable of the user's own has found
            return self._answer(self._failed(step, error))

    def state(self, order: int, chains: bool) -> bytes:
        """What a resumed run needs after one of the last two measurements, pickled.

        Args:
            order: Of the measurement.
            chains: Whether to include the chains' positions.

        Raises:
            KeyError: If it was none of these.
            Exception: Whatever the `state_dict` of an observable has raised.
        """
        state = self._states[order][chains]
        if isinstance(state, Exception):
            raise state
        return pickle.dumps(state)

    def _remember(self, order: int) -> None:
        """Keep the state as it is now; chains are never written to, so that only what observables know is copied."""
        try:
            without, state = (self._estimator.state_dict(chains) for chains in (False, True))
            observables = {"observables": copy.deepcopy(state["observables"])}
            kept: list[Any] = [without | observables, state | observables]
        except Exception as error:  # noqa: BLE001  # it may be the user's own, and costs checkpoints their chains
            kept = [error, error]
        others = list(self._states.items())[-(_KEPT - 1) :]
        self._states = {**dict(others), order: kept}

    def _failed(self, step: int, error: Exception) -> Measurement:
        return self._estimator.failed(step, f"{type(error).__name__}: {error}")

    def _known(self, order: int) -> bytes | None:
        try:
            return self.state(order, chains=False)
        except Exception:  # noqa: BLE001  # where each stands alone there is none; others may be the user's own
            return None

    def _answer(self, measurement: Measurement, known: bytes | None = None) -> bytes:
        outlook = Outlook(self._estimator.expected_steps, self._estimator.stored_bytes)
        return pickle.dumps(Answer(measurement, outlook, known))
