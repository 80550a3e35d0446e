"""What every statistic of the draws has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from slt_callbacks.sampling.draws import Draw


@dataclass(frozen=True)
class ReferencePoint:
    """The fork w* as an observable needs it: what every draw of this measurement is compared with.

    Attributes:
        step: Training step of the fork.
        loss: Mean loss over the reference set at w*.
        losses: Losses at w*, one a sample ``(N,)``; empty where the loss function gives a mean only.
        indices: Row of every reference sample in the user's data, int64 ``(N,)``.
        nbeta: Inverse temperature times samples.
        localization: Strength of the tie to w*.
        num_chains: Chains C of this measurement.
        num_draws: Draws T of each.
        key: The observable's own key, under which ``draw.query_losses`` holds the losses of its queries.
        query_indices: Row of every query in the user's query data, int64 ``(Q,)``; empty without queries.
        asked_at_fork: Mean loss at w* of the queries, or tokens, of observables that ask for some, by their keys.
    """

    step: int
    loss: float
    losses: torch.Tensor
    indices: torch.Tensor
    nbeta: float
    localization: float
    num_chains: int
    num_draws: int
    key: str = ""
    query_indices: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))
    asked_at_fork: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A posterior beside the main one, as an observable needs to know it.

    Attributes:
        name: What it is logged under.
        of_weights: Whether it differs from the main posterior in its weights alone: same samples, same loss.
    """

    name: str
    of_weights: bool


@runtime_checkable
class Observable(Protocol):
    """A statistic of the draws: three methods, under 20 lines for a user's own.

    An observable may also have

    * ``needs``, a `Needs`, to find more than the losses of the SGLD steps in every draw: those of the whole reference
      set, of every token, or of queries of its own (attributes with the names of its fields will do as well);
    * ``discard(chain)``, which takes back every draw of a chain that has failed. Without it, the draws of a chain are
      held back (numbers, not weights) until the chain has ended well;
    * ``check(reference, queries)``, called before training with the `ReferenceSet` and that of its queries, or else of
      its samples, or None, to refuse what cannot work, and ``check_tokens(num_tokens)`` likewise;
    * ``state_dict()`` and ``load_state_dict(state)``, of tensors and builtins, for what must survive a resume;
    * ``images(result)``, pictures of a result by name, and ``matrices(result)``, what of it belongs into a file;
    * ``refine(parts)``, called once with every `Part` that is measured beside the main posterior, which returns, by
      name, the observables that read the draws there: without it, an observable is of the main posterior alone.

    Generators that it can reach, its own included, are put back after every measurement: it draws the same numbers in
    each, so that what differs is the network, and training meets what it would have met.

    Example:
        >>> class LargestExcess:
        ...     def reset(self, reference):
        ...         self.largest = float("-inf")
        ...     def update(self, draw):
        ...         self.largest = max(self.largest, float(draw.excess))
        ...     def compute(self):
        ...         return {"largest_excess": self.largest}
        >>> isinstance(LargestExcess(), Observable)
        True
    """

    def reset(self, reference: ReferencePoint) -> None:
        """Forget every draw and start a measurement."""

    def update(self, draw: Draw) -> None:
        """Take one draw."""

    def compute(self) -> Mapping[str, Any]:
        """The statistic so far, by name: numbers are logged, tensors are kept. Changes nothing."""


@runtime_checkable
class ForkObservable(Protocol):
    """What is read at w* itself, without chains: one method. Where all observables are such, no SGLD step is taken.

    The fork is a private copy, which may be moved and is put back: its module, parameters, batches and losses.

    It may also have ``check``, ``state_dict``, ``load_state_dict``, ``images`` and ``matrices`` of an `Observable`, and
    ``rehearse(fork)``, called before training with a `ForkView`, to refuse what cannot be read there; and ``needs``, a
    `Needs` with samples of its own.

    Example:
        The share of hidden units that no reference sample activates:

        >>> class DeadUnits:
        ...     def inspect(self, fork):
        ...         outputs = []
        ...         for layer in fork.module.modules():
        ...             if isinstance(layer, torch.nn.ReLU):
        ...                 layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.flatten(1)))
        ...         for inputs, targets in fork.batches():
        ...             fork.module(inputs)
        ...         return {"share": float((torch.cat(outputs) == 0).all(0).float().mean())}
        >>> isinstance(DeadUnits(), ForkObservable)
        True
    """

    def inspect(self, fork: Any) -> Mapping[str, Any]:
        """Look at the fork, a `ForkView`: by name, numbers are logged, tensors are kept."""
