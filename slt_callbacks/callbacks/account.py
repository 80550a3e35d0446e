"""What measuring costs a run: its share of the time, what was left out or has failed, and one line that says it."""

from __future__ import annotations

from dataclasses import replace

import lightning.pytorch as pl
from lightning_utilities.core.rank_zero import rank_zero_info

from slt_callbacks.callbacks.arguments import is_fast_dev_run
from slt_callbacks.callbacks.budget import Budget
from slt_callbacks.callbacks.forecast import Forecast
from slt_callbacks.callbacks.schedule import Trigger
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.measuring.measurement import Measurement


class Account:
    """The budget of a run and its use.

    Args:
        budget: How much of the training time measuring may take.
        in_checkpoints: Whether checkpoints hold the chains, which the line mentions.
    """

    def __init__(self, budget: Budget, in_checkpoints: bool) -> None:
        self.budget = budget
        self._in_checkpoints = in_checkpoints
        self._first_step = 0
        self._told = False

    def start(self, step: int) -> None:
        """A fit begins at this training step."""
        self.budget.start()
        self._first_step = step

    def allows(self, expected_steps: int) -> bool:
        """Whether a measurement of so many gradient steps fits; one that does not is counted.

        Without chains there is nothing to go by but the last measurement: it counts as one step.
        """
        if self.budget.allows(max(expected_steps, 1)):
            return True
        self.budget.skipped += 1
        return False

    def charge(self, measurement: Measurement, blocked: float, expected_steps: int, num_failed: int) -> Measurement:
        """Learn what a measurement, whose time has been paid, has taken, and write into it what measuring costs.

        Args:
            measurement: As it was made.
            blocked: Seconds for which training has waited.
            expected_steps: Gradient steps that it was expected to take.
            num_failed: Measurements of the run that have failed, this one included.
        """
        cost = measurement["cost"]
        says_something = cost["sgld_steps"] or not measurement.failed
        self.budget.learn(blocked, max(expected_steps, 1) if says_something else 0)
        told = {"overhead": self.budget.overhead, "skipped": self.budget.skipped, "failed": num_failed}
        return replace(measurement, results={**measurement.results, "cost": {**cost, **told}})

    def tell(self, trainer: pl.Trainer, trigger: Trigger, estimator: Estimator, measurement: Measurement) -> None:
        """Once, as soon as there is a measurement and some training to compare it with: what the settings cost."""
        if self._told or measurement.failed or trainer.global_step == 0 or is_fast_dev_run(trainer):
            return
        self._told = True
        steps = max(trainer.global_step - self._first_step, 1)
        seconds_per_step = self.budget.training_seconds / steps
        forecast = Forecast(
            seconds=measurement["cost"]["seconds"],
            sgld_steps=measurement["cost"]["sgld_steps"],
            next_steps=estimator.expected_steps * trainer.world_size,
            seconds_per_step=seconds_per_step,
            every_n_steps=trigger.steps_between(steps, trainer.current_epoch, seconds_per_step),
            stored_bytes=estimator.stored_bytes,
            in_checkpoints=self._in_checkpoints,
        )
        rank_zero_info(forecast.line(estimator.config, self.budget.max_overhead))
