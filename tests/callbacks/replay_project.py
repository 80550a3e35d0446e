"""What a user's project would hold: the paths that the tests of the replay name on its command line."""

from __future__ import annotations

import os
import signal
from typing import Any

from torch import nn

from slt_callbacks import LLC, Refinement
from tests.callbacks.test_watch import Planted
from tests.training import Regression


class Killed(Regression):
    """The process dies, as on a machine that is taken away, when it comes to a certain step."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if str(checkpoint["global_step"]) == os.environ.get("KILLED_AT"):
            os.kill(os.getpid(), signal.SIGKILL)


class Sized(Regression):
    """Its arguments are not in its checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net[0] = nn.Linear(3, width)
        self.net[1] = nn.BatchNorm1d(width)
        self.net[4] = nn.Linear(width, 1)


class Oddity:
    """Neither a tensor nor a builtin."""


def raising() -> Any:
    raise ValueError("the disk with the data is not mounted")


def planted_llc() -> dict[str, Any]:
    return {"llc": Planted()}


def last_layer() -> dict[str, Refinement]:
    return {"last": Refinement("net.4")}


def two_observables() -> dict[str, Any]:
    return {"llc": LLC(), "again": LLC()}
