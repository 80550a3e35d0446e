"""`torch.set_default_device` decides where the user's tensors go, and none of ours."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.utils.data import DataLoader, TensorDataset

import slt_callbacks
from slt_callbacks import LLC, Estimator, Influence, LossKernel, RMSPropSGLD, SamplerConfig
from slt_callbacks.data.drawing import draw_reference
from tests.problems import settings, squared_error

PACKAGE = Path(slt_callbacks.__file__).parent
MAKERS = {"zeros", "empty", "full", "ones", "arange", "tensor", "as_tensor", "linspace", "eye", "randn", "rand"}
MAKERS |= {"randperm", "randint"}
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X[:, :1])


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A device on which nothing has a value, so that a tensor that is made there by mistake is noticed."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def scalar(module: Any, batch: Any) -> torch.Tensor:
    return squared_error(module, batch).mean()


CASES: dict[str, tuple[Any, Any, Any, bool]] = {
    "one by one": (DATA, settings(1e-3, engine="sequential"), squared_error, True),
    "at once": (DataLoader(DATA, 4), settings(1e-3, engine="vectorized", batch_size=4), squared_error, True),
    "minibatches": ([(X[:5], X[:5, :1]), (X[5:], X[5:, :1])], settings(1e-3, batch_size=4), squared_error, True),
    "a scalar loss": (DATA, settings(1e-3, batch_size=4), scalar, False),
    "auto": (DATA, SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=2), squared_error, True),
    "rmsprop": (DATA, SamplerConfig(RMSPropSGLD(1e-4), num_chains=2, num_draws=4, batch_size=4), squared_error, True),
}


def numbers(name: str, net: nn.Module, state: dict[str, Any] | None = None) -> list[float]:
    source, config, loss_fn, per_sample = CASES[name]
    observables: dict[str, Any] = {"llc": LLC()}
    if per_sample:
        queries = TensorDataset(X[:2] + 1, X[:2, :1])
        observables |= {"kernel": LossKernel(labels=[i % 2 for i in range(12)]), "influence": Influence(queries)}
    estimator = Estimator(draw_reference(source), loss_fn, observables, config, 0, True)
    found = [estimator.measure(net, step) for step in (0, 1)]  # cold chains, and remembered ones
    resumed = Estimator(draw_reference(source), loss_fn, observables, config, 0, True)
    assert resumed.load_state_dict(estimator.state_dict())
    found.append(resumed.measure(net, 2))
    assert not any(measurement.failed for measurement in found)
    traces = [float(measurement["kernel"]["trace"]) for measurement in found if per_sample]
    return [float(measurement["llc"]["mean"]) for measurement in found] + traces


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.fixture(scope="module")
def expected(net: nn.Module) -> dict[str, list[float]]:
    return {name: numbers(name, net) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_the_default_device_changes_no_number(
    name: str, net: nn.Module, expected: dict[str, list[float]], elsewhere: None
) -> None:
    assert numbers(name, net) == expected[name]
    assert any(expected[name])


def test_packed_sequences_are_divided_whatever_the_default_device() -> None:
    sequences = [torch.ones(length, 1) * length for length in (1, 3, 2)]
    batches = [pack_sequence(part, enforce_sorted=False) for part in (sequences[:2], sequences[2:])]
    torch.set_default_device("meta")
    try:
        ((packed, _),) = draw_reference(batches).batches(torch.tensor([2, 1], device="cpu"))
    finally:
        torch.set_default_device(None)
    assert [len(part) for part in unpack_sequence(packed)] == [2, 3]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_new_tensor_says_where_it_goes(path: Path) -> None:
    silent = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).removeprefix("torch.") in MAKERS
        and ast.unparse(node.func).startswith("torch.")
        and not {keyword.arg for keyword in node.keywords} & {"device", "out"}
    ]
    assert silent == []
