"""Which weights of an attention layer belong to which of its heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from slt_callbacks.basics.plain import shown
from slt_callbacks.weights.attention import AttentionLayer, HeadTensor, attention_layer

Slices = dict[str, list[Any]]
"""By parameter, indices as of a `Selection`."""


@dataclass(frozen=True)
class _Sizes:
    """How many heads there are of each kind ("q", "k", "v", "o"), and how long one of them is."""

    count: dict[str, int]
    width: dict[str, int]

    def total(self, holds: str) -> int:
        return sum(self.count[role] * self.width[role] for role in holds)


def head_slices(
    module: nn.Module,
    path: str,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    layout: Literal["auto", "concat", "interleaved"] = "auto",
) -> list[Slices]:
    """The weights of every head of one attention layer, those that are trainable.

    A tensor that holds queries, keys and values is made of blocks, one with all heads ("concat") or one for each head
    of keys and values ("interleaved"). In a block lie the queries of its heads, then their keys, then their values.

    Args:
        module: From which the path and the names of the parameters count.
        path: Of the layer.
        num_heads: None for what the layer says.
        num_kv_heads: Of keys and values, of which several heads may share one; None for what the sizes tell.
        layout: Of a tensor that holds more than one of queries, keys and values.

    Raises:
        TypeError: If `path` is no string.
        ValueError: If there is no such layer, a number or the layout is none or not known, or the sizes do not fit.

    Example:
        >>> heads = head_slices(nn.TransformerEncoderLayer(8, nhead=2), "self_attn")
        >>> heads[1]["self_attn.in_proj_bias"]
        [(slice(4, 8, None),), (slice(12, 16, None),), (slice(20, 24, None),)]
        >>> heads[1]["self_attn.out_proj.weight"]
        [(slice(None, None, None), slice(4, 8, None))]
    """
    for argument, given in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ValueError(f"Expected `{argument}` to be a positive integer or None, but got {shown(given)}.")
    if layout not in ("auto", "concat", "interleaved"):
        raise ValueError(f'Expected `layout` to be "auto", "concat" or "interleaved", but got {shown(layout)}.')
    layer = attention_layer(module, path)
    heads = _number(layer, num_heads)
    known, sizes = _layout(layer, layout), _sizes(layer, heads, num_kv_heads)
    return [
        {tensor.name: _indices(tensor, sizes, known, head) for tensor in layer.tensors if tensor.trainable}
        for head in range(heads)
    ]


def _number(layer: AttentionLayer, given: int | None) -> int:
    if given is not None and layer.certain and given != layer.num_heads:
        raise ValueError(f"Expected `num_heads` to be {layer.num_heads}, as {layer.name} says, but got {given}.")
    number = given or layer.num_heads
    if number is None:
        raise ValueError(f"Expected `num_heads` to be given, because {layer.name} does not say how many it has.")
    return number


def _layout(layer: AttentionLayer, given: str) -> str:
    if layer.fixed and given not in ("auto", layer.layout):
        raise ValueError(f'Expected `layout` of {layer.name} to be "auto" or "{layer.layout}", but got "{given}".')
    known = layer.layout if given == "auto" else given
    if known is None:
        fused = next(tensor.name for tensor in layer.tensors if len(tensor.holds) > 1)
        raise ValueError(
            f'Expected `layout` to be given, because {layer.name} does not tell how {fused} is split: "concat" if the '
            'queries of all heads come first, then all keys, then all values, or "interleaved" if the query, key and '
            "value of a head come together. Another order takes a Refinement(slices=...) a head."
        )
    return known


def _sizes(layer: AttentionLayer, heads: int, kv_heads: int | None) -> _Sizes:
    lengths: dict[str, int] = {}
    for tensor in layer.tensors:
        lengths.setdefault(tensor.holds, tensor.length)
    value = lengths["o"] // heads
    query = lengths["q"] // heads if "q" in lengths else value
    shared = kv_heads
    if shared is None:
        holds = next(holds for holds in lengths if "k" in holds)
        rest = lengths[holds] - heads * query * ("q" in holds)
        shared = rest // max(query + value * ("v" in holds), 1)
    sizes = _Sizes({"q": heads, "k": shared, "v": shared, "o": heads}, {"q": query, "k": query, "v": value, "o": value})
    if any(tensor.length != sizes.total(tensor.holds) for tensor in layer.tensors) or heads % shared:
        wanted = f"num_heads={heads}" + (f" and num_kv_heads={kv_heads}" if kv_heads else "")
        found = ", ".join(f"{tensor.name} {tensor.length}" for tensor in layer.tensors)
        raise ValueError(f"Expected the sizes of {layer.name} to fit {wanted}, but found along the heads: {found}.")
    return sizes


def _indices(tensor: HeadTensor, sizes: _Sizes, layout: str, head: int) -> list[Any]:
    """Where a head lies in a tensor, a slice each of its query, key and value."""
    blocks = sizes.count["k"] if layout == "interleaved" else 1
    length, before = sizes.total(tensor.holds) // blocks, 0
    found: list[Any] = []
    for role in tensor.holds:
        count, width = sizes.count[role], sizes.width[role]
        block, place = divmod(head * count // sizes.count["q"], count // blocks)
        start = block * length + before + place * width
        found.append((*[slice(None)] * tensor.axis, slice(start, start + width)))
        before += count // blocks * width
    return found
