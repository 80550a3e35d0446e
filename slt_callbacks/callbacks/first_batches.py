"""Without a reference: the first training batches stand for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from slt_callbacks.data.batches import map_leaves, num_rows
from slt_callbacks.losses.functions import LossFn, resolve_loss
from slt_callbacks.losses.objective import check_batch_size
from slt_callbacks.observables.base import Observable
from slt_callbacks.observables.needs import needs_of
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.posterior import default_nbeta


class FirstBatches:
    """Training batches, kept on the CPU until they hold enough samples.

    Args:
        wanted: How many samples are enough.

    Attributes:
        batches: In the order seen.
        num_samples: In all of them.

    Example:
        >>> first = FirstBatches(wanted=5)
        >>> for batch in (torch.zeros(3, 2), torch.ones(3, 2)):
        ...     first.add(batch)
        >>> first.num_samples, first.enough
        (6, True)
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.batches: list[Any] = []
        self.num_samples = 0

    @property
    def enough(self) -> bool:
        """Whether there are as many samples as wanted."""
        return self.num_samples >= self._wanted

    def add(self, batch: Any) -> None:
        """Keep a batch.

        Raises:
            ValueError: If its samples cannot be counted.
        """
        self.num_samples += num_rows(batch)
        self.batches.append(map_leaves(_to_cpu, batch))


def check_before_batches(
    wanted: int,
    sampler: SamplerConfig,
    observables: Mapping[str, Observable],
    loss_fn: LossFn | None,
    module: nn.Module,
) -> None:
    """Refuse what can be seen to be wrong before the first batch is there.

    Args:
        wanted: Samples that will be collected.
        sampler: Settings of the chains.
        observables: By key.
        loss_fn: The user's, or None.
        module: The live module; only looked at.

    Raises:
        TypeError: As `Panel`.
        ValueError: If a setting asks for more samples, an observable has labels, queries cannot be used, or there is no
            loss.
    """
    if sampler.nbeta is None:
        default_nbeta(wanted)
    check_batch_size(None if sampler.batch_size == "auto" else sampler.batch_size, wanted)
    resolve_loss(loss_fn, module)
    Panel(observables)
    for key, observable in observables.items():
        if needs_of(observable).rows:
            raise ValueError(
                f"Expected `reference` with the `labels` of `observables[{key!r}]`, which belong to the rows of a data "
                "set, but got None: give the data set as `reference`, or leave the labels out."
            )


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu().clone() if isinstance(leaf, torch.Tensor) else leaf
