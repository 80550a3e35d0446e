"""What an observable asks of a measurement, declared in one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet


@dataclass(frozen=True)
class Needs:
    """What an observable asks for beside the losses that the SGLD steps compute anyway.

    Attributes:
        reference_losses: The losses of the whole reference set in every draw, whatever the minibatch.
        reference_tokens: The loss of every token ``(N * T,)`` in ``draw.query_losses`` under the observable's key.
        queries: Samples of its own, whatever a monitor takes as `reference`: their losses in every draw, likewise.
        rows: A data set with rows, to which what it was given belongs, such as labels: first batches have none.
        samples: Samples of its own for `inspect`, which ``fork.batches()`` gives it in place of the reference set. They
            are drawn once, whatever a monitor takes as `reference`, and need not be such that the loss takes them.
        samples_name: What the argument is called that they are given as, for messages.
        forward_passes: How often `inspect` goes through its samples, at most: told before training, with the cost.
    """

    reference_losses: bool = False
    reference_tokens: bool = False
    queries: Reference | ReferenceSet | None = None
    rows: bool = False
    samples: Reference | ReferenceSet | None = None
    samples_name: str = "data"
    forward_passes: int = 0


def needs_of(observable: Any) -> Needs:
    """What an observable declares as ``needs``, or as attributes with the names of the record's fields.

    Example:
        >>> class WantsAll:
        ...     reference_losses = True
        >>> needs_of(WantsAll()).reference_losses
        True
    """
    declared = getattr(observable, "needs", None)
    if isinstance(declared, Needs):
        return declared
    return Needs(
        reference_losses=bool(getattr(observable, "reference_losses", False)),
        reference_tokens=bool(getattr(observable, "reference_tokens", False)),
        queries=getattr(observable, "queries", None),
        rows=bool(getattr(observable, "rows", False)),
    )
