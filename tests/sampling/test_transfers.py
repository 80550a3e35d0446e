"""What Lightning does to a batch on its way to the training step is done to the reference samples too."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import Influence, LossKernel, SLTMonitor, estimate
from slt_callbacks.data.drawing import draw_reference
from tests.problems import Estimator, llc, settings
from tests.training import QUIET, fingerprint

X = 255 * torch.rand(16, 3, generator=torch.Generator().manual_seed(0))


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mean", torch.tensor(100.0))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.layer(batch) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class After(Net):
    def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        batch.sub_(self.mean)  # in place, as users write it
        return batch / 255


class Before(Net):
    def on_before_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        return (batch - self.mean) / 255


class During(Net):
    def transfer_batch_to_device(self, batch: torch.Tensor, device: torch.device, dataloader_idx: int) -> torch.Tensor:
        return super().transfer_batch_to_device((batch - self.mean) / 255, device, dataloader_idx)


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def train_dataloader(self) -> Any:
        return DataLoader(X, 4)

    def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        self.seen += 1
        return (batch - 100) / 255


def trained_loss(module: Any) -> float:
    return float((module.layer((X - 100) / 255) - 1).square().mean().detach())


def squares(module: Any, x: torch.Tensor) -> torch.Tensor:
    return (module.layer(x) - 1).square()[:, 0]


@pytest.mark.parametrize("kind", [After, Before, During])
@pytest.mark.parametrize("loss_fn", [None, squares])
def test_the_loss_is_that_of_what_the_training_step_sees(kind: Any, loss_fn: Any) -> None:
    module = kind()
    before = X.clone()
    found = estimate(module, [X], loss_fn, sampler=settings(batch_size=4))
    assert found["llc"]["reference_loss"] == pytest.approx(trained_loss(module), rel=1e-5)
    assert torch.equal(X, before)


def test_kernel_and_queries_go_the_same_way() -> None:
    def observables() -> Any:
        return {"kernel": LossKernel(), "influence": Influence([X[:3] + 1])}

    config = settings(1e-3, engine="sequential")
    hooked = estimate(After(), [X], squares, observables=observables(), sampler=config)
    plain = estimate(Net(), [X], lambda m, x: squares(m, (x - 100) / 255), observables=observables(), sampler=config)
    torch.testing.assert_close(hooked["kernel"]["covariance"], plain["kernel"]["covariance"])
    torch.testing.assert_close(hooked["influence"]["bif"], plain["influence"]["bif"])


def test_batches_that_have_been_transferred_are_not_transferred_again() -> None:
    module = After()
    one = Estimator(draw_reference([(X - 100) / 255]), None, None, settings(), transferred=True)
    found = one.measure(module)
    assert found["llc"]["reference_loss"] == pytest.approx(trained_loss(module), rel=1e-5)


def test_of_the_first_training_batches_only_the_queries_go_through_the_hooks() -> None:
    def mean_of_queries(reference: Any, kind: Any) -> Any:
        observables = {"influence": Influence([X[:3] + 1])}
        monitor = SLTMonitor(
            reference, squares, observables, settings(1e-5, engine="sequential"), 16 if reference is None else None,
            every_n_train_steps=4, max_overhead=None, sinks=[],
        )  # fmt: skip
        pl.Trainer(callbacks=[monitor], max_epochs=2, **QUIET).fit(kind(), DataLoader(X, 4))
        return monitor.history[-1]["influence"]["bif"]

    torch.testing.assert_close(mean_of_queries(None, After), mean_of_queries([X], After))


@pytest.mark.parametrize("monitored", [True, False])
def test_a_data_module_comes_first_and_is_left_alone(monitored: bool) -> None:
    module, data = Net(), Data()
    monitor = SLTMonitor([X], sampler=settings(1e-6), every_n_train_steps=4, max_overhead=None, sinks=[])
    trainer = pl.Trainer(callbacks=[monitor] if monitored else [], max_epochs=1, **QUIET)
    trainer.fit(module, datamodule=data)
    assert data.seen == 4
    if monitored:
        assert monitor.history[-1]["llc"]["reference_loss"] == pytest.approx(trained_loss(module), rel=1e-5)


def test_training_is_the_same_with_and_without() -> None:
    class Noisy(After):
        def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
            return super().on_after_batch_transfer(batch, dataloader_idx) + torch.rand_like(batch)

    digests = []
    for monitored in (True, False):
        module = Noisy()
        monitor = SLTMonitor([X], sampler=settings(1e-6), every_n_train_steps=2, max_overhead=None, sinks=[])
        trainer = pl.Trainer(callbacks=[monitor] if monitored else [], max_epochs=1, **QUIET)
        if monitored:
            with pytest.warns(UserWarning, match="draw random numbers"):
                trainer.fit(module, DataLoader(X, 4))
            assert not monitor.history[-1].failed
        else:
            trainer.fit(module, DataLoader(X, 4))
        digests.append(fingerprint(trainer))
    assert digests[0] == digests[1]


def test_a_random_hook_is_applied_with_common_numbers_and_said() -> None:
    class Noisy(Net):
        def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
            return batch / 255 + torch.rand_like(batch)

    with pytest.warns(UserWarning, match=r"`on_after_batch_transfer`, which.* draw random numbers: each sample meets"):
        found = estimate(Noisy(), [X], squares, sampler=settings(1e-30, batch_size=4))
    assert llc(found) == 0


def test_a_hook_that_fails_is_left_out_and_said() -> None:
    class Failing(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch["image"]

    with pytest.warns(
        UserWarning, match=r"`on_before_batch_transfer` cannot be applied .*and the loss is taken without"
    ):
        found = estimate(module := Failing(), [X], squares, sampler=settings(1e-6))
    assert found["llc"]["reference_loss"] == pytest.approx(float(squares(module, X).mean().detach()), rel=1e-5)
