"""What Lightning has still to be told: numbers for its bar, and for the callbacks that go by them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import lightning.pytorch as pl

from slt_callbacks.basics.keys import is_mean
from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.awaited import awaited_keys


class Outbox:
    """Keeps the numbers of the last measurement until Lightning can take them.

    It forgets its metrics at the end of every epoch, and what it is told before the first batch would come back then:
    that waits for a batch.

    Args:
        names: What logged keys may begin with, after ``slt/``: the observables, "health" and "cost".
        notices: Where it is told, once, that Lightning cannot be: a module may have a ``log`` of its own.
    """

    def __init__(self, names: Collection[str], notices: Notices) -> None:
        self._names = names
        self._notices = notices
        self._waiting: dict[str, float] = {}
        self._asked_others = False

    def start(self, last: Mapping[str, float]) -> None:
        """A fit begins; `last` is what the run has measured before it, for Lightning has forgotten that."""
        self._asked_others = False
        if last:
            self.put(last)

    def put(self, scalars: Mapping[str, float]) -> None:
        """Numbers by logged key, in the place of those that wait; EarlyStopping would end the run over a NaN."""
        self._waiting = {key: float(value) for key, value in scalars.items() if math.isfinite(value)}

    def ask_others(self, trainer: pl.Trainer) -> None:
        """Once a fit, for Lightning's metrics may be costly to look at: NaN for whoever waits for one of our keys."""
        if not self._asked_others:
            self._asked_others = True
            self._waiting = dict.fromkeys(awaited_keys(trainer, self._names), math.nan) | self._waiting

    def tell(self, pl_module: pl.LightningModule, on_step: bool) -> None:
        """Into the bar and ``trainer.callback_metrics``, which a barebones trainer has not."""
        metrics, self._waiting = self._waiting, {}
        if pl_module.trainer.barebones:
            return
        try:
            for key, value in metrics.items():
                shown = is_mean(key)
                pl_module.log(
                    key, value, prog_bar=shown, logger=False, on_step=on_step, on_epoch=not on_step, batch_size=1
                )
        except Exception as error:  # noqa: BLE001  # it is the user's own
            self._notices.once(
                f"{type(pl_module).__name__}.log raised {type(error).__name__}: {error}. The numbers go to the loggers "
                "alone, not into the progress bar and `trainer.callback_metrics`. Training goes on.",
                "log",
            )
