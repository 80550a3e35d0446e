"""Draws made by hand, fed to an observable as a sampler would."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from slt_callbacks import Draw, ReferencePoint


def point_for(trace: torch.Tensor, queries: torch.Tensor | None = None, **changes: Any) -> ReferencePoint:
    """The reference point of a measurement whose losses ``(C, T, N)`` are known."""
    num_queries = 0 if queries is None else queries.shape[2]
    values: dict[str, Any] = {
        "step": 0,
        "loss": 0.0,
        "losses": trace[0, 0],
        "indices": torch.arange(trace.shape[2]),
        "nbeta": 1.0,
        "localization": 0.0,
        "num_chains": trace.shape[0],
        "num_draws": trace.shape[1],
        "key": "own",
        "query_indices": torch.arange(num_queries),
    }
    return ReferencePoint(**{**values, **changes})


def draw_of(trace: torch.Tensor, chain: int, index: int, queries: torch.Tensor | None = None) -> Draw:
    losses = trace[chain, index]
    asked = {} if queries is None else {"own": queries[chain, index]}
    return Draw(chain, index, None, losses, losses.mean(), losses.mean(), losses, asked)


def places(trace: torch.Tensor, interleaved: bool = False) -> Iterable[tuple[int, int]]:
    chains, draws = trace.shape[:2]
    if interleaved:
        return [(chain, index) for index in range(draws) for chain in range(chains)]
    return [(chain, index) for chain in range(chains) for index in range(draws)]


def feed(
    observable: Any,
    trace: torch.Tensor,
    queries: torch.Tensor | None = None,
    failed: Iterable[int] = (),
    interleaved: bool = False,
) -> dict[str, Any]:
    """One whole measurement; chains in `failed` are discarded when an engine would."""
    failed = set(failed)
    observable.reset(point_for(trace, queries))
    for chain, index in places(trace, interleaved):
        observable.update(draw_of(trace, chain, index, queries))
        if not interleaved and index == trace.shape[1] - 1 and chain in failed:
            observable.discard(chain)
    for chain in sorted(failed) if interleaved else ():
        observable.discard(chain)
    return dict(observable.compute())
