"""Before the first number: the loss is tried on the module, where training will ask it."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slt_callbacks.basics.errors import LossFnError, RankFailedError, is_loss_fn_error
from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.information import shown_by_lightning
from slt_callbacks.callbacks.loaders import batch_size_of
from slt_callbacks.losses.functions import LossFn
from slt_callbacks.measuring.estimator import Estimator


class Trial:
    """What comes before the first measurement of a fit.

    Args:
        loss_fn: The user's, or None.
        notices: Where it is told, once, that the user's loss raises.
    """

    def __init__(self, loss_fn: LossFn | None, notices: Notices) -> None:
        self._loss_fn = loss_fn
        self._notices = notices

    def prepare(self, estimator: Estimator, trainer: pl.Trainer) -> None:
        """Tell the estimator what its loaders say, rank 0's to all ranks."""
        estimator.set_together(trainer.strategy.broadcast(batch_size_of(trainer.train_dataloader)))

    def check(self, estimator: Estimator, pl_module: pl.LightningModule) -> None:
        """Try the loss.

        Raises:
            MisconfigurationException: If nothing can be measured, unless it is the user's own loss that raises: that
                may mend itself.
        """
        try:
            with shown_by_lightning():
                estimator.check(pl_module)
        except (LossFnError, RankFailedError, TypeError, ValueError) as error:
            if self._loss_fn is None or not is_loss_fn_error(error):
                raise MisconfigurationException(f"SLTMonitor: {error}") from error
            self._notices.once(f"Every measurement will fail until this is mended: {error}")
