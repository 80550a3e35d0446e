"""What one sample is made of: two sets of samples that one loss function takes have to agree in it."""

from __future__ import annotations

from typing import Any

import torch

from slt_callbacks.data.batches import Batch, as_lists, map_leaves
from slt_callbacks.data.reference import ReferenceSet


def check_structure(name: str, samples: ReferenceSet, reference: ReferenceSet) -> None:
    """Refuse samples of another structure than the reference set.

    Args:
        name: What to call them in the message.
        samples: Others.
        reference: Those of the main posterior.

    Raises:
        ValueError: If their containers, or the types in them, differ; sizes may, as with texts of other lengths.

    Example:
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> check_structure("those", draw_reference([torch.ones(2, 3)]), draw_reference([torch.ones(4, 5)]))
    """
    if _structure(samples) != _structure(reference):
        raise ValueError(
            f"Expected {name} to have the structure of the reference samples, {_described(reference)}, but got "
            f"{_described(samples)}: one `loss_fn` has to take both."
        )


def _structure(samples: ReferenceSet) -> str:
    """Containers and the type of every leaf.

    Every floating-point tensor is cast to the precision of the fork, so that these are of one kind.
    """

    def kind(leaf: Any) -> str:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf).__name__
        return "floating" if leaf.is_floating_point() else str(leaf.dtype)

    return repr(as_lists(map_leaves(kind, _first(samples))))


def _described(samples: ReferenceSet) -> str:
    def shape_and_type(leaf: Any) -> str:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf).__name__
        return f"Tensor{list(leaf.shape)} of {str(leaf.dtype).removeprefix('torch.')}"

    return repr(map_leaves(shape_and_type, _first(samples)))


def _first(samples: ReferenceSet) -> Batch:
    return samples.batches(torch.arange(1, device="cpu"))[0][0]
