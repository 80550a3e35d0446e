"""How a module whose weights are shards is measured: on a whole copy in every process, or on the shards.

**"gathered"** gives every rank a whole float32 copy to fork, once a measurement, and splits the chains over the ranks.
The numbers are those of one process. Rank 0 keeps all persistent chains on its CPU for checkpoints, the others for a
moment. Gathered chains compute in float32 whatever training does.

**"in_place"** runs the chains on the live shards. All ranks take every step together, on the same samples; w* is kept
aside and put back bit for bit, and a rank that raises or is interrupted takes the others with it. The chains see the
loss in FSDP2's own precision, with a warning where that is half. They agree with others statistically, not draw by
draw, are not in checkpoints, and burn in again after a resume. They take a `loss_fn` or ``per_sample_loss`` that asks
the module as training does, and no slices of parameters, `behavioral` or observables that look at the fork. What else
is in the way, such as weights that are not sharded over all ranks, is refused by name before training.

**Memory.** With P parameters a fork takes four vectors of P floats (w*, position, gradient and last noise) and two a
persistent chain. ``persistent_chains=False`` takes the chains out of memory and out of what travels, for 952 steps of a
default measurement instead of 670; ``Refinement("blocks.3.*")`` leaves out the vectors of what it does not move. What
that comes to for language models of 100 M to 10 B parameters is a table of the README, "At scale"; it is arithmetic:
some 5,400 gradients of a sequence in 670 steps, 6 P operations a token.

**Tested**, on every change: two CPU processes over gloo, small modules; gathered numbers equal to those of one process,
sums over shards to those of a whole copy, an LLC in place to the known one; weights and optimizer states bit-identical,
also where chains diverge, a rank raises before, in or after the forward pass or asks for something else, or Ctrl-C
comes; resume. **Not tested**: GPUs and NCCL under FSDP2, several nodes, and HSDP, which is refused in place.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed
from torch import nn

from slt_callbacks.basics.gate import gate_of
from slt_callbacks.basics.plain import shown
from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.losses.behavioral import Behavioral
from slt_callbacks.losses.functions import training_step_loss
from slt_callbacks.losses.world import own_world
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.weights.copies import whole_copy
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.in_place import Lent, lent
from slt_callbacks.weights.selection import EVERYTHING, Selection
from slt_callbacks.weights.shards import has_half_passes, is_sharded

if TYPE_CHECKING:
    from slt_callbacks.losses.functions import LossFn
    from slt_callbacks.observables.panel import Panel

How = Literal["auto", "gathered", "in_place"]
HOW = ("auto", "gathered", "in_place")

_log = logging.getLogger(__name__)

# Share of the free memory that a whole copy and its chain may take: losses need some as well.
_ROOM = 0.75
# Vectors of the size of the trainable weights beside the copy: position, gradient, state of the dynamics, and one more
# while curvature is looked for.
_VECTORS = 4


class Sharding:
    """Makes what forks are made of, of a live module, and the forks.

    Args:
        how: "gathered": every process gathers a whole copy, and runs some of the chains. "in_place": all processes run
            every chain together on the shards of the live module. "auto": gathered, where that fits the memory.
        exchange: The processes.
        config: Settings of the chains.
        kept: Whether chains keep their places on the device.

    Raises:
        ValueError: If `how` is none of these.

    Example:
        >>> from slt_callbacks.basics.ranks import Alone
        >>> sharding, live = Sharding("auto", Exchange(Alone()), SamplerConfig()), nn.Linear(2, 1)
        >>> with sharding.undisturbed(live, 0) as module:
        ...     module is live  # nothing is sharded
        True
    """

    def __init__(self, how: How, exchange: Exchange, config: SamplerConfig, kept: bool = False) -> None:
        check_how(how)
        self._how = how
        self._exchange = exchange
        self._config = config
        self._kept = kept
        self._lent: Lent | None = None

    @contextmanager
    def undisturbed(self, module: nn.Module, seed: int, *loss_fns: Any) -> Iterator[nn.Module]:
        """An `own_world` that ends on every process alike, and in it the module that forks can be made of.

        Args:
            module: The live module.
            seed: Of the global generators inside.
            loss_fns: As `own_world` takes them.

        Raises:
            TypeError: If weights are split by more than `fully_shard`, or chains cannot run on the shards.
            ValueError: If settings ask for what cannot be done on shards.
            RankFailedError: On every process, where one has failed and there are several.
        """
        if self._exchange.gate is not None:
            self._exchange.gate.open()
        with own_world(module, seed, *loss_fns), self._exchange.together(), self._weights(module) as measured:
            yield measured

    def fork(self, module: nn.Module, share_frozen: bool = True, selection: Selection = EVERYTHING) -> Fork:
        """A fork of the module that `undisturbed` gives; the arguments are those of `Fork`."""
        if self._lent is not None:
            return self._lent.fork(selection)
        return Fork(module, share_frozen, selection)

    @contextmanager
    def _weights(self, module: nn.Module) -> Iterator[nn.Module]:
        if not is_sharded(module):
            yield module
        elif not self._is_in_place(module):
            with self._exchange.together():  # one without room says so, or the others would wait for its shard
                _find_room(module)
            yield whole_copy(module)
        else:
            assert self._exchange.gate is not None
            try:
                with lent(module, self._exchange.gate, self._exchange.rank) as self._lent:
                    yield module
            finally:
                self._lent = None

    def _is_in_place(self, module: nn.Module) -> bool:
        """Decided once a run, by all processes together."""
        if self._how == "auto":
            fits = all(self._exchange.gather(self._fits(module)))
            self._how = "gathered" if fits or self._exchange.size < torch.distributed.get_world_size() else "in_place"
        if self._how == "gathered":
            return False
        if self._exchange.gate is None:
            self._check()
            self._exchange.gate = gate_of(self._exchange.size)
            if has_half_passes(module) and self._exchange.rank == 0:
                warnings.warn(
                    "Chains on shards see the loss as FSDP2 computes it, here in half precision, whose rounding is "
                    'part of what is measured: pass sharded="gathered" for full precision, if a whole copy fits.',
                    stacklevel=2,
                )
        return True

    def _check(self) -> None:
        if self._exchange.size != torch.distributed.get_world_size():
            raise ValueError(
                'Expected all processes to measure together with sharded="in_place", but got '
                f"{self._exchange.size} of {torch.distributed.get_world_size()}: take an SLTMonitor, which knows them."
            )
        if self._config.engine == "vectorized" or self._config.compile:
            raise ValueError(
                'Expected `engine` to be "sequential" or "auto", and `compile` to be False, where chains run on '
                'shards, which is one after the other: change it in SamplerConfig, or pass sharded="gathered".'
            )

    def _fits(self, module: nn.Module) -> bool:
        device = next(module.parameters()).device
        room, needed = _ROOM * free_bytes(device, self._exchange.size), self._needed(module)
        if needed > room:
            _log.info(
                "A whole copy with a chain takes %.3g bytes, and %.3g are free: chains run on the shards.", needed, room
            )
        return needed <= room

    def _needed(self, module: nn.Module) -> float:
        copied = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
        moving = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        chains = 2 * math.ceil(self._config.num_chains / self._exchange.size) if self._kept else 0
        return copied + 4 * moving * (_VECTORS + chains)


def check_how(how: object) -> None:
    """See to it that it can be one.

    Raises:
        ValueError: If it is none of `HOW`.

    Example:
        >>> check_how("gathered")
    """
    if how not in HOW:
        raise ValueError(f"Expected `sharded` to be one of {HOW}, but got {shown(how)}.")


def check_on_shards(loss_fn: LossFn, panel: Panel) -> None:
    """Refuse what asks for a private copy where chains run on the shards of the live module.

    Args:
        loss_fn: From `resolve_loss`.
        panel: The observables.

    Raises:
        ValueError: If so.
    """
    instead = 'pass sharded="gathered" if a whole copy of the weights fits a device'
    if loss_fn is training_step_loss:
        raise ValueError(
            "Expected a `loss_fn`, or a method `per_sample_loss(batch)`, where chains run on the shards of the live "
            f"module, because what `training_step` counts and logs would stay: write one of them, or {instead}."
        )
    if isinstance(loss_fn, Behavioral):
        raise ValueError(
            "Expected a loss of the batch where chains run on shards, but got `behavioral`, which takes a second copy "
            f"of the weights: leave it out, or {instead}."
        )
    if panel.reads_fork:
        raise ValueError(
            "Expected observables of draws where chains run on shards, but got one that looks at the fork itself: "
            f"leave it out, or {instead}."
        )


def free_bytes(device: torch.device, num_processes: int) -> float:
    """Memory that a process may take on a device; infinite where the system does not say.

    Args:
        device: One that PyTorch knows.
        num_processes: That share the memory of a CPU.

    Example:
        >>> free_bytes(torch.device("cpu"), 2) > 0
        True
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no such question on this system
        return math.inf
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", num_processes))


def _find_room(module: nn.Module) -> None:
    for device in {parameter.device for parameter in module.parameters()}:
        here = [parameter for parameter in module.parameters() if parameter.device == device]
        size = sum(parameter.numel() * parameter.element_size() for parameter in here)
        torch.empty(size, dtype=torch.uint8, device=device)
