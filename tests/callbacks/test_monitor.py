import csv
import dataclasses
import logging
import math
import re
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import CSVLogger
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import (
    LLC,
    SGLD,
    Estimator,
    Influence,
    JumpDetector,
    LossKernel,
    MemorySink,
    SamplerConfig,
    SLTMonitor,
)
from slt_callbacks.callbacks.arguments import MOST_MATRIX_BYTES
from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.sampling.chains import warm_round
from tests.sinks.test_sinks import offline_logger, records
from tests.training import QUICK, QUIET, Regression, data, fingerprint, fit, monitor, square_error


def steps(watched: SLTMonitor) -> list[int]:
    return [measurement.step for measurement in watched.history]


class Alternating(Regression):
    """Manual optimization with two optimizers: the global step counts both."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(square_error(self, batch).mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.SGD(self.net[4].parameters(), lr=0.1)]


class TestWhen:
    def test_every_n_train_steps_counts_optimizer_steps_under_accumulation(self) -> None:
        watched = monitor(every_n_train_steps=2)
        fit(watched, accumulate_grad_batches=3, max_steps=5)
        assert steps(watched) == [2, 4]

    def test_two_optimizers_cross_multiples_that_they_never_hit(self) -> None:
        watched = monitor(every_n_train_steps=3)
        fit(watched, module=Alternating(), max_steps=10)
        assert steps(watched) == [4, 6, 10]

    def test_every_n_epochs(self) -> None:
        watched = monitor(every_n_epochs=2)
        fit(watched, max_epochs=5, max_steps=-1)  # six batches an epoch
        assert steps(watched) == [12, 24]

    def test_a_schedule_with_step_zero_measures_the_untrained_weights(self) -> None:
        watched = monitor(schedule=lambda step: step in (0, 3))
        fit(watched)
        assert steps(watched) == [0, 3]
        torch.manual_seed(0)
        untrained = Estimator(draw_reference(data()), square_error, None, QUICK).measure(Regression())
        assert watched.history[0]["llc"]["mean"] == untrained["llc"]["mean"]

    def test_a_time_interval_of_nothing_measures_every_step(self) -> None:
        watched = monitor(train_time_interval=timedelta(microseconds=1))
        fit(watched, max_steps=3)
        assert steps(watched) == [1, 2, 3]

    def test_no_measurement_in_the_sanity_check_in_validation_or_a_bare_validate(self) -> None:
        class Validated(Regression):
            def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
                return square_error(self, batch).mean()

        watched, module = monitor(every_n_train_steps=6), Validated()
        trainer = pl.Trainer(max_steps=6, callbacks=[watched], val_check_interval=2, **QUIET)
        trainer.fit(module, DataLoader(data(), 8), DataLoader(data(), 8))
        trainer.validate(module, DataLoader(data(), 8), verbose=False)
        assert steps(watched) == [6]

    def test_fast_dev_run_measures_once_and_shortly(self) -> None:
        watched = monitor(every_n_train_steps=100, sampler=SamplerConfig(num_burnin_steps=5000))
        fit(watched, fast_dev_run=3, max_steps=-1)
        assert steps(watched) == [1]
        assert watched.history[0]["cost"]["sgld_steps"] <= 20

    def test_a_real_run_after_a_fast_dev_run_samples_as_it_was_told(self) -> None:
        watched = monitor()
        fit(watched, fast_dev_run=True, max_steps=-1)
        assert watched.history[0]["cost"]["sgld_steps"] < 2 * QUICK.num_steps
        fit(watched, max_steps=2)
        assert watched.history[-1]["cost"]["sgld_steps"] == 2 * QUICK.num_steps

    def test_measurements_beyond_the_budget_are_skipped_and_counted(self) -> None:
        watched = monitor(every_n_train_steps=1, max_overhead=1e-9)
        trainer = fit(watched, max_steps=5)
        assert steps(watched) == [1]
        assert trainer.callbacks[0].state_dict()["skipped"] == 4  # type: ignore[attr-defined]

    def test_the_budget_is_told_what_was_expected_and_nothing_of_a_failure(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            if len(told) == 1:
                raise RuntimeError("not now")
            return square_error(module, batch)

        told: list[int] = []
        monkeypatch.setattr(Budget, "learn", lambda _, seconds, steps: told.append(steps[""] if "" in seconds else 0))
        with pytest.warns(UserWarning, match="not now"):
            fit(monitor(loss_fn=loss_fn, every_n_train_steps=1), max_steps=4)
        warm = 2 * (warm_round(QUICK.num_burnin_steps) + QUICK.num_draws)
        assert told == [2 * QUICK.num_steps, 0, 2 * QUICK.num_steps, warm]


class TestPassive:
    @pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.1}])
    @pytest.mark.parametrize("reference", ["data", None, DataLoader(data(), 8, shuffle=True)])
    def test_training_is_bit_identical_with_and_without_the_monitor(self, reference: Any, settings: Any) -> None:
        watched = monitor(reference, every_n_train_steps=1, num_samples=16)
        with_monitor = fingerprint(fit(watched, **settings))
        assert watched.history
        assert not watched.history[-1].failed
        assert with_monitor == fingerprint(fit(**settings))

    def test_the_fingerprint_notices_a_single_random_number(self) -> None:
        class Careless(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                torch.rand(1)

        assert fingerprint(fit(Careless())) != fingerprint(fit())

    def test_the_live_module_keeps_its_train_mode_and_its_gradients(self) -> None:
        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
                seen.append((pl_module.net.training, [parameter.grad is None for parameter in pl_module.parameters()]))

        seen: list[Any] = []
        fit(monitor(every_n_train_steps=1), Watch())
        measured, seen = seen, []
        fit(Watch())
        assert measured == seen


class TestSameAsEstimate:
    @pytest.mark.parametrize("persistent", [True, False])
    def test_the_first_measurement_is_that_of_an_estimator_at_the_same_weights_and_step(self, persistent: bool) -> None:
        class Keep(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
                if trainer.global_step == 2:
                    kept.update({key: value.clone() for key, value in pl_module.state_dict().items()})

        kept: dict[str, torch.Tensor] = {}
        watched = monitor(num_samples=16, persistent_chains=persistent, seed=5)
        fit(watched, Keep(), max_steps=2)
        module = Regression()
        module.load_state_dict(kept)
        alone = Estimator(draw_reference(data(), 16, 5), square_error, None, QUICK, seed=5).measure(module, step=2)
        assert torch.equal(watched.history[0]["llc"]["loss_trace"], alone["llc"]["loss_trace"])

    def test_warm_chains_take_fewer_steps_than_cold_ones(self) -> None:
        sampler = SamplerConfig(SGLD(1e-4), num_chains=2, num_draws=8, num_burnin_steps=200)
        warm, cold = monitor(sampler=sampler), monitor(sampler=sampler, persistent_chains=False)
        fit(warm), fit(cold)
        assert warm.history[0]["cost"]["sgld_steps"] == cold.history[0]["cost"]["sgld_steps"] == 2 * 208
        assert warm.history[1]["cost"]["sgld_steps"] < cold.history[1]["cost"]["sgld_steps"]


class TestOneFitAfterTheOther:
    @pytest.mark.parametrize("reference", ["data", None])
    def test_a_fit_from_scratch_is_a_run_of_its_own(self, reference: Any) -> None:
        def numbers() -> list[dict[str, float]]:
            return [
                {key: value for key, value in one.scalars().items() if key.startswith("llc")} for one in watched.history
            ]

        watched = monitor(reference, schedule=lambda step: step in (0, 2, 4), num_samples=16)
        fit(watched)
        first, found, before = steps(watched), numbers(), watched.history
        fit(watched)
        assert steps(watched) == first == [0, 2, 4][reference is None :]
        assert numbers() == found, "the same training, measured with the same random numbers"
        assert watched.history is not before
        assert len(watched.state_dict()["curve"]) == len(first)

    def test_events_and_detectors_of_the_first_run_are_not_the_second_s(self) -> None:
        class Counts:
            count = 0

            def update(self, step: int, value: float) -> str:
                self.count += 1
                return f"number {self.count}"

            def state_dict(self) -> dict[str, int]:
                return {"count": self.count}

            def load_state_dict(self, state: dict[str, int]) -> None:
                self.count = state["count"]

        watched = monitor(detectors={"slt/llc/std": Counts()})
        for _ in range(2):
            fit(watched)
            assert [event for event in watched.events if str(event).startswith("number")] == [
                "number 1",
                "number 2",
                "number 3",
            ]

    def test_where_the_same_trainer_goes_on_so_do_the_measurements(self) -> None:
        watched = monitor(every_n_train_steps=2)
        trainer = fit(watched, max_epochs=1, max_steps=-1)
        kept = watched.state_dict()["estimator"]
        trainer.fit_loop.max_epochs = 2
        trainer.fit(trainer.lightning_module, DataLoader(data(), 8))
        assert steps(watched) == [2, 4, 6, 8, 10, 12]
        assert watched.history[3]["health"]["step_size"] == kept["step_size"]
        assert len(watched.state_dict()["curve"]) == 6

    def test_a_checkpoint_that_is_only_tested_changes_nothing(self, tmp_path: Path) -> None:
        class Tested(Regression):
            def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
                return square_error(self, batch).mean()

        watched = monitor()
        trainer = fit(watched, module=Tested(), max_steps=4)
        trainer.save_checkpoint(tmp_path / "four.ckpt")
        fit(watched, module=Tested())
        state = [point[0] for point in watched.state_dict()["curve"]]
        trainer.test(Tested(), DataLoader(data(), 8), ckpt_path=str(tmp_path / "four.ckpt"), verbose=False)
        assert steps(watched) == state == [2, 4, 6]
        fit(watched)
        assert steps(watched) == [2, 4, 6], "nor does it make the next fit a resume"

    def test_a_checkpoint_takes_the_place_of_what_was_measured_after_it(self, tmp_path: Path) -> None:
        watched = monitor()
        trainer = fit(watched, max_steps=4)
        trainer.save_checkpoint(tmp_path / "four.ckpt")
        trainer.fit_loop.epoch_loop.max_steps = 6
        trainer.fit(trainer.lightning_module, DataLoader(data(), 8))
        assert steps(watched) == [2, 4, 6]
        fit(watched, ckpt_path=str(tmp_path / "four.ckpt"))
        assert [step for step, _, _ in watched.state_dict()["curve"]] == [2, 4, 6]
        assert steps(watched) == [6]


def rich(**settings: Any) -> RichProgressBar:
    return RichProgressBar(console_kwargs={"force_terminal": True}, **settings)


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The lines of measurements that were taken away: how many steps were announced, and how many were told."""
    lines: list[tuple[int, int]] = []
    remove = Progress.remove_task

    def remove_task(progress: Any, task: Any) -> None:
        if "Sampling" in progress._tasks[task].description:
            lines.append((progress._tasks[task].total, progress._tasks[task].completed))
        remove(progress, task)

    class Line(Tqdm):  # type: ignore[misc]
        def close(self) -> None:
            if not self.disable:  # it is called again when the line is collected
                lines.append((self.total, self.n))
            super().close()

    monkeypatch.setattr(Progress, "remove_task", remove_task)
    monkeypatch.setattr("slt_callbacks.callbacks.progress.Tqdm", Line)
    return lines


class TestBar:
    @pytest.mark.parametrize("make", [rich, TQDMProgressBar])
    def test_the_line_counts_every_step_and_goes(self, make: Any, gone: list[tuple[int, int]]) -> None:
        fit(monitor(persistent_chains=False), make(refresh_rate=1), enable_progress_bar=True)
        assert gone == [(2 * QUICK.num_steps,) * 2] * 3

    @pytest.mark.parametrize("make", [rich, TQDMProgressBar])
    def test_the_line_goes_when_a_measurement_fails(self, make: Any, gone: list[tuple[int, int]]) -> None:
        class Fails(LLC):
            def update(self, draw: Any) -> None:
                raise RuntimeError("no such draw")

        with pytest.warns(UserWarning, match="no such draw"):
            fit(monitor(observables={"llc": Fails()}), make(refresh_rate=1), enable_progress_bar=True)
        assert gone == [(2 * QUICK.num_steps, QUICK.num_burnin_steps + 1)] * 3, "the first draw was the last"

    @pytest.mark.parametrize("bar", [rich(refresh_rate=0), TQDMProgressBar(refresh_rate=0)])
    def test_a_bar_that_is_switched_off_shows_nothing(
        self, bar: pl.Callback, gone: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit(monitor(), bar, enable_progress_bar=True)
        assert gone == []
        assert "Sampling" not in "".join(capsys.readouterr())

    @pytest.mark.parametrize("bar", [rich(refresh_rate=1), TQDMProgressBar(refresh_rate=1)])
    def test_the_bar_shows_sampling_and_the_llc(self, bar: pl.Callback, capsys: pytest.CaptureFixture[str]) -> None:
        fit(monitor(), bar, enable_progress_bar=True)
        printed = "".join(capsys.readouterr())
        assert "Sampling" in printed
        assert "slt/llc/mean" in printed


class SeesMetrics(pl.Callback):
    """What ``trainer.callback_metrics`` holds of the LLC at the end of every batch and epoch, rounded."""

    def __init__(self) -> None:
        self.batches: list[float | None] = []
        self.epochs: list[float | None] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches.append(self._llc(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.epochs.append(self._llc(trainer))

    @staticmethod
    def _llc(trainer: pl.Trainer) -> float | None:
        value = trainer.callback_metrics.get("slt/llc/mean")
        return None if value is None else round(float(value), 4)


class TestCallbackMetrics:
    """Six batches an epoch; the metric is always that of the last measurement."""

    @staticmethod
    def run(**trigger: Any) -> tuple[SeesMetrics, list[float]]:
        watched, sees = monitor(**trigger), SeesMetrics()
        fit(watched, sees, max_epochs=2, max_steps=-1)
        return sees, [round(measurement["llc"]["mean"], 4) for measurement in watched.history]

    def test_every_n_epochs(self) -> None:
        sees, (first, second) = self.run(every_n_epochs=1)
        assert sees.batches == [None] * 6 + [first] * 6
        assert sees.epochs == [first, second]

    def test_every_n_train_steps(self) -> None:
        sees, (first, second, third) = self.run(every_n_train_steps=4)
        assert sees.batches == [None] * 3 + [first] * 4 + [second] * 4 + [third]
        assert sees.epochs == [first, third]

    def test_a_schedule_with_step_zero(self) -> None:
        sees, (untrained, second) = self.run(schedule=lambda step: step in (0, 2))
        assert sees.batches == [untrained] + [second] * 11
        assert sees.epochs == [second, second], "what was measured before the first batch does not come back"


class Validated(Regression):
    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", square_error(self, batch).mean())

    def val_dataloader(self) -> DataLoader:  # type: ignore[type-arg]
        return DataLoader(data(8), 8)


VALIDATING: dict[str, Any] = {"enable_checkpointing": True, "val_check_interval": 2, "num_sanity_val_steps": 0}


class TestPublished:
    def test_scalars_lie_on_the_row_of_the_batch_they_were_measured_after(self, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path)
        fit(monitor(), logger=[logger], log_every_n_steps=1)
        with (Path(logger.log_dir) / "metrics.csv").open() as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file) if row["slt/step"]}
        assert {step: float(row["slt/step"]) for step, row in rows.items()} == {1: 2.0, 3: 4.0, 5: 6.0}
        assert all(math.isfinite(float(row["slt/llc/mean"])) for row in rows.values())

    def test_checkpoints_and_early_stopping_can_watch_the_llc(self, tmp_path: Path) -> None:
        checkpoint = ModelCheckpoint(tmp_path, monitor="slt/llc/mean", every_n_train_steps=2, save_top_k=-1)
        stopping = EarlyStopping("slt/llc/mean", patience=10, check_on_train_epoch_end=True)
        watched = monitor()
        trainer = fit(watched, checkpoint, stopping, enable_checkpointing=True)
        assert trainer.callback_metrics["slt/llc/mean"].item() == pytest.approx(watched.history[-1]["llc"]["mean"])
        saved = {round(float(score), 4) for score in checkpoint.best_k_models.values()}
        assert saved == {round(measurement["llc"]["mean"], 4) for measurement in watched.history}
        assert stopping.best_score.item() == pytest.approx(watched.history[-1]["llc"]["mean"])

    def test_early_stopping_waits_for_the_first_measurement_where_it_is_told_to(self) -> None:
        with pytest.raises(RuntimeError, match="conditioned on metric `slt/llc/mean` which is not available"):
            fit(monitor(every_n_train_steps=8), EarlyStopping("slt/llc/mean", check_on_train_epoch_end=True))
        stopping = EarlyStopping("slt/llc/mean", patience=10, check_on_train_epoch_end=True, strict=False)
        watched = monitor(every_n_train_steps=8)  # in the second epoch
        trainer = fit(watched, stopping, max_steps=12)
        assert trainer.global_step == 12
        assert stopping.best_score.item() == pytest.approx(watched.history[0]["llc"]["mean"])

    @pytest.mark.parametrize("when", ["before the first", "after one that failed"])
    def test_a_checkpoint_by_the_llc_waits_for_it_beside_a_validation(self, when: str, tmp_path: Path) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            if when == "after one that failed" and len(watched.history) < 1:
                raise RuntimeError("not now")
            return square_error(module, batch)

        checkpoint = ModelCheckpoint(tmp_path, monitor="slt/llc/mean", save_top_k=1)
        every = 9 if when == "before the first" else 3
        watched = monitor(every_n_train_steps=every, loss_fn=loss_fn)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = fit(watched, checkpoint, module=Validated(), max_steps=12, **VALIDATING)
        assert trainer.global_step == 12, "Lightning has not ended the run"
        finite = [m["llc"]["mean"] for m in watched.history if not m.failed]
        assert finite
        assert float(checkpoint.best_model_score) == pytest.approx(min(finite)), "NaN is the worst of all"

    def test_early_stopping_on_the_same_key_is_not_told_nan(self, tmp_path: Path) -> None:
        watched = monitor(every_n_train_steps=8)  # in the second epoch
        stopping = EarlyStopping("slt/llc/mean", patience=99, check_on_train_epoch_end=True, strict=False)
        checkpoint = ModelCheckpoint(tmp_path, monitor="slt/llc/mean", save_on_train_epoch_end=True)
        with pytest.warns(UserWarning, match="could not find the monitored key"):
            trainer = fit(watched, stopping, checkpoint, max_steps=12, enable_checkpointing=True)
        assert trainer.global_step == 12

    def test_a_key_that_no_monitor_gives_is_left_to_lightning(self, tmp_path: Path) -> None:
        checkpoint = ModelCheckpoint(tmp_path, monitor="slt/lc/mean")
        with pytest.raises(MisconfigurationException, match="slt/lc/mean"):
            fit(monitor(), checkpoint, module=Validated(), **VALIDATING)

    def test_two_loggers_get_the_same_numbers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table, run = CSVLogger(tmp_path), offline_logger(tmp_path, monkeypatch)
        fit(monitor(), logger=[table, run], log_every_n_steps=1)
        with (Path(table.log_dir) / "metrics.csv").open() as file:
            written = [row for row in csv.DictReader(file) if row["slt/step"]]
        items = [record["history"]["item"] for record in records(run) if record["type"] == "history"]
        logged = [item for item in items if "slt/step" in item]
        assert len(written) == len(logged) == 3
        for row, item in zip(written, logged, strict=True):
            assert int(row["step"]) == item["trainer/global_step"]
            for key in ("slt/step", "slt/llc/mean", "slt/health/ess"):
                assert float(row[key]) == pytest.approx(item[key])

    def test_a_failed_measurement_does_not_reach_early_stopping(self) -> None:
        stopping = EarlyStopping("slt/llc/mean", check_on_train_epoch_end=True, strict=False)
        with pytest.warns(UserWarning, match="failed"):
            trainer = fit(monitor(loss_fn=lambda module, batch: square_error(module, batch) * math.nan), stopping)
        assert trainer.global_step == 6

    def test_the_wandb_run_has_every_key_its_step_metric_the_config_and_one_row_a_measurement(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        watched = monitor(
            num_samples=16,
            seed=3,
            sampler=SamplerConfig(SGLD(1e-4), localization=7.0, num_chains=2, num_draws=8, num_burnin_steps=4),
            observables={"llc": LLC(), "kernel": LossKernel(labels=[0, 1] * 24), "influence": Influence(data(4))},
        )
        fit(watched, logger=logger, log_every_n_steps=1)
        found = records(logger)
        rows = [record["history"]["item"] for record in found if record["type"] == "history"]
        measured = [row for row in rows if "slt/step" in row]
        assert [(row["slt/step"], row["trainer/global_step"]) for row in measured] == [(2, 1), (4, 3), (6, 5)]
        documented = {
            "slt/stage",
            "slt/jump",
            "slt/detection/phi",
            *(f"slt/llc/{name}" for name in ("mean", "stderr", "std", "variance_llc", "reference_loss")),
            *(f"slt/health/{name}" for name in ("rhat", "ess", "drift", "failed_chains", "step_bias")),
            *(f"slt/health/{name}" for name in ("step_size", "nbeta")),
            *(f"slt/cost/{name}" for name in ("seconds", "sgld_steps", "overhead", "skipped")),
            *(f"slt/kernel/{name}" for name in ("trace", "effective_rank", "alignment", "class_contrast")),
            *(f"slt/influence/{name}" for name in ("shift", "sign_flips")),
        }
        metrics = {record["metric"].get("name"): record["metric"] for record in found if record["type"] == "metric"}
        for row in measured:
            assert row.keys() >= documented
        for key in documented | {f"slt/{key}" for key in watched.history[0].scalars()}:
            assert metrics[key].get("step_metric") == "slt/step", key
            assert metrics[key]["summary"] == {"last": True, "max": True}, key
        (config,) = [
            record["config"]["update"]["slt"] for record in found if "slt" in record.get("config", {}).get("update", {})
        ]
        assert config["num_samples"] == 16
        assert config["nbeta"] == pytest.approx(16 / math.log(16))
        assert config["seed"] == 3
        assert config["observables"] == ["influence", "kernel", "llc"]
        chosen = {name: config["sampler"][name] for name in ("num_chains", "num_draws", "localization")}
        assert chosen == {"num_chains": 2, "num_draws": 8, "localization": 7.0}
        assert config["sampler"]["dynamics"] == {"name": "SGLD", "step_size": 1e-4}
        means = [measurement["llc"]["mean"] for measurement in watched.history]
        assert [row["slt/llc/mean"] for row in measured] == means
        summary = {key: value for r in found if r["type"] == "summary" for key, value in r["summary"]["update"].items()}
        assert summary["slt/llc/mean"] == {"last": means[-1], "max": max(means)}

    def test_settings_in_force_are_part_of_every_measurement(self) -> None:
        watched = monitor(sampler=SamplerConfig(SGLD(1e-5), nbeta=7.0, localization=3.0, num_chains=1, num_draws=8))
        fit(watched)
        health = watched.history[-1]["health"]
        assert (health["nbeta"], health["localization"], health["step_size"]) == (7.0, 3.0, 1e-5)

    def test_barebones_training_is_measured_too(self) -> None:
        watched = monitor()
        torch.manual_seed(0)
        pl.Trainer(max_steps=4, accelerator="cpu", callbacks=[watched], barebones=True).fit(
            Regression(), DataLoader(data(), 8)
        )
        assert steps(watched) == [2, 4]


class Broken(MemorySink):
    def publish(self, publication: Any) -> None:
        raise OSError("disk full")


class Counts(MemorySink):
    opened = closed = 0

    def open(self, loggers: Any, config: Any) -> None:
        super().open(loggers, config)
        self.opened += 1

    def close(self) -> None:
        self.closed += 1


class TestFaults:
    def test_a_loss_fn_that_raises_costs_measurements_not_the_run(self) -> None:
        def raising(module: nn.Module, batch: Any) -> torch.Tensor:
            raise RuntimeError("no such thing")

        watched = monitor(loss_fn=raising)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = fit(watched)
        assert trainer.global_step == 6
        assert [math.isnan(measurement["llc"]["mean"]) for measurement in watched.history] == [True] * 3
        assert "no such thing" in str(watched.history[0].error)
        ours = [str(warning.message) for warning in caught if "no such thing" in str(warning.message)]
        assert len(ours) == 2, "one at the start, which says that all will fail, and one at the first that does"

    def test_a_loss_that_becomes_nan_fails_that_measurement_only(self) -> None:
        class Toxic:
            calls = 0

            def __call__(self, module: nn.Module, batch: Any) -> torch.Tensor:
                losses = square_error(module, batch)
                return losses * math.nan if module.net[0].weight.norm() > threshold else losses

        threshold = 0.0
        watched = monitor(loss_fn=Toxic())

        class Raise(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
                nonlocal threshold
                threshold = math.inf if trainer.global_step >= 3 else 0.0

        with pytest.warns(UserWarning, match="step 2 failed: the loss or its gradient is not finite"):
            fit(Raise(), watched)
        assert [measurement.failed for measurement in watched.history] == [True, False, False]
        assert watched.history[0]["health"]["failed_chains"] == 2

    def test_a_sink_that_raises_is_reported_once_and_the_others_go_on(self) -> None:
        good = MemorySink()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = fit(monitor(sinks=[Broken(), good]))
        assert trainer.global_step == 6
        assert len(good.publications) == 3
        assert len([warning for warning in caught if "disk full" in str(warning.message)]) == 1

    def test_sinks_are_closed_after_an_interrupt(self) -> None:
        class Interrupt(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                raise RuntimeError("stop")

        sink = Counts()
        with pytest.raises(RuntimeError, match="stop"):
            fit(monitor(sinks=[sink]), Interrupt())
        assert (sink.opened, sink.closed) == (1, 1)

    @pytest.mark.parametrize("whose", ["the monitor's own", "of a callback after it"])
    def test_after_a_refusal_no_batch_was_seen_and_no_sink_is_open(self, whose: str) -> None:
        class Refuses(pl.Callback):
            batches = 0

            def on_train_start(self, *_: Any) -> None:
                if whose == "of a callback after it":
                    raise MisconfigurationException("a detached loss")

            def on_train_batch_start(self, *_: Any) -> None:
                self.batches += 1

        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            losses = square_error(module, batch)
            return losses.detach() if whose == "the monitor's own" else losses

        sink, other = Counts(), Refuses()
        with pytest.raises(MisconfigurationException, match=r"to have a gradient|a detached loss"):
            fit(monitor(loss_fn=loss_fn, sinks=[sink]), other)
        assert other.batches == 0
        assert sink.opened == sink.closed == int(whose == "of a callback after it")


class Awkward(Regression):
    """Training goes on, whatever is in its batches."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = next(iter(DataLoader(data(), 8)))
        return (self.net(inputs) - targets).square().mean()


class TestReference:
    @staticmethod
    def fit_on(watched: SLTMonitor, batches: list[Any], **settings: Any) -> tuple[pl.Trainer, list[str]]:
        """Train on batches as they are, and return what was told of the reference set."""
        trainer = pl.Trainer(max_epochs=2, callbacks=[watched], **(QUIET | settings))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(Awkward(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        return trainer, [str(one.message) for one in caught if "samples" in str(one.message)]

    @pytest.mark.parametrize(
        ("batch", "settings", "message"),
        [
            ([torch.full((8, 3), math.nan), torch.zeros(8)], {}, "finite, but sample 0 holds NaN"),
            ([torch.tensor(1.0), 3], {}, "Expected every batch of `reference` to hold a tensor"),
            (
                {"x": torch.zeros(8, 3)},
                {"observables": {"i": Influence(data(4))}},
                "queries .* structure of the reference",
            ),
            (
                [torch.zeros(8, 3), torch.zeros(8)],
                {"observables": {"k": LossKernel(order=range(3))}},
                "`order` to name",
            ),
        ],
    )
    def test_batches_that_cannot_serve_cost_the_measurements_and_one_warning(
        self, batch: Any, settings: dict[str, Any], message: str
    ) -> None:
        memory = MemorySink()
        watched = monitor(None, num_samples=16, sinks=[memory], **settings)
        trainer, told = self.fit_on(watched, [batch] * 4)
        assert trainer.global_step == 8
        assert watched.history == memory.publications == []
        assert len(told) == 1
        assert re.search(f"first training batches cannot serve as the reference set .*{message}", told[0])
        assert "Give the samples to measure on as `reference`" in told[0]

    def test_an_epoch_of_fewer_samples_than_asked_for_is_taken_whole_with_a_warning(self) -> None:
        watched = monitor(None, num_samples=100, every_n_epochs=1)
        batches = list(DataLoader(data(24), 8))
        trainer, told = self.fit_on(watched, batches)
        assert trainer.global_step == 6
        assert watched.history[0]["health"]["nbeta"] == pytest.approx(24 / math.log(24))
        assert len(told) == 1
        assert "`num_samples` to be at most the samples of the first epoch, but got 100: measuring on the 24" in told[0]

    def test_minibatches_larger_than_the_epoch_cost_the_measurements(self) -> None:
        watched = monitor(None, every_n_epochs=1, sampler=SamplerConfig(batch_size=100))
        trainer, told = self.fit_on(watched, list(DataLoader(data(24), 8)))
        assert trainer.global_step == 6
        assert [measurement.failed for measurement in watched.history] == [True, True]
        assert len(told) == 1
        assert "`batch_size` to be at most the 24 reference samples" in told[0]

    def test_the_settings_that_are_logged_are_those_of_the_batches_seen(self) -> None:
        memory = MemorySink()
        fit(monitor(None, every_n_epochs=1, sinks=[memory]))
        assert memory.config["num_samples"] == 48
        assert memory.config["nbeta"] == pytest.approx(48 / math.log(48))
        assert len(memory.publications) == 1
        assert memory.report is not None

    def test_without_a_reference_the_first_batches_are_kept(self) -> None:
        watched = monitor(None, num_samples=20)
        fit(watched)  # eight samples a batch: enough in the third
        assert steps(watched) == [4, 6]
        assert watched.history[0]["health"]["nbeta"] == pytest.approx(20 / math.log(20))

    def test_without_a_reference_a_short_epoch_is_taken_whole(self) -> None:
        watched = monitor(None, every_n_epochs=1)
        fit(watched)
        assert watched.history[0]["health"]["nbeta"] == pytest.approx(48 / math.log(48))

    def test_a_large_data_set_gives_256_samples_and_a_small_one_all(self) -> None:
        for size, drawn in ((300, 256), (20, 20)):
            watched = monitor(data(size))
            fit(watched, max_steps=2)
            assert watched.history[0]["health"]["nbeta"] == pytest.approx(drawn / math.log(drawn))

    def test_a_module_s_own_losses_need_no_loss_fn(self) -> None:
        class WithLosses(Regression):
            def per_sample_loss(self, batch: Any) -> torch.Tensor:
                return square_error(self, batch)

        given, own, step = monitor(), monitor(loss_fn=None), monitor(loss_fn=None)
        fit(given), fit(own, module=WithLosses()), fit(step)
        torch.manual_seed(0)
        for watched in (own, step):  # the scalar of `training_step` is the same mean
            assert not watched.history[0].failed
        assert step.history[0]["llc"]["mean"] == pytest.approx(given.history[0]["llc"]["mean"], rel=1e-3)

    def test_the_training_step_of_the_fork_does_not_log(self, tmp_path: Path) -> None:
        logger = CSVLogger(tmp_path)
        fit(monitor(loss_fn=None), logger=[logger], log_every_n_steps=1)
        measured = (Path(logger.log_dir) / "metrics.csv").read_text()
        other = CSVLogger(tmp_path)
        fit(logger=[other], log_every_n_steps=1)
        plain = (Path(other.log_dir) / "metrics.csv").read_text()

        def losses(text: str) -> list[str]:
            return [row["train_loss"] for row in csv.DictReader(text.splitlines()) if row["train_loss"]]

        assert losses(measured) == losses(plain)


class TestHistory:
    def test_a_matrix_that_has_left_says_where_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("slt_callbacks.callbacks.arguments.MOST_MATRIX_BYTES", 1)
        watched = monitor(observables={"kernel": LossKernel()})
        fit(watched)
        old = watched.history[0]["kernel"]
        assert math.isfinite(old["trace"])
        with pytest.raises(KeyError, match=r"'covariance' has left the history.*a MemorySink among the `sinks` keeps"):
            old["covariance"]
        with pytest.raises(KeyError, match=r"^'no such'$"):
            old["no such"]

    def test_the_last_sixteen_measurements_keep_small_matrices(self) -> None:
        short = SamplerConfig(num_chains=1, num_draws=2, num_burnin_steps=0)
        watched = monitor(observables={"kernel": LossKernel()}, every_n_train_steps=1, num_samples=4, sampler=short)
        fit(watched, max_steps=20)
        assert ["covariance" in one["kernel"] for one in watched.history] == [False] * 4 + [True] * 16

    def test_sixteen_kernels_with_influence_of_256_samples_fit_in(self) -> None:
        assert MOST_MATRIX_BYTES >= 16 * 256 * 256 * 8 * (3 + 4)


class TestResume:
    def test_a_resumed_run_measures_what_the_uninterrupted_one_does(self, tmp_path: Path) -> None:
        whole = monitor(schedule=lambda step: step in (0, 2, 3, 5, 6))
        fit(whole, num_sanity_val_steps=0)
        first = monitor(schedule=lambda step: step in (0, 2, 3, 5, 6))
        trainer = fit(first, max_steps=3)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        second = monitor(schedule=lambda step: step in (0, 2, 3, 5, 6))
        fit(second, ckpt_path=str(tmp_path / "stopped.ckpt"))
        assert steps(first) + steps(second) == steps(whole) == [0, 2, 3, 5, 6]

    def test_the_last_value_is_there_again_until_the_next_measurement(self, tmp_path: Path) -> None:
        trainer = fit(first := monitor(every_n_train_steps=3), max_steps=4)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        for beside in ([], [ModelCheckpoint(tmp_path, monitor="slt/llc/mean")]):
            sees, resumed = SeesMetrics(), monitor(every_n_train_steps=3)
            fit(resumed, sees, *beside, ckpt_path=str(tmp_path / "stopped.ckpt"), enable_checkpointing=bool(beside))
            assert sees.batches[0] == round(first.history[0]["llc"]["mean"], 4)

    @pytest.mark.parametrize("change", ["an observable more", "another seed"])
    def test_a_run_goes_on_where_its_monitor_is_told_something_else(self, change: str, tmp_path: Path) -> None:
        more = {"llc": LLC(), "kernel": LossKernel()} if change == "an observable more" else {"llc": LLC()}
        trainer = fit(first := monitor(observables={"llc": LLC()}), max_steps=4)
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        second = monitor(observables=more, seed=int(change == "another seed"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning misses the first
            fit(second, ckpt_path=str(tmp_path / "stopped.ckpt"), max_steps=8)
        assert steps(second) == [6, 8]
        assert [one["health"]["step_size"] for one in second.history] == [first.history[0]["health"]["step_size"]] * 2
        assert second.history[0]["cost"]["sgld_steps"] == 2 * (warm_round(QUICK.num_burnin_steps) + QUICK.num_draws)
        if change == "an observable more":
            assert math.isfinite(second.history[-1]["kernel"]["alignment"])

    def test_chains_and_step_size_go_on_exactly(self, tmp_path: Path) -> None:
        module = Regression()
        straight = Estimator(draw_reference(data()), square_error, None, QUICK, persistent=True)
        straight.measure(module, 1)
        torch.save(straight.state_dict(), tmp_path / "state.pt")
        resumed = Estimator(draw_reference(data()), square_error, None, QUICK, persistent=True)
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        expected, found = straight.measure(module, 2), resumed.measure(module, 2)
        assert torch.equal(expected["llc"]["loss_trace"], found["llc"]["loss_trace"])
        assert expected["health"]["step_size"] == found["health"]["step_size"]

    def test_checkpoint_chains_false_leaves_the_chains_out(self, tmp_path: Path) -> None:
        watched = monitor(checkpoint_chains=False)
        fit(watched)
        assert watched.state_dict()["estimator"]["chains"] == {}
        with_chains = monitor()
        fit(with_chains)
        assert len(with_chains.state_dict()["estimator"]["chains"]) == 2

    def test_a_checkpoint_of_another_version_is_a_clear_message_and_a_fresh_start(self) -> None:
        watched = monitor()
        with pytest.warns(UserWarning, match="version 99.*starts afresh"):
            watched.load_state_dict({"version": 99})
        fit(watched)
        assert steps(watched) == [2, 4, 6]


class TestBadInput:
    def test_a_detector_on_a_number_that_never_comes_is_told_once_there_are_numbers(self) -> None:
        watched = monitor(
            observables={"llc": LLC(), "kernel": LossKernel()},
            detectors={"slt/kernel/class_contrast": JumpDetector(), "slt/kernel/trace": JumpDetector()},
        )
        with pytest.warns(
            UserWarning, match="class_contrast', which no measurement gives: there is slt/kernel/al"
        ) as seen:
            fit(watched)
        told = [str(one.message) for one in seen if "no measurement gives" in str(one.message)]
        assert len(told) == 1
        assert "slt/kernel/trace" in told[0]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_samples": 100}, "`num_samples` to be at most the 48 samples"),
            ({"reference": []}, "`reference` to hold samples, but it is empty"),
            ({"reference": [torch.tensor([[1.0], [math.nan]])]}, "finite, but sample 1 holds NaN"),
            ({"reference": 5}, "`reference` to be a Dataset"),
            ({"sampler": SamplerConfig(batch_size=100)}, "`batch_size` to be at most the 48"),
            (
                {"loss_fn": lambda module, batch: square_error(module, batch)[:1].expand(3, 3)},
                r"got \(3, 3\) for a batch",
            ),
            ({"loss_fn": lambda module, batch: square_error(module, batch).long()}, "floating-point losses"),
            ({"loss_fn": lambda module, batch: square_error(module, batch).detach()}, "to have a gradient"),
            ({"loss_fn": lambda module, batch: 1.0}, "return a tensor of losses, but got float"),
            (
                {"loss_fn": lambda module, batch: square_error(module, batch).mean().expand(2)},
                r"got \(2,\) for a batch of 1",
            ),
            (
                {
                    "loss_fn": lambda module, batch: square_error(module, batch).mean(),
                    "observables": {"kernel": LossKernel()},
                },
                "one loss a sample, .* for the loss kernel or influence, but got a scalar",
            ),
            ({"observables": {"kernel": LossKernel(per_token=True)}}, "to return one loss a token, shape"),
            (
                {"observables": {"kernel": LossKernel(labels=[0, 1, 2])}},
                "`labels` to hold one label for each of the 48",
            ),
            (
                {"observables": {"influence": Influence([torch.zeros(2, 3)])}},
                "queries .* the structure of the reference",
            ),
            (
                {"observables": {"influence": Influence([[torch.zeros(2, 5), torch.zeros(2)]])}},
                "to take the queries of .* shape",
            ),
            (
                {
                    "reference": data(4200),
                    "num_samples": 4200,
                    "observables": {"kernel": LossKernel()},
                },
                "a loss kernel of at most .* but got 4200 x 4200: lower `num_samples`",
            ),
            (
                {"reference": None, "observables": {"kernel": LossKernel(labels=[0, 1] * 24)}},
                "`reference` with the `labels` of .*'kernel'.* but got None",
            ),
            (
                {"reference": None, "observables": {"influence": Influence(data(4), labels=[0, 1] * 24)}},
                "`reference` with the `labels` of .*'influence'.* but got None",
            ),
            ({"reference": None, "observables": {"influence": Influence([])}}, "`queries` to hold samples"),
            ({"reference": None, "sampler": SamplerConfig(batch_size=300)}, "`batch_size` to be at most the 256"),
            ({"reference": None, "num_samples": 1}, "at least 2 reference samples for the default `nbeta`"),
        ],
    )
    def test_what_cannot_work_is_refused_before_training(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(MisconfigurationException, match=message):
            fit(monitor(**settings))

    def test_a_module_without_trainable_parameters_is_refused(self) -> None:
        class Frozen(Regression):
            def __init__(self) -> None:
                super().__init__()
                self.requires_grad_(False)

            def configure_optimizers(self) -> None:  # type: ignore[override]
                return None

        with pytest.raises(MisconfigurationException, match="to have a trainable parameter"):
            fit(monitor(), module=Frozen())

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"observables": {"health": LLC()}}, ValueError, "leave the keys .*'health'"),
            ({"observables": {"a/b": LLC()}}, ValueError, "names without a slash, but got 'a/b'"),
            ({"observables": {}}, ValueError, "at least one observable"),
            ({"observables": [LLC()]}, TypeError, "`observables` to be a mapping"),
            ({"observables": {"llc": LLC}}, TypeError, "`reset`, `update` and `compute`"),
            ({"sampler": {"num_chains": 2}}, TypeError, "`sampler` to be a SamplerConfig"),
            ({"sinks": [MemorySink]}, TypeError, "`sinks` to hold objects with `open`"),
            ({"every_n_train_steps": 2, "every_n_epochs": 1}, ValueError, "exactly one of"),
            ({"max_overhead": 0}, ValueError, "`max_overhead` to be a positive share"),
            ({"num_samples": 0}, ValueError, "`num_samples` to be a positive integer or None, but got 0"),
            ({"num_samples": "all"}, ValueError, "`num_samples` to be a positive integer or None, but got 'all'"),
            ({"seed": "3"}, TypeError, "`seed` to be an integer, but got '3'"),
            ({"loss_fn": "mse"}, TypeError, r"`loss_fn` to be a function \(module, batch\) -> losses, but got 'mse'"),
            (
                {"observables": dict.fromkeys("ab", LLC())},
                ValueError,
                "object of its own, but got one as 'a' and as 'b'",
            ),
        ],
    )
    def test_bad_settings_are_refused_at_construction(
        self, settings: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            monitor(**settings)

    def test_labels_of_queries_need_no_reference(self) -> None:
        watched = monitor(None, num_samples=16, observables={"i": Influence(data(4), query_labels=[0, 1, 0, 1])})
        fit(watched)
        assert not watched.history[0].failed

    def test_without_any_loss_a_module_is_refused_before_the_first_batch(self) -> None:
        watched = monitor(None, loss_fn=None)
        trainer = pl.Trainer(callbacks=[watched], **QUIET)
        trainer.strategy.connect(pl.LightningModule())
        with pytest.raises(MisconfigurationException, match="Expected `loss_fn`, or a method `per_sample_loss"):
            watched.setup(trainer, trainer.lightning_module, "fit")

    def test_two_monitors_in_one_trainer_are_refused(self) -> None:
        with pytest.raises(MisconfigurationException, match="Expected one SLTMonitor in `callbacks`, but got several"):
            fit(monitor(), monitor(seed=1))

    def test_a_strategy_that_shards_parameters_is_refused(self) -> None:
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.__class__ = type("FSDPStrategy", (pl.strategies.FSDPStrategy,), {})
        with pytest.raises(MisconfigurationException, match='FSDPStrategy shards or rewrites: use strategy="auto"'):
            monitor().setup(trainer, Regression(), "fit")


class TestInformation:
    def test_why_the_chains_run_one_by_one_is_shown_where_lightning_shows_its_lines(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def branching(module: Regression, batch: list[torch.Tensor]) -> torch.Tensor:
            losses = square_error(module, batch)
            return losses if losses.sum() > -1 else -losses  # asks for a value, which vmap refuses

        level = logging.getLogger("slt_callbacks").level
        with caplog.at_level(logging.INFO, "lightning.pytorch"):  # an example that was imported may have muted it
            fit(monitor(loss_fn=branching, sampler=dataclasses.replace(QUICK, engine="vectorized")))
        told = [record for record in caplog.records if "one by one" in record.message]
        assert [record.name for record in told] == ["lightning.pytorch"]
        ours = logging.getLogger("slt_callbacks")
        assert (ours.level, ours.propagate, ours.handlers) == (level, True, [])
