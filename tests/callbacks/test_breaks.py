"""A step size that is halved in mid-run breaks the series: an event of its own, and no jump."""

import math

import pytest

from slt_callbacks import JumpEvent, Measurement
from slt_callbacks.callbacks.reactions import describe
from slt_callbacks.recording.events import StepSizeEvent
from slt_callbacks.recording.watch import Watch


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
