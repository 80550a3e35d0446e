"""The language model of `examples/language_model.py` on its way through training, and settings to measure it with."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.utils.data import DataLoader

from slt_callbacks import SGLD, Dynamics, SamplerConfig
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.data.reference import ReferenceSet

# Chains with a memory of 2 / (5e-5 * 200) = 200 steps: wide enough that short cold ones are badly off.
STEP_SIZE, NBETA, LOCALIZATION, BATCH_SIZE = 5e-5, 100.0, 200.0, 8
NUM_CHAINS = 4
_LAST_STEP, _EVERY = 3000, 300


def settings(
    num_draws: int, num_burnin_steps: int, num_chains: int = NUM_CHAINS, dynamics: Dynamics | None = None
) -> SamplerConfig:
    return SamplerConfig(
        SGLD(STEP_SIZE) if dynamics is None else dynamics,
        nbeta=NBETA,
        localization=LOCALIZATION,
        num_chains=num_chains,
        num_draws=num_draws,
        num_burnin_steps=num_burnin_steps,
        batch_size=BATCH_SIZE,
    )


@functools.cache
def reference() -> ReferenceSet:
    """256 windows of held-out text."""
    example = _example()
    return draw_reference(example.split(example.standard_library())[1], 256)


def losses(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """One loss a byte, ``(B, T)``."""
    found: torch.Tensor = _example().next_byte_losses(module, batch)
    return found


@functools.cache
def checkpoints() -> list[tuple[int, nn.Module]]:
    """(step, module) ten times in the example's training, which takes a minute once."""
    example = _example()
    torch.manual_seed(0)
    train, _ = example.split(example.standard_library())
    model = example.LanguageModel(d_model=64, layers=2)
    optimizer = model.configure_optimizers()
    found = []
    for step, batch in zip(range(1, _LAST_STEP + 1), DataLoader(train, example.BATCH_SIZE, shuffle=True), strict=False):
        losses(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % _EVERY == 0:
            copy = example.LanguageModel(d_model=64, layers=2)
            copy.load_state_dict(model.state_dict())
            found.append((step, copy))
    return found


@functools.cache
def _example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "language_model.py"
    spec = importlib.util.spec_from_file_location("language_model_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
