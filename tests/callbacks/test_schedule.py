from datetime import timedelta
from typing import Any

import pytest

from slt_callbacks import log_linear_steps
from slt_callbacks.callbacks.schedule import Trigger


def steps_due(trigger: Trigger, steps: list[int]) -> list[int]:
    return [step for step in steps if trigger.at_step(step)]


def test_a_multiple_is_due_when_it_is_crossed_not_only_when_it_is_hit() -> None:
    assert steps_due(Trigger(every_n_train_steps=3), [2, 4, 6, 8, 10]) == [4, 6, 10]


def test_a_step_shown_several_times_is_due_once() -> None:
    assert steps_due(Trigger(every_n_train_steps=2), [1, 1, 2, 2, 2, 3, 4, 4]) == [2, 4]


def test_step_zero_is_due_for_a_schedule_that_says_so_and_only_before_training() -> None:
    trigger = Trigger(schedule=lambda step: step in (0, 2))
    assert trigger.at_start()
    assert steps_due(trigger, [0, 1, 2, 3]) == [2]
    assert not Trigger(every_n_train_steps=1).at_start()


def test_a_schedule_is_asked_about_every_step_that_was_passed() -> None:
    assert steps_due(Trigger(schedule=lambda step: step == 3), [2, 4, 6]) == [4]


def test_a_resumed_trigger_is_not_due_for_steps_already_asked_about() -> None:
    trigger = Trigger(schedule=lambda step: step in (0, 2, 4))
    trigger.last_step = 3
    assert not trigger.at_start()
    assert steps_due(trigger, [2, 3, 4]) == [4]


def test_epochs_are_counted_from_one() -> None:
    trigger = Trigger(every_n_epochs=2)
    assert [trigger.at_epoch_end(epoch) for epoch in range(4)] == [False, True, False, True]
    assert not Trigger(every_n_train_steps=1).at_epoch_end(0)


def test_the_clock_starts_at_the_start_and_again_when_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    trigger = Trigger(train_time_interval=timedelta(seconds=10))
    now = 200.0
    trigger.at_start()
    due = []
    for step, now in enumerate([205.0, 211.0, 215.0, 221.5], start=1):  # noqa: B007  # read by the clock
        due.append(trigger.at_step(step))
    assert due == [False, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `every_n_train_steps`.* but got none"),
        ({"every_n_train_steps": 1, "every_n_epochs": 1}, "but got `every_n_train_steps` and `every_n_epochs`"),
        ({"every_n_train_steps": 0}, "`every_n_train_steps` to be a positive integer, but got 0"),
        ({"every_n_epochs": 1.5}, "`every_n_epochs` to be a positive integer, but got 1.5"),
        ({"train_time_interval": timedelta(0)}, "`train_time_interval` to be positive"),
    ],
)
def test_bad_triggers_are_refused_in_the_users_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trigger(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_time_interval": 5}, "`train_time_interval` to be a datetime.timedelta, but got 5"),
        ({"schedule": 5}, "`schedule` to be a function"),
    ],
)
def test_triggers_of_the_wrong_type_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Trigger(**arguments)  # type: ignore[arg-type]


def test_log_linear_steps_are_the_union_and_end_with_the_last_step() -> None:
    steps = log_linear_steps(1000, num_log=4, every=400).steps
    assert steps == {1, 10, 100, 400, 800, 1000}
    assert log_linear_steps(1000, num_log=4).steps == {1, 10, 100, 1000}


def test_log_linear_steps_refuse_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="`every` to be a positive integer, but got 0"):
        log_linear_steps(10, 2, every=0)


@pytest.mark.parametrize(
    "trigger", [{"every_n_train_steps": 15}, {"schedule": lambda step: step in (5, 30)}], ids=["steps", "schedule"]
)
def test_a_trigger_that_joins_a_run_owes_it_nothing(trigger: Any) -> None:
    joined = Trigger(**trigger)
    assert not joined.at_start(20)
    assert [step for step in range(21, 40) if joined.at_step(step)] == [30]


def test_one_that_goes_on_after_a_resume_remembers_what_it_was_asked() -> None:
    resumed = Trigger(every_n_train_steps=15)
    resumed.last_step = 14
    assert not resumed.at_start(20)
    assert resumed.at_step(21), "15 was crossed while it was not looking"
