"""What chains remember from one measurement of a run to the next: where they stood beside the weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slt_callbacks.sampling.chains import Chain

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Where a chain has ended.

    Attributes:
        displacement: ``w - w*`` of the weights that move, flat; never written to.
        state: Of its dynamics.
        sgld_step: Steps that `state` has seen.
    """

    displacement: torch.Tensor
    state: dict[str, torch.Tensor]
    sgld_step: int

    def to(self, device: torch.device) -> Place:
        """The same on another device."""
        state = {name: value.to(device) for name, value in self.state.items()}
        return Place(self.displacement.to(device), state, self.sgld_step)


class ChainMemory:
    """The places of persistent chains, by chain (memory: chains x parameters).

    A measurement works on copies and hands its chains in at the end, so that one that fails, or is cut short, leaves
    what is remembered as it was.

    Args:
        on_cpu: Whether they wait on the CPU rather than where the module is.

    Example:
        >>> memory = ChainMemory()
        >>> rng = torch.Generator()
        >>> memory.keep([Chain(0, rng, rng, displacement=torch.ones(2), state={}, sgld_step=5)])
        >>> memory.num_bytes, memory.past
        (8, {0: 5})
        >>> chain = Chain(0, rng, rng)
        >>> memory.resume([chain], torch.device("cpu"))
        >>> chain.displacement
        tensor([1., 1.])
    """

    def __init__(self, on_cpu: bool = False) -> None:
        self._on_cpu = on_cpu
        self._places: dict[int, Place] = {}
        self._moves: torch.Tensor | None = None

    @property
    def past(self) -> dict[int, int]:
        """SGLD steps of every chain that is remembered."""
        return {index: place.sgld_step for index, place in self._places.items()}

    def displacement(self, chain: int) -> torch.Tensor:
        """Where a chain that is remembered has ended, ``w - w*`` ``(P,)``; not to be changed."""
        return self.whole(self._places[chain].displacement)

    @property
    def num_bytes(self) -> int:
        """Memory that the places take."""
        tensors = [t for place in self._places.values() for t in (place.displacement, *place.state.values())]
        return sum(tensor.nbytes for tensor in tensors)

    def clear(self) -> None:
        """Let every chain start afresh."""
        self._places = {}

    def check(self, num_parameters: int, moves: torch.Tensor | None = None) -> None:
        """Forget, with a warning, chains of other weights than there are now.

        Args:
            num_parameters: P.
            moves: True where weights move, bool ``(P,)``, which are the only ones to be stored; None for all.
        """
        self._moves = moves
        num_weights = num_parameters if moves is None else int(moves.sum())
        for place in self._places.values():
            if len(place.displacement) != num_weights:
                warnings.warn(
                    f"The chains were kept for {len(place.displacement)} trainable parameters, but the module now has "
                    f"{num_weights}: they start afresh.",
                    stacklevel=2,
                )
                self.clear()
                return

    def whole(self, stored: torch.Tensor) -> torch.Tensor:
        """What is stored of the weights that move as a vector ``(P,)``, with 0 for the others."""
        if self._moves is None:
            return stored
        found = stored.new_zeros(len(self._moves))
        found[self._moves.to(stored.device)] = stored
        return found

    def moving(self, vector: torch.Tensor) -> torch.Tensor:
        """Of a vector ``(P,)`` what belongs to the weights that move, to be stored."""
        return vector if self._moves is None else vector[self._moves.to(vector.device)]

    def resume(self, chains: Iterable[Chain], device: torch.device) -> None:
        """Put those chains that are remembered where they were, on the device of the fork."""
        for chain in chains:
            place = self._places.get(chain.index)
            if place is None:
                continue
            chain.displacement = self.whole(place.displacement)
            # A copy: the dynamics moves it in place, and an attempt that fails must not.
            chain.state = {name: self.whole(value.to(device, copy=True)) for name, value in place.state.items()}
            chain.sgld_step = place.sgld_step

    def keep(self, chains: Sequence[Chain], gather: Callable[[Any], list[Any]] | None = None, rank: int = 0) -> None:
        """Remember these chains, and no others.

        Args:
            chains: Those that have ended well; one that kept no position is forgotten.
            gather: Where several processes run the chains: their values. Rank 0 remembers those of all, because it
                writes the checkpoints.
            rank: Of this process.
        """
        own = {chain.index: place for chain in chains if (place := _place_of(chain, self.moving)) is not None}
        if self._on_cpu:
            own = _on_cpu(own)
        if gather is not None:
            parts = gather(_on_cpu(own))
            if rank == 0:
                own = {index: place for part in parts for index, place in part.items()} | own
        self._places = own

    def only(self, chains: Collection[int]) -> None:
        """Forget all others."""
        self._places = {index: place for index, place in self._places.items() if index in chains}

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """The places in builtins and tensors on the CPU."""
        return {index: vars(place) for index, place in _on_cpu(self._places).items()}

    def load_state_dict(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Take over what `state_dict` returned."""
        self._places = {index: Place(**place) for index, place in state.items()}


def _on_cpu(places: Mapping[int, Place]) -> dict[int, Place]:
    return {index: place.to(_CPU) for index, place in places.items()}


def _place_of(chain: Chain, moving: Callable[[torch.Tensor], torch.Tensor]) -> Place | None:
    """None for a chain that is not kept, or whose very last step, which no draw has seen, led nowhere."""
    if chain.displacement is None:
        return None
    if len(chain.displacement):  # a process may have no part of a small module
        farthest = torch.linalg.vector_norm(chain.displacement, math.inf)  # NaN wins; no temporary of the chain's size
        if not math.isfinite(farthest):
            return None
    state = {name: moving(value) for name, value in (chain.state or {}).items()}
    return Place(moving(chain.displacement), state, chain.sgld_step)
