"""Common random numbers: a loss that draws some gets the same ones whenever it is asked about the same samples."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slt_callbacks.losses.generators import Source, global_sources, is_same, own_generators, put_back, source_of


class CommonNumbers:
    """Seeds what a loss draws from, before it is asked, from the samples that it is asked about.

    A variational autoencoder, a diffusion model or a masked language model draws new numbers at every call. The loss at
    w* and the loss of a draw are compared sample by sample, and without common numbers the noise of both would be taken
    for learning. A loss that draws nothing pays nothing: which generators move is found out by `watch`.

    Args:
        loss_fn: From `resolve_loss`.
        module: The fork's: generators that it owns are seeded as well.

    Attributes:
        sources: Generators that have been seen to move, and are seeded.

    Example:
        >>> numbers = CommonNumbers(None, nn.Linear(1, 1))
        >>> with numbers.watch():
        ...     _ = torch.rand(3)
        >>> def drawn(*places: int) -> float:
        ...     numbers.set_for(torch.tensor(places))
        ...     return float(torch.rand(()))
        >>> drawn(3, 1) == drawn(3, 1) != drawn(1, 3)
        True
    """

    def __init__(self, loss_fn: Any, module: nn.Module) -> None:
        self.sources: list[Source] = []
        self._all = [*global_sources(), *map(source_of, own_generators(module, loss_fn))]

    @property
    def active(self) -> bool:
        """Whether the loss has been seen to draw."""
        return bool(self.sources)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Find out which generators a block moves."""
        before = [source.get() for source in self._all]
        yield
        self.sources += [
            source
            for source, state in zip(self._all, before, strict=True)
            if source not in self.sources and not is_same(state, source.get())
        ]

    def start(self, seed: int) -> None:
        """Start every generator there is, seen to move or not; within `undisturbed`."""
        for source in self._all:
            source.seed(seed)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put every generator back after a block."""
        with put_back(self._all):
            yield

    def set_for(self, places: torch.Tensor) -> None:
        """Let the next loss be drawn with the numbers of these samples, ``(B,)`` on the CPU, in this order."""
        if self.sources:
            seed = zlib.crc32(places.numpy().tobytes())
            for source in self.sources:
                source.seed(seed)
