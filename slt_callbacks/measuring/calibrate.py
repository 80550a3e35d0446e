"""Which settings suit a model: one checkpoint measured over a grid of step sizes, nbetas and localizations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from torch import nn

from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES, Reference, draw_reference
from slt_callbacks.losses.functions import LossFn
from slt_callbacks.measuring.estimator import Estimator
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.langevin import SGLD
from slt_callbacks.sampling.posterior import default_nbeta

# Multiples of the step whose bias is 2 %: two below, where a plateau shows, and two above, where it ends.
_STEP_FACTORS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
_NBETA_FACTORS = (0.3, 1.0, 3.0)
_LOCALIZATION_FACTORS = (0.1, 1.0, 10.0)
_MOST_BIAS, _MOST_RHAT, _MOST_DRIFT = 0.025, 1.2, 3.0


# What a grid of SGLD's settings is measured with, unless it is told otherwise: its steps are short.
CALIBRATED: dict[str, Any] = {"num_draws": 200, "num_burnin_steps": 200, "batch_size": None}


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
        step_bias: Relative discretization bias.
        failed_chains: Chains that diverged.
        verdict: "sound", or the first thing that is wrong: "diverges", "biased", "drifts" or "chains disagree".

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


@dataclass(frozen=True)
class Calibration:
    """The whole grid, and the setting to take.

    Attributes:
        points: One a setting, by localization, then nbeta, then step size.
        recommended: The settings of the point to take, or None where none is sound.
        config: What stays the same over the grid.

    Example:
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
            f"SamplerConfig(SGLD(step_size={found.dynamics.step_size:.3g}), nbeta={found.nbeta:.4g}, "
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

    A point is sound if no chain diverges, the chains agree (R-hat <= 1.2) and no longer drift, and the step is too
    short to matter (bias of the stiffest direction <= 2.5 %). Of the sound ones `nbeta` nearest to the default comes
    first, then the weakest localization (it looks farthest), then the longest step (its chains forget soonest).

    Args:
        module: At the weights of one checkpoint; late in training is where the curvature, and with it the bias, is
            largest.
        reference: As in `estimate`.
        loss_fn: As in `estimate`.
        step_sizes: Of SGLD; None for 1/16 to 16 times the step with a bias of 2 %, anew for every nbeta and
            localization.
        nbetas: None for 0.3, 1 and 3 times that of `sampler`.
        localizations: None for 0.1, 1 and 10 times that of `sampler`.
        sampler: All other settings; its dynamics is not used. None for the defaults with 200 draws: where they are
            fewer, chains that forget slowly seem to disagree.
        num_samples: Samples drawn from `reference`; None for 256, or all where there are fewer.
        seed: Of the choice of samples and the chains.
        on_point: Told of every point as it is found, and of how many there will be.

    Returns:
        The grid and the recommendation.

    Raises:
        TypeError: As `estimate`.
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
        >>> [point.verdict for point in found.points][-2:]  # 4 and 16 times the step with a bias of 2 %
        ['biased', 'biased']
        >>> found.recommended.nbeta, round(found.recommended.dynamics.step_size, 5)  # 0.08 / 101
        (100.0, 0.00079)
    """
    for name, given in (("step_sizes", step_sizes), ("nbetas", nbetas), ("localizations", localizations)):
        if given is not None and not len(given):
            raise ValueError(f"Expected `{name}` to hold at least one number, or to be None, but it is empty.")
    config = SamplerConfig(SGLD(), **CALIBRATED) if sampler is None else sampler
    drawn = draw_reference(reference, num_samples, seed, at_most=DEFAULT_NUM_SAMPLES)
    middle = default_nbeta(len(drawn)) if config.nbeta is None else config.nbeta
    grid = list(
        product(
            [f * config.localization for f in _LOCALIZATION_FACTORS] if localizations is None else localizations,
            [f * middle for f in _NBETA_FACTORS] if nbetas is None else nbetas,
        )
    )
    total = len(grid) * (len(_STEP_FACTORS) if step_sizes is None else len(step_sizes))
    points: list[CalibrationPoint] = []
    for localization, nbeta in grid:
        here = replace(config, dynamics=SGLD(), nbeta=float(nbeta), localization=float(localization))
        steps = _steps(Estimator(drawn, loss_fn, None, here, seed), module) if step_sizes is None else step_sizes
        for step_size in sorted(steps):
            at = replace(here, dynamics=SGLD(float(step_size)))
            points.append(_point(Estimator(drawn, loss_fn, None, at, seed), module))
            if on_point is not None:
                on_point(points[-1], total)
    best = _best(points, middle)
    recommended = None
    if best is not None:
        recommended = replace(config, dynamics=SGLD(best.step_size), nbeta=best.nbeta, localization=best.localization)
    return Calibration(tuple(points), recommended, config)


def _changed(config: SamplerConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a reader has to know of beside those told: the ones that are not the defaults."""
    default = SamplerConfig()
    others = [item.name for item in fields(config) if item.name not in ("dynamics", "nbeta", "localization", *told)]
    return {name: getattr(config, name) for name in others if getattr(config, name) != getattr(default, name)}


def _written(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _steps(estimator: Estimator, module: nn.Module) -> list[float]:
    """Around the step that "auto" would take."""
    automatic = estimator.automatic_step_size(module)
    return [factor * automatic for factor in _STEP_FACTORS]


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
    )


def _verdict(health: Mapping[str, Any]) -> str:
    if health["failed_chains"]:
        return "diverges"
    if not health["step_bias"] <= _MOST_BIAS:
        return "biased"
    if abs(health["drift"]) > _MOST_DRIFT:
        return "drifts"
    return "chains disagree" if health["rhat"] > _MOST_RHAT else "sound"


def _best(points: Sequence[CalibrationPoint], middle: float) -> CalibrationPoint | None:
    sound = [point for point in points if point.verdict == "sound"]

    def rank(point: CalibrationPoint) -> tuple[float, float, float]:
        distance = abs(math.log(point.nbeta / middle)) if point.nbeta > 0 and middle > 0 else 0.0
        return round(distance, 6), point.localization, -point.step_size

    return min(sound, key=rank, default=None)
