"""Watch where a transformer stands between two known solutions: ridge regression, and the tasks learned by heart.

Every sequence is a linear regression of its own: points x, and values y = w . x + noise. What w is, the network can
only find out from the points before. The w of the training sequences come from a pool of so many tasks (--tasks), and
two predictors are known in closed form. Ridge regression is best where w may be anything: it is the posterior mean
under N(0, 1). The best on the pool is the posterior mean over its tasks (dMMSE): it knows them by heart, and gives a w
that is not among them the nearest of those that are.

TrajectoryPCA follows the network's outputs on sequences whose w is not in the pool, where the two differ most, and
projects both predictors into the picture. Of few tasks the network becomes dMMSE. Of many it comes nearer to ridge
regression and stays there, though dMMSE is better on its training data.

A minute or two on two CPU cores; nothing is downloaded, no W&B account is needed.

    python examples/in_context_regression.py                # few tasks: learned by heart
    python examples/in_context_regression.py --tasks 64     # many tasks: ridge regression
    python examples/in_context_regression.py --smoke        # seconds: does everything run? (--help lists all flags)
"""

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.data import DataLoader, IterableDataset

from slt_callbacks import (
    LLC,
    FileSink,
    Measurement,
    SamplerConfig,
    SLTMonitor,
    TrajectoryPCA,
    log_linear_steps,
    stage_figure,
)

DIMENSIONS = 2  # of w
POINTS = 8  # of a sequence
NOISE = 0.125  # its variance
WIDTH = 32
HEADS = 2
BATCH_SIZE = 64
REFERENCE = 256  # sequences of the pool's tasks, to measure the LLC on
PROBES = 256  # sequences of other tasks, to follow the outputs on

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers).*")  # Lightning's own
torch.set_num_threads(1)  # kernels this small lose by a second thread

Batch = tuple[torch.Tensor, torch.Tensor]
"""Points ``(B, K, D)`` and values ``(B, K)``."""


# ------------------------------------------------------------------------------------------------------------ the data
def regressions(tasks: torch.Tensor, generator: torch.Generator) -> Batch:
    """A sequence of each task ``(B, D)``."""
    x = torch.randn(len(tasks), POINTS, DIMENSIONS, generator=generator)
    noise = torch.randn(len(tasks), POINTS, generator=generator)
    return x, (x * tasks[:, None]).sum(-1) + math.sqrt(NOISE) * noise


class Sequences(IterableDataset[Batch]):
    """Batches without end, of tasks from a pool ``(M, D)``; no sequence comes twice."""

    def __init__(self, pool: torch.Tensor, seed: int) -> None:
        self.pool, self.seed = pool, seed

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            chosen = torch.randint(len(self.pool), (BATCH_SIZE,), generator=generator)
            yield regressions(self.pool[chosen], generator)


# ---------------------------------------------------------------------------------------------------- known predictors
def ridge(batch: Batch) -> torch.Tensor:
    """The posterior mean of every value given the points before, w being N(0, 1): ridge regression, ``(B, K)``."""
    x, y = (tensor.double() for tensor in batch)
    found = []
    for k in range(POINTS):
        seen, values = x[:, :k], y[:, :k, None]
        precision = seen.mT @ seen + NOISE * torch.eye(DIMENSIONS, dtype=torch.float64)
        found.append((x[:, k] * torch.linalg.solve(precision, seen.mT @ values)[..., 0]).sum(-1))
    return torch.stack(found, 1).float()


def dmmse(pool: torch.Tensor) -> Callable[[Batch], torch.Tensor]:
    """The same, w being one of a pool ``(M, D)``, each as likely (discrete minimum mean squared error)."""

    def predict(batch: Batch) -> torch.Tensor:
        x, y = batch
        means = x @ pool.mT  # (B, K, M)
        fit = -(y[..., None] - means).square().cumsum(1) / (2 * NOISE)
        return (pad(fit[:, :-1], (0, 0, 1, 0)).softmax(-1) * means).sum(-1)

    return predict


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


# ----------------------------------------------------------------------------------------------------------- the model
class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class Transformer(pl.LightningModule):
    """Two layers. A token is a point, with the point before and its value: what is to be multiplied stands together."""

    def __init__(self, max_steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Sequential(nn.Linear(2 * DIMENSIONS + 1, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(POINTS, WIDTH))
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH))
        self.read = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.read.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A prediction of every value from the points up to it and the values before, ``(B, K)``."""
        before = (pad(x[:, :-1], (0, 0, 1, 0)), pad(y[:, :-1, None], (0, 0, 1, 0)))
        return self.read(self.blocks(self.embed(torch.cat([x, *before], -1)) + self.positions))[..., 0]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = square_errors(self, batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        steps = self.hparams["max_steps"]
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 100, 1.05 - step / steps))
        return [optimizer], [{"scheduler": rate, "interval": "step"}]


def outputs(module: nn.Module, batch: Batch) -> torch.Tensor:
    return module(*batch)


def square_errors(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Of every value of every sequence, shape (B, K)."""
    return (outputs(module, batch) - batch[1]).square()


# ----------------------------------------------------------------------------------------------------- the measurement
def make_monitor(reference: Batch, probes: Batch, pool: torch.Tensor, args: argparse.Namespace) -> SLTMonitor:
    sampler = SamplerConfig(num_chains=2, num_draws=40, batch_size=32)
    if args.smoke:
        sampler = SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=4, batch_size=32)
    known = {"ridge": ridge, "dmmse": dmmse(pool)}
    return SLTMonitor(
        [list(reference)],
        loss_fn=square_errors,
        observables={"llc": LLC(), "trajectory": TrajectoryPCA([list(probes)], outputs, references=known)},
        sampler=sampler,
        # Log-spaced for the fast beginning, and then evenly
        schedule=log_linear_steps(args.max_steps, num_log=10, every=max(args.max_steps // 10, 1)),
        max_overhead=None,  # a real run keeps the default, 10 %; in a demo that is a measurement or two
        sinks=[FileSink(args.output_dir / "slt")],
        seed=args.seed,
    )


# --------------------------------------------------------------------------------------------------------- the results
CURVES = ("distance/ridge", "distance/dmmse", "explained_1", "null_1", "speed")


def record_of(history: list[Measurement], between: float, args: argparse.Namespace) -> dict[str, Any]:
    """What is worth keeping of a run, in builtins."""
    curves = {name: [measurement["trajectory"][name] for measurement in history] for name in CURVES}
    return {
        "command": f"python examples/in_context_regression.py --tasks {args.tasks} --max-steps {args.max_steps} "
        f"--seed {args.seed}",
        "tasks": args.tasks,
        "between": between,
        "steps": [measurement.step for measurement in history],
        "loss": [measurement["llc"]["reference_loss"] for measurement in history],
        "llc": [measurement["llc"]["mean"] for measurement in history],
        "llc_stderr": [measurement["llc"]["stderr"] for measurement in history],
        **{name: [None if math.isnan(value) else value for value in curve] for name, curve in curves.items()},
    }


def print_history(history: list[Measurement]) -> None:
    print(f"\n{'':>6}  {'':>6}  {'':^15}  {'distance to':^13}  {'share of the first component':>28}")
    print(f"{'step':>6}  {'loss':>6}  {'LLC':>6} +- {'stderr':<5}  {'ridge':>6} {'dMMSE':>6}  {'':>8}of a random walk")
    for measurement in history:
        llc, path = measurement["llc"], measurement["trajectory"]
        print(
            f"{measurement.step:>6}  {llc['reference_loss']:>6.3f}  {llc['mean']:>6.1f} +- {llc['stderr']:<5.1f}  "
            f"{path['distance/ridge']:>6.3f} {path['distance/dmmse']:>6.3f}  "
            f"{path['explained_1']:>8.0%} {path['null_1']:>15.0%}"
        )


def print_verdict(record: dict[str, Any]) -> None:
    to_ridge, to_dmmse = record["distance/ridge"], record["distance/dmmse"]
    nearer = ["ridge regression" if one < other else "dMMSE" for one, other in zip(to_ridge, to_dmmse, strict=True)]
    print(f"\nWith {record['tasks']} tasks it ends nearer to {nearer[-1]}; the two are {record['between']:.3f} apart.")
    crossed = [k for k in range(1, len(nearer)) if nearer[k] != nearer[k - 1]]
    for k in crossed:
        print(f"  between steps {record['steps'][k - 1]} and {record['steps'][k]} it came nearer to {nearer[k]}")


def draw_figure(monitor: SLTMonitor, record: dict[str, Any], path: Path) -> None:
    """The distances, the loss and the LLC at the same steps."""
    names = {"ridge": "ridge regression: any task", "dmmse": "dMMSE: the tasks of the pool, by heart"}
    curves = {label: (record["steps"], record[f"distance/{name}"]) for name, label in names.items()}
    by_heart = record["distance/dmmse"][-1] < record["distance/ridge"][-1]
    nearer = "knowing them by heart" if by_heart else "ridge regression"
    tasks = f"{record['tasks']} task{'s' * (record['tasks'] > 1)}"
    title = f"A transformer learns regression from {tasks}, and ends nearer to {nearer}"
    panels = {"distance to what is known\n(outputs on new tasks)": curves}
    figure = stage_figure(monitor.history, monitor.stages, monitor.events, panels=panels, title=title)
    figure.axes[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------------------- the run
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small transformer on linear regressions, and see which known solution it stands at.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tasks", type=int, default=4, help="task diversity: how many w there are to train on")
    parser.add_argument("--max-steps", type=int, default=2000, help="length of the training in optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tasks, sequences, and chains")
    parser.add_argument("--output-dir", type=Path, default="runs/in_context_regression", help="where everything goes")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: 6 steps, short chains")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps = 6
    if min(args.max_steps, args.tasks) < 1:
        parser.error("--max-steps and --tasks must be positive")
    return args


def main() -> None:
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    pl.seed_everything(args.seed, verbose=False)
    generator = torch.Generator().manual_seed(args.seed)
    others = torch.randn(PROBES, DIMENSIONS, generator=generator)
    pool = torch.randn(args.tasks, DIMENSIONS, generator=generator)
    probes = regressions(others, generator)
    reference = regressions(pool[torch.arange(REFERENCE) % args.tasks], generator)
    monitor = make_monitor(reference, probes, pool, args)
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        callbacks=[monitor],
        accelerator="cpu",  # a model this small gains nothing from a GPU
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not args.smoke,
        default_root_dir=args.output_dir,
    )
    trainer.fit(Transformer(args.max_steps), DataLoader(Sequences(pool, args.seed + 1), batch_size=None))
    total = time.perf_counter() - start

    record = record_of(monitor.history, apart(ridge(probes), dmmse(pool)(probes)), args)
    (args.output_dir / "curve.json").write_text(json.dumps(record, indent=1) + "\n")
    print_history(monitor.history)
    print_verdict(record)
    measuring = sum(measurement["cost"]["seconds"] for measurement in monitor.history)
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s ({measuring / total:.0%}).")
    path = args.output_dir / "in_context_regression.png"
    draw_figure(monitor, record, path)
    print(f"The figure: {path}, and where training moved: {args.output_dir / 'slt' / 'trajectory'}")
    report = args.output_dir / "slt" / "report.html"
    if report.exists():
        print(f"The report: {report}")


if __name__ == "__main__":
    main()
