"""The modules that the benchmarks measure."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm_mlp(x))


class Transformer(nn.Module):
    """The 2-layer language model of the issue: 137k parameters at the defaults."""

    def __init__(self, vocabulary: int = 256, width: int = 64, heads: int = 4, length: int = 64, layers: int = 2):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.token(tokens) + self.position(places))))


def token_losses(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Next-token losses ``(B, T)`` of rows of ``T + 1`` tokens."""
    logits = module(batch[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")


class TokenLosses(nn.Module):
    """`token_losses` as the forward of a module, as `torch.func.functional_call` wants it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return token_losses(self.net, batch)


def token_rows(num_rows: int, length: int = 64, vocabulary: int = 256) -> torch.Tensor:
    return torch.randint(vocabulary, (num_rows, length + 1), generator=torch.Generator().manual_seed(0))


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def square_losses(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return module(batch).square().mean(1)
