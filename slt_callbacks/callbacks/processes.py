"""The processes of a Lightning run, as the chains see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning.pytorch as pl
import torch.distributed
from lightning.fabric.utilities.exceptions import MisconfigurationException

from slt_callbacks.data.reference import ReferenceSet

# By name: those of the package pytorch_lightning are classes of their own.
_REFUSED = {"FSDPStrategy", "DeepSpeedStrategy", "XLAStrategy"}


def refuse_sharding(trainer: pl.Trainer) -> None:
    """Refuse a strategy whose shards nobody but itself can read; those of FSDP2 can be read.

    Raises:
        MisconfigurationException: If so.
    """
    if _REFUSED & {kind.__name__ for kind in type(trainer.strategy).__mro__}:
        raise MisconfigurationException(
            f"SLTMonitor cannot sample a model that {type(trainer.strategy).__name__} shards or rewrites: use "
            'strategy="auto" or "ddp", or shard it by FSDP2, which is ModelParallelStrategy() from '
            "lightning.pytorch.strategies with `fully_shard` in the module's `configure_model`."
        )


def refuse_elsewhere(trainer: pl.Trainer, executor: Any) -> None:
    """Refuse an executor of the user's own where several processes share the chains: they would wait for each other.

    Raises:
        MisconfigurationException: If so.
    """
    if executor is not None and trainer.world_size > 1:
        raise MisconfigurationException(
            f"Expected `executor=None` with {trainer.world_size} processes, which share the chains of a measurement, "
            f"but got {type(executor).__name__}: leave `executor` out, for the processes run the chains side by "
            "side, or train in one process."
        )


class LightningRanks:
    """The ranks of a trainer, each a process with a copy of the model.

    Args:
        trainer: Whose strategy has started its processes.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.rank, self.size = trainer.global_rank, trainer.world_size

    def gather(self, value: Any) -> list[Any]:
        """As in `Ranks`."""
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values


def share_reference(trainer: pl.Trainer, make: Callable[[], ReferenceSet]) -> ReferenceSet:
    """The reference set of rank 0, on every rank: first batches and user functions may differ from rank to rank.

    Raises:
        Exception: What `make` raises on rank 0, on every rank.
    """
    if trainer.world_size == 1:
        return make()
    mine: ReferenceSet | Exception | None = None
    if trainer.is_global_zero:
        try:
            mine = make()
        except Exception as error:  # noqa: BLE001  # it is raised again below, on all ranks
            mine = error
    given = cast("ReferenceSet | Exception", trainer.strategy.broadcast(mine))
    if isinstance(given, Exception):
        raise given
    return given
