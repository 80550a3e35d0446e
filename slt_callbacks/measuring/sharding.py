"""How a module whose weights are shards is measured: on a whole copy in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.losses.world import own_world
from slt_callbacks.weights.copies import whole_copy
from slt_callbacks.weights.shards import is_sharded


@contextmanager
def undisturbed(module: nn.Module, seed: int, exchange: Exchange, *loss_fns: Any) -> Iterator[nn.Module]:
    """An `own_world` that ends on every process alike, and in it the module that forks can be made of.

    Args:
        module: The live module.
        seed: Of the global generators inside.
        exchange: The processes.
        loss_fns: As `own_world` takes them.

    Raises:
        RankFailedError: On every process, where one has failed and there are several.
    """
    with own_world(module, seed, *loss_fns), exchange.together(), gathered(module, exchange) as whole:
        yield whole


@contextmanager
def gathered(module: nn.Module, exchange: Exchange) -> Iterator[nn.Module]:
    """The module that forks are made of: the live one, or a whole copy of one that is sharded (FSDP2).

    All processes gather together, and in the same order. One without room for the copy says so before any of them
    begins, or the others would wait for its shard.

    Args:
        module: The live module; read, never changed.
        exchange: The processes.

    Raises:
        TypeError: If weights are split by more than `fully_shard`.
        RankFailedError: If there is no room on one of several.

    Example:
        >>> from slt_callbacks.basics.ranks import Alone
        >>> live = nn.Linear(2, 1)
        >>> with gathered(live, Exchange(Alone())) as module:
        ...     module is live
        True
    """
    if not is_sharded(module):
        yield module
        return
    with exchange.together():
        _find_room(module)
    yield whole_copy(module)


def _find_room(module: nn.Module) -> None:
    for device in {parameter.device for parameter in module.parameters()}:
        here = [parameter for parameter in module.parameters() if parameter.device == device]
        size = sum(parameter.numel() * parameter.element_size() for parameter in here)
        torch.empty(size, dtype=torch.uint8, device=device)
