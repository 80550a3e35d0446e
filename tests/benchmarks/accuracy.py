"""Error against cost: what it takes to know the LLC of one checkpoint within 5 %, here and in devinterp.

Here with the default dynamics, averaged noise at its own step; there with SGLD, at a step whose bias is small.

The error of an estimate is its root mean square one, over chains: the bias and the spread of a mean of four.
"""

from __future__ import annotations

import importlib.util
import itertools
import math

import torch

from slt_callbacks import LLC, Draw, Estimator, LeimkuhlerMatthews, ReferencePoint
from tests.benchmarks import language
from tests.benchmarks.rows import Row, seconds

_WANTED = 0.05
_CHAINS, _LENGTH = 12, 300
_LONG_CHAINS, _LONG_BURN_IN, _LONG_DRAWS = 4, 300, 2500
_PEER_DRAWS = 2500


def rows() -> list[Row]:
    *before, (step, module) = language.checkpoints()
    long = _estimator(_LONG_DRAWS, _LONG_BURN_IN, _LONG_CHAINS, seed=9).measure(module, step)["llc"]
    truth = long["mean"]
    about = f"LLC {truth:.1f} +- {long['stderr']:.1f}, language model at step {step}"

    trace = _estimator(_LENGTH, 0, _CHAINS, seed=1).measure(module, step)["excess"]["trace"]
    grid = itertools.product(range(0, 201, 5), range(4, 101, 4))
    good = [pair for pair in grid if _rms(trace[:, pair[0] : sum(pair)].mean(1), truth) <= _WANTED]
    burn_in, draws = min(good, key=sum)
    cold = _estimator(draws, burn_in, language.NUM_CHAINS, seed=2)
    cold_seconds = seconds(lambda: cold.measure(module, step))

    warm_draws, warm_length, warm_seconds = _warm(before, module, step, truth)
    cold_steps, warm_steps = language.NUM_CHAINS * (burn_in + draws), language.NUM_CHAINS * warm_length
    found = [
        Row("cold: seconds to 5 %", cold_seconds, "s", note=f"{cold_steps} steps ({burn_in} + {draws}); {about}"),
        Row("warm: seconds to 5 %", warm_seconds, "s", note=f"{warm_steps} steps ({warm_draws} draws)"),
    ]
    names = "devinterp: seconds to 5 %", "devinterp / ours, cold", "devinterp / ours, warm"
    if importlib.util.find_spec("devinterp") is None:
        return [*found, *(Row(name, None, "", note="not installed: pip install -e '.[bench]'") for name in names)]
    peer_draws, reached, peer_seconds = _devinterp(module, truth)
    peer_steps = language.NUM_CHAINS * peer_draws
    note = f"{peer_steps} steps" + ("" if reached else ", and still not within 5 %: the ratios are lower bounds")
    return [
        *found,
        Row(names[0], peer_seconds, "s", note=note),
        _ratio(names[1], peer_seconds / cold_seconds, 25.0, peer_steps / cold_steps),
        _ratio(names[2], peer_seconds / warm_seconds, 80.0, peer_steps / warm_steps),
    ]


def _ratio(name: str, times: float, wanted: float, steps: float) -> Row:
    return Row(name, times, "x", f">= {wanted:g}", times >= wanted, f"{steps:.1f} times the gradient steps")


def _warm(
    before: list[tuple[int, torch.nn.Module]], module: torch.nn.Module, step: int, truth: float
) -> tuple[int, int, float]:
    """Fewest draws, all steps of a chain, and seconds, for chains that come from the checkpoints before."""

    def persistent(draws: int, seed: int) -> Estimator:
        estimator = _estimator(draws, 40, language.NUM_CHAINS, seed, persistent=True)
        for earlier, checkpoint in before[-4:]:
            estimator.measure(checkpoint, earlier)
        return estimator

    for draws in range(4, 129, 4):
        traces = [persistent(draws, 20 + seed).measure(module, step)["excess"]["trace"] for seed in range(3)]
        if _rms(torch.cat(traces).mean(1), truth) <= _WANTED:
            break
    estimator, steps = persistent(draws, 30), [0]
    spent = seconds(lambda: steps.append(estimator.measure(module, step)["cost"]["sgld_steps"]))
    return draws, steps[-1] // language.NUM_CHAINS, spent


def _devinterp(module: torch.nn.Module, truth: float) -> tuple[int, bool, float]:
    """Fewest draws of a chain, whether they were enough, and their share of the seconds of one long call."""
    from datasets import Dataset
    from devinterp.slt.llc import llc

    [((windows,), _)] = language.reference().batches()
    dataset = Dataset.from_dict({"input_ids": windows.tolist()}).with_format("torch")
    traces: list[torch.Tensor] = []

    def call() -> None:
        found = llc(
            module,
            dataset,
            {},
            lr=language.STEP_SIZE,
            n_beta=language.NBETA,
            localization=language.LOCALIZATION,
            loss_fn=lambda model, rows: language.losses(model, [rows]),
            num_chains=language.NUM_CHAINS,
            num_draws=_PEER_DRAWS,
            batch_size=language.BATCH_SIZE,
            num_init_loss_batches=len(windows) // language.BATCH_SIZE,
        )
        traces.append(language.NBETA * torch.as_tensor(found.loss_trace.values - float(found.init_loss)).double())

    spent = seconds(call)
    sums = traces[0].cumsum(1)
    enough = [n for n in range(50, _PEER_DRAWS + 1, 50) if _rms(sums[:, n - 1] / n, truth) <= _WANTED]
    draws = enough[0] if enough else _PEER_DRAWS
    return draws, bool(enough), spent * draws / _PEER_DRAWS


def _rms(of_chains: torch.Tensor, truth: float) -> float:
    """Relative root mean square error of the mean of `NUM_CHAINS` such chains."""
    bias = float(of_chains.mean()) - truth
    return math.sqrt(bias**2 + float(of_chains.var()) / language.NUM_CHAINS) / abs(truth)


def _estimator(
    num_draws: int, num_burnin_steps: int, num_chains: int, seed: int, persistent: bool = False
) -> Estimator:
    config = language.settings(num_draws, num_burnin_steps, num_chains, LeimkuhlerMatthews())
    observables = {"llc": LLC(), "excess": _Excess()}
    return Estimator(language.reference(), language.losses, observables, config, seed=seed, persistent=persistent)


class _Excess:
    """What every draw of every chain gives for the LLC, ``(C, T)``: any shorter run can be read from it."""

    def reset(self, reference: ReferencePoint) -> None:
        self._nbeta, self._rows = reference.nbeta, [[] for _ in range(reference.num_chains)]  # type: ignore[var-annotated]

    def discard(self, chain: int) -> None:
        raise AssertionError("no chain diverges here")

    def update(self, draw: Draw) -> None:
        self._rows[draw.chain].append(draw.excess)

    def compute(self) -> dict[str, torch.Tensor]:
        return {"trace": self._nbeta * torch.stack([torch.stack(row) for row in self._rows]).double()}
