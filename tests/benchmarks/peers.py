"""devinterp on the same work, in the same run, where it is installed (extra `[bench]`)."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from slt_callbacks import SGLD, SamplerConfig, estimate
from tests.benchmarks.models import Transformer, token_losses, token_rows
from tests.benchmarks.rows import Row, interleaved, median_seconds
from tests.benchmarks.sampling import bare_steps

_STEP_SIZE, _NBETA, _LOCALIZATION = 1e-4, 100.0, 100.0
_CHAINS, _DRAWS, _BATCH = 4, 60, 16


def rows(repeats: int = 5) -> list[Row]:
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
