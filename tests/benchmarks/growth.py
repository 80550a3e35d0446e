"""Cost against size: sixteen times as much of anything should take sixteen times as long, and no more.

Measured on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other work):

* 16 times the chains; draws; samples: times the seconds = 9.3; 9.3; 7.5 x (wanted <= 16.8).
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from slt_callbacks import SGLD, Estimator, SamplerConfig
from slt_callbacks.data.drawing import draw_reference
from tests.benchmarks.models import Transformer, token_losses, token_rows
from tests.benchmarks.rows import Row, seconds

_FACTOR = 16
_SMALL = SamplerConfig(SGLD(1e-6), num_chains=1, num_draws=20, num_burnin_steps=0, batch_size=None, engine="sequential")


def rows() -> list[Row]:
    return [
        growth("chains", 8, replace(_SMALL, num_chains=_FACTOR), 8),
        growth("draws", 8, replace(_SMALL, num_draws=_FACTOR * _SMALL.num_draws), 8),
        growth("samples", 4, _SMALL, 4 * _FACTOR),
    ]


def growth(name: str, small_size: int, large: SamplerConfig, large_size: int, repeats: int = 5) -> Row:
    torch.manual_seed(0)
    module = Transformer()

    def measurement(config: SamplerConfig, size: int) -> float:
        estimator = Estimator(draw_reference([token_rows(size)]), token_losses, None, config)
        return seconds(lambda: estimator.measure(module))

    measurement(_SMALL, small_size)
    pairs = [(measurement(_SMALL, small_size), measurement(large, large_size)) for _ in range(repeats)]
    ratio = statistics.median(b / a for a, b in pairs)
    note = f"{statistics.median(a for a, _ in pairs):.3f} s, then {statistics.median(b for _, b in pairs):.2f} s"
    return Row(
        f"{_FACTOR} times the {name}: times the seconds", ratio, "x", f"<= {_FACTOR}.8", ratio <= 1.05 * _FACTOR, note
    )
