"""What a fork sees of the trainer: its live values, and no way to change anything."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import LLC, Influence, LossKernel, SLTMonitor, estimate
from slt_callbacks.losses.measured import MeasuredLoss
from slt_callbacks.losses.stand_in import Nobody, StandIn, stand_in_for
from slt_callbacks.weights.fork import Fork
from tests.problems import settings
from tests.training import QUIET, fingerprint

X = torch.linspace(-1, 1, 48).view(16, 3) ** 3


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(3.0)
        self.names = ["a", "b"]
        self.calls = 0

    def train_dataloader(self) -> Any:
        return DataLoader(X, 4)

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    def count(self) -> int:
        self.calls += 1
        return self.calls


class Reading(pl.LightningModule):
    """`use` is what its training step does with the trainer; its result is added to the loss."""

    use: Any = staticmethod(lambda module: 0.0)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.losses: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean() + type(self).use(self)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.25)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1000)]


def using(use: Any) -> Reading:
    return type("Using", (Reading,), {"use": staticmethod(use)})()


def run(module: Any, observables: Any = None, logger: Any = False, monitored: bool = True, **options: Any) -> Any:
    monitor = SLTMonitor(
        [X], observables=observables, sampler=settings(1e-4), every_n_train_steps=4, max_overhead=None, sinks=[]
    )
    settings_of = {**QUIET, "logger": logger, "max_epochs": 2, "log_every_n_steps": 1, **options}
    trainer = pl.Trainer(callbacks=[monitor] if monitored else [], **settings_of)
    trainer.fit(module, datamodule=Data())
    return monitor


def base(module: Any, x: torch.Tensor = X) -> float:
    return float(module.layer(x).square().mean().detach())


def plus_steps(module: Any) -> float:
    return 10.0 * module.global_step + module.current_epoch


READS: dict[str, tuple[Any, float]] = {
    # what is read, and what it adds to the loss at step 8, the last of the second epoch of four
    "global_step": (lambda m: 10.0 * m.global_step, 80.0),
    "current_epoch": (lambda m: 10.0 * m.current_epoch, 10.0),
    "max_epochs": (lambda m: m.trainer.max_epochs, 2.0),
    "learning rate": (lambda m: m.optimizers().param_groups[0]["lr"], 0.25),
    "learning rate of the trainer's": (lambda m: m.trainer.optimizers[0].param_groups[0]["lr"], 0.25),
    "schedule": (lambda m: m.lr_schedulers().get_last_lr()[0], 0.25),
    "data": (lambda m: m.trainer.datamodule.scale, 3.0),
    "a method of the data": (lambda m: m.trainer.datamodule.scaled(torch.tensor(2.0)), 6.0),
    "batches": (lambda m: float(sum(1 for _ in range(m.trainer.num_training_batches))), 4.0),
    "loader": (lambda m: len(m.trainer.train_dataloader), 4.0),
    "length": (lambda m: len(m.trainer.datamodule.names), 2.0),
    "stage": (lambda m: float(m.trainer.training), 1.0),
    "world": (lambda m: m.trainer.world_size + m.global_rank, 1.0),
    "kind": (lambda m: float(isinstance(m.trainer, pl.Trainer)), 1.0),
    "gathered": (lambda m: m.all_gather(torch.tensor(2.0)), 2.0),
    "the module itself": (lambda m: float(m.trainer.lightning_module is m), 1.0),
    "weights": (
        lambda m: float(m.optimizers().param_groups[0]["params"][0] is m.layer.weight),
        1.0,
    ),
    "no logger": (lambda m: float(m.logger is None), 1.0),
}


@pytest.mark.parametrize("name", READS)
def test_the_live_values_are_read(name: str) -> None:
    use, added = READS[name]
    module = using(use)
    last = run(module).history[-1]
    assert last.step == 8
    assert not last.failed
    assert last["llc"]["reference_loss"] == pytest.approx(base(module) + added, rel=1e-4)


def told(module: Any) -> float:
    module.log("more", 1.0, on_epoch=True, prog_bar=True)
    module.log_dict({"even more": 1.0})
    module.print("a line")
    if module.logger is not None:
        module.logger.log_metrics({"metric": 1.0}, step=3)
        module.logger.experiment.log_metrics({"metric": 1.0})
        for logger in module.loggers:
            logger.log_hyperparams({"a": 1})
    module.trainer.should_stop = False
    return 0.0


def test_what_would_be_told_reaches_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for monitored in (True, False):
        logger = CSVLogger(tmp_path, name=str(monitored))
        run(using(told), logger=logger, monitored=monitored)
        rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        files.append((rows[0].count("slt/"), [row for row in rows if ",1.0" in row or "more" in row]))
    assert capsys.readouterr().out.count("a line") == 16, "eight steps with a monitor, and eight without"
    assert len(files[0][1]) == len(files[1][1])


REFUSED: dict[str, Any] = {
    "step": lambda m: m.optimizers().step(),
    "zero_grad": lambda m: m.trainer.optimizers[0].zero_grad(),
    "backward": lambda m: m.trainer.strategy.backward(m.layer.weight.sum(), None),
    "save": lambda m: m.trainer.save_checkpoint("model.ckpt"),
    "schedule": lambda m: m.lr_schedulers().step(),
    "attribute": lambda m: setattr(m.trainer.datamodule, "scale", 1.0),
    "own method that writes": lambda m: m.trainer.datamodule.count(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_training_is_refused_before_it(name: str) -> None:
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match=r"no more than read.*pass a `loss_fn`"):
        run(using(lambda m: REFUSED[name](m) and 0.0))


@pytest.mark.parametrize("use", [plus_steps, told, READS["learning rate"][0], READS["a method of the data"][0]])
def test_training_is_the_same_with_and_without(use: Any) -> None:
    digests = []
    for monitored in (True, False):
        module = using(use)
        run(module, monitored=monitored)
        digests.append(fingerprint(module.trainer))
        assert "log" not in vars(module)
    assert digests[0] == digests[1]


def test_a_kernel_and_the_batched_singles_see_the_trainer_too() -> None:
    module = using(plus_steps)
    observables: dict[str, Any] = {"llc": LLC(), "kernel": LossKernel(), "influence": Influence([X[:2] + 1])}
    last = run(module, observables).history[-1]
    assert not last.failed
    assert last["llc"]["reference_loss"] == pytest.approx(base(module) + 81, rel=1e-4)


def test_a_loss_of_the_users_own_sees_the_trainer_too() -> None:
    module = Reading()
    monitor = SLTMonitor(
        [X],
        lambda m, x: m.layer(x).square()[:, 0] + m.global_step,
        sampler=settings(1e-4),
        every_n_train_steps=4,
        max_overhead=None,
        sinks=[],
    )
    pl.Trainer(callbacks=[monitor], max_epochs=1, **QUIET).fit(module, DataLoader(X, 4))
    assert monitor.history[-1]["llc"]["reference_loss"] == pytest.approx(base(module) + 4, rel=1e-5)


class Trainer:
    global_step = 5


class Attached(nn.Linear):
    def __init__(self, trainer: Any) -> None:
        super().__init__(3, 1)
        self._trainer = trainer


def test_a_fork_keeps_neither_the_trainer_nor_itself_alive() -> None:
    trainer = Trainer()
    live = Attached(None)
    fork = Fork(live)
    live._trainer = trainer
    loss = MeasuredLoss(lambda m, x: m(x).sum(1), live, fork)
    assert type(fork.module._trainer) is StandIn
    assert fork.module._trainer.global_step == 5
    gone, module = weakref.ref(trainer), weakref.ref(fork.module)
    live._trainer = None
    del trainer
    assert gone() is None, "by counting references alone"
    gc.disable()
    try:
        del loss, fork
        assert module() is None
    finally:
        gc.enable()


def test_without_a_trainer_everything_is_as_before() -> None:
    module = using(lambda m: 10.0 * m.global_step)
    found = estimate(module, [X], sampler=settings())
    assert found["llc"]["reference_loss"] == pytest.approx(base(module), rel=1e-5)
    with pytest.raises(RuntimeError, match="is not attached to a `Trainer`"):
        estimate(using(lambda m: m.trainer.max_epochs), [X], sampler=settings())


def test_containers_and_tensors_are_copies() -> None:
    class Holder:
        def __init__(self) -> None:
            self.metrics = {"loss": torch.tensor(1.0), "list": [1, 2]}

    trainer = Holder()
    seen = stand_in_for(trainer, nn.Linear(1, 1), nn.Linear(1, 1), {})
    seen.metrics["loss"].add_(1)
    seen.metrics["list"].append(3)
    assert trainer.metrics == {"loss": torch.tensor(1.0), "list": [1, 2]}
    with pytest.raises(RuntimeError, match=r"uses `trainer.metrics = ...`"):
        seen.metrics = {}
    with pytest.raises(AttributeError):
        _ = seen.missing


def test_a_loader_says_how_long_it_is_and_is_not_read() -> None:
    class Holder:
        loader = DataLoader(X, 4)

    holder = Holder()
    seen = stand_in_for(holder, nn.Linear(1, 1), nn.Linear(1, 1), {})
    assert len(seen.loader) == 4
    assert isinstance(seen.loader, DataLoader)
    with pytest.raises(RuntimeError, match=r"uses `trainer.loader in a loop`"):
        list(seen.loader)


def test_nobody_takes_everything() -> None:
    nobody = Nobody()
    nobody.config["a"] = 1
    nobody.anything = 3
    assert nobody.config["a"].add(3) is nobody
