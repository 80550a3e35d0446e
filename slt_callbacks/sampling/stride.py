"""The step in use: chosen where the chains stand, and held as long as it suits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from slt_callbacks.sampling.config import MOST_BURN_IN, SamplerConfig
from slt_callbacks.sampling.curvature import Stiffness
from slt_callbacks.sampling.dynamics import Dynamics, resolve_step_size
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.step_sizes import BIASED, AutoStep

# What the noise of minibatches may add to an LLC: an "auto" step without a bias of its own is chosen for the first, and
# shortened above the second; below a quarter of the first it may grow again.
_NOISE_AIM, _MOST_NOISE = 0.04, 0.05
# A few minibatches know their noise to a factor of two or so: a step is shortened for it by so much at once, and by the
# rest after another look.
_AT_ONCE = 4.0
# An LLC nearer to 0 than that of one regular direction is no scale for a share.
_SMALLEST_LLC = 0.5
# Burn-in that "auto" stands for, in units of the time in which the flattest direction forgets, 2 / (step_size *
# localization): a direction in which the loss curves as much as the localization forgets twice as fast, and has then
# come within 0.3 % of its variance.
_MEMORIES = 1.5
LEAST_BURN_IN = 8
# Share of the longest stable step above which half of the draws are taken with half of it: they have to agree.
_WORTH_A_HALF = 0.2
_FEWEST_TO_HALVE = 16
_RETREAT = 1 / 8


class Stride:
    """How the chains of one target move, and what is known of how far a step may go.

    Args:
        config: Settings; an "auto" step size is resolved at the first measurement.
        posterior: nbeta and localization in force.

    Attributes:
        dynamics: In use.
        stability: step_size k_max / 4, the largest seen in this measurement with the step in use; NaN where it is not
            known.

    Example:
        >>> from slt_callbacks import LeimkuhlerMatthews
        >>> stride = Stride(SamplerConfig(LeimkuhlerMatthews(), num_burnin_steps="auto"), LocalPosterior(10.0, 5.0))
        >>> stride.begin(curvature=100.0)
        False
        >>> stride.dynamics.step_size, stride.burn_in
        (0.02, 30)
        >>> stride.suits([Stiffness(curvature=400.0, noise=0.0, along_noise=400.0)], llc=3.0)  # stiffer than w* is
        False
        >>> stride.dynamics.step_size, stride.burn_in, stride.stability
        (0.005, 88, 0.5)
    """

    def __init__(self, config: SamplerConfig, posterior: LocalPosterior) -> None:
        self._config = config
        self._posterior = posterior
        self.dynamics: Dynamics = config.dynamics
        self.stability = math.nan
        self._seen: list[Stiffness] = []
        self._last: Stiffness | None = None  # of the measurement before: the stiffest, with the mean of the noises
        self._last_llc = math.nan
        self._ceiling = math.inf  # half of a step with which all chains have diverged

    @property
    def step_size(self) -> float | str:
        """The step in use, of whatever kind it was, as a float; "auto" before there is one."""
        step_size = self.dynamics.step_size
        return "auto" if step_size == "auto" else float(step_size)

    @property
    def looks(self) -> bool:
        """Whether the dynamics can say how long a step may be."""
        return callable(getattr(self.dynamics, "stability", None))

    @property
    def is_open(self) -> bool:
        """Whether what is seen at the chains may change the step: it is "auto", and has no bias to keep."""
        return self._is_free and not self._auto.is_biased

    @property
    def last_curvature(self) -> float:
        """The largest at the chains' positions in the measurement before; NaN before there is one."""
        return math.nan if self._last is None else self._last.curvature

    @property
    def is_new(self) -> bool:
        """Whether no chain has been looked at with it yet."""
        return self._last is None and not self._seen

    def retreat(self) -> None:
        """All chains have diverged: an "auto" step that nobody knows to be stable becomes a small one."""
        if self.is_open:
            self._ceiling = min(self._ceiling, float(self.dynamics.step_size) / 2)
            self.dynamics = self._with(float(self.dynamics.step_size) * _RETREAT)

    @property
    def is_biased(self) -> bool:
        """Whether another step size has another bias."""
        return self._auto.is_biased

    @property
    def burn_in(self) -> int:
        """Steps of burn-in of a cold chain; before an "auto" step is resolved, the most that they may be."""
        memory: Callable[[float], float] | None = getattr(self.dynamics, "memory", None)
        if self._config.num_burnin_steps != "auto" or memory is None or self.step_size == "auto":
            return self._config.most_burnin_steps
        return math.ceil(min(max(_MEMORIES * memory(self._posterior.localization), LEAST_BURN_IN), MOST_BURN_IN))

    @property
    def shorter(self) -> Dynamics | None:
        """The dynamics with half the step, where both must agree.

        None where another step has another bias, where draws are too few for two halves, and where the step is so far
        below the longest stable one that beyond quadratics, too, little can be wrong with it: half of it would tell
        less for the same gradients.
        """
        enough = self._config.num_draws >= _FEWEST_TO_HALVE
        if not self.is_open or not enough or not self.stability > _WORTH_A_HALF:
            return None
        return self._with(float(self.dynamics.step_size) / 2)

    def begin(self, curvature: float) -> bool:
        """A measurement begins; a number for an "auto" step, and another one where the one in use is far off.

        Args:
            curvature: k_max at w*.

        Returns:
            Whether the chains have to begin anew: what they were is the place of another bias.

        Raises:
            ValueError: If the step is "auto" and there is no curvature.
        """
        self.dynamics = resolve_step_size(self.dynamics, curvature)
        self._seen = []
        self.stability = self._share(curvature)
        if not self._is_free:
            return False
        if self._auto.is_biased:
            return self._scale(curvature)
        if self.stability > self._auto.most:
            self._take(curvature, [])
        elif self._last is not None:
            share = self._share(max(self._last.curvature, curvature))
            quiet = self._noise_bias([self._last], self._last_llc) < _NOISE_AIM / 4
            if 0 < share < self._auto.least and quiet:
                self._take(max(self._last.curvature, curvature), [self._last], self._last_llc)
        self.stability = self._share(curvature)
        return False

    def suits(self, found: Sequence[Stiffness], llc: float) -> bool:
        """Whether the step may be held where chains stand after their burn-in; else it has been shortened.

        Args:
            found: There.
            llc: Of the chains, roughly, the noise of minibatches included; NaN where it is that of the last time.
        """
        self._seen += [one for one in found if one.is_finite]
        llc = llc if math.isfinite(llc) else self._last_llc
        curvature = max((one.curvature for one in self._seen), default=math.nan)
        share = self._share(curvature)
        self._note(share)
        if not self.is_open or not math.isfinite(curvature):
            return True
        aim = self._auto.aim if self._last is None else self._auto.most
        noisy = math.isfinite(llc) and self._noise_bias(self._seen, llc) > _MOST_NOISE
        if share <= 1.001 * aim and not noisy:
            return True
        before = float(self.dynamics.step_size)
        self._take(curvature, self._seen, llc)
        self.stability = self._share(curvature)
        return float(self.dynamics.step_size) >= before

    def finish(self, everyone: Sequence[Stiffness], llc: float) -> None:
        """The measurement has ended; what was found by all processes is remembered for the next."""
        self._seen = list(everyone)
        if not everyone:
            return
        k_max = max(one.curvature for one in everyone)
        self._note(self._share(k_max))
        noise = sum(one.noise for one in everyone) / len(everyone)
        along = sum(one.noise * one.along_noise for one in everyone) / len(everyone) / noise if noise else k_max
        self._last, self._last_llc = Stiffness(k_max, noise, along), llc

    @property
    def seen(self) -> list[Stiffness]:
        """What was found in this measurement."""
        return self._seen

    def noise_bias(self, llc: float) -> float:
        """Relative excess of the LLC from the noise of minibatches; NaN where it is not known.

        Args:
            llc: As it was measured.
        """
        if not self._seen or not math.isfinite(llc):
            return math.nan
        return self._noise_bias(self._seen, llc)

    def gap(self, long: float, short: float) -> float:
        """Relative excess of the LLC of the first half of the draws, with steps twice as long as those of the second.

        NaN where all draws are taken with one step.

        Args:
            long: LLC of the first half.
            short: That of the second.
        """
        return math.nan if self.shorter is None else (long - short) / max(abs(short), _SMALLEST_LLC)

    def step_bias(self, curvature: float) -> float:
        """Relative discretization bias at the largest curvature; NaN where it is unknown."""
        bias = getattr(self.dynamics, "step_bias", None)
        return float(bias(curvature)) if bias is not None and math.isfinite(curvature) else math.nan

    def state_dict(self) -> dict[str, Any]:
        """In builtins."""
        last = self._last
        stiffness = None if last is None else [last.curvature, last.noise, last.along_noise]
        return {
            "step_size": self.step_size,
            "stiffness": stiffness,
            "last_llc": self._last_llc,
            "ceiling": self._ceiling,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if self._config.dynamics.step_size == "auto" and state["step_size"] != "auto":
            self.dynamics = replace(self._config.dynamics, step_size=state["step_size"])  # type: ignore[type-var]
        stiffness = state.get("stiffness")
        self._last = None if stiffness is None else Stiffness(*stiffness)
        self._last_llc = state.get("last_llc", math.nan)
        self._ceiling = state.get("ceiling", math.inf)

    @property
    def _auto(self) -> AutoStep:
        auto: AutoStep = getattr(self.dynamics, "auto", BIASED)
        return auto

    @property
    def _is_free(self) -> bool:
        """Whether the step is ours to change."""
        return self._config.dynamics.step_size == "auto" and is_dataclass(self.dynamics)

    def _share(self, curvature: float) -> float:
        if not self.looks or not math.isfinite(curvature):
            return math.nan
        return float(self.dynamics.stability(curvature))  # type: ignore[attr-defined]

    def _note(self, share: float) -> None:
        if not self.stability >= share:  # NaN: nothing is known yet
            self.stability = share

    def _noise_bias(self, found: Sequence[Stiffness], llc: float) -> float:
        noise = self._noise(found)
        rest = abs(llc - noise) if math.isfinite(noise) else math.nan
        return noise / max(rest, _SMALLEST_LLC) if math.isfinite(rest) else math.inf

    def _noise(self, found: Sequence[Stiffness]) -> float:
        each = [self._noise_of(one) for one in found]
        return sum(each) / len(each) if each else 0.0

    def _noise_of(self, one: Stiffness) -> float:
        """What the noise of minibatches adds to the LLC, by the dynamics' own formula where it has one."""
        localization = self._posterior.localization
        excess: Callable[[float, float], float] | None = getattr(self.dynamics, "noise_excess", None)
        if excess is None or one.noise == 0:
            return one.excess_llc(float(self.dynamics.step_size), localization)
        return max(one.along_noise - localization, 0.0) / 2 * excess(one.noise, one.along_noise)

    def _take(self, curvature: float, found: Sequence[Stiffness], llc: float = math.nan) -> None:
        """The step that `auto` aims at, and a shorter one where the noise asks for it."""
        step_size = float(resolve_step_size(self._config.dynamics, curvature).step_size)
        noise = self._noise(found)
        if noise > 0 and math.isfinite(llc):
            rest = llc - noise if math.isfinite(noise) else llc
            allowed = _NOISE_AIM * max(abs(rest), _SMALLEST_LLC)
            each = [one.step_size_for(allowed, self._posterior.localization) for one in found]
            quiet = max(len(each) / sum(1 / one for one in each), float(self.dynamics.step_size) / _AT_ONCE)
            step_size = min(step_size, quiet)
        self.dynamics = self._with(min(step_size, self._ceiling))

    def _scale(self, curvature: float) -> bool:
        """Halve or double a step far too long or too short."""
        before = self.step_size
        while self.step_bias(curvature) > self._auto.most:
            self.dynamics = self._with(float(self.dynamics.step_size) * 0.5)
        if 0 < self.step_bias(curvature) < self._auto.least:  # 0: a flat loss without localization
            while self.step_bias(curvature) <= self._auto.aim / 2:
                self.dynamics = self._with(float(self.dynamics.step_size) * 2.0)
        self.stability = self._share(curvature)
        return self.step_size != before

    def _with(self, step_size: float) -> Dynamics:
        changed: Dynamics = replace(self.dynamics, step_size=step_size)  # type: ignore[type-var]
        return changed
