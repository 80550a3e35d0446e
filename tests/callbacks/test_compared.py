"""A user's own Lightning metrics beside what is measured."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics import MeanMetric

from slt_callbacks import Measurement, MemorySink
from slt_callbacks.callbacks.compared import checked_names, read_metrics
from slt_callbacks.measuring.boundary_changes import changes_between
from tests.callbacks.test_watch import JUMP_AT, watched
from tests.measuring.test_boundary_changes import stage
from tests.training import Regression, fit


class Scored(Regression):
    """Logs a score that changes with the LLC, and one over epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        step = self.trainer.global_step + 1
        self.log("score", 0.25 + 0.5 * (step >= JUMP_AT) + 0.01 * math.sin(5.0 * step))
        self.mean(float(step))
        self.log("mean_step", self.mean, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def scored(memory: MemorySink | None = None, **settings: Any) -> Any:
    return watched(sinks=[] if memory is None else [memory], **({"also_compare": ("score",)} | settings))


@pytest.fixture(scope="module")
def whole() -> tuple[Any, MemorySink]:
    memory = MemorySink()
    found = scored(memory)
    fit(found, module=Scored(), max_steps=20)
    return found, memory


class TestARun:
    def test_the_metric_is_compared_where_a_stage_begins(self, whole: tuple[Any, MemorySink]) -> None:
        found, _ = whole
        (boundary,) = found.changes
        (change,) = [change for change in boundary.changes if change.key == "score"]
        assert (boundary.step, change.name) == (JUMP_AT, "score")
        assert (change.before, change.after) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.75, abs=0.01))
        assert change.z > 10
        assert "score 0.2" in str(boundary)
        assert "score 0.2" in found.events[-1].changed_most

    def test_it_is_in_the_record_and_logged_under_nothing_new(self, whole: tuple[Any, MemorySink]) -> None:
        found, memory = whole
        for publication in memory.publications:
            step = publication.measurement.step
            wanted = 0.25 + 0.5 * (step >= JUMP_AT) + 0.01 * math.sin(5.0 * step)
            assert publication.measurement.metrics == {"score": pytest.approx(wanted)}, "that of the same batch"
            assert not any("score" in key for key in publication.scalars)
        assert [type(one.metrics["score"]) for one in found.history] == [float] * 20

    def test_after_a_resume_what_was_before_is_still_compared(
        self, whole: tuple[Any, MemorySink], tmp_path: Path
    ) -> None:
        fit(scored(), module=Scored(), max_steps=8).save_checkpoint(tmp_path / "stopped.ckpt")
        resumed = scored()
        fit(resumed, module=Scored(), max_steps=20, ckpt_path=str(tmp_path / "stopped.ckpt"))
        assert resumed.changes == whole[0].changes
        assert resumed.events == whole[0].events

    def test_at_the_end_of_an_epoch_it_is_that_of_the_epoch(self) -> None:
        found = scored(every_n_train_steps=None, every_n_epochs=1, also_compare=["mean_step"])
        fit(found, module=Scored(), max_epochs=2, max_steps=-1)
        assert [one.metrics for one in found.history] == [{"mean_step": 3.5}, {"mean_step": 9.5}]

    def test_without_being_asked_lightning_is_not(self) -> None:
        trainer = SimpleNamespace()  # without metrics to look at
        assert read_metrics(trainer, []) == {}  # type: ignore[arg-type]
        found = scored(also_compare=())
        fit(found, module=Scored(), max_steps=2)
        assert [one.metrics for one in found.history] == [{}, {}]
        assert found.state_dict()["curve"][0][3:] == []

    def test_one_that_never_comes_is_nan_and_said_once(self) -> None:
        found = scored(also_compare=["score", "val_acc", "other"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(found, module=Scored(), max_steps=4)
        told = [str(one.message) for one in caught if "also_compare" in str(one.message)]
        assert told == [
            "`also_compare` names 'val_acc', 'other', of which no measurement has seen a number in "
            "`trainer.callback_metrics`."
        ]
        assert [math.isnan(one.metrics["val_acc"]) for one in found.history] == [True] * 4

    def test_a_metric_that_cannot_be_computed_costs_one_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def breaks(trainer: Any) -> Any:
            raise ZeroDivisionError("no samples")

        monkeypatch.setattr(pl.Trainer, "callback_metrics", property(breaks))
        found = scored()
        with pytest.warns(UserWarning, match=r"`trainer.callback_metrics` raised ZeroDivisionError: no samples. Train"):
            fit(found, module=Scored(), max_steps=3)
        assert [(one.failed, one.metrics) for one in found.history] == [(False, {})] * 3


def test_what_is_no_single_number_is_missing() -> None:
    logged = {"a": torch.tensor(2.0), "b": torch.ones(3), "c": 1}
    found = read_metrics(SimpleNamespace(callback_metrics=logged), ["a", "b", "c", "d"])  # type: ignore[arg-type]
    assert (found["a"], found["c"]) == (2.0, 1.0)
    assert math.isnan(found["b"])
    assert math.isnan(found["d"])


def test_a_metric_of_ones_own_is_told_by_its_values_whatever_its_name() -> None:
    told = [Measurement(10 * place, {}, metrics={"val/mean": value}) for place, value in enumerate([1.0, 1.0, 3.0])]
    (change,) = changes_between(told, stage(0, 0, 10), stage(1, 20, 20))
    assert str(change) == "val/mean 1.0 -> 3.0"


@pytest.mark.parametrize("wrong", ["val_acc", 3, [""], [None], {"a": 1}.keys()])
def test_what_is_no_list_of_names_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r'Expected `also_compare` to be a list of names .* such as \["val_acc"\]'):
        watched(also_compare=wrong)


def test_a_number_of_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected `also_compare` to name metrics of your own, but got 'slt/llc/mean'"):
        watched(also_compare=["val_acc", "slt/llc/mean"])


def test_names_given_twice_are_one() -> None:
    assert checked_names(["a", "b", "a"]) == ["a", "b"]
