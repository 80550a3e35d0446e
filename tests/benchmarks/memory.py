"""Run alone: peak resident bytes that one measurement adds, and the bytes of the model's parameters."""

from __future__ import annotations

from pathlib import Path

import torch

from slt_callbacks import SGLD, Estimator, SamplerConfig
from slt_callbacks.sampling import draw_reference
from tests.benchmarks.models import perceptron, square_losses


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` (its peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    def measure(*widths: int) -> None:
        module = perceptron(*widths)
        config = SamplerConfig(SGLD(1e-6), num_chains=2, num_draws=3, num_burnin_steps=2)
        estimator = Estimator(draw_reference([torch.zeros(2, widths[0])]), square_losses, None, config)
        before = resident("VmRSS")
        assert not estimator.measure(module).failed
        found.append((resident("VmHWM") - before, sum(parameter.nbytes for parameter in module.parameters())))

    found: list[tuple[int, int]] = []
    measure(8, 8)  # whatever is loaded at first use is not the measurement's
    measure(*[2048] * 9)
    print(*found[-1])


if __name__ == "__main__":
    main()
