"""Losses of single samples, where the loss function gives a mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from slt_callbacks.losses.singles import Singles, go_at_once

X = torch.linspace(-1, 1, 12).view(6, 2)
NAMES = [f"n{i}" for i in range(6)]


class Step(nn.Module):
    """A training step as users write them, with one thing that vmap may not like."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(2, 3), how
        self.seen = torch.zeros(())
        self.metric = MeanMetric()
        self.calls = 0

    def mean(self, batch: Any) -> torch.Tensor:
        self.calls += 1
        x = batch["x"]
        loss = nn.functional.cross_entropy(self.layer(x), batch["y"]) * len(x)  # knows the size of its batch
        if self.how == "item" and loss.item() > 1e9:
            return loss * 0
        if self.how == "keeps":
            self.seen = self.seen + loss.detach()
        if self.how == "metric":
            self.metric(loss.detach())
        return loss / len(x)


def mean(module: Step, batch: Any) -> torch.Tensor:
    return module.mean(batch)


def batch(**more: Any) -> dict[str, Any]:
    return {"x": X, "y": torch.arange(6) % 3, "mask": torch.ones(4), **more}


def expected(module: Step) -> torch.Tensor:
    return nn.functional.cross_entropy(module.layer(X), batch()["y"], reduction="none").detach()


def test_all_at_once_is_one_call() -> None:
    module = Step()
    singles = Singles(mean, module, at_once=True)
    with torch.no_grad():
        torch.testing.assert_close(singles(batch(), 6), expected(module))
    assert singles._twin is not None
    assert (singles._twin.calls, module.calls) == (1, 0)


@pytest.mark.parametrize(("how", "at_once"), [("plain", True), ("item", False), ("keeps", True), ("metric", False)])
def test_it_is_found_out_whether_vmap_takes_the_module(how: str, at_once: bool) -> None:
    module = Step(how)
    assert go_at_once(mean, module, batch(), 6) == at_once
    torch.testing.assert_close(module.mean(batch()), expected(module).mean())
    assert module.seen.shape == ()  # nothing of it is left in the module


def test_strings_go_one_by_one() -> None:
    def spelled(module: Step, batch: Any) -> torch.Tensor:
        assert len(batch["names"]) == 1
        return mean(module, batch) + int(batch["names"][0][1:])

    module = Step()
    assert not go_at_once(spelled, module, batch(names=NAMES), 6)
    with torch.no_grad():
        found = Singles(spelled, module, at_once=True)(batch(names=NAMES), 6)
    torch.testing.assert_close(found, expected(module) + torch.arange(6))


def test_what_vmap_refuses_in_the_end_goes_on_in_a_loop() -> None:
    module = Step()
    singles = Singles(mean, module, at_once=True)
    with torch.no_grad():
        singles(batch(), 6)
        assert singles._twin is not None
        singles._twin.how = "item"
        torch.testing.assert_close(singles(batch(), 6), expected(module))
        singles(batch(), 6)
    assert module.calls == 12


def test_lack_of_memory_is_told_to_the_caller() -> None:
    def greedy(module: Step, batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Singles(greedy, Step(), at_once=True)(batch(), 6)
