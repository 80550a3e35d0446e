"""How close ``step_size="auto"`` comes to the exact LLC, where that is known.

Measured on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other work):

* auto step, quadratics of condition 1, 1e2, 1e4: error of the LLC = 0.8, 0.3, 2.2 % (wanted <= 10 %).
* auto step, deep linear networks (10,10,10) of rank 5, (3,3,3) of rank 1 = 1.0, 4.8 % (wanted <= 10 %).
"""

from __future__ import annotations

import math

import torch

from slt_callbacks import SGLD, SamplerConfig, estimate
from tests import oracles
from tests.benchmarks.rows import Row, seconds
from tests.problems import TWO_SAMPLES, Quadratic, Weights
from tests.test_exact import DeepLinear


def rows() -> list[Row]:
    quadratics = [quadratic(condition) for condition in (1.0, 1e2, 1e4)]
    networks = [
        deep_linear((10, 10, 10), 5, 24, nbeta=4000.0, burn_in=2200),
        deep_linear((3, 3, 3), 1, 400, nbeta=2000.0, burn_in=2200),
    ]
    return [*quadratics, *networks]


def quadratic(condition: float, num_each: int = 100) -> Row:
    """Five curvatures between 1 and `condition`, evenly in the logarithm, without localization."""
    h = torch.logspace(0, math.log10(condition), 5, dtype=torch.float64).repeat(num_each)
    # A step of 2 % bias forgets the softest direction in 25 k_max / k_min steps, and its square in half of that.
    slowest = 25 * condition
    burn_in, between, draws = int(1.5 * slowest), max(int(slowest / 5), 1), 100 if condition < 1e3 else 6
    config = _settings(nbeta=10.0, draws=draws, burn_in=burn_in, between=between)
    measured, spent = _measure(Weights(torch.zeros(len(h), dtype=torch.float64)), Quadratic(h), config)
    return _row(f"auto step, quadratic of condition {condition:g}", measured, oracles.exact_llc(h, 10.0, 0.0), spent)


def deep_linear(widths: tuple[int, int, int], rank: int, copies: int, nbeta: float, burn_in: int) -> Row:
    """`copies` networks side by side, from the most singular point."""
    config = _settings(nbeta=nbeta, draws=100, burn_in=burn_in, between=8)
    measured, spent = _measure(DeepLinear(widths, rank, copies), DeepLinear.loss, config)
    exact = oracles.deep_linear_llc(widths, rank)
    return _row(f"auto step, deep linear {widths} of rank {rank}", measured / copies, exact, spent)


def _settings(nbeta: float, draws: int, burn_in: int, between: int) -> SamplerConfig:
    return SamplerConfig(
        SGLD("auto"),
        nbeta=nbeta,
        localization=0.0,
        num_chains=1,
        num_draws=draws,
        num_burnin_steps=burn_in,
        num_steps_bw_draws=between,
        batch_size=None,
    )


def _measure(module: torch.nn.Module, loss_fn: object, config: SamplerConfig) -> tuple[float, float]:
    found: list[float] = []
    spent = seconds(lambda: found.append(estimate(module, TWO_SAMPLES, loss_fn, sampler=config)["llc"]["mean"]))  # type: ignore[arg-type]
    return found[0], spent


def _row(name: str, measured: float, exact: float, spent: float) -> Row:
    error = abs(measured / exact - 1)
    note = f"{measured:.4g} for {exact:.4g}, in {spent:.0f} s"
    return Row(name, 100 * error, "% off", "<= 10", error <= 0.1, note)
