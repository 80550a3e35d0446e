"""What the loaders of a fit tell of the batches that are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import BatchSampler


def batch_size_of(loaders: Any) -> int | None:
    """Samples in a training batch; None where there are several loaders, or one that does not say.

    Args:
        loaders: As ``trainer.train_dataloader`` has them: a loader, or a container of some.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(64), batch_size=16)
        >>> batch_size_of({"images": loader}), batch_size_of([loader, loader])
        (16, None)
    """
    found = _one_by_one(loaders)
    if len(found) != 1:
        return None
    size = getattr(found[0], "batch_size", None)
    sampler = getattr(found[0], "batch_sampler", None)
    if size is None and isinstance(sampler, BatchSampler):  # among several processes Lightning gives loaders such a one
        size = sampler.batch_size
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def planned_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps of a fit from its first; None where it has no end that is known."""
    try:
        steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # accumulation that changes from epoch to epoch
        return None
    return int(steps) if 0 < steps < math.inf else None


def steps_of_an_epoch(trainer: pl.Trainer) -> int | None:
    """Optimizer steps of an epoch; None where that is not known."""
    batches = trainer.num_training_batches
    return math.ceil(batches / trainer.accumulate_grad_batches) if 0 < batches < math.inf else None


def _one_by_one(loaders: Any) -> list[Any]:
    if isinstance(loaders, CombinedLoader):
        return list(loaders.flattened)
    if isinstance(loaders, Mapping):
        return _one_by_one(list(loaders.values()))
    if isinstance(loaders, (list, tuple)):
        return [loader for several in loaders for loader in _one_by_one(several)]
    return [loaders]
