"""How long a step may be: what "auto" aims at, and what it is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, TypeVar

_D = TypeVar("_D", bound=Any)


@dataclass(frozen=True)
class AutoStep:
    """What ``step_size="auto"`` keeps to, in shares of the longest stable step: ``stability``, step_size k_max / 4.

    Attributes:
        aim: Of a step that is chosen.
        most: Above it a step is shortened.
        least: Below it a step may grow again.
        is_biased: Whether another step has another bias, so that what was measured before cannot be compared.
    """

    aim: float
    most: float
    least: float
    is_biased: bool


AUTO_STEP_BIAS = 0.02
"""Relative discretization bias that ``step_size="auto"`` accepts in the stiffest direction: well under the usual
standard error of an LLC, and each halving of it would double the cost."""

BIASED = AutoStep(
    aim=AUTO_STEP_BIAS,
    # Beyond it the bias is as large as the usual standard error, and an LLC that rises may be nothing else.
    most=0.05,
    # The step could be eight times as long, and chains crawl: one that was found where BatchNorm's averages lagged
    # behind would see nothing for the rest of the run. A curvature that wanders by less leaves the series whole.
    least=AUTO_STEP_BIAS / 8,
    is_biased=True,
)
"""Of a dynamics whose stationary variance depends on the step, by the share that `AutoStep` counts in."""


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_step_size(step_size: object) -> None:
    """See to it that it can be one.

    Raises:
        ValueError: If it is neither "auto" nor a finite number >= 0.
    """
    if step_size == "auto":
        return
    if not is_finite(step_size) or step_size < 0:
        raise ValueError(f'Expected `step_size` to be "auto" or a finite number >= 0, but got {step_size!r}.')


def number_of(step_size: float | str) -> float:
    """The step size that a step is taken with.

    Raises:
        ValueError: If it is still "auto".
    """
    if isinstance(step_size, str):
        raise ValueError(
            'A step needs a number, but `step_size` is still "auto": call `with_curvature` first, as `estimate` does.'
        )
    return step_size


def forgetting(rate: float) -> float:
    """Steps in which a chain forgets, ``2 / (step_size k)``, by its ``step_size k``; infinite where nothing pulls."""
    return 2 / rate if rate > 0 else math.inf


def for_curvature(dynamics: _D, curvature: float, auto: AutoStep) -> _D:
    """A dynamics with "auto" replaced by the step that `auto` aims at; one with a number comes back as it is.

    Args:
        dynamics: A dataclass with a `step_size`.
        curvature: k_max, of whatever preconditioned space it moves in.
        auto: What to aim at.

    Raises:
        ValueError: If the curvature is not a finite positive number.
    """
    if dynamics.step_size != "auto":
        return dynamics
    if not (math.isfinite(curvature) and curvature > 0):
        raise ValueError(
            f'step_size="auto" needs a positive curvature, but found {curvature}: the loss may not be finite at the '
            "fork, or nbeta and localization are both 0. Give `step_size` a number."
        )
    return replace(dynamics, step_size=4 * auto.aim / curvature)
