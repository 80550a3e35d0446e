"""One line before the first number: what will be measured, and what it will cost; and which settings cost less."""

from __future__ import annotations

import math
from dataclasses import dataclass, is_dataclass

from slt_callbacks.basics.durations import duration
from slt_callbacks.callbacks.budget import LONG_SECONDS
from slt_callbacks.callbacks.forecast import FEWEST_DRAWS
from slt_callbacks.measuring.timed_pass import TimedPass
from slt_callbacks.sampling.config import SamplerConfig

_FEWEST_SAMPLES = 16  # fewer say little of a distribution


@dataclass(frozen=True)
class Weights:
    """The parameters of a module.

    Args:
        trainable: Weights that move.
        frozen: Weights that do not.
        some_frozen: Name of a parameter that does not, if there is one.

    Example:
        >>> print(Weights(1234, 8766, "embed.weight").line())
        1,234 of 10,000 parameters, for the others are frozen, such as `embed.weight`
    """

    trainable: int
    frozen: int = 0
    some_frozen: str | None = None

    def line(self) -> str:
        """In words."""
        if not self.some_frozen:
            return f"all {self.trainable:,} parameters"
        total = self.trainable + self.frozen
        return f"{self.trainable:,} of {total:,} parameters, for the others are frozen, such as `{self.some_frozen}`"


@dataclass(frozen=True)
class Plan:
    """When measurements are due, as far as that is known before training.

    Args:
        num_steps: Optimizer steps of the fit; None where they have no end.
        every_n_steps: Optimizer steps from one due measurement to the next; None where they are not regular.
        seconds_per_step: Of an optimizer step, if it takes as long as a gradient pass of its batches; None: not known.

    Example:
        >>> plan = Plan(num_steps=1000, every_n_steps=100, seconds_per_step=0.5)
        >>> plan.num_due, plan.allowed(0.1, first=20.0, later=10.0)  # 50 s of measuring in 500 s of training
        (10, 4)
    """

    num_steps: int | None = None
    every_n_steps: float | None = None
    seconds_per_step: float | None = None

    @property
    def num_due(self) -> int | None:
        """Measurements in the whole fit; None where that is not known."""
        if self.num_steps is None or not self.every_n_steps:
            return None
        return math.floor(self.num_steps / self.every_n_steps)

    def allowed(self, max_overhead: float, first: float, later: float) -> int | None:
        """How many of them fit the budget, the first one of `first` seconds; None where that is not known."""
        due = self.num_due
        if due is None or self.seconds_per_step is None or self.num_steps is None:
            return None
        budget = max_overhead * self.num_steps * self.seconds_per_step
        if first > max(budget, LONG_SECONDS):
            return 0
        return min(due, 1 + max(math.floor((budget - first) / later), 0))


@dataclass(frozen=True)
class Prospect:
    """What will be measured, and what it will cost, as far as that is known before the first number.

    Args:
        loss: Name of the loss.
        num_samples: Of the reference set.
        source_size: Samples of the data that they were drawn from; None where that is not known.
        weights: The parameters.
        config: Of the chains.
        num_steps: Gradient steps of the first measurement in this process; 0 where nothing reads draws.
        later_steps: Those of a later one.
        num_processes: Processes that take as many each.
        num_posteriors: The main one and those beside it that are taken at once.
        timed: A gradient pass; None where none could be taken.

    Example:
        >>> timed = TimedPass(2.303, True, "[Tensor[32, 3, 8, 8], Tensor[32]]", 32, 0.012, more_passes=70.0)
        >>> prospect = Prospect("Net.training_step", 256, 50000, Weights(11_173_962), SamplerConfig(), 952, 668,
        ...                     timed=timed)
        >>> print(prospect.line(max_overhead=0.1, plan=Plan()))
        SLTMonitor: measuring `Net.training_step` (one loss a sample, now 2.303) on 256 of 50,000 samples in batches of
        [Tensor[32, 3, 8, 8], Tensor[32]]; chains move all 11,173,962 parameters. A measurement takes 4 chains of
        LeimkuhlerMatthews(step_size='auto'), each with a burn-in of up to 88 steps and 150 draws: 952 gradient steps of
        12 ms, about 12 s the first time and 8.6 s from then on. `max_overhead=0.1` allows one in every 1 min 26 s of
        training.
    """

    loss: str
    num_samples: int
    source_size: int | None
    weights: Weights
    config: SamplerConfig
    num_steps: int
    later_steps: int
    num_processes: int = 1
    num_posteriors: int = 1
    timed: TimedPass | None = None

    @property
    def first_seconds(self) -> float:
        """Duration of the first measurement; NaN where it is not known."""
        return math.nan if self.timed is None or not self.num_steps else self.timed.seconds_for(self.num_steps)

    @property
    def later_seconds(self) -> float:
        """Duration of a later one, if its chains do not drift."""
        return self.first_seconds * self.later_steps / max(self.num_steps, 1)

    def line(self, max_overhead: float | None, plan: Plan | None = None, shortened: bool = False) -> str:
        """The line.

        Args:
            max_overhead: The limit, or None.
            plan: When measurements are due; None where training does not wait for them.
            shortened: Whether the chains are those of a run that only tries every line once.
        """
        text = f"SLTMonitor: measuring `{self.loss}`{self._manner()} on {self._samples()}; chains move "
        text += f"{self.weights.line()}."
        if not self.num_steps:
            return f"{text} No observable asks for chains: no gradient step is taken."
        text += f" A measurement takes {self._chains()}: {self._all_steps} gradient steps"
        text += f" in {self.num_processes} processes" if self.num_processes > 1 else ""
        if shortened:
            return f"{text}, shortened for `fast_dev_run`."
        if self.timed is None:
            return f"{text}."
        text += f" of {self._step(self.timed)}, about {duration(self.first_seconds)} "
        later = duration(self.later_seconds)
        text += "each." if later == duration(self.first_seconds) else f"the first time and {later} from then on."
        return text if plan is None else f"{text} {self._allowed(max_overhead, plan)}"

    def too_long(self, max_overhead: float, seconds: float) -> str:
        """Why the first measurement is left out.

        Args:
            max_overhead: The limit.
            seconds: What it may take.
        """
        step = f" ({self.num_steps} gradient steps of {self._step(self.timed)})" if self.timed else ""
        return (
            f"The first measurement would take about {duration(self.first_seconds)}{step}, and `max_overhead="
            f"{max_overhead:g}` allows it {duration(seconds)}: it is left out, as are those after it, until training "
            f"that is done, or known to come, pays for it ({duration(self.first_seconds / max_overhead)} in all). Give "
            f"{self.advice(seconds)}, or "
            "`max_overhead=None` to have it anyway."
        )

    def advice(self, seconds: float) -> str:
        """Settings with which the first measurement takes so long at most, each of them alone.

        Args:
            seconds: See above.
        """
        timed, config = self.timed, self.config
        if timed is None or not self.num_steps:
            return "a smaller model"
        found = []
        share = (seconds / timed.seconds - timed.more_passes) / self.num_steps
        draws, burn_in = math.floor(config.num_draws * share), math.floor(config.most_burnin_steps * share)
        if draws >= FEWEST_DRAWS:
            found.append(f"`num_draws={draws}, num_burnin_steps={burn_in}`")
        fewer = math.floor(timed.size * seconds / self.first_seconds)
        batch_size = self._divisor(fewer) if not timed.per_sample else fewer
        if batch_size >= 1:
            found.append(f"`batch_size={batch_size}`")
        if timed.size == self.num_samples and fewer >= _FEWEST_SAMPLES:
            found.append(f"`num_samples={fewer}`")
        return ", ".join(found) or "fewer draws and steps of burn-in together with a smaller `batch_size`"

    def _step(self, timed: TimedPass) -> str:
        return duration(timed.seconds) + (" on average" if self.num_posteriors > 1 else "")

    def _divisor(self, most: int) -> int:
        """The largest number of samples that divides all of them, as minibatches of a scalar loss must."""
        return next((size for size in range(most, 0, -1) if self.num_samples % size == 0), 0)

    @property
    def _all_steps(self) -> int:
        """Those of all processes, of which the first has the most chains."""
        return self.num_steps * self.config.num_chains // -(-self.config.num_chains // self.num_processes)

    def _manner(self) -> str:
        if self.timed is None:
            return ""
        return f" ({'one loss a sample' if self.timed.per_sample else 'one loss a batch'}, now {self.timed.loss:.4g})"

    def _samples(self) -> str:
        of_all = f" of {self.source_size:,}" if self.source_size not in (None, self.num_samples) else ""
        return f"{self.num_samples:,}{of_all} samples" + (f" in batches of {self.timed.batches}" if self.timed else "")

    def _chains(self) -> str:
        config = self.config
        # the repr of an object of one's own may hold its address
        dynamics = repr(config.dynamics) if is_dataclass(config.dynamics) else type(config.dynamics).__name__
        apart = f", {config.num_steps_bw_draws} steps apart" if config.num_steps_bw_draws > 1 else ""
        several = f" for each of {self.num_posteriors} posteriors" if self.num_posteriors > 1 else ""
        burn_in = ("up to " if config.num_burnin_steps == "auto" else "") + str(config.most_burnin_steps)
        return (
            f"{config.num_chains} chain{'s' if config.num_chains > 1 else ''} of {dynamics}, each with a burn-in of "
            f"{burn_in} steps and {config.num_draws} draws{apart}{several}"
        )

    def _allowed(self, max_overhead: float | None, plan: Plan) -> str:
        due = plan.num_due
        if due == 0:
            return f"None is due in the {plan.num_steps} steps of this fit."
        if max_overhead is None:
            return f"With `max_overhead=None` training waits for {'each' if due is None else f'all {due}'} of them."
        limit = f"`max_overhead={max_overhead:g}` allows"
        allowed = plan.allowed(max_overhead, self.first_seconds, self.later_seconds)
        if due is not None and allowed is not None:
            return f"{limit} {_some(allowed, due)} that are due."
        if self.first_seconds > LONG_SECONDS:
            return f"{limit} the first when {duration(self.first_seconds / max_overhead)} of training pay for it."
        return f"{limit} one in every {duration(self.later_seconds / max_overhead)} of training."


def _some(number: int, of_all: int) -> str:
    if number in (0, of_all):
        return f"{'all' if number else 'none of the'} {of_all}"
    return f"about {number} of the {of_all}"
