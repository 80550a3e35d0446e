"""A GPU is kept busy only while the host never waits for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from slt_callbacks import SGLD, RMSPropSGLD
from slt_callbacks.sampling import (
    Fork,
    LocalPosterior,
    Objective,
    SamplerConfig,
    SequentialEngine,
    draw_reference,
    make_chains,
)

WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Waits(TorchDispatchMode):
    """Counts the operators behind `.item()`, `if tensor:` and masks; they are the same on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dynamics", [SGLD(1e-4), RMSPropSGLD(1e-4)])
def test_an_sgld_step_never_waits_for_the_device(dynamics: Any) -> None:
    reference = draw_reference([torch.randn(4, 3)])
    objective = Objective(Fork(nn.Linear(3, 1)), lambda net, x: net(x).square().mean(1), reference)
    objective.measure_fork()
    engine = SequentialEngine(objective, dynamics, LocalPosterior(nbeta=1.0, localization=1.0))
    chains = make_chains(SamplerConfig(num_chains=1), objective.fork.device, seed=0, step=0)
    with Waits() as waits:
        for (point,) in engine.advance(chains, 5, keep=True):
            objective.excess(point.losses, point.samples)
    assert waits.count == 0


def test_the_counter_notices_an_item() -> None:
    with Waits() as waits:
        torch.ones(2).sum().item()
    assert waits.count == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dynamics", [SGLD(1e-4), RMSPropSGLD(1e-4)])
def test_cuda_itself_finds_no_synchronization_in_a_step(dynamics: Any) -> None:
    module = nn.Linear(3, 1).cuda()
    objective = Objective(Fork(module), lambda net, x: net(x).square().mean(1), draw_reference([torch.randn(4, 3)]))
    objective.measure_fork()
    engine = SequentialEngine(objective, dynamics, LocalPosterior(nbeta=1.0, localization=1.0))
    chains = make_chains(SamplerConfig(num_chains=1), objective.fork.device, seed=0, step=0)
    steps = engine.advance(chains, 5, keep=False)
    next(steps)  # the first step may load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in steps:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
