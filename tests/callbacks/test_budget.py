import math

import pytest

from slt_callbacks.callbacks.budget import Budget


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def spend(budget: Budget, seconds: float, steps: int = 1) -> None:
    """A measurement takes so long."""
    budget.add(seconds)
    budget.learn({"": seconds}, {"": steps})


def test_the_first_measurement_always_fits_and_later_ones_wait_until_training_has_paid() -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    budget.start()
    assert budget.allows()
    clock.now = 10.0
    spend(budget, 2.0)  # of these 10 seconds
    assert budget.overhead == pytest.approx(2 / 8)
    clock.now = 41.0  # 39 seconds of training: another 2 would make 4 of 39
    assert not budget.allows()
    clock.now = 42.5
    assert budget.allows()


def test_without_a_limit_everything_fits_and_the_overhead_is_still_measured() -> None:
    clock = Clock()
    budget = Budget(None, clock)
    budget.start()
    clock.now = 3.0
    spend(budget, 2.0)
    assert budget.allows()
    assert budget.overhead == pytest.approx(2.0)


def test_a_kept_budget_stays_under_its_limit_in_a_long_run() -> None:
    clock = Clock()
    budget = Budget(0.05, clock)
    budget.start()
    measured = 0.0
    for _ in range(2000):
        clock.now += 0.1
        if budget.allows():
            clock.now += 0.3
            measured += 0.3
            spend(budget, 0.3)
    training = clock.now - measured
    assert 0.04 < measured / training <= 0.05


def test_one_that_takes_longer_than_expected_makes_the_next_look_as_dear() -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    budget.start()
    clock.now = 100.0
    spend(budget, 1.0, steps=100)
    assert budget.allows({"": 50})
    clock.now += 3.0
    spend(budget, 3.0, steps=50)  # of chains that went on burning in: with the first it is 4 of 99
    assert not budget.allows({"": 100})  # 4 + 6 of 99
    assert budget.allows({"": 50})  # 4 + 3


@pytest.mark.parametrize("first", [True, False])
def test_one_that_failed_says_nothing_of_the_next(first: bool) -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    budget.start()
    clock.now = 100.0
    if not first:
        spend(budget, 1.0, steps=100)
    spend(budget, 2.0, steps=0)  # before its first step
    assert budget.allows({"": 100})
    assert budget.allows({"": 700}) == first  # 3 + 7 of 97


def test_every_posterior_has_a_pace_of_its_own() -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    budget.start()
    clock.now = 100.0
    budget.add(3.0)
    budget.learn({"": 2.0, "head": 0.5, "code": 0.5}, {"": 100, "head": 100, "code": 10})
    assert budget.allows({"": 100, "head": 900}), "3 and 2 and 4.5 of 97: at one pace for all it would be 3 and 14"
    assert not budget.allows({"": 100, "head": 1000})
    assert budget.allows({"code": 130})
    assert not budget.allows({"code": 140}), "3 and 7"
    assert budget.allows({"other": 460}), "its first turn: at 3 s for 210 steps, 3 and 6.6"
    assert not budget.allows({"other": 480})


def test_one_that_failed_says_nothing_of_the_others() -> None:
    clock = Clock()
    budget = Budget(0.1, clock)
    budget.start()
    clock.now = 100.0
    budget.add(1.0)
    budget.learn({"": 1.0, "head": 2.0}, {"": 100, "head": 100})
    budget.learn({"": 1.0}, {"": 100, "head": 100})
    assert budget.allows({"head": 440}), "1 and 8.8 of 99"
    assert not budget.allows({"head": 450})


def test_before_training_the_overhead_is_infinite() -> None:
    assert math.isinf(Budget(0.1, Clock()).overhead)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "much", True])
def test_a_limit_that_is_no_positive_share_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="`max_overhead` to be a positive share or None"):
        Budget(value)  # type: ignore[arg-type]
