"""The reference set of a run: still to come, collected from the first batches, there, or unusable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slt_callbacks.basics.errors import RankFailedError
from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.arguments import Asked
from slt_callbacks.callbacks.first_batches import FirstBatches, check_before_batches
from slt_callbacks.measuring.estimator import Estimator


@dataclass(frozen=True)
class ToCome:
    """No fit has begun yet."""


@dataclass(frozen=True)
class Collecting:
    """The first training batches stand for a reference set."""

    batches: FirstBatches


@dataclass(frozen=True)
class There:
    """Measurements can be made."""

    estimator: Estimator


@dataclass(frozen=True)
class Unusable:
    """Nothing is measured in this fit, of which there has been a warning."""


class Samples:
    """Brings a run from its arguments, or its first batches, to what measures on them.

    Args:
        asked: The monitor's arguments.
        notices: Where it is told, once, that batches cannot serve.
        on_made: Called with the estimator as soon as there is one.

    Attributes:
        state: How far it is.
    """

    def __init__(self, asked: Asked, notices: Notices, on_made: Callable[[Estimator], None]) -> None:
        self._asked = asked
        self._notices = notices
        self._on_made = on_made
        self.state: ToCome | Collecting | There | Unusable = ToCome()

    @property
    def estimator(self) -> Estimator | None:
        """What measures, where there is a reference set."""
        return self.state.estimator if isinstance(self.state, There) else None

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the reference set, or begin to collect one; the same trainer goes on with what it has.

        Raises:
            MisconfigurationException: If the samples, or what is to be measured on them, cannot be used.
        """
        if isinstance(self.state, There):
            return
        asked = self._asked
        try:
            if asked.reference is None:
                check_before_batches(asked.wanted, asked.sampler, asked.observables, asked.loss_fn, pl_module)
                self.state = Collecting(FirstBatches(asked.wanted))
            else:
                self._make(trainer, asked.reference, asked.num_samples)
        except (RankFailedError, TypeError, ValueError) as error:
            raise MisconfigurationException(f"SLTMonitor: {error}") from error

    def collect(self, trainer: pl.Trainer, batch: Any) -> bool:
        """Keep a batch, where batches are collected; rank 0's are the reference set of all ranks.

        Returns:
            Whether that has brought the reference set.
        """
        if not isinstance(self.state, Collecting):
            return False
        first, problem = self.state.batches, None
        try:
            first.add(batch)
        except Exception as error:  # noqa: BLE001  # whatever a batch is, training can live with it
            problem = f"{type(error).__name__}: {error}"
        problem, enough = trainer.strategy.broadcast((problem, first.enough))
        if problem is not None:
            self._give_up(problem)
            return False
        return bool(enough) and self.settle(trainer)

    def settle(self, trainer: pl.Trainer) -> bool:
        """Make do with the batches collected so far; returns whether that has brought the reference set."""
        if not isinstance(self.state, Collecting):
            return False
        first = self.state.batches
        self.state = Unusable()
        try:
            self._make(trainer, first.batches, None)
        except Exception as error:  # noqa: BLE001  # as above
            self._give_up(f"{type(error).__name__}: {error}")
        if not trainer.strategy.reduce_boolean_decision(self.estimator is not None) or self.estimator is None:
            self.state = Unusable()  # where one rank has failed, none measures
            return False
        if self._asked.num_samples is not None and not first.enough:
            self._notices.once(
                f"Expected `num_samples` to be at most the samples of the first epoch, but got "
                f"{self._asked.num_samples}: measuring on the {len(self.estimator.reference)} that were seen."
            )
        return True

    def _make(self, trainer: pl.Trainer, reference: Any, num_samples: int | None) -> None:
        estimator = self._asked.estimator(trainer, reference, num_samples)
        self._on_made(estimator)
        self.state = There(estimator)

    def _give_up(self, problem: str) -> None:
        self.state = Unusable()
        self._notices.once(
            f"The first training batches cannot serve as the reference set ({problem}), so nothing is measured in this "
            "fit. Training goes on. Give the samples to measure on as `reference`."
        )
