"""Before the first number: the loss is tried where training will ask it, and one line says what will be measured."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.nn.parameter import is_lazy

from slt_callbacks.basics.errors import LossFnError, RankFailedError, is_loss_fn_error, is_out_of_memory
from slt_callbacks.basics.notices import Notices
from slt_callbacks.basics.rng import isolated_rng
from slt_callbacks.callbacks.arguments import Asked, is_fast_dev_run
from slt_callbacks.callbacks.information import shown_by_lightning
from slt_callbacks.callbacks.loaders import batch_size_of, planned_steps, steps_of_an_epoch
from slt_callbacks.callbacks.prospect import Plan, Prospect, Weights
from slt_callbacks.losses.functions import name_of_loss
from slt_callbacks.measuring.overview import overview

if TYPE_CHECKING:
    from slt_callbacks.callbacks.place import Place
    from slt_callbacks.callbacks.schedule import Trigger
    from slt_callbacks.measuring.estimator import Estimator
    from slt_callbacks.measuring.timed_pass import TimedPass

_log = logging.getLogger(__name__)


class Trial:
    """What comes before the first measurement of a fit.

    Args:
        asked: The monitor's arguments.
        notices: Where it is told, once, that the user's loss raises.
    """

    def __init__(self, asked: Asked, notices: Notices) -> None:
        self._asked = asked
        self._notices = notices
        self._together: int | None = None

    def prepare(self, estimator: Estimator, trainer: pl.Trainer) -> None:
        """Tell the estimator what the loaders say, those of rank 0 to all ranks."""
        self._together = trainer.strategy.broadcast(batch_size_of(trainer.train_dataloader))
        estimator.set_together(self._together)

    def check(self, estimator: Estimator, pl_module: pl.LightningModule) -> bool:
        """Try the loss.

        Returns:
            Whether it can be measured as it is.

        Raises:
            MisconfigurationException: If nothing can be measured, unless it is the user's own loss that raises: that
                may mend itself.
        """
        try:
            with shown_by_lightning():
                estimator.check(pl_module)
        except (LossFnError, RankFailedError, TypeError, ValueError) as error:
            if self._asked.loss_fn is None or not is_loss_fn_error(error):
                raise MisconfigurationException(f"SLTMonitor: {error}") from error
            self._notices.once(f"Every measurement will fail until this is mended: {error}")
            return False
        return True

    def check_elsewhere(
        self, place: Place, estimator: Estimator, pl_module: pl.LightningModule, begun: bool, sound: bool
    ) -> bool:
        """Try the loss on the module as another process will see it, where that is where it is measured.

        Args:
            place: Where.
            estimator: What measures.
            pl_module: The live module.
            begun: Whether training has begun: a mistake costs measurements then, and no longer the run.
            sound: Whether the loss can be asked.

        Returns:
            Whether it can be measured there at all.

        Raises:
            MisconfigurationException: As `check`.
        """
        try:
            with isolated_rng(self._asked.seed):
                there = place.rehearsed(estimator, pl_module)
                if there is not None and sound and not begun:
                    self.check(estimator, there)
        except TypeError as error:
            if not begun:
                raise MisconfigurationException(f"SLTMonitor: {error}") from error
            self._notices.once(f"Nothing is measured in this fit. {error}")
            return False
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _log.debug("There was no memory to try the loss on a second copy of the module: %s", error)
        return True

    def look_ahead(
        self, estimator: Estimator, trainer: pl.Trainer, pl_module: pl.LightningModule, trigger: Trigger, sound: bool
    ) -> Prospect | None:
        """Say, once a fit, what will be measured and what it will cost.

        Args:
            estimator: What measures.
            trainer: With its loaders.
            pl_module: The live module.
            trigger: When a measurement is due.
            sound: Whether the loss can be asked for a gradient pass.

        Returns:
            The same; None where training does not wait for measurements.
        """
        timed = _timed(estimator, pl_module) if sound else None
        source_size = estimator.reference.source_size if self._asked.reference is not None else None
        prospect = Prospect(
            loss=name_of_loss(self._asked.loss_fn, pl_module),
            num_samples=len(estimator.reference),
            source_size=source_size,
            weights=_weights(pl_module),
            config=estimator.config,
            num_steps=estimator.expected_steps,
            later_steps=estimator.later_steps,
            num_processes=estimator.num_shares,
            num_posteriors=estimator.num_posteriors,
            timed=timed,
        )
        waits = self._asked.executor is None
        plan = self._plan(trainer, trigger, timed) if waits else None
        rank_zero_info(prospect.line(self._asked.max_overhead, plan, is_fast_dev_run(trainer)))
        if sound and self._asked.refinements.by_name:
            rank_zero_info(overview(self._asked.refinements.by_name, pl_module))
        return prospect if waits else None

    def _plan(self, trainer: pl.Trainer, trigger: Trigger, timed: TimedPass | None) -> Plan:
        seconds = None
        if timed is not None and self._together is not None:
            seconds = timed.pass_seconds / timed.size * self._together * trainer.accumulate_grad_batches
        every = trigger.steps_between(steps_of_an_epoch(trainer) or 0, 0, seconds or 0.0)
        planned = planned_steps(trainer)
        return Plan(None if planned is None else planned - trainer.global_step, every, seconds)


def _timed(estimator: Estimator, module: pl.LightningModule) -> TimedPass | None:
    """A gradient pass; None where it fails, as the measurements will, each with a record that says why."""
    try:
        with shown_by_lightning():
            return estimator.time_pass(module)
    except Exception as error:  # noqa: BLE001  # what costs a measurement must not cost the run here
        _log.debug("The gradient pass before the first measurement failed: %s: %s", type(error).__name__, error)
        return None


def _weights(module: pl.LightningModule) -> Weights:
    known = [(name, parameter) for name, parameter in module.named_parameters() if not is_lazy(parameter)]
    frozen = [(name, parameter) for name, parameter in known if not parameter.requires_grad]
    return Weights(
        trainable=sum(parameter.numel() for _, parameter in known if parameter.requires_grad),
        frozen=sum(parameter.numel() for _, parameter in frozen),
        some_frozen=frozen[0][0] if frozen else None,
    )
