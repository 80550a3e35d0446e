"""What sampling costs beside the bare forward and backward passes it cannot do without, on a CPU or a GPU.

Measured beside what the README has, on two cores of an AMD EPYC, CPU only, torch 2.13 (a machine shared with other
work):

* 16 chains at once, compiled once a run (4 s) / one by one (9k-parameter MLP, B 32) = 0.18 x (wanted <= 0.3).

On one NVIDIA H200 (torch 2.11, float32, a thread of an Intel Xeon; models this small wait for launches, not for the
GPU):

* 8 chains of a 137k-parameter transformer (B 16) at once / one by one; compiled once a run (13 to 17 s) = 0.34 to 0.36
  x; 0.12 to 0.15 x (wanted <= 0.2).
* the same / bare batched forward and backward, of either kind = 1.07 to 1.10 x; 1.17 to 1.19 x (wanted <= 1.15).
* 16 chains at once / one by one (9k-parameter MLP, B 32); compiled (5 to 9 s) = 0.16 x; 0.04 to 0.06 x (wanted <= 0.5;
  <= 0.3).
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from slt_callbacks import SGLD, Estimator, SamplerConfig
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.losses.objective import Objective
from slt_callbacks.sampling.chains import make_chains
from slt_callbacks.sampling.curvature import largest_curvature
from slt_callbacks.sampling.engine import Engine
from slt_callbacks.sampling.posterior import LocalPosterior
from slt_callbacks.sampling.sequential import SequentialEngine
from slt_callbacks.sampling.vectorized import Program, VectorizedEngine, chain_gradients
from slt_callbacks.weights.fork import Fork
from tests.benchmarks.memory import NUM_CHAINS
from tests.benchmarks.models import TokenLosses, Transformer, perceptron, square_losses, token_losses, token_rows
from tests.benchmarks.rows import Row, at_most, interleaved, seconds

_BATCH = 16
_compile = functools.partial(torch.compile, dynamic=False)  # as the package does
_WIDE = LocalPosterior(nbeta=10.0, localization=100.0)


def rows(device: str = "cpu") -> Iterator[Row]:
    yield chain_step(device)
    yield from vectorized(device)
    if device != "cpu":
        yield from transformer_at_once(device)
    yield from fixed_cost(device)
    yield fixed_share(device)
    yield from memory(device)


def bare_steps(module: nn.Module, batch: torch.Tensor, num_steps: int) -> None:
    """Forward and backward, and nothing else."""
    for _ in range(num_steps):
        token_losses(module, batch).mean().backward()
        for parameter in module.parameters():
            parameter.grad = None


def chain_step(device: str, num_steps: int = 5, repeats: int = 40) -> Row:
    torch.manual_seed(0)
    module, batch = Transformer().to(device), token_rows(_BATCH).to(device)
    config = SamplerConfig(SGLD(1e-4), num_chains=1, batch_size=None)
    objective = Objective(Fork(module), token_losses, draw_reference([batch]))
    objective.measure_fork()
    engine = SequentialEngine(objective, config.dynamics, LocalPosterior(nbeta=100.0, localization=100.0))
    chains = make_chains(config, objective.fork.device, seed=0, step=0)

    def chain() -> None:
        for _ in engine.advance(chains, range(num_steps), keep=False):
            pass

    bare, ours, ratio = interleaved(lambda: bare_steps(module, batch, num_steps), chain, repeats)
    times = f"{1e3 * ours / num_steps:.2f} ms against {1e3 * bare / num_steps:.2f} ms"
    note = f"{times}, 137k-parameter transformer, B {_BATCH}"
    return at_most("chain step / bare forward+backward", ratio, 1.10, "x", note)


def vectorized(device: str) -> Iterator[Row]:
    """All chains of a small network at once against one by one: as it stands, and compiled once for a run."""
    torch.manual_seed(0)
    module, batch = perceptron(64, 96, 24, 10).to(device), torch.randn(32, 64)
    objective = Objective(Fork(module), square_losses, draw_reference([batch]))
    race = Race(objective, 16, "9k parameters, B 32, 16 chains")
    for name, bound, program in (("", 0.5, None), (", compiled", 0.3, _compile(chain_gradients))):
        yield race.row(f"vectorized{name} / sequential chain step", bound, program)


def transformer_at_once(device: str, num_chains: int = 8) -> Iterator[Row]:
    """Chains of the transformer at once, against one by one and against their bare batched passes."""
    torch.manual_seed(0)
    module, batch = Transformer().to(device), token_rows(_BATCH)
    objective = Objective(Fork(module), token_losses, draw_reference([batch]))
    race = Race(objective, num_chains, f"137k-parameter transformer, B {_BATCH}, {num_chains} chains")
    passes = bare_batched(module, batch.to(device), num_chains)
    for name, form in (("", lambda function: function), (", compiled", _compile)):
        program = form(chain_gradients)
        yield race.row(f"{num_chains} chains at once{name} / one by one", 0.2, program)
        yield race.bare_row(f"{num_chains} chains at once{name} / bare batched passes", 1.15, program, form(passes))


@dataclass(frozen=True)
class Race:
    """All chains of one objective at once against other ways of taking the same steps, in turn.

    Attributes:
        objective: The losses.
        num_chains: Of them.
        about: For the notes.
        num_steps: In a lap.
        repeats: Laps.
    """

    objective: Objective
    num_chains: int
    about: str
    num_steps: int = 20
    repeats: int = 15

    def row(self, name: str, bound: float, program: Program | None) -> Row:
        """Against one by one."""
        compiling, engine = self._at_once(program)
        sequential = SequentialEngine(self.objective, engine.dynamics, _WIDE)
        one, many, ratio = interleaved(lambda: self._run(sequential), lambda: self._run(engine), self.repeats)
        steps = self.num_chains * self.num_steps
        note = f"{1e6 * many / steps:.0f} us against {1e6 * one / steps:.0f} us a chain step, {self.about}"
        if "compiled" in name:
            note += f"; compiling took {compiling:.0f} s"
        return at_most(name, ratio, bound, "x", note)

    def bare_row(self, name: str, bound: float, program: Program | None, passes: Callable[[], object]) -> Row:
        """Against forward and backward passes of all chains in one program, and nothing else."""
        _, engine = self._at_once(program)
        bare, ours, ratio = interleaved(
            lambda: [passes() for _ in range(self.num_steps)], lambda: self._run(engine), self.repeats
        )
        note = f"{1e3 * ours / self.num_steps:.2f} ms against {1e3 * bare / self.num_steps:.2f} ms, {self.about}"
        return at_most(name, ratio, bound, "x", note)

    def _at_once(self, program: Program | None) -> tuple[float, VectorizedEngine]:
        self.objective.measure_fork()
        engine = VectorizedEngine(self.objective, SGLD(1e-4), _WIDE, program)
        taken = seconds(lambda: engine.try_step(self.num_chains))
        return taken, engine

    def _run(self, engine: Engine) -> None:
        config = SamplerConfig(SGLD(1e-4), num_chains=self.num_chains, batch_size=None)
        for group in engine.groups(make_chains(config, self.objective.fork.device, seed=0, step=0)):
            for _ in engine.advance(group, range(self.num_steps), keep=False):
                pass


def bare_batched(module: nn.Module, batch: torch.Tensor, num_chains: int) -> Callable[[], object]:
    """Gradients of the token losses at as many positions at once, and nothing else."""
    holder = TokenLosses(module)
    stacked = {name: p.detach().expand(num_chains, *p.shape).clone() for name, p in holder.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(holder, parameters, (batch,))
        return found.mean()

    gradients = vmap(grad(loss), in_dims=(0, None))
    return lambda: gradients(stacked, batch)


def fixed_cost(device: str, repeats: int = 30) -> list[Row]:
    """A whole measurement of one draw a chain, less its search for the stiffest direction and its four SGLD steps."""
    torch.manual_seed(0)
    module, batch = perceptron(64, 640, 768, 640, 64).to(device), torch.randn(2, 64)
    config = SamplerConfig(SGLD(1e-5), num_draws=1, num_burnin_steps=0, batch_size=None)
    estimator = Estimator(draw_reference([batch]), square_losses, None, config)
    objective = Objective(Fork(module), square_losses, draw_reference([batch]))
    objective.measure_fork()
    posterior = LocalPosterior(nbeta=1.0, localization=100.0)
    engine = SequentialEngine(objective, config.dynamics, posterior)
    chains = make_chains(config, objective.fork.device, seed=0, step=0)
    noise = torch.Generator(device).manual_seed(0)

    def search() -> None:
        largest_curvature(objective, posterior, noise)

    def steps() -> None:
        for _ in engine.advance(chains[:1], range(4), keep=False):
            pass

    rounds = [[seconds(f) for f in (lambda: estimator.measure(module), search, steps)] for _ in range(repeats)]
    fixed = statistics.median(whole - searching - stepping for whole, searching, stepping in rounds)
    whole, searching, stepping = (statistics.median(times) for times in zip(*rounds, strict=True))
    note = (
        f"1.07 M parameters, 4 chains: {1e3 * whole:.1f} ms, {1e3 * stepping:.1f} ms of them 4 SGLD steps on 2 samples"
    )
    search_note = f"once a measurement: 16 passes, 6 from the second on; {1e3 * searching:.1f} ms on 2 samples"
    return [
        at_most("fixed cost of a measurement", 1e3 * fixed, 20.0, "ms", note),
        Row("search for the stiffest direction / SGLD step", 4 * searching / stepping, "x", note=search_note),
    ]


def fixed_share(device: str, repeats: int = 3) -> Row:
    """Of a later default measurement, what its steps do not take: the fork, losses at w*, the look at a chain.

    Its steps cost what the steps cost by which one with three times the draws is longer.
    """
    torch.manual_seed(0)
    module, reference = Transformer().to(device), draw_reference([token_rows(256)])
    configs = (SamplerConfig(), SamplerConfig(num_draws=3 * SamplerConfig().num_draws))
    usual, longer = (Estimator(reference, token_losses, config=config, persistent=True) for config in configs)
    for estimator in (usual, longer):
        estimator.measure(module, 0)
    rounds = [[one.measure(module, step)["cost"] for one in (usual, longer)] for step in range(1, 1 + repeats)]
    per_step = statistics.median(
        (more["seconds"] - cost["seconds"]) / (more["sgld_steps"] - cost["sgld_steps"]) for cost, more in rounds
    )
    shares = [1 - cost["sgld_steps"] * per_step / cost["seconds"] for cost, _ in rounds]
    cost = rounds[-1][0]
    note = (
        f"137k-parameter transformer: {cost['seconds']:.2f} s for {cost['sgld_steps']} steps of {1e3 * per_step:.2f} ms"
    )
    return at_most("fixed parts of a default measurement", 100 * statistics.median(shares), 20.0, "%", note)


def memory(device: str) -> list[Row]:
    """Peak memory that measuring adds, each kind in a process of its own, over that of the parameters."""
    rows = []
    kinds = (("sequential", "cold", 3.0), ("sequential", "persistent", None), ("vectorized", "cold", None))
    for engine, chains, bound in kinds:
        command = [sys.executable, "-m", "tests.benchmarks.memory", engine, chains, device]
        # At once back to the system: what glibc keeps of freed tensors differs from run to run, by a whole model.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        added, parameters = map(int, printed.stdout.split())
        name = f"memory beyond the live model / parameters: {engine}, {chains}"
        note = f"{added / 2**20:.0f} MiB for {parameters / 2**20:.0f} MiB of parameters, {NUM_CHAINS} chains"
        ratio = added / parameters
        rows.append(at_most(name, ratio, bound, "x", note) if bound else Row(name, ratio, "x", note=note))
    return rows
