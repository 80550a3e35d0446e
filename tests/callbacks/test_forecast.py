import logging
import math
import re
from unittest.mock import MagicMock

import pytest

from slt_callbacks import Measurement, SamplerConfig
from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.account import Account
from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.callbacks.forecast import Forecast
from slt_callbacks.observables.media import Media
from tests.training import fit, monitor


def line(**changes: object) -> str:
    known = {"seconds": 2.0, "sgld_steps": 1000, "next_steps": 500, "seconds_per_step": 0.01, "every_n_steps": 1000.0}
    limit = changes.pop("max_overhead", 0.1)
    return Forecast(**(known | changes)).line(SamplerConfig(num_draws=64, num_burnin_steps=200), limit)  # type: ignore[arg-type]


def test_what_fits_is_told_without_advice() -> None:
    told = line(max_overhead=0.11)
    assert "1000 gradient steps and 2.00 s; the next takes about 500 and 1.00 s, as long as 100 training steps" in told
    assert "At one every 1000 steps that is 10% of the training time." in told
    assert "skipped" not in told


def test_what_does_not_fit_names_settings_that_do() -> None:
    told = line(every_n_steps=400.0)  # 1 s of measuring in 4 s of training: 25 %, and 10 % are allowed
    assert "that is 25% of the training time, and `max_overhead` allows 10%: about 60% will be skipped" in told
    assert "measure every 1000 steps, or give `num_draws=25, num_burnin_steps=80`" in told


@pytest.mark.parametrize(("every", "share"), [(400.0, 0.25), (1000.0, 0.1)])
def test_the_interval_that_is_advised_fits(every: float, share: float) -> None:
    forecast = Forecast(2.0, 1000, 500, 0.01, every)
    assert forecast.share == pytest.approx(share)
    advised = re.search(r"measure every (\d+) steps", forecast.line(SamplerConfig(), 0.05))
    assert advised is not None
    assert Forecast(2.0, 1000, 500, 0.01, float(advised[1])).share <= 0.05


def test_chains_too_short_to_be_cut_get_other_advice() -> None:
    assert "or make a gradient step cheaper by a smaller `batch_size`" in line(every_n_steps=10.0)


@pytest.mark.parametrize("limit", [0.1, None])
def test_what_is_measured_beside_training_is_not_held_against_the_limit(limit: float | None) -> None:
    told = line(every_n_steps=400.0, num_workers=1, max_overhead=limit)
    assert "that is 25% of the training time, beside which one worker can measure all of them." in told
    assert "skipped" not in told


def test_workers_that_cannot_keep_up_are_told_of() -> None:
    told = line(every_n_steps=25.0, num_workers=2)  # 1 s of measuring in .25 s of training
    assert "400% of the training time, which is more than 2 workers can do beside it: about 50% will be skipped" in told
    assert "To keep up, measure every 50 steps." in told
    assert "training waits for them" in line(every_n_steps=25.0, num_workers=2, max_overhead=None)


def test_an_irregular_schedule_has_no_share() -> None:
    told = line(every_n_steps=None)
    assert math.isnan(Forecast(2.0, 1000, 500, 0.01).share)
    assert told.endswith("as long as 100 training steps.")


def test_memory_is_told_with_and_without_checkpoints() -> None:
    assert line(stored_bytes=2_200_000).endswith(
        "Persistent chains take 2.2 MB, and as much in every checkpoint (`checkpoint_chains=False` leaves them out)."
    )
    assert line(stored_bytes=999, in_checkpoints=False).endswith("Persistent chains take 999 B.")


@pytest.mark.parametrize("trigger", [{"every_n_train_steps": 2}, {"schedule": lambda step: step in (0, 3, 5)}])
def test_a_run_tells_it_once(caplog: pytest.LogCaptureFixture, trigger: dict[str, object]) -> None:
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(monitor(**trigger))
    told = [record.getMessage() for record in caplog.records if "SLTMonitor: the first" in record.getMessage()]
    assert len(told) == 1
    assert ("At one every 2 steps" in told[0]) == ("every_n_train_steps" in trigger)
    assert "Persistent chains take" in told[0]


@pytest.mark.parametrize(("num_shares", "steps", "saved"), [(4, 400, True), (1, 100, False)])
def test_ranks_that_share_the_chains_add_up(
    num_shares: int, steps: int, saved: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of four ranks: either each takes a part of the chains, or all take each of them on shards, which nobody saves."""
    trainer = MagicMock(world_size=4, global_step=10, current_epoch=0, fast_dev_run=False)
    trigger = MagicMock(**{"steps_between.return_value": None})
    account = Account(Budget(None), True, Notices())
    account.start(0)
    measurement = Measurement(5, {"cost": {"seconds": 1.0, "sgld_steps": 800}})
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        account.tell(trainer, trigger, SamplerConfig(), (100, 2200), num_shares, measurement)
    told = caplog.records[-1].getMessage()
    assert f"the next takes about {steps} and" in told
    assert ("as much in every checkpoint" in told) == saved


def record(seconds: float, sgld_steps: int) -> dict[str, object]:
    return {"cost": {"seconds": seconds, "sgld_steps": sgld_steps}}


@pytest.mark.parametrize("turn", [{"": 100, "head": 100}, {"": 100, "code": 100}])
def test_the_seconds_of_every_posterior_decide_what_fits(turn: dict[str, int]) -> None:
    """A step of the head costs 10 ms, one of the code 40, one of the main posterior 20."""
    now = 0.0
    budget = Budget(0.1, lambda: now)
    account = Account(budget, True, Notices())
    account.start(0)
    refined = {"head": record(0.5, 100), "code": record(2.0, 100), "bad": record(0.5, 0)}
    now, blocked = 100.0, 8.0  # of which training has waited for 2 beside those of the measurement
    budget.add(blocked)
    expected = dict.fromkeys(("", "head", "code", "bad"), 100)
    made = account.charge(
        Measurement(5, {"cost": {"seconds": 4.0, "sgld_steps": 300}}, None, Media(), refined), blocked, expected, 0
    )
    assert made["cost"]["overhead"] == pytest.approx(8 / 92)
    trainer = MagicMock(world_size=1, global_step=10)
    fits = 8.0 + (3.0 if "head" in turn else 6.0)
    now = 8.0 + 10 * fits - 0.1
    assert not account.allows(turn, trainer)
    now += 0.2
    assert account.allows(turn, trainer)


def test_a_measurement_that_failed_before_its_first_step_says_nothing_of_the_next() -> None:
    """It cost a moment, and the next one may succeed: that would take 20 s where 10 are allowed."""
    now = 0.0
    budget = Budget(0.1, lambda: now)
    account = Account(budget, True, Notices())
    account.start(0)
    now = 120.0
    for seconds, error in ((10.0, None), (0.0, "LossFnError: corrupt sample")):
        cost = {"cost": {"seconds": seconds, "sgld_steps": 0 if error else 100}}
        budget.add(seconds)
        account.charge(Measurement(5, cost, error), seconds, {"": 100}, 0)
    trainer = MagicMock(world_size=1, global_step=10)
    assert not account.allows({"": 100}, trainer), "20 s of 110"
    now = 211.0
    assert account.allows({"": 100}, trainer), "20 s of 201"
