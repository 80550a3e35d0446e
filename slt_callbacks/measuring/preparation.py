"""From the live module to the losses of a measurement: fork, try the loss once, and ask as observables want."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.basics.ranks import Exchange
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.functions import check_loss_fn, resolve_loss
from slt_callbacks.losses.measured import TOGETHER, Manner, MeasuredLoss
from slt_callbacks.losses.objective import Objective
from slt_callbacks.losses.probes import Probe, split_from
from slt_callbacks.losses.rehearsal import Rehearsal
from slt_callbacks.losses.tokens import TokenObjective
from slt_callbacks.measuring.sharding import check_on_shards
from slt_callbacks.observables.panel import Panel
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from slt_callbacks.losses.functions import LossFn

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Preparation:
    """Makes the objective of a measurement, and the probes of its observables, from the live module.

    Args:
        reference: The reference set.
        loss_fn: The user's, or None.
        panel: Says what observables ask for.
        config: Says how many samples a step and a forward pass take.
        exchange: The processes of the run; rank 0's buffers are everybody's.
        transferred: Whether the samples are training batches that have been through the module's transfer hooks.
        together: Samples in a training batch, where known: a loss that compares samples is taken in such batches.
        selection: The weights that chains move.
        quiet: Whether what is odd about the loss has been told already.
        forks: Makes a fork, as `Fork` does of a module that is whole.

    Attributes:
        reference: As given.
        together: As given; it may be set as soon as it is known.
        block_size: Most samples in a forward pass, that of `config` as long as memory holds.

    Example:
        >>> import torch
        >>> from slt_callbacks.basics.ranks import Alone
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> reference, loss_fn = draw_reference([torch.ones(4, 2)]), lambda net, x: net(x).square().mean(1)
        >>> preparation = Preparation(reference, loss_fn, Panel(None), SamplerConfig(), Exchange(Alone()))
        >>> preparation.objective(nn.Linear(2, 1)).losses().shape
        torch.Size([4])
    """

    def __init__(
        self,
        reference: ReferenceSet,
        loss_fn: LossFn | None,
        panel: Panel,
        config: SamplerConfig,
        exchange: Exchange,
        transferred: bool = False,
        together: int | None = None,
        selection: Selection = EVERYTHING,
        quiet: bool = False,
        forks: Callable[[nn.Module, bool, Selection], Fork] = Fork,
    ) -> None:
        check_loss_fn(loss_fn)
        self.reference = reference
        self._loss_fn = loss_fn
        self._panel = panel
        self._config = config
        self._exchange = exchange
        self.together = together
        self.block_size = config.block_size
        self._transferred = transferred
        self._selection = selection
        self._quiet = quiet
        self._forks = forks
        self._manner: Manner | None = None  # None: the loss has not been tried yet
        self._singles_at_once = False
        self._queries = {
            key: split_from(samples, reference) if panel.reference_losses else (samples, None)
            for key, samples in panel.queries.items()
        }

    @property
    def batch_size(self) -> int | None:
        """Samples in a gradient step; None for all, and where "auto" waits for the loss to be tried."""
        asked, manner = self._config.batch_size, self._manner
        if asked != "auto":
            return asked
        return None if manner is None else automatic_batch_size(len(self.reference), manner, self.together)

    def try_again(self) -> None:
        """Try the loss at the next objective, as at the first."""
        self._manner = None

    def shrink_block(self) -> int | None:
        """Fewer samples in a forward pass: at most half, and those of a training batch, which training has memory for.

        Returns:
            How many; None where they are one, or where fewer would have another loss, because it compares them.
        """
        if self._manner is not None and self._manner.coupled:
            return None
        sizes = (len(self.reference), self.batch_size, self.block_size)
        half = min(size for size in sizes if size) // 2
        smaller = min(half, self.together or half)
        self.block_size = smaller or self.block_size
        return smaller or None

    def objective(self, module: nn.Module) -> Objective:
        """Fork the module, and try the loss the first time.

        Raises:
            TypeError: As `Fork`, `resolve_loss` and `check_loss`.
            ValueError: Likewise.
        """
        # A loss function was written for this and only reads; a training step may keep a running average of weights,
        # and an observable of the fork may move whatever it finds.
        shared = self._loss_fn is not None and not self._panel.reads_fork
        fork = self._forks(module, shared, self._selection)
        self._share_buffers(fork)
        manner = Manner(transferred=self._transferred) if self._manner is None else self._manner
        resolved = resolve_loss(self._loss_fn, module)
        if fork.in_place:
            check_on_shards(resolved, self._panel)
        loss_fn = MeasuredLoss(resolved, module, fork, manner, self.together)
        if self._manner is None:
            self._rehearse(fork, loss_fn)
            self._manner = manner
            fork.reset()
        return self._asked(Objective, fork, loss_fn, self.reference, self.batch_size)

    def probes(self, objective: Objective) -> dict[str, Probe]:
        """The same loss at the same fork, on the samples, or the tokens, that an observable asks for."""
        fork, loss_fn = objective.fork, objective.loss_fn
        probes = {}
        for key, (samples, places) in self._queries.items():
            raw = loss_fn.of_raw() if isinstance(loss_fn, MeasuredLoss) else loss_fn
            asked = None if samples is None else self._asked(Objective, fork, raw, samples)
            probes[key] = Probe(asked, None if places is None else places.to(fork.device))
        for key in self._panel.reference_tokens:
            probes[key] = Probe(self._asked(TokenObjective, fork, loss_fn, self.reference))
        return probes

    def samples_a_draw(self, objective: Objective) -> int:
        """Samples whose losses observables ask for at every draw, beside those that the SGLD step has computed."""
        known = objective.per_sample and objective.batch_size is None
        whole = int(self._panel.reference_losses and not known) + len(self._panel.reference_tokens)
        queries = [samples for samples, _ in self._queries.values() if samples is not None]
        return whole * len(self.reference) + sum(map(len, queries))

    def _asked(
        self,
        kind: type[Objective],
        fork: Fork,
        loss_fn: LossFn,
        samples: ReferenceSet,
        batch_size: int | None = None,
    ) -> Objective:
        per_sample = self._manner is not None and self._manner.per_sample
        return kind(fork, loss_fn, samples, per_sample, batch_size, self.block_size, self._singles_at_once)

    def _share_buffers(self, fork: Fork) -> None:
        """Ranks train on batches of their own, so BatchNorm's averages differ: rank 0's are those of a checkpoint."""
        if self._exchange.size > 1:
            fork.set_buffers(self._exchange.first([buffer.cpu() for buffer in fork.buffers()]))
            fork.reset()  # a loss may take a copy of it

    def _rehearse(self, fork: Fork, loss_fn: LossFn) -> None:
        """Try the loss in every way in which it will be asked, and tell what is odd about it."""
        rehearsal, panel = Rehearsal(fork, loss_fn, self.reference), self._panel
        per_sample = rehearsal.samples()
        samples_wanted = bool(panel.reference_losses or panel.queries)
        if not per_sample and self._loss_fn is not None and (samples_wanted or panel.reference_tokens):
            raise ValueError(
                "Expected `loss_fn` to return one loss a sample, shape (B,), for susceptibilities, or for the loss "
                'kernel or influence, but got a scalar: use reduction="none" and average over all but the first '
                "dimension."
            )
        for key, queries in panel.queries.items():
            rehearsal.queries(key, queries)
        if panel.reference_tokens:
            panel.check_tokens(rehearsal.tokens())
        if not per_sample and samples_wanted and fork.in_place:
            raise ValueError(
                "Expected the loss to be one a sample, shape (B,), for a loss kernel or influence where chains run on "
                'shards, but got a scalar: use reduction="none" and average over all but the first dimension.'
            )
        if not per_sample and samples_wanted:
            self._singles_at_once = rehearsal.singles_at_once()
            _log.info(
                "The loss comes as a mean, and observables need one a sample: it is asked about batches of one, %s. A "
                "method `per_sample_loss(batch)` of the module, or a `loss_fn`, that returns one loss a sample costs "
                "less.",
                "all at once" if self._singles_at_once else "in a loop",
            )
        for remark in rehearsal.remarks if self._exchange.rank == 0 and not self._quiet else ():
            warnings.warn(remark, stacklevel=2)


def as_memory_allows(attempt: Callable[[], _T], preparation: Preparation, rank: int = 0) -> _T:
    """An attempt, again in ever smaller blocks while memory runs out; the block that fits is kept for the run.

    Args:
        attempt: What asks for the losses.
        preparation: Makes them.
        rank: Of this process: the first one tells.

    Raises:
        Exception: Whatever `attempt` raises, if no block helps.
    """
    before = preparation.block_size
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            smaller = preparation.shrink_block()
            if smaller is None:
                preparation.block_size = before  # none has helped: the next measurement may find more memory
                raise
            level = logging.WARNING if rank == 0 else logging.DEBUG
            text = "A measurement ran out of memory: trying again with `block_size=%d`, from now on."
            _log.log(level, text, smaller)
        if torch.cuda.is_available():  # outside of the handler, which keeps the tensors of the attempt alive
            torch.cuda.empty_cache()


# A sample of many tokens has little noise of its own; with one label a sample the noise of a minibatch is what limits a
# step, in proportion to the batch, and fewer but larger ones would tell as much for the same gradients.
_OF_TOKENS, _OF_LABELS = 8, 32


def automatic_batch_size(num_samples: int, manner: Manner, together: int | None) -> int | None:
    """Samples in a gradient step that "auto" stands for; None for all.

    Args:
        num_samples: Of the reference set.
        manner: How the loss answers. One that compares samples is taken in batches as it is trained.
        together: Samples in a training batch, where that is known.

    Example:
        >>> automatic_batch_size(256, Manner(), None), automatic_batch_size(256, Manner(by_token=True), None)
        (32, 8)
        >>> automatic_batch_size(100, Manner(per_sample=False), None)  # a mean is known for equal shares alone
        25
    """
    wanted = (together or TOGETHER) if manner.coupled else _OF_TOKENS if manner.by_token else _OF_LABELS
    if wanted >= num_samples:
        return None
    if manner.per_sample:
        return wanted
    divisors = [size for size in range(wanted // 2, wanted + 1) if size and num_samples % size == 0]
    return divisors[-1] if divisors else None


def means_at_fork(objective: Objective, probes: Mapping[str, Probe]) -> dict[str, float]:
    """Mean of the losses that each observable asks for at w*, where the fork has to be."""
    known = objective.at_fork
    if not objective.per_sample and any(probe.places is not None for probe in probes.values()):
        known = objective.sample_losses()
    return {
        key: float(probe.losses(lambda asked: [asked.sample_losses()], [known])[0].mean())
        for key, probe in probes.items()
    }
