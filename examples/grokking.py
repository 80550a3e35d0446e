"""Watch grokking: the local learning coefficient (LLC) rises while a network memorises, and falls as it generalises.

A small network learns to add modulo a prime from 40 % of all sums. It knows those by heart after some 60 steps; the
sums it has never seen come only hundreds of steps later, because strong weight decay prefers the general solution.
Nothing but the training samples goes into the LLC. SLTMonitor announces that the rise is over some 50 steps after its
end, and the fall when a quarter of the unseen sums are right, before half of the run is over. It takes a minute or two
on two CPU cores. Nothing is downloaded and no W&B account is needed.

    python examples/grokking.py                    # the whole story
    python examples/grokking.py --shuffle-sums     # the control: nothing to understand, so the LLC must stay up
    python examples/grokking.py --smoke            # a few seconds: does everything run? (--help lists all flags)
"""

import argparse
import logging
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import Alert, JumpEvent, SamplerConfig, SLTMonitor, StageEvent, log_linear_steps, stage_figure

TRAIN_SHARE = 0.4

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers).*")  # Lightning's own

# On kernels this small a second thread saves a third at best, and costs tenfold when another program wants its core.
torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------------------ the data
def sums(prime: int, shuffled: bool) -> tuple[TensorDataset, TensorDataset]:
    """All pairs (a, b) with their sum modulo `prime`, split at random into those to learn and those never shown."""
    pairs = torch.cartesian_prod(torch.arange(prime), torch.arange(prime))
    answers = pairs.sum(1) % prime
    if shuffled:  # the same answers, as often, but dealt out at random: they can be memorised, and no more
        answers = answers[torch.randperm(len(answers))]
    train, test = torch.randperm(len(pairs)).tensor_split([round(TRAIN_SHARE * len(pairs))])
    return TensorDataset(pairs[train], answers[train]), TensorDataset(pairs[test], answers[test])


# ----------------------------------------------------------------------------------------------------------- the model
class Adder(pl.LightningModule):
    """Embeds both numbers and sends them through one hidden layer."""

    def __init__(self, prime: int, d_embedding: int = 64, d_hidden: int = 256) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.numbers = nn.Embedding(prime, d_embedding)
        self.layers = nn.Sequential(
            nn.Linear(2 * d_embedding, d_hidden), nn.ReLU(), nn.Linear(d_hidden, prime, bias=False)
        )

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        return self.layers(self.numbers(pairs).flatten(1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = losses(self, batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Weight decay this strong keeps the training loss off zero. With a weak one it goes to zero on samples known by
        # heart, where nothing moves it any more, and the LLC falls whether the network generalises or not.
        return torch.optim.AdamW(self.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=5.0)


def losses(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Loss of every sum, shape (B,): all that SLTMonitor has to know about a model."""
    pairs, answers = batch
    return cross_entropy(module(pairs), answers, reduction="none")


class Accuracy(pl.Callback):
    """Accuracy on seen and unseen sums, at the steps of `schedule`."""

    def __init__(self, train: TensorDataset, test: TensorDataset, schedule: Any) -> None:
        self.sets = {"train": train.tensors, "test": test.tensors}
        self.schedule = schedule
        self.steps: list[int] = []
        self.found: dict[str, list[float]] = {name: [] for name in self.sets}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.schedule(trainer.global_step):
            self.steps.append(trainer.global_step)
            for name, (pairs, answers) in self.sets.items():
                self.found[name].append(float((pl_module(pairs).argmax(1) == answers).float().mean()))
                pl_module.log(f"{name}/accuracy", self.found[name][-1])


# ------------------------------------------------------------------------------------------------------------- the LLC
def make_monitor(train: TensorDataset, schedule: Any, args: argparse.Namespace) -> SLTMonitor:
    sampler = SamplerConfig(
        nbeta=None,  # n / ln n of the n = 512 reference samples: 82
        # Most of the curvature there is, so that chains forget within two steps. At 1000 the LLC sinks by a tenth, with
        # the weights, before anything is understood, and that and the fall are found as one stage.
        localization=3000.0,
        num_draws=32,  # nearly independent ones: the standard error is some 2 % of the LLC
        num_burnin_steps=6,
        batch_size=64,  # many cheap steps tell more than a few exact ones
    )
    if args.smoke:
        sampler = replace(sampler, num_chains=2, num_draws=16, batch_size=32)
    return SLTMonitor(
        train,
        loss_fn=losses,
        sampler=sampler,
        num_samples=128 if args.smoke else 512,
        schedule=schedule,
        on_event=[Alert(), announce],  # W&B tells you, and this script
        # No limit, for a demo this short: the rise takes less than a second of training, and a tenth of that, the
        # default that a real run keeps, pays for one measurement. What it comes to is in the last lines.
        max_overhead=None,
        seed=args.seed,
    )


def announce(trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
    """A reaction of one's own is any function: this one prints the news while the network trains."""
    now = f"step {trainer.global_step:>5}:"
    if isinstance(event, JumpEvent):
        print(f"{now} the LLC has jumped {'up' if event.direction > 0 else 'down'} since step {event.onset_step}")
    elif isinstance(event, StageEvent):
        print(f"{now} boundary {event.boundary_id} {event.kind}: a stage began at step {event.step}")


# ----------------------------------------------------------------------------------------------------------------- W&B
def wandb_mode() -> str | None:
    """How to log: offline where there is no account or no network, for W&B itself would ask, or wait."""
    if os.environ.get("WANDB_MODE"):
        return None  # the user has decided, and W&B obeys
    try:
        if wandb.login(prompt=False):
            return "online"
        reason = "no API key found"
    except wandb.Error as error:
        reason = str(error).splitlines()[0].rstrip(".")
    print(f"W&B: logging offline ({reason}).")
    return "offline"


def where_to_look(run: wandb.Run) -> str:
    if run.disabled:
        return "W&B is disabled: the table and the figure are all there is."
    return (
        f"The run:    python -m wandb leet {Path(run.settings.sync_file).parent}"
        if run.offline
        else f"The run:    {run.url}"
    )


def report_of(logger: WandbLogger) -> Path:
    """Where the monitor's files lie: beside Lightning's checkpoints."""
    return Path(logger.save_dir) / str(logger.name) / str(logger.version) / "slt" / "report.html"


# --------------------------------------------------------------------------------------------------------- the results
def print_table(monitor: SLTMonitor, accuracy: Accuracy) -> None:
    at = dict(zip(accuracy.steps, zip(*accuracy.found.values(), strict=True), strict=True))
    print(f"\n{'step':>6}  {'train loss':>10}  {'train':>6}  {'test':>6}  {'LLC':>6} +- {'stderr':<6}  R-hat  stage")
    for measurement in monitor.history:
        llc, rhat, (train, test) = measurement["llc"], measurement["health"]["rhat"], at[measurement.step]
        stage = next((s.type for s in monitor.stages if s.start_step <= measurement.step <= s.end_step), "")
        print(
            f"{measurement.step:>6}  {llc['reference_loss']:>10.4f}  {train:>6.1%}  {test:>6.1%}  "
            f"{llc['mean']:>6.2f} +- {llc['stderr']:<6.2f}  {rhat:>5.2f}  {stage}"
        )


def print_stages(monitor: SLTMonitor, accuracy: Accuracy) -> None:
    print("\nThe stages:")
    for stage in monitor.stages:
        told = "" if stage.announced_at_step is None else f", announced at step {stage.announced_at_step}"
        print(
            f"  {stage.type:<8} steps {stage.start_step:>4} to {stage.end_step:>4}: "
            f"LLC {stage.llc_start:5.1f} -> {stage.llc_end:5.1f}{told}"
        )
    for name, found in accuracy.found.items():
        half = next((step for step, value in zip(accuracy.steps, found, strict=True) if value >= 0.5), "... never")
        print(f"Accuracy on {name}ing samples passes 50 % at step {half}.")


def title_of(monitor: SLTMonitor, accuracy: Accuracy, args: argparse.Namespace) -> str:
    """What the figure shows, as far as this run has shown it."""
    types = "".join(stage.type for stage in monitor.stages if stage.type in "ABCD")
    fell = "B" in types or "D" in types
    if args.shuffle_sums:
        return f"The control: nothing to understand{'' if fell else ', and the LLC stays up'}"
    grokked = accuracy.found["train"][-1] > 0.9 and accuracy.found["test"][-1] > 0.9
    if grokked and types[:1] in ("A", "C") and fell:
        return "Grokking: the LLC rises as a network memorises, and falls as it generalises"
    return f"A network learns to add modulo {args.prime}: accuracy, loss and LLC"


# ------------------------------------------------------------------------------------------------------------- the run
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small network to add modulo a prime, and watch its LLC while it groks.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=1600, help="length of the training in optimizer steps")
    parser.add_argument("--prime", type=int, default=59, help="the modulus, at least 11")
    parser.add_argument("--shuffle-sums", action="store_true", help="the control: answers dealt out at random")
    parser.add_argument("--seed", type=int, default=0, help="of weights, split, reference set and chains")
    parser.add_argument("--output-dir", type=Path, default="runs/grokking", help="where run and figure go")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: a smaller prime, few steps, short chains")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps, args.prime = 60, 23
    if args.max_steps < 1 or args.prime < 11:
        parser.error("--max-steps must be positive, and --prime at least 11")
    return args


def main() -> None:
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(args.seed, verbose=False)
    train, test = sums(args.prime, args.shuffle_sums)
    model = Adder(args.prime)
    # Log-spaced for the fast beginning, and then evenly: grokking takes its time
    schedule = log_linear_steps(args.max_steps, num_log=32, every=max(args.max_steps // 40, 1))
    monitor, accuracy = make_monitor(train, schedule, args), Accuracy(train, test, schedule)
    logger = WandbLogger(
        project="slt-grokking", save_dir=args.output_dir, mode=wandb_mode(), settings=wandb.Settings(quiet=True)
    )
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        callbacks=[monitor, accuracy],
        logger=logger,
        accelerator="cpu",  # a model this small gains nothing from a GPU
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # the announcements are what to watch
    )
    start = time.perf_counter()
    # Every step sees all training samples: one batch, as often as there are steps
    trainer.fit(model, DataLoader([list(train.tensors)] * args.max_steps, batch_size=None))
    total = time.perf_counter() - start
    logger.experiment.finish()

    print_table(monitor, accuracy)
    print_stages(monitor, accuracy)
    measuring = sum(measurement["cost"]["seconds"] for measurement in monitor.history)
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s ({measuring / total:.0%}).")
    path = args.output_dir / "grokking.png"
    labels = {"train": "sums it trains on", "test": "sums it has never seen"}
    panels = {"accuracy": {labels[name]: (accuracy.steps, found) for name, found in accuracy.found.items()}}
    title = title_of(monitor, accuracy, args)
    stage_figure(monitor.history, monitor.stages, monitor.events, path, panels=panels, title=title)
    print(f"The figure: {path}")
    report = report_of(logger)
    if report.exists():
        print(f"The report: {report}")
    print(where_to_look(logger.experiment))


if __name__ == "__main__":
    main()
