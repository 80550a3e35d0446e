"""What the refinements of a run select of a module, in a small table, before the first number."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from slt_callbacks.measuring.refinement import Refinement

_MOST_ROWS, _MOST_NAMES = 40, 5


_Masks = Mapping[int, torch.Tensor | None]
"""By the id of a parameter that is selected, which of its weights move; None for all."""
_Times = dict[int, torch.Tensor | int]
"""By the id of a trainable parameter, how many parts move each of its weights; one number where that is the same."""


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
    times: _Times = dict.fromkeys(sizes, 0)
    rows: list[list[str]] = []
    kept: dict[str, _Masks] = {}
    parts = [name for name, one in refinements.items() if one.of_weights]
    for name, one in refinements.items():
        masks = one.selection.masks(module)  # let go of at once: those of all heads may be more than the module
        if len(rows) < _MOST_ROWS:
            rows.append(_row(name, one, masks, sizes))
        if one.of_weights:
            _count(times, masks)
        if one.of_weights and len(parts) <= _MOST_NAMES:
            kept[name] = masks
    widths = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = [
        f"  {name:<{widths[0]}}  {weights:>{widths[1]}}  {share:>{widths[2]}}  {what}"
        for name, weights, share, what in rows
    ]
    if len(refinements) > _MOST_ROWS:
        lines.append(f"  and {len(refinements) - _MOST_ROWS} more")
    told = (_shared(len(parts), kept, times, sizes), _left_out(len(parts), module, times, sizes), _tied(module))
    remarks = [remark for remark in told if remark]
    return "\n".join([f"Beside all {sum(sizes.values()):,} weights are measured:", *lines, " ".join(remarks)]).rstrip()


def _row(name: str, refinement: Refinement, masks: _Masks, sizes: Mapping[int, int]) -> list[str]:
    moving = sum(sizes[key] if mask is None else int(mask.sum()) for key, mask in masks.items())
    patterns = refinement.parameters
    what = patterns if isinstance(patterns, str) else _listed(list(patterns))
    what += " (slices)" if refinement.slices else ""
    what += ", other data" if refinement.reference is not None else ""
    what += ", another loss" if refinement.loss_fn is not None else ""
    return [name, f"{moving:,}", f"{moving / sum(sizes.values()):.1%}", what]


def _count(times: _Times, masks: _Masks) -> None:
    """One more part."""
    for key, mask in masks.items():
        times[key] = times[key] + (1 if mask is None else mask.cpu().to(torch.int16))


def _shared(num_parts: int, parts: Mapping[str, _Masks], times: _Times, sizes: Mapping[int, int]) -> str:
    """What several parts move: by pairs where these are few."""
    common = sum(sizes[key] * (one > 1) if isinstance(one, int) else int((one > 1).sum()) for key, one in times.items())
    if not common:
        return "No two parts share a weight." if num_parts > 1 else ""
    if not parts:
        return f"{common:,} weights are in several parts."
    pairs = []
    for (name, one), (other_name, other) in itertools.combinations(parts.items(), 2):
        both = sum(_common(one[key], other[key], sizes[key]) for key in one.keys() & other.keys())
        pairs += [f"{name} and {other_name} share {both:,} weights"] if both else []
    return f"{'; '.join(pairs)}."


def _common(a: torch.Tensor | None, b: torch.Tensor | None, size: int) -> int:
    masks = [mask for mask in (a, b) if mask is not None]
    return int(torch.stack(masks).all(0).sum()) if masks else size


def _left_out(num_parts: int, module: nn.Module, times: _Times, sizes: Mapping[int, int]) -> str:
    """The trainable weights that no part moves."""
    if not num_parts:
        return ""
    left = {name: _untouched(times[id(p)], p.numel()) for name, p in module.named_parameters() if id(p) in sizes}
    names = [name for name, count in left.items() if count]
    total = sum(left.values())
    return f"Parts together leave out {total:,}: {_listed(names)}." if total else "Parts together leave out nothing."


def _untouched(times: torch.Tensor | int, size: int) -> int:
    return size * (times == 0) if isinstance(times, int) else int((times == 0).sum())


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
