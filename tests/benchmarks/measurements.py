"""Seconds of a measurement with every default, on the models of `real_models`: the first one of a run, and a later one.

On a GPU a CPU takes the same ones after it.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator

import torch

from slt_callbacks import Estimator
from tests.benchmarks import real_models
from tests.benchmarks.real_models import Problem
from tests.benchmarks.rows import Row

_LATER = 2


def rows(device: str = "cpu") -> Iterator[Row]:
    problems = [real_models.trained(name, num_moments=1)[0] for name in real_models.RECIPES]
    later = []
    for problem in problems:
        row, seconds = _measured(problem, device)
        later.append(seconds)
        yield row
    for problem, here in zip(problems, later, strict=True) if device != "cpu" else ():
        row, there = _measured(problem, "cpu")
        note = f"{row.value:.2f} s on the CPU, {row.note}; {torch.get_num_threads()} threads"
        yield Row(f"later ones of {problem.name}: on the CPU / here", there / here, "x", note=note)


def _measured(problem: Problem, device: str) -> tuple[Row, float]:
    """Measurements of a run with persistent chains, as the monitor makes them, and the seconds of a later one."""
    module = copy.deepcopy(problem.module).to(device)
    estimator = Estimator(problem.reference, problem.loss_fn, persistent=True)
    estimator.time_pass(module)  # whatever is loaded at first use
    first, *others = [estimator.measure(module, step) for step in range(1, 2 + _LATER)]
    later = statistics.median(one["cost"]["seconds"] for one in others)
    note = (
        f"first; {later:.2f} s later on; LLC {first['llc']['mean']:.1f} +- {first['llc']['stderr']:.1f}, "
        f"R-hat {first['health']['rhat']:.2f}, {estimator.state_dict(chains=False)['engine']}"
    )
    return Row(f"default measurement of {problem.name}", first["cost"]["seconds"], "s", note=note), later
