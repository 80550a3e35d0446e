"""Which weights of a module a chain moves: whole parameters, or slices of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

_MOST_NAMES = 20  # of a large model's hundreds, enough to see how they are made


@dataclass(frozen=True)
class Selection:
    """A choice of trainable weights, by name.

    Args:
        parameters: A parameter's name, a module's path, a glob, or a list of these.
        slices: By parameter, an index as in ``tensor[index]``, or a list of such: of this parameter only these weights.
            The other selected parameters stay whole.

    Raises:
        ValueError: From `masks`: if a pattern matches nothing that is trainable, or a slice is of no selected parameter
            or selects nothing.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> [mask is None for mask in Selection("0").masks(net).values()]
        [True, True]
        >>> chosen = Selection("*.weight", slices={"0.weight": 1}).masks(net)
        >>> [None if mask is None else mask.tolist() for mask in chosen.values()]
        [[[False, False], [True, True]], None]
    """

    parameters: str | Sequence[str] = "*"
    slices: Mapping[str, Any] = field(default_factory=dict)

    def masks(self, module: nn.Module) -> dict[int, torch.Tensor | None]:
        """What moves: by the id of a live parameter, True where its weights do, or None where all of them do.

        A tied parameter is selected under any of its names.
        """
        named = dict(module.named_parameters(remove_duplicate=False))
        patterns = [self.parameters] if isinstance(self.parameters, str) else list(self.parameters)
        chosen: dict[int, torch.Tensor | None] = {}
        if not patterns:
            raise ValueError("Expected `parameters` to name at least one parameter, but got an empty list.")
        for pattern in patterns:
            found = [p for name, p in named.items() if _matches(name, pattern) and p.requires_grad]
            if not found:
                raise ValueError(
                    f"Expected `parameters` to name trainable parameters of {type(module).__name__}, but {pattern!r} "
                    f"matches none: there are {listed([name for name, p in named.items() if p.requires_grad])}."
                )
            chosen |= dict.fromkeys(map(id, found))
        for name, index in self.slices.items():
            if name not in named or id(named[name]) not in chosen:
                selected = [other for other, parameter in named.items() if id(parameter) in chosen]
                raise ValueError(
                    f"Expected `slices` to name selected parameters, but got {name!r}: there are {listed(selected)}."
                )
            mask, other = _mask(name, named[name], index), chosen[id(named[name])]
            chosen[id(named[name])] = mask if other is None else mask | other  # two names of one tied parameter
        # in the order of the module, which is that of the flat vector
        return {id(p): chosen[id(p)] for p in module.parameters() if id(p) in chosen}


EVERYTHING = Selection()


def listed(names: Sequence[str]) -> str:
    """Names for an error message: all, or the first of them where they are many.

    Example:
        >>> listed(["a", "b"])
        'a, b'
        >>> listed([str(number) for number in range(100)])[-18:]
        '18, 19 and 80 more'
    """
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _mask(name: str, parameter: torch.Tensor, index: Any) -> torch.Tensor:
    mask = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
    for part in index if isinstance(index, list) else [index]:
        try:
            mask[part] = True
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"Expected `slices[{name!r}]` to be an index of a tensor of shape {tuple(parameter.shape)}, but got "
                f"{part!r}: {error}."
            ) from error
    if not mask.any():
        raise ValueError(f"Expected `slices[{name!r}]` to select weights, but {index!r} selects none.")
    return mask
