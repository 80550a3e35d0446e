"""Refinements of heads and of children, as a measurement takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import attention_heads, child_modules, estimate
from tests.problems import settings, squared_error
from tests.weights.heads import masks

DATA = [(torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 3, 8))]


class Net(nn.Module):
    """A table of its own, an encoder, a frozen head, and a child without parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.still = nn.Parameter(torch.zeros(3, 8)), nn.Parameter(torch.zeros(1), requires_grad=False)
        layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=4, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.act = nn.Tanh()
        self.head = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.encoder(x + self.table)))  # type: ignore[no-any-return]


def test_heads_are_measured_by_name_over_their_weights_alone() -> None:
    path = "encoder.layers.1.self_attn"
    heads = attention_heads(Net(), path)
    measurement = estimate(Net(), DATA, squared_error, sampler=settings(1e-4), refinements=heads)
    assert list(measurement.refinements) == [f"{path}.h0", f"{path}.h1"]
    assert [one["num_parameters"] for one in measurement.refinements.values()] == [140, 140]
    first, second = (float(one["llc"]["mean"]) for one in measurement.refinements.values())
    assert first != second
    assert torch.tensor([first, second]).isfinite().all()


def test_children_and_own_parameters_are_named_by_their_paths() -> None:
    net = Net()
    assert list(child_modules(net)) == ["encoder", "table"]
    assert list(child_modules(net, "encoder.layers")) == ["encoder.layers.0", "encoder.layers.1"]


@pytest.mark.parametrize("path", ["", "encoder", "encoder.layers", "encoder.layers.0", "encoder.layers.0.self_attn"])
def test_children_cover_what_is_trainable_below_them_once(path: str) -> None:
    net = Net()
    chosen = [masks(net, child) for child in child_modules(net, path).values()]
    for name, parameter in net.named_parameters():
        times = torch.stack([mask[name] for mask in chosen]).sum(0)
        inside = parameter.requires_grad and (name.startswith(f"{path}.") or not path)
        assert times.unique().tolist() == [int(inside)], name


def test_other_data_and_another_loss_are_those_of_every_part() -> None:
    def loss_fn(net: Any, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    given: dict[str, Any] = {"reference": DATA, "loss_fn": loss_fn}
    heads = attention_heads(Net(), "encoder.layers.0.self_attn", **given)
    for part in (*heads.values(), *child_modules(Net(), **given).values()):
        assert part.reference is DATA
        assert part.loss_fn is loss_fn


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (0, TypeError, '`path` to be the path of a module such as "model.blocks", but got 0'),
        (
            "layers",
            ValueError,
            "a module of Net, or to be \"\" for itself, but 'layers' is none: there are encoder, encoder.layers, enc",
        ),
        ("head", ValueError, "'head' to have trainable weights, but a Linear there has none"),
        ("act", ValueError, "'act' to have trainable weights, but a Tanh there has none"),
    ],
)
def test_where_no_child_can_be_measured_is_told(path: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        child_modules(Net(), path)


def test_a_module_without_children_is_told() -> None:
    with pytest.raises(ValueError, match="'x' is none: there are none with children"):
        child_modules(nn.Linear(1, 1), "x")
