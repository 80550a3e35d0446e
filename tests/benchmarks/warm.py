"""What persistent chains are worth while a model trains: against long cold chains, and cold ones of equal cost."""

from __future__ import annotations

import statistics

from slt_callbacks import Estimator
from slt_callbacks.measuring.measurement import Measurement
from tests.benchmarks import language
from tests.benchmarks.rows import Row, at_most

_DRAWS, _BURN_IN = 48, 240
_LONGER = 10
_FROM = 3  # the fourth measurement


def rows() -> list[Row]:
    """Errors at every measurement from the fourth on."""
    warm = Estimator(
        language.reference(), language.losses, None, language.settings(_DRAWS, _BURN_IN), seed=0, persistent=True
    )
    errors: dict[str, list[float]] = {"warm": [], "cold": []}
    steps, noise = [], []
    for number, (step, module) in enumerate(language.checkpoints()):
        measured = warm.measure(module, step)
        if number < _FROM:
            continue
        length = measured["cost"]["sgld_steps"] // language.NUM_CHAINS
        cold = _cold(length - _DRAWS, _DRAWS, seed=1).measure(module, step)
        long = _cold(4 * length, (_LONGER - 4) * length, seed=2).measure(module, step)
        truth = long["llc"]["mean"]
        errors["warm"].append(_error(measured, truth))
        errors["cold"].append(_error(cold, truth))
        steps.append(length)
        noise.append(long["llc"]["stderr"] / truth)
    points = f"{len(steps)} measurements of the language model, {language.NUM_CHAINS} chains"
    note = f"{points} of {statistics.median(steps):.0f} steps; the cold ones, {_LONGER} times as long, have a standard "
    note += f"error of {statistics.median(noise):.1%}; the largest error is {max(errors['warm']):.1%}"
    cold_note = "cold chains of as many steps; " + f"the largest error is {max(errors['cold']):.1%}"
    return [
        at_most("persistent chains: median error of the LLC", 100 * statistics.median(errors["warm"]), 5.0, "%", note),
        Row("  beside: cold chains of equal cost", 100 * statistics.median(errors["cold"]), "%", note=cold_note),
    ]


def _cold(num_burnin_steps: int, num_draws: int, seed: int) -> Estimator:
    config = language.settings(num_draws, num_burnin_steps)
    return Estimator(language.reference(), language.losses, None, config, seed=seed)


def _error(measurement: Measurement, truth: float) -> float:
    return abs(float(measurement["llc"]["mean"]) / truth - 1)
