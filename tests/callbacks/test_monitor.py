import csv
import math
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import LLC, SGLD, Estimator, MemorySink, SamplerConfig, SLTMonitor
from slt_callbacks.sampling import draw_reference
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
        assert watched.history[0]["cost"]["sgld_steps"] <= 10

    def test_measurements_beyond_the_budget_are_skipped_and_counted(self) -> None:
        watched = monitor(every_n_train_steps=1, max_overhead=1e-9)
        trainer = fit(watched, max_steps=5)
        assert steps(watched) == [1]
        assert trainer.callbacks[0].state_dict()["skipped"] == 4  # type: ignore[attr-defined]


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

    def test_a_failed_measurement_does_not_reach_early_stopping(self) -> None:
        stopping = EarlyStopping("slt/llc/mean", check_on_train_epoch_end=True, strict=False)
        with pytest.warns(UserWarning, match="failed"):
            trainer = fit(monitor(loss_fn=lambda module, batch: square_error(module, batch) * math.nan), stopping)
        assert trainer.global_step == 6

    def test_the_wandb_run_has_every_key_its_step_metric_the_config_and_one_row_a_measurement(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = offline_logger(tmp_path, monkeypatch)
        watched = monitor(num_samples=16)
        fit(watched, logger=logger, log_every_n_steps=1)
        found = records(logger)
        rows = [record["history"]["item"] for record in found if record["type"] == "history"]
        measured = [row for row in rows if "slt/step" in row]
        assert [(row["slt/step"], row["trainer/global_step"]) for row in measured] == [(2, 1), (4, 3), (6, 5)]
        keys = {key for key in measured[0] if key.startswith("slt/")}
        assert keys >= {
            *(f"slt/llc/{name}" for name in ("mean", "stderr", "variance_llc", "reference_loss")),
            *(f"slt/health/{name}" for name in ("rhat", "ess", "drift", "failed_chains", "step_bias")),
            *(f"slt/cost/{name}" for name in ("seconds", "overhead", "skipped")),
        }
        metrics = {record["metric"].get("name"): record["metric"] for record in found if record["type"] == "metric"}
        assert {key for key in keys if metrics[key].get("step_metric") == "slt/step"} == keys - {"slt/step"}
        (config,) = [
            record["config"]["update"]["slt"] for record in found if "slt" in record.get("config", {}).get("update", {})
        ]
        assert config["num_samples"] == 16
        assert config["nbeta"] == pytest.approx(16 / math.log(16))
        assert config["sampler"]["num_chains"] == 2
        assert [row["slt/llc/mean"] for row in measured] == [m["llc"]["mean"] for m in watched.history]

    def test_settings_in_force_are_part_of_every_measurement(self) -> None:
        watched = monitor(sampler=SamplerConfig(SGLD(1e-5), nbeta=7.0, localization=3.0, num_chains=1, num_draws=8))
        fit(watched)
        health = watched.history[-1]["health"]
        assert (health["nbeta"], health["localization"], health["step_size"]) == (7.0, 3.0, 1e-5)

    @pytest.mark.parametrize(
        "bar", [RichProgressBar(1, console_kwargs={"force_terminal": True}), TQDMProgressBar(refresh_rate=1)]
    )
    def test_the_bar_shows_sampling_and_the_llc(self, bar: pl.Callback, capsys: pytest.CaptureFixture[str]) -> None:
        fit(monitor(), bar, enable_progress_bar=True)
        printed = "".join(capsys.readouterr())
        assert "Sampling" in printed
        assert "slt/llc/mean" in printed

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
        class Closing(MemorySink):
            closed = False

            def close(self) -> None:
                self.closed = True

        class Interrupt(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                raise RuntimeError("stop")

        sink = Closing()
        with pytest.raises(RuntimeError, match="stop"):
            fit(monitor(sinks=[sink]), Interrupt())
        assert sink.closed


class TestReference:
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
        ],
    )
    def test_bad_settings_are_refused_at_construction(
        self, settings: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            monitor(**settings)

    def test_two_monitors_in_one_trainer_are_refused(self) -> None:
        with pytest.raises(MisconfigurationException, match="Expected one SLTMonitor in `callbacks`, but got several"):
            fit(monitor(), monitor(seed=1))

    def test_a_strategy_that_shards_parameters_is_refused(self) -> None:
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.__class__ = type("FSDPStrategy", (pl.strategies.FSDPStrategy,), {})
        with pytest.raises(MisconfigurationException, match='FSDPStrategy shards or rewrites: use strategy="auto"'):
            monitor().setup(trainer, Regression(), "fit")
