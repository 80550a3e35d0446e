"""Attention layers written as public models write theirs, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

WIDTH, HEADS = 8, 4
X, MEMORY = torch.randn(2, 2, 5, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, heads, ...) each, of which keys and values may be fewer; the outputs of all heads, joined."""
    k, v = (one.repeat_interleave(q.shape[2] // one.shape[2], dim=2).transpose(1, 2) for one in (k, v))
    return scaled_dot_product_attention(q.transpose(1, 2), k, v).transpose(1, 2).flatten(2)


class Conv1D(nn.Module):
    """GPT-2's linear layer, as transformers has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf) / 2)
        self.bias = nn.Parameter(torch.randn(nf) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Named(nn.Module):
    """Layers of their own, under the names given; keys and queries of a head may be wider than its values."""

    def __init__(self, q: str, k: str, v: str, o: str, kv_heads: int = HEADS, key: int = 2, value: int = 2) -> None:
        super().__init__()
        self.num_heads, self.kv_heads, self.places = HEADS, kv_heads, (q, k, v, o)
        for place, fan_in, fan_out in (
            (q, WIDTH, HEADS * key),
            (k, WIDTH, kv_heads * key),
            (v, WIDTH, kv_heads * value),
            (o, HEADS * value, WIDTH),
        ):
            parent: nn.Module = self
            *holders, last = place.split(".")
            for holder in holders:
                if not hasattr(parent, holder):
                    parent.add_module(holder, nn.Module())
                parent = getattr(parent, holder)
            parent.add_module(last, nn.Linear(fan_in, fan_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v, o = map(self.get_submodule, self.places)
        shared = (self.kv_heads, -1)
        z = attend(q(x).unflatten(-1, (HEADS, -1)), k(x).unflatten(-1, shared), v(x).unflatten(-1, shared))
        return o(z)  # type: ignore[no-any-return]


class GPT2Attention(nn.Module):
    def __init__(self, kind: Any = Conv1D) -> None:
        super().__init__()
        self.n_head = HEADS
        self.c_attn = Conv1D(3 * WIDTH, WIDTH) if kind is Conv1D else nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = kind(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c_attn(x).split(WIDTH, dim=2)
        shape = (2, 5, HEADS, WIDTH // HEADS)
        return self.c_proj(attend(q.view(shape), k.view(shape), v.view(shape)))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Keys and values in one projection; names as in GPT-2."""

    def __init__(self, q: str = "q_attn", kv: str = "c_attn", o: str = "c_proj", kind: Any = Conv1D) -> None:
        super().__init__()
        self.num_heads, self.names = HEADS, (q, kv, o)
        self.add_module(q, kind(WIDTH, WIDTH))
        self.add_module(kv, Conv1D(2 * WIDTH, WIDTH) if kind is Conv1D else nn.Linear(WIDTH, 2 * WIDTH))
        self.add_module(o, kind(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, kv, o = map(self.get_submodule, self.names)
        k, v = kv(MEMORY).split(WIDTH, dim=2)
        shape = (2, 5, HEADS, WIDTH // HEADS)
        return o(attend(q(x).view(shape), k.view(shape), v.view(shape)))  # type: ignore[no-any-return]


class ViTAttention(nn.Module):
    """timm's; BEiT's has its biases beside the projection."""

    def __init__(self, beside: bool = False, names: tuple[str, str] = ("qkv", "proj")) -> None:
        super().__init__()
        self.num_heads, self.names = HEADS, names
        self.add_module(names[0], nn.Linear(WIDTH, 3 * WIDTH, bias=not beside))
        self.add_module(names[1], nn.Linear(WIDTH, WIDTH))
        if beside:
            self.q_bias, self.v_bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused, out = map(self.get_submodule, self.names)
        qkv = fused(x)
        if hasattr(self, "q_bias"):
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = qkv.reshape(2, 5, 3, HEADS, WIDTH // HEADS).permute(2, 0, 1, 3, 4).unbind(0)
        return out(attend(q, k, v))  # type: ignore[no-any-return]


class Interleaved(nn.Module):
    """One projection, head after head, under names that do not tell."""

    def __init__(self, names: tuple[str, str] = ("qkv_proj", "o_proj")) -> None:
        super().__init__()
        self.names, self.config = names, type("Config", (), {"num_attention_heads": HEADS})
        self.add_module(names[0], nn.Linear(WIDTH, 3 * WIDTH))
        self.add_module(names[1], nn.Linear(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused, out = map(self.get_submodule, self.names)
        return out(attend(*fused(x).view(2, 5, HEADS, -1).chunk(3, dim=-1)))  # type: ignore[no-any-return]


class GPTNeoXAttention(Interleaved):
    def __init__(self) -> None:
        super().__init__(("query_key_value", "dense"))


class Faster(GPTNeoXAttention):
    """A class that is known by the one it is made from."""


class FalconAttention(nn.Module):
    """Two groups of two heads: their queries, then their key, then their value."""

    def __init__(self, kv_heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.kv_heads = HEADS, kv_heads
        self.query_key_value = nn.Linear(WIDTH, (HEADS + 2 * kv_heads) * 2)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused = self.query_key_value(x).view(2, 5, self.kv_heads, HEADS // self.kv_heads + 2, 2)
        z = attend(fused[..., :-2, :].flatten(2, 3), fused[..., -2, :], fused[..., -1, :])
        return self.dense(z)  # type: ignore[no-any-return]


class Phi3Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv_proj, self.o_proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv_proj(x).split([8, 4, 4], dim=-1)
        return self.o_proj(attend(q.view(2, 5, 4, 2), k.view(2, 5, 2, 2), v.view(2, 5, 2, 2)))  # type: ignore[no-any-return]


class HookedAttention(nn.Module):
    """That of TransformerLens."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("W_Q", "W_K", "W_V"):
            self.register_parameter(name, nn.Parameter(torch.randn(HEADS, WIDTH, 3) / 2))
            self.register_parameter(name.replace("W", "b"), nn.Parameter(torch.randn(HEADS, 3) / 2))
        self.W_O, self.b_O = nn.Parameter(torch.randn(HEADS, 3, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.hook_z = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.einsum("bpd,hde->bphe", x, self.get_parameter(f"W_{role}")) + self.get_parameter(f"b_{role}")
            for role in "QKV"
        )
        z = self.hook_z(attend(q, k, v)).unflatten(-1, (HEADS, -1))
        return torch.einsum("bphe,hed->bpd", z, self.W_O) + self.b_O


class Torch(nn.MultiheadAttention):
    """`nn.MultiheadAttention`, whose outputs are joined in a place where a hook can see them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(WIDTH, HEADS, batch_first=True, **options)
        self.hook_z = nn.Identity()
        if self.in_proj_bias is not None:
            nn.init.normal_(self.in_proj_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        memory = MEMORY[..., : self.kdim], MEMORY[..., : self.vdim]
        own, self.out_proj = self.out_proj, nn.Linear(WIDTH, WIDTH).double()
        with torch.no_grad():
            self.out_proj.weight.copy_(torch.eye(WIDTH))
            self.out_proj.bias.zero_()
        try:
            z, _ = super().forward(x, *memory, need_weights=False)
        finally:
            self.out_proj = own
        return linear(self.hook_z(z), own.weight, own.bias)


TORCH = {"shared": ("attn.out_proj.bias",), "undecided": ("attn.in_proj_bias",)}


def model(attention: nn.Module) -> nn.Module:
    """In double precision, the layer among others, each weight of a size of its own."""
    return nn.ModuleDict({"before": nn.Linear(WIDTH, WIDTH), "attn": attention}).double()


def separate(q: str, k: str, v: str, o: str, **sizes: int) -> tuple[Callable[[], nn.Module], str, dict[str, Any]]:
    group = HEADS // sizes.get("kv_heads", HEADS)
    return lambda: Named(q, k, v, o, **sizes), o, {"undecided": (f"attn.{k}.bias",), "group": group}


def fused(make: Callable[[], nn.Module], place: str, out: str, **more: Any) -> tuple[Any, str, dict[str, Any]]:
    return make, out, {"undecided": (f"attn.{place}.bias",), **more}


CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "Llama": separate("q_proj", "k_proj", "v_proj", "o_proj"),
    "Llama, grouped": separate("q_proj", "k_proj", "v_proj", "o_proj", kv_heads=2),
    "Llama, one key": separate("q_proj", "k_proj", "v_proj", "o_proj", kv_heads=1),
    "values of another width": separate("q_proj", "k_proj", "v_proj", "o_proj", key=2, value=3),
    "both": separate("q_proj", "k_proj", "v_proj", "o_proj", kv_heads=2, key=3, value=1),
    "GPT-J": separate("q_proj", "k_proj", "v_proj", "out_proj"),
    "BERT": separate("self.query", "self.key", "self.value", "output.dense"),
    "ViT of old": separate("attention.query", "attention.key", "attention.value", "output.dense"),
    "ALBERT": separate("query", "key", "value", "dense"),
    "DeBERTa-v2": separate("self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
    "CTRL": separate("Wq", "Wk", "Wv", "dense"),
    "Dive into Deep Learning": separate("W_q", "W_k", "W_v", "W_o"),
    "DistilBERT": separate("q_lin", "k_lin", "v_lin", "out_lin"),
    "Llama as published": separate("wq", "wk", "wv", "wo", kv_heads=2),
    "T5": separate("q", "k", "v", "o"),
    "diffusers": separate("to_q", "to_k", "to_v", "to_out.0"),
    "GPT-2": fused(GPT2Attention, "c_attn", "c_proj"),
    "nanoGPT": fused(lambda: GPT2Attention(nn.Linear), "c_attn", "c_proj"),
    "GPT-2, cross": fused(CrossAttention, "c_attn", "c_proj"),
    "PVT": fused(lambda: CrossAttention("q", "kv", "proj", nn.Linear), "kv", "proj"),
    "lucidrains, cross": fused(lambda: CrossAttention("to_q", "to_kv", "to_out", nn.Linear), "to_kv", "to_out"),
    "timm": fused(ViTAttention, "qkv", "proj"),
    "MPT": fused(lambda: ViTAttention(names=("Wqkv", "out_proj")), "Wqkv", "out_proj"),
    "lucidrains": fused(lambda: ViTAttention(names=("to_qkv", "to_out")), "to_qkv", "to_out"),
    "BEiT": (lambda: ViTAttention(beside=True), "proj", {}),
    "GPT-NeoX": fused(GPTNeoXAttention, "query_key_value", "dense"),
    "from GPT-NeoX": fused(Faster, "query_key_value", "dense"),
    "Falcon": fused(FalconAttention, "query_key_value", "dense", group=2),
    "Falcon, one key": fused(lambda: FalconAttention(1), "query_key_value", "dense", group=4),
    "Phi-3": fused(Phi3Attention, "qkv_proj", "o_proj", group=2),
    "TransformerLens": (HookedAttention, "hook_z", {"shared": ("attn.b_O",), "undecided": ("attn.b_K",)}),
    "torch": (Torch, "hook_z", TORCH),
    "torch, no bias": (lambda: Torch(bias=False), "hook_z", {"shared": ()}),
    "torch, one more key": (lambda: Torch(add_bias_kv=True), "hook_z", TORCH),
    "torch, other keys": (lambda: Torch(kdim=5, vdim=6), "hook_z", TORCH),
}
