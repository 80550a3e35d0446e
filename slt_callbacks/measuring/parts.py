"""Refinements of the parts of a module: the heads of an attention layer, and the children of a module."""

from __future__ import annotations

from typing import Literal

from torch import nn

from slt_callbacks.basics.plain import shown
from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.functions import LossFn
from slt_callbacks.measuring.refinement import Refinement
from slt_callbacks.weights.heads import head_slices
from slt_callbacks.weights.selection import listed


def attention_heads(
    module: nn.Module,
    path: str,
    *,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    layout: Literal["auto", "concat", "interleaved"] = "auto",
    reference: Reference | ReferenceSet | None = None,
    loss_fn: LossFn | None = None,
) -> dict[str, Refinement]:
    """One refinement a head of an attention layer.

    A head's weights are its rows of the query, key and value projections, with their biases, and its columns of the
    output projection. The output bias belongs to no head, nor does anything else in the layer: norms of queries and
    keys, gates, tables of positions. Where several heads share keys and values (grouped queries), these belong to each
    of them: such heads overlap. Otherwise the heads of a layer are disjoint. A tensor that another layer is tied to
    moves there as well. Frozen parameters are left out.

    Known are `nn.MultiheadAttention`, and layers whose projections are linear and have names in use: in transformers
    those of GPT-2 (whose weights are transposed), GPT-NeoX, BLOOM, Falcon, Phi-3, the BERTs, Llama, T5, ViT and many
    others, those of timm, nanoGPT and diffusers, and those of TransformerLens before version 4.

    Args:
        module: What is measured: names count from it, as those of a `Refinement`.
        path: Of the layer, such as "blocks.0.attn": the module that holds the output projection too, for BERT
            "encoder.layer.0.attention"; "" for `module` itself.
        num_heads: None for what the layer or its configuration says.
        num_kv_heads: Heads of keys and values; None for what the sizes tell.
        layout: How one tensor holds queries, keys and values: "concat", those of all heads one after the other, as in
            GPT-2, `nn.MultiheadAttention` and ViT; "interleaved", head after head, or group after group, as in
            GPT-NeoX; "auto" where the layer's class or the tensor's name tells. Without meaning where they are tensors
            of their own.
        reference: As of `Refinement`, for all heads.
        loss_fn: Likewise.

    Returns:
        By ``<path>.h<number>``, from 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `path` is no such layer, if a number or the layout has to be given, if the sizes do not fit, or
            if all of the layer is frozen.

    Source: Wang et al. (arXiv 2410.02984), who follow the refined LLC of every head of a transformer.

    Example:
        >>> layer = nn.TransformerEncoderLayer(d_model=8, nhead=2)
        >>> heads = attention_heads(layer, "self_attn")
        >>> list(heads)
        ['self_attn.h0', 'self_attn.h1']
        >>> [sum(int(mask.sum()) for mask in head.selection.masks(layer).values()) for head in heads.values()]
        [140, 140]
        >>> sum(parameter.numel() for parameter in layer.self_attn.parameters())  # with 8 of the output bias
        288
    """
    slices = head_slices(module, path, num_heads, num_kv_heads, layout)
    if not slices[0]:
        raise ValueError(f"Expected {path!r} to have trainable weights, but those of its heads are all frozen.")
    return {
        _named(path, f"h{head}"): Refinement(list(own), slices=own, reference=reference, loss_fn=loss_fn)
        for head, own in enumerate(slices)
    }


def child_modules(
    module: nn.Module,
    path: str = "",
    *,
    reference: Reference | ReferenceSet | None = None,
    loss_fn: LossFn | None = None,
) -> dict[str, Refinement]:
    """One refinement a child of a module, and one a parameter that the module holds itself.

    Those without trainable parameters are left out. Together they cover all that is trainable; they overlap where
    parameters are tied.

    Args:
        module: What is measured: names count from it, as those of a `Refinement`.
        path: Of the module whose children are meant, such as "model.blocks"; "" for `module` itself.
        reference: As of `Refinement`, for all children.
        loss_fn: Likewise.

    Returns:
        By their paths.

    Raises:
        TypeError: If `path` is no string, or as `Refinement`.
        ValueError: If there is no module at `path`, or nothing in it is trainable.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> {name: child.parameters for name, child in child_modules(net).items()}
        {'0': '0', '2': '2'}
    """
    if not isinstance(path, str):
        raise TypeError(f'Expected `path` to be the path of a module such as "model.blocks", but got {shown(path)}.')
    modules = dict(module.named_modules(remove_duplicate=False))
    if path not in modules:
        there = listed([name for name, one in modules.items() if name and any(one.children())])
        raise ValueError(
            f'Expected `path` to lead to a module of {type(module).__name__}, or to be "" for itself, but {path!r} is '
            f"none: there are {there or 'none with children'}."
        )
    parent = modules[path]
    parts = [name for name, child in parent.named_children() if any(p.requires_grad for p in child.parameters())]
    parts += [name for name, parameter in parent.named_parameters(recurse=False) if parameter.requires_grad]
    if not parts:
        raise ValueError(f"Expected {path!r} to have trainable weights, but a {type(parent).__name__} there has none.")
    names = [_named(path, part) for part in parts]
    return {name: Refinement(name, reference=reference, loss_fn=loss_fn) for name in names}


def _named(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part
