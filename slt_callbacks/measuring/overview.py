"""What the refinements of a run select of a module, in a small table, before the first number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from slt_callbacks.measuring.refinement import Refinement

_MOST_ROWS, _MOST_NAMES = 40, 5


@dataclass(frozen=True)
class _Selected:
    """Of one refinement: by the id of a parameter, which of its weights move; None for all."""

    name: str
    refinement: Refinement
    masks: Mapping[int, torch.Tensor | None]

    def row(self, sizes: Mapping[int, int]) -> list[str]:
        moving = sum(sizes[key] if mask is None else int(mask.sum()) for key, mask in self.masks.items())
        patterns = self.refinement.parameters
        what = patterns if isinstance(patterns, str) else _listed(list(patterns))
        what += " (slices)" if self.refinement.slices else ""
        what += ", other data" if self.refinement.reference is not None else ""
        what += ", another loss" if self.refinement.loss_fn is not None else ""
        return [self.name, f"{moving:,}", f"{moving / sum(sizes.values()):.1%}", what]


def overview(refinements: Mapping[str, Refinement], module: nn.Module) -> str:
    """A line for each refinement, with the number of its weights; what they share, leave out, and tie.

    Args:
        refinements: By name.
        module: Its trainable weights are what is selected from.

    Raises:
        ValueError: As `Selection.masks`.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> print(overview({"first": Refinement("0"), "weights": Refinement("*.weight")}, net))
        Beside all 9 weights are measured:
          first    6  66.7%  0
          weights  6  66.7%  *.weight
        first and weights share 4 weights. Parts together leave out 1: 1.bias.
    """
    sizes = {id(p): p.numel() for p in module.parameters() if p.requires_grad}
    found = [_Selected(name, one, one.selection.masks(module)) for name, one in refinements.items()]
    rows = [one.row(sizes) for one in found[:_MOST_ROWS]]
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = [
        f"  {name:<{widths[0]}}  {weights:>{widths[1]}}  {share:>{widths[2]}}  {what}"
        for name, weights, share, what in rows
    ]
    if len(found) > _MOST_ROWS:
        lines.append(f"  and {len(found) - _MOST_ROWS} more")
    parts = [one for one in found if one.refinement.of_weights]
    times = _times(parts, module)
    remarks = [remark for remark in (_shared(parts, times), _left_out(parts, module, times), _tied(module)) if remark]
    return "\n".join([f"Beside all {sum(sizes.values()):,} weights are measured:", *lines, " ".join(remarks)]).rstrip()


def _shared(parts: Sequence[_Selected], times: Mapping[int, torch.Tensor]) -> str:
    """What several parts move: by pairs where these are few."""
    common = sum(int((counted > 1).sum()) for counted in times.values())
    if not common:
        return "No two parts share a weight." if len(parts) > 1 else ""
    if len(parts) > _MOST_NAMES:
        return f"{common:,} weights are in several parts."
    pairs = []
    for place, one in enumerate(parts):
        for other in parts[place + 1 :]:
            both = sum(_common(one.masks[key], other.masks[key], times[key]) for key in one.masks.keys() & other.masks)
            pairs += [f"{one.name} and {other.name} share {both:,} weights"] if both else []
    return f"{'; '.join(pairs)}."


def _common(a: torch.Tensor | None, b: torch.Tensor | None, like: torch.Tensor) -> int:
    masks = [mask for mask in (a, b) if mask is not None]
    return int(torch.stack(masks).all(0).sum()) if masks else like.numel()


def _times(parts: Sequence[_Selected], module: nn.Module) -> dict[int, torch.Tensor]:
    """By the id of a trainable parameter, how many parts move each of its weights."""
    times = {
        id(p): torch.zeros(p.shape, dtype=torch.int16, device="cpu") for p in module.parameters() if p.requires_grad
    }
    for part in parts:
        for key, mask in part.masks.items():
            times[key] += 1 if mask is None else mask.cpu()
    return times


def _left_out(parts: Sequence[_Selected], module: nn.Module, times: Mapping[int, torch.Tensor]) -> str:
    """The trainable weights that no part moves."""
    if not parts:
        return ""
    left = {name: int((times[id(p)] == 0).sum()) for name, p in module.named_parameters() if id(p) in times}
    names = [name for name, count in left.items() if count]
    total = sum(left.values())
    return f"Parts together leave out {total:,}: {_listed(names)}." if total else "Parts together leave out nothing."


def _tied(module: nn.Module) -> str:
    """Parameters with several names, which belong to every part that has one of these."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = [" = ".join(several) for several in names.values() if len(several) > 1]
    return f"Tied, and moved under each of its names: {_listed(tied)}." if tied else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
