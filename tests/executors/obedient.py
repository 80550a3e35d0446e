"""A loss that does what the weights say, in whichever process it is asked."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch import nn

from slt_callbacks import Estimator
from slt_callbacks.data.drawing import draw_reference
from tests.problems import settings, squared_error

FINE, RAISES, DIES, SLOW = 0.0, 1.0, 2.0, 3.0


class Obeyed(nn.Linear):
    """Its buffer says what becomes of a measurement."""

    def __init__(self, order: float = FINE) -> None:
        super().__init__(2, 1)
        nn.init.constant_(self.weight, 1.0)
        nn.init.constant_(self.bias, 0.5)
        self.register_buffer("order", torch.tensor(order))


def obey(module: Any, batch: Any) -> torch.Tensor:
    order = float(module.order)
    if order == RAISES:
        raise RuntimeError("no such column")
    if order == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    if order == SLOW:
        time.sleep(0.2)
    return squared_error(module, batch)


def estimator() -> Estimator:
    """What measures such modules."""
    reference = draw_reference([(torch.ones(4, 2), torch.zeros(4, 1))])
    return Estimator(reference, obey, None, settings(), persistent=True)


def ends_at_once(*_: Any) -> None:
    """A worker that never gets to work."""
    os._exit(3)
