"""Error against gradient steps on the language model: SGLD's "auto" step beside that of averaged noise.

Measured on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other work):

* error of the LLC of the language model at localization 100, after 200 and 1600 steps in all: SGLD; averaged = 77, 21
  %; 4.6, 0.9 %.
* the same at localization 2500 = 32, 0.7 %; 2.3, 0.5 %.
"""

from __future__ import annotations

from typing import Any

import torch

from slt_callbacks import SGLD, Draw, Estimator, LeimkuhlerMatthews, ReferencePoint, SamplerConfig
from tests.benchmarks import language
from tests.benchmarks.rows import Row

# A wide neighbourhood, whose flattest direction forgets slowly, and a narrow one.
_LOCALIZATIONS = (100.0, 2500.0)
_LENGTHS = (25, 50, 100, 200, 400)  # gradient steps of a chain
_BATCH_SIZE = 16
_STEP = 1500
_LONG_BURN_IN, _LONG_DRAWS = 500, 1500


def rows() -> list[Row]:
    """For every localization and dynamics the error of chains of several lengths; a quarter of each is burn-in."""
    (module,) = [module for step, module in language.checkpoints() if step == _STEP]
    found = []
    for localization in _LOCALIZATIONS:
        long = _trace(module, LeimkuhlerMatthews(), localization, _LONG_BURN_IN, _LONG_DRAWS, seed=1)
        truth = float(long.mean())
        for dynamics in (SGLD(), LeimkuhlerMatthews()):
            trace = _trace(module, dynamics, localization, 0, max(_LENGTHS), seed=0)
            estimates = [float(trace[:, length // 4 : length].mean()) for length in _LENGTHS]
            pairs = zip(_LENGTHS, estimates, strict=True)
            errors = [f"{4 * length} steps {abs(one / truth - 1):.1%}" for length, one in pairs]
            name = f"localization {localization:g}, {type(dynamics).__name__}: error after {4 * _LENGTHS[-1]} steps"
            note = f"{', '.join(errors)}; {truth:.1f} is true, of chains of {_LONG_DRAWS} draws"
            found.append(Row(name, 100 * abs(estimates[-1] / truth - 1), "%", note=note))
    return found


def _trace(
    module: Any, dynamics: Any, localization: float, num_burnin_steps: int, num_draws: int, seed: int
) -> torch.Tensor:
    """nbeta times the excess loss of every draw, ``(C, T)``."""
    config = SamplerConfig(
        dynamics,
        localization=localization,
        num_burnin_steps=num_burnin_steps,
        num_draws=num_draws,
        batch_size=_BATCH_SIZE,
        engine="sequential",
    )
    estimator = Estimator(language.reference(), language.losses, {"trace": Excesses()}, config, seed=seed)
    trace: torch.Tensor = estimator.measure(module, _STEP)["trace"]["excess"]
    return estimator.nbeta * trace


class Excesses:
    """The excess loss of every draw."""

    def reset(self, reference: ReferencePoint) -> None:
        self._trace = torch.full((reference.num_chains, reference.num_draws), torch.nan)

    def update(self, draw: Draw) -> None:
        self._trace[draw.chain, draw.index] = draw.excess

    def compute(self) -> dict[str, Any]:
        return {"excess": self._trace}
