"""Settings that change in mid-run, steps or weights, break the series: no jump, and no stage."""

import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from slt_callbacks import SGLD, Estimator, JumpDetector, JumpEvent, Measurement, RMSPropSGLD
from slt_callbacks.callbacks.reactions import describe
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.recording.events import StepSizeEvent
from slt_callbacks.recording.watch import Watch
from tests.problems import TWO_SAMPLES, Quadratic, Weights, settings
from tests.training import Regression, fit, monitor, square_error


def record(step: int, mean: float, step_size: float) -> Measurement:
    return Measurement(step, {"llc": {"mean": mean, "stderr": 0.5}, "health": {"step_size": step_size}})


def run(watch: Watch, step_sizes: list[float], first: int = 0) -> list[object]:
    """A series that rises by 30 where the 20th point is."""
    for step, step_size in enumerate(step_sizes, start=first):
        watch.update(record(step, (30.0 if step >= 20 else 0.0) + (step % 3) * 0.5, step_size))
    return [found.event for found in watch.found]


def test_a_level_that_changes_with_the_step_size_is_a_break_and_not_a_jump() -> None:
    events = run(Watch(), [1e-3] * 20 + [5e-4] * 20)
    assert events == [StepSizeEvent(20, 1e-3, 5e-4)]


def test_the_same_change_at_the_same_step_size_is_a_jump() -> None:
    events = run(Watch(), [1e-3] * 40)
    assert [event.direction for event in events if isinstance(event, JumpEvent)] == [1]
    assert not any(isinstance(event, StepSizeEvent) for event in events)


def test_a_failed_measurement_in_between_hides_nothing() -> None:
    events = run(Watch(), [1e-3] * 20 + [math.nan, 5e-4] + [5e-4] * 10)
    assert events == [StepSizeEvent(21, 1e-3, 5e-4)]


@pytest.mark.parametrize("stop", [19, 20, 21])
def test_a_resume_around_the_break_tells_it_once(stop: int) -> None:
    sizes = [1e-3] * 20 + [5e-4] * 20
    first = Watch()
    run(first, sizes[:stop])
    second = Watch()
    second.load_state_dict(first.state_dict())
    assert run(second, sizes[stop:], first=stop) == [StepSizeEvent(20, 1e-3, 5e-4)]


def test_it_is_in_the_table_of_events_and_nobody_is_alerted() -> None:
    watch = Watch()
    run(watch, [1e-3] * 3 + [5e-4])
    (row,) = [found.row() for found in watch.found]
    assert row == {
        "key": "slt/health/step_size",
        "detected_at": 3,
        "type": "StepSizeEvent",
        "step": 3,
        "before": 1e-3,
        "after": 5e-4,
    }
    assert describe(watch.found[0].event) is None


def test_weights_unfrozen_in_mid_run_are_a_break_and_no_news() -> None:
    def events(counts: list[int], watch: Watch, first: int = 0) -> list[object]:
        for step, count in enumerate(counts, start=first):
            measurement = record(step, (30.0 if step >= 20 else 0.0) + (step % 3) * 0.5, 1e-3)
            health = {**measurement["health"], "num_parameters": count}
            watch.update(Measurement(step, {**measurement.results, "health": health}))
        return [found.event for found in watch.found]

    assert events([10] * 20 + [50] * 20, Watch()) == []
    assert [type(event) for event in events([10] * 40, Watch())][:1] == [JumpEvent]
    first, second = Watch(), Watch()
    events([10] * 20, first)
    second.load_state_dict(first.state_dict())
    assert events([50] * 20, second, first=20) == []


def test_a_step_without_a_bias_may_change_and_one_of_a_failed_measurement_is_none() -> None:
    def events(healths: list[tuple[float, float, str | None]]) -> list[object]:
        watch = Watch()
        for step, (step_size, step_bias, error) in enumerate(healths):
            measurement = record(step, 3.0 + (step % 3) * 0.5, step_size)
            health = {**measurement["health"], "step_bias": step_bias}
            watch.update(Measurement(step, {**measurement.results, "health": health}, error))
        return [found.event for found in watch.found]

    assert events([(0.02, 0.0, None), (0.01, 0.0, None), (0.02, 0.0, None)]) == []
    assert events([(0.02, 0.0, None), (0.01, math.nan, "no more"), (0.01, 0.0, None)]) == []
    assert [type(event) for event in events([(0.02, 0.01, None), (0.01, 0.01, None)])] == [StepSizeEvent]


class Unfreezes(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 12:
            for parameter in pl_module.net[0].parameters():
                parameter.requires_grad_(True)


def test_a_run_whose_first_layer_thaws_has_one_stage_a_part_and_no_jump() -> None:
    torch.manual_seed(0)
    module = Regression()
    for parameter in module.net[0].parameters():
        parameter.requires_grad_(False)
    watched = monitor(every_n_train_steps=1, detectors={"slt/health/num_parameters": JumpDetector()})
    with pytest.warns(UserWarning, match="The chains were kept for 25 trainable parameters, but the module now has 57"):
        fit(watched, Unfreezes(), module=module, max_steps=24)
    assert [one["health"]["num_parameters"] for one in watched.history] == [25] * 12 + [57] * 12
    assert watched.events == []


class TestAutomaticStep:
    """The curvature of the loss, by training step, decides an "auto" step."""

    def steps(self, sizes: list[float], dynamics: Any) -> list[float]:
        loss_fn = Quadratic(torch.tensor([1.0, 3.0]))

        def scaled(module: Any, batch: torch.Tensor) -> torch.Tensor:
            return loss_fn(module, batch) * module.size  # type: ignore[no-any-return]

        config = settings(dynamics=dynamics, num_draws=3)
        one = Estimator(draw_reference(TWO_SAMPLES), scaled, None, config, persistent=True)
        found = []
        for step, size in enumerate(sizes):
            module = Weights(2)
            module.register_buffer("size", torch.tensor(size))
            found.append(one.measure(module, step)["health"])
        assert all(health["step_bias"] <= 0.05 for health in found)
        return [health["step_size"] for health in found]

    @pytest.mark.parametrize("dynamics", [SGLD(), RMSPropSGLD()])
    def test_one_found_at_a_stiff_moment_grows_again(self, dynamics: Any) -> None:
        stiff, *later = self.steps([1e4, 1.0, 1.0], dynamics)
        assert later[0] == later[1] > 4000 * stiff
        (fresh,) = self.steps([1.0], dynamics)
        assert fresh / 2 < later[0] <= fresh

    def test_one_that_is_a_little_short_stays(self) -> None:
        first, second = self.steps([6.0, 1.0], SGLD())
        assert first == second

    def test_a_step_of_ones_own_never_changes(self) -> None:
        assert self.steps([1.0, 1e-3], SGLD(1e-4)) == [1e-4, 1e-4]

    def test_a_flat_loss_keeps_its_step(self) -> None:
        loss_fn = Quadratic(torch.tensor([1.0, 3.0]))
        config = settings(dynamics=SGLD(), num_draws=3, localization=0.0)
        scaled = lambda m, x: loss_fn(m, x) * m.size  # noqa: E731
        one = Estimator(draw_reference(TWO_SAMPLES), scaled, None, config, persistent=True)
        for size in (1.0, 0.0):
            module = Weights(2)
            module.register_buffer("size", torch.tensor(size))
            assert one.measure(module)["health"]["step_size"] == pytest.approx(0.08 / 30, rel=0.01)

    def test_a_run_logs_the_break_once(self) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            return square_error(module, batch) * module.scale  # type: ignore[no-any-return]

        class Softens(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
                pl_module.scale.fill_(1.0 if trainer.global_step > 2 else 1e5)

        module = Regression()
        module.register_buffer("scale", torch.tensor(1e5))
        watched = monitor(loss_fn=loss_fn)
        fit(Softens(), watched, module=module, max_steps=8)
        (event,) = watched.events
        assert isinstance(event, StepSizeEvent)
        assert event.after > 1000 * event.before
