"""Run alone: peak bytes that measuring adds, and the bytes of the model's parameters.

python -m tests.benchmarks.memory sequential|vectorized cold|persistent cpu|cuda

On a CPU they are those that the process has in memory; on a GPU those that PyTorch's allocator has given out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from slt_callbacks import SGLD, Estimator, SamplerConfig
from slt_callbacks.data.drawing import draw_reference
from tests.benchmarks.models import perceptron, square_losses

NUM_CHAINS = 4


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (its peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(engine: str, chains: str, device: str) -> None:
    def measure(*widths: int) -> None:
        module = perceptron(*widths).to(device)
        config = SamplerConfig(SGLD(1e-6), num_chains=NUM_CHAINS, num_draws=3, num_burnin_steps=2, engine=engine)  # type: ignore[arg-type]
        reference = draw_reference([torch.zeros(2, widths[0])])
        estimator = Estimator(reference, square_losses, None, config, persistent=chains == "persistent")
        before = resident("VmRSS") if device == "cpu" else torch.cuda.memory_allocated()
        for step in (1, 2):
            assert not estimator.measure(module, step).failed
        peak = resident("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
        found.append((peak - before, sum(parameter.nbytes for parameter in module.parameters())))

    found: list[tuple[int, int]] = []
    measure(8, 8)  # whatever is loaded at first use is not the measurement's
    measure(*[2048] * 9)
    print(*found[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
