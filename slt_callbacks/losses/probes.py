"""Losses of further samples where the chains stand, beside those that the SGLD steps compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.objective import Objective


@dataclass(frozen=True)
class Probe:
    """Samples whose losses an observable asks for; those of the reference set among them are not asked about twice.

    Attributes:
        objective: The samples that cost a forward pass; None where there are none.
        places: Where the loss of each sample stands among those of the reference set, followed by those of `objective`,
            int64 on the device of the fork; None where the losses are those of `objective` as they are.
    """

    objective: Objective | None
    places: torch.Tensor | None = None

    def losses(
        self, ask: Callable[[Objective], Sequence[torch.Tensor]], reference: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Losses of the samples, ``(Q,)`` for every chain of a group.

        Args:
            ask: Losses of an objective's samples, for every chain.
            reference: Losses of the reference set, ``(N,)`` for every chain; needed with `places` only.
        """
        asked = None if self.objective is None else ask(self.objective)
        if self.places is None:
            return asked or []
        if asked is None:
            return [known.index_select(0, self.places) for known in reference]
        return [torch.cat(both).index_select(0, self.places) for both in zip(reference, asked, strict=True)]


def split_from(samples: ReferenceSet, reference: ReferenceSet) -> tuple[ReferenceSet | None, torch.Tensor]:
    """Which samples are not in the reference set, and where the loss of each one stands, as `Probe` wants it.

    Returns:
        The R samples that are not in it, None if all are; and for each of `samples` a place among N + R losses,
        ``(Q,)`` on the CPU.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> reference, queries = draw_reference([torch.tensor([5, 7])]), draw_reference([torch.tensor([7, 6, 5])])
        >>> rest, places = split_from(queries, reference)
        >>> rest.batches()[0][0], places  # the 6 alone has to be asked about, and its loss comes after the two
        (tensor([6]), tensor([1, 2, 0]))
    """
    places = reference.find(samples)
    rest = (places < 0).nonzero().flatten()
    places[rest] = len(reference) + torch.arange(len(rest), device="cpu")
    return samples.subset(rest) if len(rest) else None, places
