"""Who is told what a run finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slt_callbacks.callbacks.compared import checked_names
from slt_callbacks.callbacks.plugins import checked_reactions, checked_sinks

if TYPE_CHECKING:
    from slt_callbacks.callbacks.reactions import Reaction
    from slt_callbacks.sinks.base import Sink


@dataclass
class Told:
    """Who is told what is found, beside which metrics of the trainer.

    Raises:
        TypeError: If a reaction or a sink lacks a method, or `also_compare` is no list of names.
        ValueError: If it names a number of our own.

    Example:
        >>> Told(also_compare=("val_acc",)).also_compare
        ['val_acc']
    """

    detectors: Any = None
    reactions: Sequence[Reaction] = ()
    sinks: Sequence[Sink] | None = None
    also_compare: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.also_compare = checked_names(self.also_compare)
        self.reactions = checked_reactions(self.reactions)
        self.sinks = checked_sinks(self.sinks)
