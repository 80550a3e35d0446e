"""devinterp and canonical-interp on the same work, in the same run, where they are installed (extra `[bench]`)."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import SGLD, SamplerConfig, estimate
from tests.benchmarks.models import Transformer, perceptron, token_losses, token_rows
from tests.benchmarks.rows import Row, interleaved, median_seconds, seconds
from tests.benchmarks.sampling import bare_steps

_STEP_SIZE, _NBETA, _LOCALIZATION = 1e-4, 100.0, 100.0
_CHAINS, _DRAWS, _BATCH = 4, 60, 16


def rows() -> list[Row]:
    return [*transformer(), *small_network()]


def transformer(repeats: int = 5) -> list[Row]:
    """A whole call on the transformer, for which devinterp is made."""
    names = (
        "a whole call of 4 x 60 steps / bare passes: ours",
        "the same: devinterp",
        "fixed cost of a call: devinterp",
    )
    torch.manual_seed(0)
    module, batch = Transformer(), token_rows(_BATCH)
    config = SamplerConfig(
        SGLD(_STEP_SIZE),
        nbeta=_NBETA,
        localization=_LOCALIZATION,
        num_chains=_CHAINS,
        num_draws=_DRAWS,
        num_burnin_steps=0,
        batch_size=None,
    )
    steps = _CHAINS * _DRAWS
    bare, ours, ratio = interleaved(
        lambda: bare_steps(module, batch, steps),
        lambda: estimate(module, [batch], token_losses, sampler=config),
        repeats,
    )
    found = [Row(names[0], ratio, "x", "<= 1.15", ratio <= 1.15, f"{ours:.2f} s against {bare:.2f} s")]
    if importlib.util.find_spec("devinterp") is None:
        missing = "not installed: pip install -e '.[bench]'"
        return [*found, Row(names[1], None, "x", note=missing), Row(names[2], None, "ms", note=missing)]
    call = _devinterp(module, batch)
    bare, theirs, ratio = interleaved(lambda: bare_steps(module, batch, steps), lambda: call(_DRAWS), repeats)
    short = median_seconds(lambda: call(1), repeats)
    fixed = short - _CHAINS * bare / steps
    found.append(Row(names[1], ratio, "x", note=f"{theirs:.2f} s against {bare:.2f} s"))
    return [*found, Row(names[2], 1e3 * fixed, "ms", note="one draw a chain, less its passes")]


def small_network(num_chains: int = 16, num_draws: int = 200, repeats: int = 3) -> list[Row]:
    """A whole call on a small network, all chains at once, for which canonical-interp is made."""
    torch.manual_seed(0)
    module, inputs, targets = perceptron(64, 96, 24, 10), torch.randn(32, 64), torch.randn(32, 10)
    config = SamplerConfig(
        SGLD(_STEP_SIZE),
        nbeta=10.0,
        localization=_LOCALIZATION,
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin_steps=0,
        batch_size=None,
        engine="vectorized",
    )

    def ours() -> object:
        return estimate(module, [(inputs, targets)], lambda net, b: (net(b[0]) - b[1]).square().mean(1), sampler=config)

    spent = median_seconds(ours, repeats)
    names = "a whole call of 16 x 200 steps, 9k parameters: ours", "the same: canonical-interp, compiled at every call"
    found = [Row(names[0], spent, "s")]
    if importlib.util.find_spec("canonical_interp") is None or sys.version_info < (3, 12):
        why = "it needs Python >= 3.12" if sys.version_info < (3, 12) else "not installed: pip install -e '.[bench]'"
        return [*found, Row(names[1], None, "s", note=why)]
    from canonical_interp.slt import LLCEstimator

    estimator = LLCEstimator(
        num_draws, num_chains, 0, 1, learning_rate=_STEP_SIZE, localization=_LOCALIZATION, nbeta=10.0
    )
    loader = DataLoader(TensorDataset(inputs, targets), 32)

    def call() -> object:
        return estimator.estimate_llc(module, loader, torch.nn.functional.mse_loss, show_progress=False)

    theirs = seconds(call)
    return [*found, Row(names[1], theirs, "s", note=f"{theirs / spent:.1f} times ours")]


def _devinterp(module: Transformer, batch: torch.Tensor) -> Any:
    from datasets import Dataset
    from devinterp.slt.llc import llc

    dataset = Dataset.from_dict({"input_ids": batch.tolist()}).with_format("torch")

    def call(num_draws: int) -> Any:
        return llc(
            module,
            dataset,
            {},
            lr=_STEP_SIZE,
            n_beta=_NBETA,
            localization=_LOCALIZATION,
            loss_fn=token_losses,
            num_chains=_CHAINS,
            num_draws=num_draws,
            batch_size=_BATCH,
            num_init_loss_batches=1,
        )

    return call
