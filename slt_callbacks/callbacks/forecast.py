"""One line, once: what the chosen settings cost, and which would fit the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slt_callbacks.sampling.config import SamplerConfig

# Fewer draws than this say nothing about convergence: R-hat and the drift test cannot read them.
FEWEST_DRAWS = 16


@dataclass(frozen=True)
class Forecast:
    """What measuring will cost, from the first measurement and the training before it.

    Args:
        seconds: Duration of the first measurement.
        sgld_steps: Its gradient steps, of all chains.
        next_steps: Gradient steps of the next one, if its chains do not drift.
        seconds_per_step: Duration of a training step.
        every_n_steps: Training steps between due measurements; None where they are not regular.
        stored_bytes: Memory of the persistent chains.
        in_checkpoints: Whether checkpoints hold the chains.
        num_workers: That measure beside training, which does not wait for them; 0 where it does.

    Example:
        >>> forecast = Forecast(2.0, 1000, 400, seconds_per_step=0.01, every_n_steps=100)
        >>> round(forecast.share, 2)
        0.8
        >>> print(forecast.line(SamplerConfig(), max_overhead=0.1))
        SLTMonitor: the first measurement took 1000 gradient steps and 2.00 s; the next takes about 400 and 0.80 s,
        as long as 80 training steps. At one every 100 steps that is 80% of the training time, and `max_overhead` allows
        10%: about 88% will be skipped. To have all of them, measure every 800 steps, or give `num_draws=18,
        num_burnin_steps=11`.
    """

    seconds: float
    sgld_steps: int
    next_steps: int
    seconds_per_step: float
    every_n_steps: float | None = None
    stored_bytes: int = 0
    in_checkpoints: bool = True
    num_workers: int = 0

    @property
    def next_seconds(self) -> float:
        """Duration of the next measurement."""
        return self.seconds * self.next_steps / self.sgld_steps if self.sgld_steps else self.seconds

    @property
    def share(self) -> float:
        """Seconds of measuring for a second of training; NaN where measurements are not regular."""
        if self.every_n_steps is None or self.seconds_per_step <= 0:
            return math.nan
        return self.next_seconds / (self.every_n_steps * self.seconds_per_step)

    def line(self, config: SamplerConfig, max_overhead: float | None) -> str:
        """The line.

        Args:
            config: The settings, to say which cheaper ones would fit.
            max_overhead: The limit, or None.
        """
        text = (
            f"SLTMonitor: the first measurement took {self.sgld_steps} gradient steps and {self.seconds:.2f} s; the "
            f"next takes about {self.next_steps} and {self.next_seconds:.2f} s"
        )
        if not self.sgld_steps:
            text = f"SLTMonitor: a measurement takes no gradient steps and {self.seconds:.2f} s"
        if self.seconds_per_step > 0:
            text += f", as long as {self.next_seconds / self.seconds_per_step:.0f} training steps"
        text += "."
        if not math.isnan(self.share):
            text += f" At one every {self.every_n_steps:.0f} steps that is {self.share:.0%} of the training time"
            if self.num_workers:
                text += self._beside(max_overhead)
            elif max_overhead is None or self.share <= max_overhead:
                text += "."
            else:
                text += self._too_much(config, max_overhead)
        if self.stored_bytes:
            also = ", and as much in every checkpoint (`checkpoint_chains=False` leaves them out)"
            text += f" Persistent chains take {_size(self.stored_bytes)}{also if self.in_checkpoints else ''}."
        return text

    def _beside(self, max_overhead: float | None) -> str:
        """Whether workers, each of which measures all the time, keep up."""
        excess = self.share / self.num_workers
        who = "one worker" if self.num_workers == 1 else f"{self.num_workers} workers"
        if excess <= 1:
            return f", beside which {who} can measure all of them."
        every = math.ceil((self.every_n_steps or 0) * excess)
        lost = "training waits for them" if max_overhead is None else f"about {1 - 1 / excess:.0%} will be skipped"
        return f", which is more than {who} can do beside it: {lost}. To keep up, measure every {every} steps."

    def _too_much(self, config: SamplerConfig, max_overhead: float) -> str:
        excess = self.share / max_overhead
        every = math.ceil((self.every_n_steps or 0) * excess)
        text = (
            f", and `max_overhead` allows {max_overhead:.0%}: about {1 - 1 / excess:.0%} will be skipped. To have all"
        )
        text += f" of them, measure every {every} steps"
        draws, burn_in = math.floor(config.num_draws / excess), math.floor(config.most_burnin_steps / excess)
        if draws >= FEWEST_DRAWS:
            return f"{text}, or give `num_draws={draws}, num_burnin_steps={burn_in}`."
        return f"{text}, or make a gradient step cheaper by a smaller `batch_size`."


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
