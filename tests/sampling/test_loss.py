"""From a module and a batch to losses."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, DemoModel
from torch import nn

from slt_callbacks import estimate
from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.losses.functions import check_loss, losses_of, overrides, resolve_loss
from slt_callbacks.weights.fork import Fork

X = torch.linspace(-1, 1, 6).view(3, 2)


def check(loss_fn: Any, module: nn.Module | None = None, batch: Any = X) -> Any:
    fork = Fork(module or nn.Linear(2, 4))
    return check_loss(loss_fn, fork.module, fork.touches, batch, 3)


def test_losses_come_one_a_sample_one_a_token_or_as_a_mean() -> None:
    module = nn.Linear(2, 4)
    tokens = module(X).square()
    assert torch.equal(losses_of(lambda m, x: m(x).square().sum(1), module, X, 3), tokens.sum(1))
    assert torch.equal(losses_of(lambda m, x: m(x).square(), module, X, 3), tokens.mean(1))
    assert torch.equal(losses_of(lambda m, x: m(x).square().mean(), module, X, 3), tokens.mean())
    assert check(lambda m, x: m(x).square().sum(1)) == (True, False)
    assert check(lambda m, x: m(x).square()) == (True, True)
    assert check(lambda m, x: m(x).square().mean()) == (False, False)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda m, x: m(x).sum().item(), TypeError, "to return a tensor of losses, but got float: return the tensor"),
        (lambda m, x: None, TypeError, "to return a tensor of losses, but got NoneType"),
        (lambda m, x: m(x).sum(1).long(), TypeError, "floating-point losses, but got torch.int64"),
        (lambda m, x: m(x).sum(0), ValueError, r"one loss a sample, shape \(3,\).*but got \(4,\) for a batch of 3"),
        (lambda m, x: m(x)[:, :0], ValueError, r"but got \(3, 0\)"),
        (lambda m, x: m(x)[..., None], ValueError, r'but got \(3, 4, 1\).*reduction="none"'),
        (lambda m, x: m(x).sum(1).detach(), ValueError, "to have a gradient with respect to the module"),
        (lambda m, x: x.sum(1), ValueError, "to have a gradient with respect to the module"),
        (lambda m, x: m(x.mul_(2)).sum(1), ValueError, r"to leave its batch as it is, but it changed 'Tensor\[3, 2\]'"),
        (lambda m, x: m(x["image"]).sum(1), LossFnError, r"`loss_fn` raised \w+Error on 'Tensor\[3, 2\]'"),
    ],
)
def test_a_wrong_loss_is_explained(loss_fn: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(loss_fn, batch=X.clone())


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), lambda batch, module: module(batch).sum(1)])
def test_a_loss_that_raises_is_reminded_of_its_arguments(loss_fn: Any) -> None:
    with pytest.raises(LossFnError, match=r"called as loss_fn\(module, batch\) and has to return the losses"):
        check(loss_fn)


def test_one_batch_that_was_taken_for_several_is_pointed_out() -> None:
    def loss_fn(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(module(x), y, reduction="none")

    y, hint = torch.tensor([0, 1, 2]), r"If `reference` is one batch of several tensors, write \[batch\]"
    for reference in [(X, y), [X, y]]:
        with pytest.raises(LossFnError, match=hint):
            estimate(nn.Linear(2, 4), reference, loss_fn)
    assert check(loss_fn, batch=(X, y))
    with pytest.raises(LossFnError) as told:
        check(loss_fn, batch=(X, y.bool()))
    assert "write [batch]" not in str(told.value)


def test_the_live_module_in_a_closure_is_found_out() -> None:
    live = nn.Linear(2, 4)
    with pytest.raises(ValueError, match="use the `module` argument"):
        check(lambda _module, x: live(x).sum(1), live)


def test_a_loss_that_does_not_look_at_every_parameter_is_fine() -> None:
    module = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    assert check(lambda m, x: m["used"](x).sum(1), module)


@pytest.mark.parametrize("wrong", [3, "mse", nn.Linear])
def test_a_loss_that_is_no_function_is_refused(wrong: Any) -> None:
    if wrong is nn.Linear:
        wrong = torch.zeros(2)
    with pytest.raises(TypeError, match=r"Expected `loss_fn` to be a function \(module, batch\) -> losses, but got"):
        resolve_loss(wrong, nn.Linear(2, 1))


def test_without_a_loss_the_module_has_to_have_one() -> None:
    with pytest.raises(ValueError, match=r"Expected `loss_fn`, or a method `per_sample_loss\(batch\)`.*on Linear"):
        resolve_loss(None, nn.Linear(2, 1))


class WithStep(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)
        self.logged: list[Any] = []

    def log(self, *values: Any, **_: Any) -> None:
        self.logged.append(values)

    log_dict = log

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> dict[str, torch.Tensor]:
        loss = self(batch).square().mean() + batch_idx
        self.log("loss", loss)
        self.log_dict({"loss": loss})
        return {"loss": loss}


def test_the_training_step_serves_with_its_logging_muted() -> None:
    module = WithStep()
    fork = Fork(module)
    loss = losses_of(resolve_loss(None, module), fork.module, X, 3)
    assert torch.equal(loss, module(X).square().mean())
    assert module.logged == fork.module.logged == []
    module.training_step(X, 0)
    assert len(module.logged) == 2  # the live module still logs


def test_a_training_step_without_a_batch_index_serves_as_well() -> None:
    class Short(nn.Linear):
        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self(batch).square().mean().reshape(1)

    module = Short(2, 1)
    assert losses_of(resolve_loss(None, module), Fork(module).module, X, 3).shape == ()


def test_a_training_step_that_raises_points_at_loss_fn() -> None:
    class Broken(nn.Linear):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            raise KeyError("trainer")

    module = Broken(2, 1)
    with pytest.raises(LossFnError, match="Pass `loss_fn` instead of relying on `training_step`"):
        check(resolve_loss(None, module), module)


def test_a_per_sample_loss_that_raises_is_reminded_of_its_argument() -> None:
    class Broken(nn.Linear):
        def per_sample_loss(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self(batch).sum(1)

    module = Broken(2, 1)
    with pytest.raises(LossFnError, match=r"called as module.per_sample_loss\(batch\)"):
        check(resolve_loss(None, module), module)


def test_per_sample_loss_comes_before_the_training_step() -> None:
    class Both(WithStep):
        def per_sample_loss(self, batch: torch.Tensor) -> torch.Tensor:
            return self(batch).square().sum(1)

    assert losses_of(resolve_loss(None, Both()), Both(), X, 3).shape == (3,)


@pytest.mark.parametrize("kind", [BoringModel, DemoModel, WithStep])
def test_a_module_that_lightning_brings_has_a_training_step(kind: Any) -> None:
    batch = torch.linspace(-1, 1, 96).view(3, 32)[:, : 2 if kind is WithStep else 32]
    module = kind()
    output = module.training_step(batch, 0)
    expected = output["loss"] if isinstance(output, dict) else output
    assert torch.equal(losses_of(resolve_loss(None, module), Fork(module).module, batch, 3), expected)


def test_the_training_step_of_lightning_itself_is_none() -> None:
    class Empty(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

    class Own(Empty):
        def training_step(self, batch: torch.Tensor) -> torch.Tensor:
            return self.layer(batch).mean()

    assert (overrides(Empty, "training_step"), overrides(Own, "training_step")) == (False, True)
    with pytest.raises(ValueError, match="but found none"):
        resolve_loss(None, Empty())
