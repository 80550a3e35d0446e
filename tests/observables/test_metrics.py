"""Metrics at the fork: equal to direct evaluation in eval mode, on copies of their own, refused before training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryROC,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassRecall,
)
from torchmetrics.wrappers import ClasswiseWrapper

from slt_callbacks import LLC, Metrics, SamplerConfig, estimate
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.observables.base import ReferencePoint
from slt_callbacks.observables.fork_view import ForkView
from tests.contracts import check_fork_observable
from tests.digests import digest
from tests.problems import objective_for, settings
from tests.processes import on_ranks
from tests.training import Regression, data, fingerprint, fit, monitor, square_error

CLASSES = 3


def problem(size: int = 40) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A classifier whose outputs differ between its modes, and samples in which a class is rare."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(size, 4, generator=generator)
    net(inputs)  # running averages of its own
    return net, (inputs, torch.randint(CLASSES, (size,), generator=generator))


def predict(module: Any, batch: Any) -> Any:
    return module(batch[0]), batch[1]


def losses(module: Any, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def measured(metrics: Any, function: Any = predict, own: Any = None, **options: Any) -> Any:
    net, batch = problem()
    observables = {"behavior": Metrics(metrics, function, own)}
    return estimate(net, [batch], losses, observables=observables, **options)["behavior"]


def directly(metric: Any, batch: Any = None) -> Any:
    net, own = problem()
    batch = own if batch is None else batch
    net.eval()
    with torch.no_grad():
        metric.update(net(batch[0]), batch[1])
    return metric.compute()


def test_they_keep_their_contract() -> None:
    check_fork_observable(Metrics({"mean": MeanMetric()}, lambda module, batch: module(batch)))


class TestNumbers:
    def test_are_those_of_direct_evaluation_in_eval_mode(self) -> None:
        found = measured({"accuracy": MulticlassAccuracy(CLASSES), "recall": MulticlassRecall(CLASSES)})
        assert found == {
            "accuracy": pytest.approx(float(directly(MulticlassAccuracy(CLASSES)))),
            "recall": pytest.approx(float(directly(MulticlassRecall(CLASSES)))),
        }

    def test_do_not_depend_on_the_blocks_of_the_forward_pass(self) -> None:
        config = SamplerConfig(block_size=7)
        whole = measured(MulticlassAccuracy(CLASSES))
        assert measured(MulticlassAccuracy(CLASSES), sampler=config) == whole

    def test_are_one_a_class(self) -> None:
        found = measured({"recall": MulticlassRecall(CLASSES, average=None)})
        expected = directly(MulticlassRecall(CLASSES, average=None)).tolist()
        assert found == {f"recall_{place}": pytest.approx(value) for place, value in enumerate(expected)}

    def test_of_a_dict_have_its_names_too(self) -> None:
        wrapped = ClasswiseWrapper(MulticlassRecall(CLASSES, average=None), ["cats/dogs", "b", "c"], prefix="of_")
        assert measured({"recall": wrapped}).keys() == {"recall_of_cats-dogs", "recall_of_b", "recall_of_c"}

    def test_of_a_collection_have_its_names(self) -> None:
        collection = MetricCollection([MulticlassAccuracy(CLASSES), MulticlassRecall(CLASSES)], prefix="val/")
        found = measured(collection)
        assert found.keys() == {"val-MulticlassAccuracy", "val-MulticlassRecall"}
        expected = directly(MetricCollection([MulticlassAccuracy(CLASSES), MulticlassRecall(CLASSES)]))
        assert found["val-MulticlassRecall"] == pytest.approx(float(expected["MulticlassRecall"]))
        assert measured({"all": collection}).keys() == {"all_val-MulticlassAccuracy", "all_val-MulticlassRecall"}

    def test_of_one_metric_has_the_name_of_its_class(self) -> None:
        assert measured(MulticlassAccuracy(CLASSES)).keys() == {"MulticlassAccuracy"}

    def test_may_be_nan(self) -> None:
        assert math.isnan(
            measured({"mean": MeanMetric(nan_strategy="ignore")}, lambda *_: torch.tensor(math.nan))["mean"]
        )

    def test_too_large_for_the_log_are_kept_as_tensors(self) -> None:
        net, batch = problem()
        metrics = {"confusion": MulticlassConfusionMatrix(CLASSES), "many": MulticlassRecall(101, average=None)}

        def wide(module: Any, batch: Any) -> Any:
            outputs = module(batch[0])
            return {"preds": outputs.argmax(1), "target": batch[1]}

        observable = Metrics(metrics, wide)
        measurement = estimate(net, [batch], losses, observables={"behavior": observable})
        assert measurement["behavior"]["confusion"].sum() == 40
        assert not [key for key in measurement.logged() if "behavior" in key]
        assert measurement.matrices.keys() == {"behavior/confusion", "behavior/many"}
        assert measurement.matrices["behavior/many"].shape == (101,)
        observable = Metrics({"many": MulticlassRecall(100, average=None)}, wide)
        measurement = estimate(net, [batch], losses, observables={"behavior": observable})
        assert sum("behavior" in key for key in measurement.logged()) == 100

    def test_of_data_of_their_own(self) -> None:
        inputs, targets = problem(60)[1]
        own = (inputs[40:], targets[40:])
        found = measured({"accuracy": MulticlassAccuracy(CLASSES)}, own=[own])
        assert found["accuracy"] == pytest.approx(float(directly(MulticlassAccuracy(CLASSES), own)))
        # What the loss could not take: other fields.
        as_dict = measured(
            {"accuracy": MulticlassAccuracy(CLASSES)},
            lambda module, batch: (module(batch["x"]), batch["y"]),
            [{"x": own[0], "y": own[1]}],
        )
        assert as_dict == found

    def test_are_asked_with_the_keyword_arguments_they_know(self) -> None:
        def named(module: Any, batch: Any) -> Any:
            return {"preds": module(batch[0]), "target": batch[1], "value": losses(module, batch)}

        found = measured({"accuracy": MulticlassAccuracy(CLASSES), "loss": MeanMetric()}, named)
        net, batch = problem()
        assert found["accuracy"] == pytest.approx(float(directly(MulticlassAccuracy(CLASSES))))
        assert found["loss"] == pytest.approx(float(losses(net.eval(), batch).detach().mean()))


def inside(metric: nn.Module) -> Any:
    """Everything that a metric object holds."""
    return [
        {name: value for name, value in vars(part).items() if name not in ("update", "compute", "_update_signature")}
        for part in metric.modules()
    ]


class TestNothingOfTheirsIsTouched:
    def test_neither_state_nor_counts(self) -> None:
        metrics = {
            "accuracy": MulticlassAccuracy(CLASSES),
            "collection": MetricCollection([MulticlassAccuracy(CLASSES), MulticlassRecall(CLASSES)]),
            "area": MulticlassConfusionMatrix(CLASSES),
        }
        net, batch = problem()
        for metric in metrics.values():
            guesses = net.eval()(batch[0])
            metric.update(guesses, (guesses.argmax(1) + 1) % CLASSES)  # training has begun to fill them
        metrics["accuracy"].compute()  # and has looked
        before = {name: digest(inside(metric)) for name, metric in metrics.items()}
        found = measured(metrics)
        assert {name: digest(inside(metric)) for name, metric in metrics.items()} == before
        assert found["accuracy"] == pytest.approx(float(directly(MulticlassAccuracy(CLASSES))))
        assert found["collection_MulticlassAccuracy"] == found["accuracy"]

    def test_nor_does_it_matter_what_they_see_later(self) -> None:
        metric = MulticlassAccuracy(CLASSES)
        net, batch = problem()
        observables = {"behavior": Metrics({"accuracy": metric}, predict)}
        one = Estimator(draw_reference([batch]), losses, observables, settings())
        first = one.measure(net, 1)["behavior"]
        metric.update(torch.eye(CLASSES), torch.tensor([1, 2, 0]))
        assert one.measure(net, 2)["behavior"] == first
        assert metric._update_count == 1

    def test_a_copy_goes_where_the_model_is(self) -> None:
        moved: list[Any] = []

        class Mobile(MeanMetric):
            def _apply(self, function: Any, exclude_state: Any = "") -> Any:
                moved.append(self)
                return super()._apply(function, exclude_state)

        metric = Mobile()
        found = measured({"mean": metric}, lambda module, batch: module(batch[0]))
        assert math.isfinite(found["mean"])
        assert moved
        assert all(copied is not metric for copied in moved)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
    def test_a_metric_on_another_device_stays_there(self) -> None:
        net, batch = problem()
        metric = MulticlassAccuracy(CLASSES)

        def on_the_host(module: Any, batch: Any) -> Any:
            return module(batch[0]), batch[1].cpu()

        observables = {"behavior": Metrics({"accuracy": metric}, on_the_host)}
        found = estimate(net.cuda(), [batch], losses, observables=observables)
        assert found["behavior"]["accuracy"] == pytest.approx(float(directly(MulticlassAccuracy(CLASSES))))
        assert metric.device.type == "cpu"

    def test_no_other_process_is_asked(self) -> None:
        def gathers(*_: Any, **__: Any) -> Any:
            raise AssertionError("a rank that waits for the others")

        class Group:
            def __deepcopy__(self, memo: Any) -> Any:
                raise TypeError("a group of processes cannot be copied")

        def busy() -> bool:
            return True

        apart: dict[str, Any] = {"dist_sync_fn": gathers, "distributed_available_fn": busy, "process_group": Group()}
        metrics = {
            "accuracy": MulticlassAccuracy(CLASSES, **apart),
            "recall": ClasswiseWrapper(MulticlassRecall(CLASSES, average=None, **apart)),
            "both": MetricCollection([MulticlassAccuracy(CLASSES, **apart), MulticlassRecall(CLASSES, **apart)]),
        }
        assert measured(metrics)["accuracy"] == pytest.approx(float(directly(MulticlassAccuracy(CLASSES))))
        accuracy = metrics["accuracy"]
        assert accuracy.sync_on_compute
        assert accuracy.process_group is apart["process_group"]
        with pytest.raises(AssertionError, match="waits for the others"):
            directly(accuracy)


def test_data_are_those_of_rank_0() -> None:
    inputs, targets = problem(60)[1]

    def measure(ranks: Any) -> Any:
        own = [(inputs[40 - 20 * ranks.rank :], targets[40 - 20 * ranks.rank :])]  # other ones, and more, on rank 1
        net, batch = problem()
        observables = {"behavior": Metrics({"accuracy": MulticlassAccuracy(CLASSES)}, predict, own)}
        return Estimator(draw_reference([batch]), losses, observables, settings(), ranks=ranks).measure(net, 1)

    expected = float(directly(MulticlassAccuracy(CLASSES), (inputs[40:], targets[40:])))
    for found in on_ranks(2, measure):
        assert found["behavior"]["accuracy"] == pytest.approx(expected)


class TestBesideTraining:
    def metrics(self) -> Metrics:
        return Metrics({"mse": MeanSquaredError()}, lambda module, batch: (module.net(batch[0]), batch[1]))

    def test_no_sgld_step_is_taken_no_gradient_asked_and_one_pass_made(self) -> None:
        asked: list[tuple[bool, int]] = []

        def counted(module: Any, batch: Any) -> torch.Tensor:
            asked.append((torch.is_grad_enabled(), len(batch[0])))
            return square_error(module, batch)

        def seen(module: Any, batch: Any) -> Any:
            asked.append((torch.is_grad_enabled(), len(batch[0])))
            return module.net(batch[0]), batch[1]

        metrics = Metrics({"mse": MeanSquaredError()}, seen)
        estimator = Estimator(draw_reference(data()), counted, {"behavior": metrics}, settings())
        estimator.measure(Regression())  # tries the loss
        asked.clear()
        measurement = estimator.measure(Regression())
        assert measurement["cost"]["sgld_steps"] == 0
        assert asked == [(False, 48), (False, 48)]  # the loss at w*, and the metrics

    def test_it_is_logged_under_its_name_and_training_is_as_without(self) -> None:
        plain = fingerprint(fit())
        watched = monitor(observables={"behavior": self.metrics(), "llc": LLC()})
        assert fingerprint(fit(watched)) == plain
        for one in watched.history:
            assert one.logged()["slt/behavior/mse"] == pytest.approx(one["llc"]["reference_loss"], rel=1e-5)

    def test_what_is_given_to_update_is_tried_before_training(self) -> None:
        def wrong(module: Any, batch: Any) -> Any:
            return module.net(batch[0])

        watched = monitor(observables={"behavior": Metrics({"mse": MeanSquaredError()}, wrong)})
        with pytest.raises(MisconfigurationException, match=r"Expected `predict` to return the arguments of M"):
            fit(watched)

    def test_what_two_samples_are_too_few_for_is_no_mistake(self) -> None:
        few = Metrics({"r2": torchmetrics.R2Score()}, lambda module, batch: (module.net(batch[0][:1]), batch[1][:1]))
        watched = monitor(observables={"behavior": few, "llc": LLC()})
        with pytest.warns(UserWarning, match="R2|r2"):
            fit(watched, max_steps=2)
        assert watched.history[0].failed


@pytest.mark.parametrize(
    ("metrics", "error", "told"),
    [
        ({}, ValueError, "Expected `metrics` to hold at least one"),
        (MetricCollection({}), ValueError, "Expected `metrics` to hold at least one"),
        (MeanMetric, TypeError, "Expected `metrics` to be a torchmetrics Metric, a MetricCollection, or a dict"),
        ({"accuracy": "accuracy"}, TypeError, "to be a torchmetrics Metric, .*but got 'accuracy'"),
        ([MeanMetric()], TypeError, "to be a torchmetrics Metric, a MetricCollection"),
        ({"a/b": MeanMetric()}, ValueError, "names without a slash, but got 'a/b'"),
        ({"": MeanMetric()}, ValueError, "names without a slash, but got ''"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        Metrics(metrics, predict)


def test_predict_has_to_be_a_function() -> None:
    with pytest.raises(TypeError, match=r"Expected `predict` to be a function \(module, batch\)"):
        Metrics(MeanMetric(), "logits")  # type: ignore[arg-type]


def test_data_have_to_be_samples() -> None:
    with pytest.raises(TypeError, match=r"observables\['behavior'\]: Expected `data` to be a Dataset"):
        measured(MeanMetric(), own=3)


class Words(MeanMetric):
    def compute(self) -> Any:
        return "good"


@pytest.mark.parametrize(
    ("metrics", "error", "told"),
    [
        ({"roc": BinaryROC()}, TypeError, "Expected every metric to give numbers, but 'roc' gave"),
        ({"words": Words()}, TypeError, "Expected every metric to give numbers, but 'words' gave 'good'"),
        (
            {"a": MetricCollection({"b": BinaryAUROC()}), "a_b": BinaryAUROC()},
            ValueError,
            "there are two called 'a_b': rename one",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_before_training(metrics: Any, error: type[Exception], told: str) -> None:
    def binary(module: Any, batch: Any) -> Any:
        return module(batch[0])[:, 0], torch.arange(len(batch[1])) % 2

    net, batch = problem()
    view = ForkView(objective_for(net, losses, [batch]), ReferencePoint(0, 0.0, *[torch.empty(0)] * 2, 1.0, 0.0, 1, 1))
    with pytest.raises(error, match=told):
        Metrics(metrics, binary).rehearse(view)
