"""What the loss kernel, influence and a trajectory add to a measurement, and what showing them costs.

Measured on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other work):

* kernel and influence, 256 x 256, minibatches: their cost / the bare extra forward passes = 1.00 x (wanted <= 1.15).
* a 256 x 256 map into an offline W&B run = 5.5 ms (wanted <= 15 ms).
* compressibility alone, all of a measurement / a bare forward pass of the reference; forward passes it takes there =
  12.2 x; 11 (wanted <= 1.15 a pass; <= 25).
* a metric alone / a bare forward pass, one of two being the loss at w* = 2.0 x (wanted <= 2.3).
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import statistics
import tempfile
from typing import Any

import torch
import wandb
from torch import nn
from torchmetrics import MeanMetric

from slt_callbacks import (
    LLC,
    SGLD,
    Compressibility,
    Estimator,
    Influence,
    LossKernel,
    Metrics,
    SamplerConfig,
    TrajectoryPCA,
)
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.figures.images import correlation_map
from slt_callbacks.losses.objective import Objective
from slt_callbacks.observables.base import Observable
from slt_callbacks.weights.fork import Fork
from tests.benchmarks.models import Transformer, token_losses, token_rows
from tests.benchmarks.rows import Row, at_most, interleaved, median_seconds, seconds

_SIZE = 256  # N = Q
_CHAINS, _DRAWS, _BATCH = 2, 20, 16


def rows() -> list[Row]:
    return [*whole_reference(), *minibatches(), *trajectory(), *at_the_fork(), picture(), against_bif()]


def whole_reference(repeats: int = 3) -> list[Row]:
    """The SGLD step has computed the losses of the reference: what is made of them costs its moments, and no more."""
    module, reference = _problem()
    config = SamplerConfig(
        SGLD(1e-6), num_chains=_CHAINS, num_draws=_DRAWS, num_burnin_steps=0, batch_size=None, engine="sequential"
    )
    measure = functools.partial(_measure, module, reference, config)
    own = reference.batches()[0][0]
    note = f"N {_SIZE}, the 137k-parameter transformer, the whole reference in every step"
    found = []
    for name, more in (
        ("the kernel", lambda: [LossKernel()]),
        ("kernel and influence", lambda: [LossKernel(), Influence([own])]),
    ):
        _, _, ratio = interleaved(lambda: measure(LLC()), lambda more=more: measure(LLC(), *more()), repeats)  # type: ignore[misc]
        found.append(at_most(f"measurement with {name} / without", ratio, 1.10, "x", note))
        note = f"N = Q = {_SIZE}, queries are reference samples"
    others = [LossKernel(), Influence([reference_rows()])]
    note = f"N {_SIZE}, and Q {_SIZE} other samples"
    name = "kernel and influence on others / the queries' forward passes"
    return [*found, at_most(name, _per_pass(measure, others, _forward(module, reference), 1, repeats), 1.15, "x", note)]


def minibatches(repeats: int = 5) -> list[Row]:
    """With minibatches every draw needs the losses of the reference, and of the queries, once more."""
    module, reference = _problem()
    config = SamplerConfig(
        SGLD(1e-6), num_chains=_CHAINS, num_draws=_DRAWS, num_burnin_steps=0, batch_size=_BATCH, engine="sequential"
    )
    measure = functools.partial(_measure, module, reference, config)
    forward = _forward(module, reference)
    kernel = _per_pass(measure, [LossKernel()], forward, 1, repeats)
    both = _per_pass(measure, [LossKernel(), Influence([reference_rows()])], forward, 2, repeats)
    note = f"N {_SIZE}, minibatches of {_BATCH}"
    return [
        at_most("kernel / the bare extra forward passes", kernel, 1.15, "x", note),
        at_most("kernel and influence / the bare extra forward passes", both, 1.15, "x", note + f", Q {_SIZE}"),
    ]


def trajectory(repeats: int = 9) -> list[Row]:
    """Without chains: what a measurement takes is a forward pass of the probes, and their decomposition."""
    module, _ = _problem()
    probes = draw_reference([reference_rows()[:64]])

    def logits(module: Any, batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module(batch[:, :-1])[:, -4:]
        return found

    def alone(observable: Any) -> Estimator:
        return Estimator(draw_reference([token_rows(4)]), token_losses, {"own": observable}, SamplerConfig(SGLD(1e-6)))

    class Reads:
        """The same forward pass, of which nothing is made."""

        def inspect(self, fork: Any) -> dict[str, float]:
            with torch.no_grad():
                return {"sum": sum(float(logits(fork.module, batch).sum()) for batch, _ in fork.batches_of(probes))}

    class Nothing:
        def inspect(self, fork: Any) -> dict[str, float]:
            return {}

    path = TrajectoryPCA(probes, logits)
    estimators = [alone(Nothing()), alone(Reads()), alone(path)]
    steps = itertools.count()
    rounds = []
    for _ in range(40 + repeats):  # rows to be decomposed
        step = next(steps)
        nothing, reads, whole = (seconds(functools.partial(one.measure, module, step)) for one in estimators)
        rounds.append(((whole - nothing) / (reads - nothing), 1e3 * (reads - nothing)))
    ratio = statistics.median(ratio for ratio, _ in rounds[-repeats:])
    values = path.rows.shape[1]
    note = f"{len(path.rows)} rows of {values} values; the pass takes {statistics.median(t for _, t in rounds):.1f} ms"
    return [at_most("a trajectory / one forward pass of its probes", ratio, 2.0, "x", note)]


def _per_pass(measure: Any, observables: list[Observable], forward: Any, sides: int, repeats: int) -> float:
    """What the observables add to a measurement, over `sides` bare forward passes a draw, all three in turn."""
    rounds = []
    for _ in range(repeats):
        bare = seconds(lambda: measure(LLC()))
        with_them = seconds(lambda: measure(LLC(), *observables))
        extra = seconds(lambda: [forward() for _ in range(sides * _CHAINS * _DRAWS)])
        rounds.append((with_them - bare) / extra)
    return statistics.median(rounds)


def at_the_fork(repeats: int = 3) -> list[Row]:
    """Without chains: passes of the reference through the loss, and the time beside that of a bare one."""
    module, reference = _problem()
    passes = 0

    def counted(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        passes += len(batch)
        return token_losses(module, batch)

    observables = {"compressibility": Compressibility()}
    estimator = Estimator(reference, counted, observables)
    estimator.measure(module)  # tries the loss
    passes = 0
    estimator.measure(module)
    asked = passes / _SIZE - 1
    _, took, ratio = interleaved(_forward(module, reference), lambda: estimator.measure(module), repeats)
    note = f"N {_SIZE}, the 137k-parameter transformer, {took:.2f} s"
    metrics = {"mean": Metrics(MeanMetric(), token_losses)}
    simple = Estimator(reference, token_losses, metrics)
    _, _, metric = interleaved(_forward(module, reference), lambda: simple.measure(module), repeats)
    one = "one of the passes is the loss at w*"
    return [
        at_most("compressibility: forward passes of the reference", asked, 25, "passes", note),
        at_most("it alone, all of a measurement / a bare forward pass", ratio, 1.15 * (asked + 1), "x", one),
        at_most("a metric alone, all of a measurement / a bare forward pass", metric, 2.3, "x", one),
    ]


def picture(repeats: int = 50) -> Row:
    """What the thread of training waits for while W&B is given a map: colours, PNG, and its file."""
    matrix = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with tempfile.TemporaryDirectory() as folder:
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True))
        try:
            spent = median_seconds(
                lambda: run.log({"slt/kernel/map": wandb.Image(correlation_map(matrix), caption="step 1")}), repeats
            )
        finally:
            run.finish()
    return at_most("a 256 x 256 map into an offline W&B run", 1e3 * spent, 15.0, "ms")


def against_bif(repeats: int = 3) -> Row:
    """Influence of 64 samples on 64 others over the same draws: ours in the stream, devinterp's from its files."""
    name = "influence from the draws / devinterp's compute_bif"
    if importlib.util.find_spec("devinterp") is None:
        return Row(name, None, "x", note="not installed: pip install -e '.[bench]'")
    import xarray as xr
    from devinterp.slt.bif import compute_bif

    from slt_callbacks.observables.base import ReferencePoint
    from slt_callbacks.sampling.draws import Draw

    size, draws = _SIZE, _CHAINS * 100
    losses = torch.randn(_CHAINS, draws // _CHAINS, 2 * size, generator=torch.Generator().manual_seed(0)).double()
    tree = xr.DataTree(
        xr.Dataset(
            {
                "loss_all": (("chain", "draw", "batch_all", "token_pos"), losses[..., None].float().numpy()),
                "input_ids_all": (("batch_all", "token"), torch.zeros(2 * size, 2, dtype=torch.int64).numpy()),
            }
        )
    )

    def theirs() -> torch.Tensor:
        rows, columns = range(size), range(size, 2 * size)
        found = compute_bif(
            tree,
            correlation_method="sequence",
            compute_covariance=True,
            batch_index_range_1=rows,
            batch_index_range_2=columns,
            batch_size=size,
        )
        return torch.as_tensor(found["influences"].values)

    def ours() -> torch.Tensor:
        influence, places = Influence([torch.zeros(size, 1)]), torch.arange(size)
        influence.reset(
            ReferencePoint(0, 0.0, torch.zeros(size), places, 1.0, 0.0, _CHAINS, draws // _CHAINS, "i", places)
        )
        for chain in range(_CHAINS):
            for index, values in enumerate(losses[chain]):
                mean = values.mean()
                influence.update(
                    Draw(chain, index, None, values[:size], mean, mean, values[:size], {"i": values[size:]})
                )
        result: torch.Tensor = influence.compute()["bif"]
        return result

    agreement = float((theirs().squeeze().double() + ours()).abs().max())
    they, we, ratio = interleaved(theirs, ours, repeats)
    note = (
        f"{draws} draws, {size} x {size}: {1e3 * we:.0f} ms, certainties and events included, against "
        f"{1e3 * they:.0f} ms; equal to {agreement:.0e} but for their sign"
    )
    return Row(name, ratio, "x", note=note)


def reference_rows() -> torch.Tensor:
    return token_rows(2 * _SIZE)[_SIZE:]


def _problem() -> tuple[nn.Module, ReferenceSet]:
    torch.manual_seed(0)
    return Transformer(), draw_reference([token_rows(_SIZE)])


def _measure(module: nn.Module, reference: ReferenceSet, config: SamplerConfig, *observables: Observable) -> Any:
    named = {type(observable).__name__.lower(): observable for observable in observables}
    return Estimator(reference, token_losses, named, config).measure(module)


def _forward(module: nn.Module, reference: ReferenceSet) -> Any:
    objective = Objective(Fork(module), token_losses, reference)
    return objective.sample_losses
