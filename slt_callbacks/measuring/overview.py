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
    remarks = [remark for remark in (_shared(parts, sizes), _left_out(parts, module), _tied(module)) if remark]
    return "\n".join([f"Beside all {sum(sizes.values()):,} weights are measured:", *lines, " ".join(remarks)]).rstrip()


def _shared(parts: Sequence[_Selected], sizes: Mapping[int, int]) -> str:
    """The pairs of parts that have weights in common; more than a few are counted."""
    pairs = []
    for place, one in enumerate(parts):
        for other in parts[place + 1 :]:
            common = sum(
                _common(one.masks[key], other.masks[key], sizes[key]) for key in one.masks.keys() & other.masks.keys()
            )
            if common:
                pairs.append(f"{one.name} and {other.name} share {common:,} weights")
    if len(pairs) > _MOST_NAMES:
        return f"{'; '.join(pairs[: _MOST_NAMES - 1])}; and {len(pairs) - _MOST_NAMES + 1} more pairs share some."
    return f"{'; '.join(pairs)}." if pairs else "No two parts share a weight." if len(parts) > 1 else ""


def _common(a: torch.Tensor | None, b: torch.Tensor | None, size: int) -> int:
    if a is None or b is None:
        other = b if a is None else a
        return size if other is None else int(other.sum())
    return int((a & b).sum())


def _left_out(parts: Sequence[_Selected], module: nn.Module) -> str:
    """The trainable weights that no part moves."""
    if not parts:
        return ""
    count, names = 0, []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        left = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        for part in parts:
            if id(parameter) in part.masks:
                mask = part.masks[id(parameter)]
                left &= torch.zeros_like(left) if mask is None else ~mask
        if bool(left.any()):
            count += int(left.sum())
            names.append(name)
    return f"Parts together leave out {count:,}: {_listed(names)}." if count else "Parts together leave out nothing."


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
