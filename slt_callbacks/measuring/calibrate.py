"""Which settings suit a model: one checkpoint measured over a grid of step sizes, nbetas and localizations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from typing import Any

from torch import nn

from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, Reference, draw_reference
from slt_callbacks.losses.functions import LossFn
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import Dynamics
from slt_callbacks.sampling.posterior import default_nbeta
from slt_callbacks.sampling.step_sizes import BIASED, AutoStep

# Multiples of the step that "auto" begins with: below it, where a plateau shows, and above, where it ends. A step that
# has a bias is chosen for 2 % of it; one without for half the longest stable one, and minibatches may want far less.
_BIASED_FACTORS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
_FREE_FACTORS = (1 / 64, 1 / 16, 1 / 4, 1.0, 2.0)
_NBETA_FACTORS = (0.3, 1.0, 3.0)
_LOCALIZATION_FACTORS = (0.1, 1.0, 10.0)
_MOST_BIAS, _MOST_STABILITY, _MOST_NOISE, _MOST_RHAT, _MOST_DRIFT = 0.025, 0.75, 0.05, 1.2, 3.0


@dataclass(frozen=True)
class CalibrationPoint:
    """One setting, and what a measurement with it found.

    Attributes:
        step_size: epsilon.
        nbeta: Inverse temperature times samples.
        localization: gamma.
        llc: The estimate.
        stderr: Its standard error.
        rhat: Do the chains agree.
        drift: Are they still moving, in standard errors.
        step_bias: Relative discretization bias; NaN where the dynamics does not tell.
        failed_chains: Chains that diverged.
        verdict: "sound", or the first thing that is wrong: "diverges", "biased", "noisy", "drifts", "chains disagree".
        stability: Share of the longest stable step, the largest seen along the chains; NaN where it is not known.
        noise_bias: What the noise of minibatches adds to the LLC, relatively; NaN where it is not known.

    Example:
        >>> point = CalibrationPoint(step_size=1e-4, nbeta=46.2, localization=100.0, llc=12.3, stderr=0.4, rhat=1.02,
        ...                          drift=0.5, step_bias=0.02, failed_chains=0, verdict="sound")
        >>> f"{point.llc} +- {point.stderr}: {point.verdict}"
        '12.3 +- 0.4: sound'
    """

    step_size: float
    nbeta: float
    localization: float
    llc: float
    stderr: float
    rhat: float
    drift: float
    step_bias: float
    failed_chains: int
    verdict: str
    stability: float = math.nan
    noise_bias: float = math.nan


@dataclass(frozen=True)
class Calibration:
    """The whole grid, and the setting to take.

    Attributes:
        points: One a setting, by localization, then nbeta, then step size.
        recommended: The settings of the point to take, or None where none is sound.
        config: What stays the same over the grid.

    Example:
        >>> from slt_callbacks import SGLD
        >>> config = SamplerConfig(SGLD(1e-4), nbeta=46.2, num_draws=200)
        >>> print(Calibration(points=(), recommended=config, config=config).line())
        SamplerConfig(SGLD(step_size=0.0001), nbeta=46.2, localization=100, num_chains=4, num_draws=200,
        num_burnin_steps='auto', batch_size='auto')
    """

    points: tuple[CalibrationPoint, ...]
    recommended: SamplerConfig | None
    config: SamplerConfig

    def line(self) -> str:
        """What to write into one's own code."""
        if self.recommended is None:
            counts = Counter(point.verdict for point in self.points)
            told = ", ".join(f"{verdict}: {count}" for verdict, count in counts.items())
            return f"No setting is sound ({told}): try a larger `localization`, or a longer burn-in and more draws."
        found = self.recommended
        always = {name: getattr(found, name) for name in ("num_chains", "num_draws", "num_burnin_steps", "batch_size")}
        return (
            f"SamplerConfig({_call(found.dynamics)}, nbeta={found.nbeta:.4g}, "
            f"localization={found.localization:g}, {_written(always | _changed(found, always))})"
        )


def calibrate(
    module: nn.Module,
    reference: Reference,
    loss_fn: LossFn | None = None,
    *,
    step_sizes: Sequence[float] | None = None,
    nbetas: Sequence[float] | None = None,
    localizations: Sequence[float] | None = None,
    sampler: SamplerConfig | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    on_point: Callable[[CalibrationPoint, int], None] | None = None,
) -> Calibration:
    """Measure a module over a grid of settings, and find the one to take.

    A point is sound if no chain diverges, the chains agree (R-hat <= 1.2) and no longer drift, the step is too short to
    matter (bias of the stiffest direction <= 2.5 %, and at most three quarters of the longest stable step), and so is
    the noise of minibatches (<= 5 % of the LLC). Of the sound ones `nbeta` nearest to the default comes first, then the
    weakest localization (it looks farthest), then the longest step (its chains forget soonest).

    The step that is recommended is a number, which a run then keeps. With `LeimkuhlerMatthews` a run may as well leave
    it at "auto": another step is no break in its series, and `nbeta` and `localization` are what there is to choose.

    Args:
        module: At the weights of one checkpoint; late in training is where the curvature, and with it the bias, is
            largest.
        reference: As in `estimate`.
        loss_fn: As in `estimate`.
        step_sizes: Of the dynamics; None for multiples of the step that "auto" begins with, anew for every nbeta and
            localization: 1/16 to 16, or where the step has no bias on quadratics 1/64 to 2, where stability ends.
        nbetas: None for 0.3, 1 and 3 times that of `sampler`.
        localizations: None for 0.1, 1 and 10 times that of `sampler`.
        sampler: All other settings, the kind of dynamics among them; None for the defaults. `SGLD` forgets slowly: give
            it 200 draws or more, or chains that agree seem to disagree.
        num_samples: Samples drawn from `reference`; None for 256, or all where there are fewer.
        seed: Of the choice of samples and the chains.
        on_point: Told of every point as it is found, and of how many there will be.

    Returns:
        The grid and the recommendation.

    Raises:
        TypeError: As `estimate`, or if the dynamics is no dataclass with a `step_size`, as plug-ins may be.
        ValueError: As `estimate`, or if a list is empty.

    Source: what the calibration notebooks of the field do by hand (Lau et al., arXiv 2308.12108, appendix;
    Hitchcock & Hoogland, arXiv 2507.21449).

    Example:
        >>> import torch
        >>> class Quadratic(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(4))
        >>> def loss_fn(module, batch):
        ...     return 0.5 * module.w.square().sum().expand(len(batch))
        >>> found = calibrate(Quadratic(), [torch.zeros(2, 1)], loss_fn, nbetas=[100.0], localizations=[1.0])
        >>> [point.verdict for point in found.points][-2:]  # half the longest stable step, and the longest
        ['sound', 'biased']
        >>> found.recommended.nbeta, round(found.recommended.dynamics.step_size, 4)  # 2 / 101
        (100.0, 0.0198)
    """
    _refuse_empty(step_sizes=step_sizes, nbetas=nbetas, localizations=localizations)
    config = SamplerConfig() if sampler is None else sampler
    _refuse_others(config.dynamics)
    drawn = draw_reference(reference, num_samples, seed, at_most=DEFAULT_NUM_SAMPLES)
    middle = default_nbeta(len(drawn)) if config.nbeta is None else config.nbeta
    grid = list(
        product(
            [f * config.localization for f in _LOCALIZATION_FACTORS] if localizations is None else localizations,
            [f * middle for f in _NBETA_FACTORS] if nbetas is None else nbetas,
        )
    )
    total = len(grid) * len(_factors(config.dynamics) if step_sizes is None else step_sizes)
    points: list[CalibrationPoint] = []
    for localization, nbeta in grid:
        here = replace(config, nbeta=float(nbeta), localization=float(localization))
        steps = _steps(Estimator(drawn, loss_fn, None, here, seed), module) if step_sizes is None else step_sizes
        for step_size in sorted(steps):
            at = _at(here, step_size)
            points.append(_point(Estimator(drawn, loss_fn, None, at, seed), module))
            if on_point is not None:
                on_point(points[-1], total)
    best = _best(points, middle)
    if best is None:
        return Calibration(tuple(points), None, config)
    recommended = replace(_at(config, best.step_size), nbeta=best.nbeta, localization=best.localization)
    return Calibration(tuple(points), recommended, config)


def _changed(config: SamplerConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a reader has to know of beside those told: the ones that are not the defaults."""
    default = SamplerConfig()
    others = [item.name for item in fields(config) if item.name not in ("dynamics", "nbeta", "localization", *told)]
    return {name: getattr(config, name) for name in others if getattr(config, name) != getattr(default, name)}


def _written(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _call(dynamics: Dynamics) -> str:
    """As Python, with the arguments that are not the defaults; three digits of the step are enough."""
    changed = {
        item.name: getattr(dynamics, item.name)
        for item in fields(dynamics)  # type: ignore[arg-type]
        if item.name != "step_size" and getattr(dynamics, item.name) != item.default
    }
    told = [f"step_size={dynamics.step_size:.3g}", *(f"{name}={value!r}" for name, value in changed.items())]
    return f"{type(dynamics).__name__}({', '.join(told)})"


def _refuse_empty(**lists: Sequence[float] | None) -> None:
    for name, given in lists.items():
        if given is not None and not len(given):
            raise ValueError(f"Expected `{name}` to hold at least one number, or to be None, but it is empty.")


def _refuse_others(dynamics: Dynamics) -> None:
    if not is_dataclass(dynamics) or "step_size" not in {item.name for item in fields(dynamics)}:
        raise TypeError(
            "Expected the dynamics of `sampler` to be a dataclass with a field `step_size`, so that the grid can "
            f"change it, but {type(dynamics).__name__} is none: give it the decorator `@dataclass(frozen=True)`."
        )


def _at(config: SamplerConfig, step_size: float) -> SamplerConfig:
    return replace(config, dynamics=replace(config.dynamics, step_size=float(step_size)))  # type: ignore[type-var]


def _factors(dynamics: Dynamics) -> tuple[float, ...]:
    auto: AutoStep = getattr(dynamics, "auto", BIASED)
    return _BIASED_FACTORS if auto.is_biased else _FREE_FACTORS


def _steps(estimator: Estimator, module: nn.Module) -> list[float]:
    """Around the step that "auto" would begin with."""
    automatic = estimator.automatic_step_size(module)
    return [factor * automatic for factor in _factors(estimator.config.dynamics)]


def _point(estimator: Estimator, module: nn.Module) -> CalibrationPoint:
    measurement = estimator.measure(module)
    llc, health = measurement["llc"], measurement["health"]
    return CalibrationPoint(
        step_size=float(estimator.dynamics.step_size),
        nbeta=estimator.nbeta,
        localization=estimator.config.localization,
        llc=llc["mean"],
        stderr=llc["stderr"],
        rhat=health["rhat"],
        drift=health["drift"],
        step_bias=health["step_bias"],
        failed_chains=health["failed_chains"],
        verdict=_verdict(health),
        stability=health["stability"],
        noise_bias=health["noise_bias"],
    )


def _verdict(health: Mapping[str, Any]) -> str:
    if health["failed_chains"]:
        return "diverges"
    if health["step_bias"] > _MOST_BIAS or health["stability"] > _MOST_STABILITY:  # NaN: the dynamics does not tell
        return "biased"
    if health["noise_bias"] > _MOST_NOISE:
        return "noisy"
    if abs(health["drift"]) > _MOST_DRIFT:
        return "drifts"
    return "chains disagree" if health["rhat"] > _MOST_RHAT else "sound"


def _best(points: Sequence[CalibrationPoint], middle: float) -> CalibrationPoint | None:
    sound = [point for point in points if point.verdict == "sound"]

    def rank(point: CalibrationPoint) -> tuple[float, float, float]:
        distance = abs(math.log(point.nbeta / middle)) if point.nbeta > 0 and middle > 0 else 0.0
        return round(distance, 6), point.localization, -point.step_size

    return min(sound, key=rank, default=None)
