"""Saved checkpoints as snapshots to be measured, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from slt_callbacks.basics.rng import isolated_rng, seed_from
from slt_callbacks.weights.checkpoints import OnSkip, SavedStep, load_module
from slt_callbacks.weights.snapshot import Snapshot

_LOADING_STREAM = 203  # apart from those of the estimator


@dataclass(frozen=True)
class CheckpointSource:
    """Gives a snapshot of every checkpoint that can be loaded.

    Args:
        saved: In step order.
        module: The class.
        init_args: Its arguments that the checkpoints do not hold.
        device: Where the snapshots are to be.
        trust: As in `load_module`.
        seed: Of the weights that making a module draws.
        on_skip: Told of a checkpoint that is left out, and why.
        progress: Whether to show how many are done.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "step=5.pt"
        >>> torch.save(nn.Linear(2, 1).state_dict(), path)
        >>> arguments = {"in_features": 2, "out_features": 1}
        >>> source = CheckpointSource([SavedStep(5, path)], nn.Linear, arguments, progress=False)
        >>> [(snapshot.step, snapshot.module) for snapshot in source]
        [(5, Linear(in_features=2, out_features=1, bias=True))]
    """

    saved: Sequence[SavedStep]
    module: type[nn.Module]
    init_args: Mapping[str, Any] | None = None
    device: str | torch.device = "cpu"
    trust: bool = False
    seed: int = 0
    on_skip: OnSkip = print
    progress: bool = True

    def __iter__(self) -> Iterator[Snapshot]:
        """One after the other, with a progress bar."""
        with tqdm(desc="Replay", total=len(self.saved), unit="checkpoint", disable=not self.progress) as bar:
            for one in self.saved:
                try:
                    with isolated_rng(seed_from(self.seed, _LOADING_STREAM)):
                        module = load_module(self.module, one.path, self.init_args, self.trust).to(self.device)
                except ValueError as error:
                    self.on_skip(one.path, str(error))
                else:
                    yield Snapshot(one.step, module)
                bar.update()
