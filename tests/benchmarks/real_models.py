"""Models as people train them, each at an early and a late moment of its training: what defaults have to serve."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own convention
from sklearn.datasets import load_digits
from torch import nn

from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.data.reference import ReferenceSet
from tests.benchmarks import language
from tests.benchmarks.models import Block

Batch = list[torch.Tensor]
NUM_SAMPLES = 256


@dataclass(frozen=True)
class Problem:
    """A model at one moment of its training.

    Attributes:
        name: Of both.
        module: In eval mode or not, as training leaves it.
        loss_fn: One loss a sample, or a token.
        reference: 256 of its training samples.
    """

    name: str
    module: nn.Module
    loss_fn: Callable[[Any, Any], torch.Tensor]
    reference: ReferenceSet


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        make: The untrained module.
        data: Its training data.
        loss_fn: One loss a sample, or a token.
        steps: The two moments, in optimizer steps.
        lr: Of Adam.
    """

    make: Callable[[], nn.Module]
    data: Callable[[], Batch]
    loss_fn: Callable[[Any, Any], torch.Tensor]
    steps: tuple[int, int]
    lr: float = 1e-3


def classified(module: nn.Module, batch: Batch) -> torch.Tensor:
    """One label a sample."""
    x, y = batch
    return F.cross_entropy(module(x), y, reduction="none")


def next_state(module: nn.Module, batch: Batch) -> torch.Tensor:
    """One loss a token, ``(B, T)``."""
    (rows,) = batch
    return F.cross_entropy(module(rows[:, :-1]).mT, rows[:, 1:], reduction="none")


def digits() -> Batch:
    """Images ``(1797, 1, 8, 8)`` of handwritten digits, and their labels."""
    found = load_digits()
    return [torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)]


def first_symbols() -> Batch:
    """Rows of 12 symbols; the label is the first one."""
    rows = torch.randint(8, (4096, 12), generator=torch.Generator().manual_seed(0))
    return [rows, rows[:, 0]]


def markov_chains() -> Batch:
    """Rows of 65 states, each of a Markov chain of its own."""
    rng = torch.Generator().manual_seed(0)
    uniform = torch.rand(4096, 3, 3, generator=rng)
    transitions = (-uniform.log()).div((-uniform.log()).sum(-1, keepdim=True))  # Dirichlet(1)
    states = [torch.randint(3, (4096,), generator=rng)]
    for _ in range(64):
        states.append(torch.multinomial(transitions[torch.arange(4096), states[-1]], 1, generator=rng)[:, 0])
    return [torch.stack(states, dim=1)]


def convolutional() -> nn.Module:
    """Two blocks of convolution, batch normalization and ReLU."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )


class Recurrent(nn.Module):
    """A GRU that has to remember the first symbol."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru, self.head = nn.Embedding(8, 16), nn.GRU(16, 32, batch_first=True), nn.Linear(32, 8)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.embed(rows))[0][:, -1])


class VisionTransformer(nn.Module):
    """Patches of 2 x 2, a class token, learned places, two pre-norm encoder blocks: the ViT of the paper, small."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).mT
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens + self.places)[:, 0])


class Gpt(nn.Module):
    """Token and place embeddings, two pre-norm causal blocks, a final norm and a head tied to the embedding."""

    def __init__(self, vocabulary: int = 3, width: int = 32, length: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks, self.norm = nn.Sequential(Block(width, 4), Block(width, 4)), nn.LayerNorm(width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(rows) + self.places(torch.arange(rows.shape[1], device=rows.device))
        return self.norm(self.blocks(hidden)) @ self.tokens.weight.T


RECIPES = {
    "MLP on digits": Recipe(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
        digits,
        classified,
        (300, 1500),
    ),
    "BatchNorm CNN on digits": Recipe(convolutional, digits, classified, (300, 1500)),
    "GRU on first symbols": Recipe(Recurrent, first_symbols, classified, (300, 1500), lr=3e-3),
    "ViT on digits": Recipe(VisionTransformer, digits, classified, (300, 1500)),
    "GPT on Markov chains": Recipe(Gpt, markov_chains, next_state, (300, 1500), lr=3e-3),
}


@functools.cache
def trained(name: str, num_moments: int = 2) -> list[Problem]:
    """The model at its two moments, or at the first one alone; a few seconds once."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    module, data = recipe.make(), recipe.data()
    optimizer = torch.optim.Adam(module.parameters(), recipe.lr)
    order = torch.Generator().manual_seed(0)
    reference = draw_reference(torch.utils.data.TensorDataset(*data), NUM_SAMPLES)
    found = []
    for step in range(1, recipe.steps[num_moments - 1] + 1):
        rows = torch.randint(len(data[0]), (64,), generator=order)
        recipe.loss_fn(module, [leaf[rows] for leaf in data]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in recipe.steps:
            found.append(Problem(f"{name}, step {step}", copy.deepcopy(module), recipe.loss_fn, reference))
    return found


def problems() -> Iterator[Problem]:
    """All of them, and the example's language model."""
    for name in RECIPES:
        yield from trained(name)
    for step, module in language.checkpoints():
        if step in (300, 1500):
            yield Problem(f"language model, step {step}", module, language.losses, language.reference())
