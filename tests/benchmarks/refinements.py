"""What posteriors beside the main one cost, and a susceptibility to them.

Measured on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other work):

* chain step of the last of 4 layers / of all weights = 0.50 x (wanted <= 0.6).
* measurement with / without a susceptibility, the whole reference in every step = 0.80 x, noise included (wanted <=
  1.10).
* susceptibilities of linear regression against their closed form = 1.9 % (wanted <= 3 %).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import nn

from slt_callbacks import SGLD, Estimator, LeimkuhlerMatthews, Refinement, SamplerConfig, Susceptibility
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.measuring.refinement import RefinementSet
from slt_callbacks.sampling.chains import make_chains
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.sequential import SequentialEngine
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.selection import EVERYTHING, Selection
from tests.benchmarks.models import Transformer, token_losses, token_rows
from tests.benchmarks.rows import Row, at_most, interleaved, seconds
from tests.test_susceptibility import PARTS, REGRESSION, config, off

_LAYERS, _BATCH = 4, 16


def rows() -> Iterator[Row]:
    yield last_layer()
    yield every_layer()
    yield susceptibility()
    yield regression()


def last_layer(num_steps: int = 4, repeats: int = 20) -> Row:
    """No gradient is taken below the lowest layer that moves."""
    module, batch = _transformer(), token_rows(_BATCH)

    def chain(selection: Selection) -> object:
        objective = Objective(Fork(module, selection=selection), token_losses, draw_reference([batch]))
        objective.measure_fork()
        engine = SequentialEngine(objective, SGLD(1e-6), LocalPosterior(nbeta=100.0, localization=100.0))
        chains = make_chains(SamplerConfig(num_chains=1), objective.fork.device, seed=0, step=0)

        def run() -> None:
            for _ in engine.advance(chains, range(num_steps), keep=False):
                pass

        return run

    whole, last = chain(EVERYTHING), chain(Selection(f"blocks.{_LAYERS - 1}"))
    before, after, ratio = interleaved(whole, last, repeats)  # type: ignore[arg-type]
    note = f"{1e3 * after / num_steps:.2f} ms against {1e3 * before / num_steps:.2f} ms, {_LAYERS} layers, B {_BATCH}"
    return at_most("chain step of the last layer / of all weights", ratio, 0.6, "x", note)


def every_layer(repeats: int = 4) -> Row:
    """A refinement of every layer: what they add, against the main chains times the share of the backward they need."""
    module, batch = _transformer(), token_rows(_BATCH)
    names = [f"blocks.{place}" for place in range(_LAYERS)]
    estimators = [_estimator(batch, []), _estimator(batch, names)]
    bare = [_bare(module, batch, name) for name in ("", *names)]
    for one in (*estimators[:1], estimators[1]):
        one.measure(module)
    ratios, shares = [], []
    for _ in range(repeats):
        alone, beside = (seconds(lambda one=one: one.measure(module)) for one in estimators)  # type: ignore[misc]
        full, *parts = (min(seconds(step) for _ in range(6)) for step in bare)  # type: ignore[arg-type]
        shares.append(sum(parts) / full)
        ratios.append((beside - alone) / (alone * shares[-1]))
    note = f"{len(names)} layers, which need {statistics.median(shares):.2f} bare passes for one of all weights"
    return at_most(
        "what refinements add / the main chains x their share of the passes", statistics.median(ratios), 1.15, "x", note
    )


def susceptibility(repeats: int = 5) -> Row:
    """Where the whole reference is in every step, its losses are there already."""
    module, batch = _transformer(), token_rows(32)
    names = [f"blocks.{place}" for place in range(_LAYERS)]
    without, having = _estimator(batch, names), _estimator(batch, names, {"chi": Susceptibility()})
    _, _, ratio = interleaved(lambda: without.measure(module), lambda: having.measure(module), repeats)
    note = f"N 32, {len(names)} parts"
    return at_most("measurement with a susceptibility / refinements alone", ratio, 1.10, "x", note)


def regression() -> Row:
    """Against the closed form of linear regression, from so many draws that chance is not what is measured."""
    found = [REGRESSION.measure(config(chains=32, draws=1000), seed)["chi"]["matrix"] for seed in range(2)]
    error = off(torch.stack(found).mean(0), REGRESSION.exact(5.0, 5.0))
    note = f"{len(PARTS)} parts, {len(found) * 32 * 1000} draws each, relative to the norm of the exact matrix"
    return at_most("susceptibilities of linear regression, off by", 100 * error, 3.0, "%", note)


def _transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer(layers=_LAYERS)


def _estimator(
    batch: torch.Tensor, names: list[str], observables: dict[str, Susceptibility] | None = None
) -> Estimator:
    sampler = SamplerConfig(
        LeimkuhlerMatthews(1e-6),
        nbeta=100.0,
        num_chains=2,
        num_draws=12,
        num_burnin_steps=4,
        batch_size=None,
        engine="sequential",
    )
    given = RefinementSet({name: Refinement(name) for name in names})
    return Estimator(draw_reference([batch]), token_losses, observables, sampler, refinements=given)


def _bare(module: nn.Module, batch: torch.Tensor, name: str) -> object:
    """Forward and backward to the weights of a layer, or to all, and nothing else."""
    own = Fork(module, selection=Selection(name) if name else EVERYTHING).module
    moving = [parameter for parameter in own.parameters() if parameter.requires_grad]

    def step() -> None:
        torch.autograd.grad(token_losses(own, batch).mean(), moving)

    return step
