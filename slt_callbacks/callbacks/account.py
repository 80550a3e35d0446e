"""What measuring costs a run: its share of the time, what was left out or has failed, and one line that says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info

from slt_callbacks.basics.notices import Notices
from slt_callbacks.callbacks.arguments import is_fast_dev_run
from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.callbacks.forecast import Forecast
from slt_callbacks.callbacks.loaders import planned_steps
from slt_callbacks.callbacks.prospect import Prospect
from slt_callbacks.callbacks.schedule import Trigger
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.sampling.config import SamplerConfig


class Account:
    """The budget of a run and its use.

    Args:
        budget: How much of the training time measuring may take.
        in_checkpoints: Whether checkpoints hold the chains, which the line mentions.
        notices: Where it is told, once, that the first measurement would take too long.
    """

    def __init__(self, budget: Budget, in_checkpoints: bool, notices: Notices) -> None:
        self.budget = budget
        self._notices = notices
        self._prospect: Prospect | None = None
        self._in_checkpoints = in_checkpoints
        self._first_step = 0
        self._told = False

    def start(self, step: int) -> None:
        """A fit begins at this training step."""
        self.budget.start()
        self._first_step = step

    def expect(self, prospect: Prospect | None) -> None:
        """What the first measurement will cost; None where training does not wait for it, or nothing is known."""
        known = prospect is not None and math.isfinite(prospect.first_seconds)
        self._prospect = prospect if known else None
        self.budget.first_pace = prospect.first_seconds / prospect.num_steps if prospect is not None and known else 0.0

    def allows(self, expected: Mapping[str, int], trainer: pl.Trainer) -> bool:
        """Whether a measurement of so many gradient steps, by posterior, fits; one that does not is counted."""
        long = self.budget.is_long(sum(expected.values()))
        run_seconds = self._run_seconds(trainer) if long else 0.0
        if self.budget.allows(_counted(expected), run_seconds):
            return True
        self.budget.skipped += 1
        if long and self._prospect is not None and self.budget.max_overhead is not None:
            allowance = self.budget.allowance(run_seconds)
            self._notices.once(self._prospect.too_long(self.budget.max_overhead, allowance), "too long")
        return False

    def charge(
        self, measurement: Measurement, blocked: float, expected: Mapping[str, int], num_failed: int
    ) -> Measurement:
        """Learn what a measurement, whose time has been paid, has taken, and write into it what measuring costs.

        Args:
            measurement: As it was made.
            blocked: Seconds for which training has waited.
            expected: Gradient steps that it was expected to take, by posterior.
            num_failed: Measurements of the run that have failed, this one included.
        """
        self.budget.learn(_shares(measurement, blocked), _counted(expected))
        told = {"overhead": self.budget.overhead, "skipped": self.budget.skipped, "failed": num_failed}
        return replace(measurement, results={**measurement.results, "cost": {**measurement["cost"], **told}})

    def tell(
        self,
        trainer: pl.Trainer,
        trigger: Trigger,
        config: SamplerConfig,
        outlook: tuple[int, int],
        num_shares: int,
        measurement: Measurement,
        num_workers: int = 0,
    ) -> None:
        """Once, as soon as there is a measurement and some training to compare it with: what the settings cost.

        Args:
            trainer: At some step.
            trigger: When measurements are due.
            config: The settings.
            outlook: Gradient steps of the next measurement in a process, and memory of the chains that wait for it.
            num_shares: Processes that take a part of the chains each.
            measurement: The first that has succeeded.
            num_workers: That measure beside training; 0 where it waits.
        """
        if self._told or measurement.failed or trainer.global_step == 0 or is_fast_dev_run(trainer):
            return
        self._told = True
        steps = max(trainer.global_step - self._first_step, 1)
        seconds_per_step = self.budget.training_seconds / steps
        forecast = Forecast(
            seconds=measurement["cost"]["seconds"],
            sgld_steps=measurement["cost"]["sgld_steps"],
            next_steps=outlook[0] * num_shares,
            seconds_per_step=seconds_per_step,
            every_n_steps=trigger.steps_between(steps, trainer.current_epoch, seconds_per_step),
            stored_bytes=outlook[1],
            in_checkpoints=self._in_checkpoints and num_shares == trainer.world_size,
            num_workers=num_workers,
        )
        rank_zero_info(forecast.line(config, self.budget.max_overhead))

    def _run_seconds(self, trainer: pl.Trainer) -> float:
        """Duration of the whole fit without measuring, as its steps have gone; 0 where that is not known."""
        done, planned = trainer.global_step - self._first_step, planned_steps(trainer)
        if done <= 0 or planned is None:
            return 0.0
        return self.budget.training_seconds / done * (planned - self._first_step)


def _counted(expected: Mapping[str, int]) -> dict[str, int]:
    """Without chains there is nothing to go by but the last measurement: it counts as one step."""
    return {**expected, "": max(expected[""], 1)}


def _shares(measurement: Measurement, blocked: float) -> dict[str, float]:
    """Of the seconds for which training has waited, those of each posterior that says something of the next time."""
    cost, refined = measurement["cost"], measurement.refinements
    share = blocked / cost["seconds"] if cost["seconds"] > 0 else 0.0
    seconds = {name: share * record["cost"]["seconds"] for name, record in refined.items()}
    main_steps = cost["sgld_steps"] - sum(record["cost"]["sgld_steps"] for record in refined.values())
    told = {name for name, record in refined.items() if record["cost"]["sgld_steps"]}
    found = {"": blocked - sum(seconds.values())} if main_steps or not measurement.failed else {}
    return found | {name: value for name, value in seconds.items() if name in told}
