"""Which tensors of an attention layer hold its heads, found by the names that public models give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from slt_callbacks.basics.plain import shown
from slt_callbacks.weights.selection import listed

Layout = Literal["concat", "interleaved"]

# Queries, keys and values: where they lie below the layer, and which of the three each tensor holds, in this order.
_INPUTS: tuple[dict[str, str], ...] = (
    {"q_proj": "q", "k_proj": "k", "v_proj": "v"},  # Llama, Qwen, Gemma, GPT-J, GPT-Neo, CLIP, BART, ViT
    {"query": "q", "key": "k", "value": "v"},  # ALBERT
    {"self.query": "q", "self.key": "k", "self.value": "v"},  # BERT, RoBERTa, ELECTRA: the output is beside `self`
    {"self.query_proj": "q", "self.key_proj": "k", "self.value_proj": "v"},  # DeBERTa-v2
    {"attention.query": "q", "attention.key": "k", "attention.value": "v"},  # ViT before transformers 5
    {"q_lin": "q", "k_lin": "k", "v_lin": "v"},  # DistilBERT, XLM
    {"wq": "q", "wk": "k", "wv": "v"},  # Llama as published
    {"Wq": "q", "Wk": "k", "Wv": "v"},  # CTRL
    {"W_q": "q", "W_k": "k", "W_v": "v"},  # Dive into Deep Learning
    {"q": "q", "k": "k", "v": "v"},  # T5
    {"to_q": "q", "to_k": "k", "to_v": "v"},  # diffusers
    {"to_q": "q", "to_kv": "kv"},  # lucidrains
    {"q": "q", "kv": "kv"},  # PVT
    {"q_attn": "q", "c_attn": "kv"},  # GPT-2's cross-attention; before `c_attn` alone
    {"c_attn": "qkv"},  # GPT-2, nanoGPT
    {"qkv": "qkv"},  # timm, SAM, BLIP
    {"Wqkv": "qkv"},  # MPT, DBRX, ModernBERT
    {"to_qkv": "qkv"},  # lucidrains
    {"query_key_value": "qkv"},  # GPT-NeoX, BLOOM, Falcon
    {"qkv_proj": "qkv"},  # Phi-3
    {"in_proj_weight": "qkv"},  # nn.MultiheadAttention
    {"q_proj_weight": "q", "k_proj_weight": "k", "v_proj_weight": "v"},  # the same with other sizes of keys or values
    {"W_Q": "q", "W_K": "k", "W_V": "v"},  # TransformerLens before 4: (heads, d_model, d_head)
)
_OUTPUTS = (
    *("o_proj", "out_proj", "c_proj", "proj", "projection", "dense", "out_lin", "to_out.0", "to_out"),
    *("wo", "Wo", "W_o", "o", "out", "output.dense", "output", "W_O"),
)
# Projections that may be parameters without a layer around them, and their dimensions: heads lie along the first.
_BARE = {
    **dict.fromkeys(("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"), 2),
    **dict.fromkeys(("W_Q", "W_K", "W_V", "W_O"), 3),
}
# Other parameters of the layer itself that a head has a part of, what they hold, and the axis along which.
_LOOSE: dict[str, tuple[str, int]] = {
    "in_proj_bias": ("qkv", 0),
    "bias_k": ("k", 2),  # one more key and value, of nn.MultiheadAttention(add_bias_kv=True)
    "bias_v": ("v", 2),
    **{f"{role}_bias": (role, 0) for role in "qkv"},  # BEiT's, beside a `qkv` without
    **{f"b_{role.upper()}": (role, 0) for role in "qkv"},  # TransformerLens
}
# How one tensor holds more than one of the three. A name that both are common under is not listed.
_BY_NAME: dict[str, Layout] = dict.fromkeys(
    ("c_attn", "qkv", "kv", "Wqkv", "to_qkv", "to_kv", "in_proj_weight"), "concat"
)
_BY_CLASS: dict[str, Layout] = {  # how the name of the class begins; it comes before the name of the tensor
    **dict.fromkeys(("GPTNeoX", "Bloom", "Falcon", "Persimmon", "GPTBigCode"), "interleaved"),
    **dict.fromkeys(("Phi3", "Phi4Multimodal"), "concat"),
}
_NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True)
class HeadTensor:
    """A parameter along one axis of which the heads of a layer lie.

    Attributes:
        name: As the module names it.
        holds: "q", "k", "v", several of them as "kv" or "qkv", or "o" for the output projection.
        axis: Along which they lie.
        length: Of this axis.
        trainable: Whether it asks for a gradient.
    """

    name: str
    holds: str
    axis: int
    length: int
    trainable: bool


@dataclass(frozen=True)
class AttentionLayer:
    """What is known of an attention layer before its heads are told apart.

    Attributes:
        name: Its path and class, for messages.
        tensors: Those that hold its heads.
        layout: Of fused tensors; None where neither the name nor the class tells it.
        num_heads: As the layer, or the configuration that it holds, says; None where they do not.
        certain: Whether the layer itself says so, and not a configuration, which may be about other layers as well.
        fixed: Whether its layout can be no other.
    """

    name: str
    tensors: tuple[HeadTensor, ...]
    layout: Layout | None
    num_heads: int | None
    certain: bool
    fixed: bool


def attention_layer(module: nn.Module, path: str) -> AttentionLayer:
    """The attention layer at a path.

    Args:
        module: From which the path and the names of the tensors count.
        path: As of `Module.get_submodule`; "" for the module itself.

    Raises:
        TypeError: If `path` is no string.
        ValueError: If there is no attention layer at the path, or none whose weights can be told apart.

    Example:
        >>> layer = attention_layer(nn.TransformerEncoderLayer(8, nhead=2), "self_attn")
        >>> layer.name, layer.layout, layer.num_heads
        ('self_attn (MultiheadAttention)', 'concat', 2)
        >>> [(tensor.name, tensor.holds, tensor.length) for tensor in layer.tensors[:2]]
        [('self_attn.in_proj_weight', 'qkv', 24), ('self_attn.out_proj.weight', 'o', 8)]
    """
    if not isinstance(path, str):
        raise TypeError(f'Expected `path` to be the path of a module such as "blocks.0.attn", but got {shown(path)}.')
    modules, parameters = _by_name(module)
    there = {**modules, **parameters}
    inputs, output = _projections(there, path)
    if path not in modules or output is None:
        what = f"a {type(modules[path]).__name__}" if path in modules else "no module"
        raise ValueError(
            f"Expected `path` to lead to an attention layer of {type(module).__name__}, but {path!r} is {what}: "
            f"{_known(there, modules)}. Heads of other layers are made by hand: Refinement(slices=...)."
        )
    layer = modules[path]
    name = f"{path} ({type(layer).__name__})" if path else type(layer).__name__
    tensors: list[HeadTensor] = []
    for place, holds in (*inputs.items(), (output, "o")):
        tensors += _tensors(_below(path, place), there, holds, name)
    for place, (holds, axis) in _LOOSE.items():
        if (own := _below(path, place)) in parameters:
            tensors.append(_tensor(own, parameters[own], holds, axis))
    first = next(iter(inputs))
    owners = (layer, modules[_below(path, first.rpartition(".")[0])])
    number, certain = (tensors[0].length, True) if _BARE.get(first) == 3 else _num_heads(owners)
    fixed = isinstance(layer, nn.MultiheadAttention)
    return AttentionLayer(name, tuple(tensors), _layout(layer, inputs), number, certain, fixed)


def _by_name(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Parameter]]:
    modules, parameters = module.named_modules(remove_duplicate=False), module.named_parameters(remove_duplicate=False)
    return dict(modules), dict(parameters)


def _below(path: str, place: str) -> str:
    return ".".join(part for part in (path, place) if part)


def _projections(there: Mapping[str, Any], path: str) -> tuple[dict[str, str], str | None]:
    """Where the inputs of an attention layer lie and what they hold, and where its output; None where it is none."""
    for inputs in _INPUTS:
        if all(_is_projection(place, there.get(_below(path, place))) for place in inputs):
            outputs = (place for place in _OUTPUTS if _is_projection(place, there.get(_below(path, place))))
            return inputs, next(outputs, None)
    return {}, None


def _is_projection(place: str, found: Any) -> bool:
    if isinstance(found, nn.Parameter):
        return found.ndim == _BARE.get(place)
    return isinstance(found, nn.Linear) or _is_transposed(found)


def _is_transposed(found: Any) -> bool:
    """Whether it is the Conv1D of transformers, a linear layer whose weight is (in, out)."""
    return isinstance(found, nn.Module) and any(kind.__name__ == "Conv1D" for kind in type(found).__mro__)


def _known(there: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> str:
    found = [name or '""' for name in modules if _projections(there, name)[1] is not None]
    return f"there are {listed(found)}" if found else "nothing in it has projections of names that are known"


def _tensors(place: str, there: Mapping[str, Any], holds: str, layer: str) -> list[HeadTensor]:
    """The weight of a projection, and its bias where heads have a part of it."""
    found = there[place]
    if isinstance(found, nn.Parameter):
        return [_tensor(place, found, holds, 0)]
    if f"{place}.weight" not in there:
        raise ValueError(f"Expected {place}.weight of {layer} to be a parameter, but it is computed from others.")
    tensors = [
        _tensor(f"{place}.weight", there[f"{place}.weight"], holds, int(_is_transposed(found) != (holds == "o")))
    ]
    if holds != "o" and f"{place}.bias" in there:
        tensors.append(_tensor(f"{place}.bias", there[f"{place}.bias"], holds, 0))
    return tensors


def _tensor(name: str, parameter: nn.Parameter, holds: str, axis: int) -> HeadTensor:
    return HeadTensor(name, holds, axis, parameter.shape[axis], parameter.requires_grad)


def _layout(layer: nn.Module, inputs: Mapping[str, str]) -> Layout | None:
    for kind in type(layer).__mro__:
        for beginning, layout in _BY_CLASS.items():
            if kind.__name__.startswith(beginning):
                return layout
    fused = [place for place, holds in inputs.items() if len(holds) > 1]
    return _BY_NAME.get(fused[0]) if fused else "concat"  # the bias of nn.MultiheadAttention is fused at any rate


def _num_heads(owners: Sequence[nn.Module]) -> tuple[int | None, bool]:
    """The number, and whether the layer itself tells it."""
    for own in (True, False):
        for owner in owners if own else [getattr(one, key, None) for one in owners for key in ("config", "cfg")]:
            for name in _NUM_HEADS:
                found = getattr(owner, name, None)
                if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                    return found, own
    return None, False
