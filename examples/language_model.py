"""Watch the local learning coefficient (LLC) of a small language model rise while it learns to write Python.

A 2-layer transformer reads the source of Python's own standard library, byte by byte. At some thirty steps of the
training, dense in its first moments, SLTMonitor measures the LLC and logs it to Weights & Biases, next to the loss.
It takes 2 to 4 minutes on two CPU cores. Nothing is downloaded and no W&B account is needed.

    python examples/language_model.py            # the whole story
    python examples/language_model.py --smoke    # a few seconds: does everything run? (--help lists all flags)
"""

import argparse
import logging
import math
import os
import shutil
import sys
import sysconfig
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import Alert, Refinement, SamplerConfig, SLTMonitor, behavioral, log_linear_steps, stage_figure

VOCABULARY = 256  # bytes
CONTEXT = 64
HEADS = 4
BATCH_SIZE = 16
TEXT_BYTES = 4_000_000

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, on torch 2.13

# On kernels this small a second thread saves a third at best, and costs tenfold when another program wants its core.
torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------------------ the data
def standard_library() -> torch.Tensor:
    """Source of the top-level modules of this Python's standard library, as bytes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b""
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= TEXT_BYTES:
            break
    if len(text) < 500_000:
        raise SystemExit(f"Found only {len(text)} bytes of source in {folder}: use a Python that ships with it.")
    return torch.frombuffer(bytearray(text[:TEXT_BYTES]), dtype=torch.uint8)


def split(text: torch.Tensor) -> tuple[TensorDataset, TensorDataset]:
    """Training and held-out windows: `CONTEXT` bytes to read, and one more because every byte predicts the next."""
    windows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1).long()
    held_out = torch.arange(len(windows)) % 20 == 0  # every twentieth, so that both parts come from all modules
    return TensorDataset(windows[~held_out]), TensorDataset(windows[held_out])


# ----------------------------------------------------------------------------------------------------------- the model
class Block(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class LanguageModel(pl.LightningModule):
    def __init__(self, d_model: int, layers: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.bytes = nn.Embedding(VOCABULARY, d_model)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, d_model))
        self.blocks = nn.Sequential(*[Block(d_model) for _ in range(layers)])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, VOCABULARY, bias=False)
        nn.init.normal_(self.bytes.weight, std=0.1)
        nn.init.normal_(self.head.weight, std=0.02)  # starts near the uniform guess, a loss of ln 256

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.bytes(tokens) + self.positions)))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = next_byte_losses(self, batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def next_byte_losses(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Loss of every byte of every window, shape (B, T): all that SLTMonitor has to know about a model."""
    (windows,) = batch
    return cross_entropy(module(windows[:, :-1]).mT, windows[:, 1:], reduction="none")


def next_byte_logits(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """What the model says of every byte of every window, shape (B, T, V)."""
    (windows,) = batch
    logits: torch.Tensor = module(windows[:, :-1])
    return logits


# ------------------------------------------------------------------------------------------------------------- the LLC
def make_monitor(held_out: TensorDataset, args: argparse.Namespace) -> SLTMonitor:
    sampler = SamplerConfig(
        localization=2500.0,  # a small neighbourhood, which chains explore in a few steps: a short run has time for few
        num_draws=24,  # makes the standard error a few percent of the LLC
        num_burnin_steps=8,  # four times what they need to forget
        batch_size=4,  # many cheap steps tell more than a few exact ones
    )
    schedule = log_linear_steps(args.max_steps, num_log=14, every=max(args.max_steps // 20, 1))
    if args.smoke:
        sampler = SamplerConfig(num_chains=2, num_draws=8, num_burnin_steps=4, batch_size=4)
        schedule = log_linear_steps(args.max_steps, num_log=5, every=None)
    return SLTMonitor(
        held_out,
        loss_fn=next_byte_losses,
        sampler=sampler,
        num_samples=32 if args.smoke else 256,
        schedule=schedule,
        max_overhead=None,  # a real run keeps the default, 10 %; a demo this short could then measure only a few times
        on_event=[Alert()],  # where a stage begins; online W&B sends it by mail or to Slack
        # The LLC of what the model does now, whether or not that is a minimum of its loss: never below 0.
        refinements={"function": Refinement(loss_fn=behavioral(next_byte_logits, "kl"))},
        seed=args.seed,
    )


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
    if not run.offline:
        return f"The run:    {run.url}"
    return f"The run:    {wandb_command()} leet {Path(run.settings.sync_file).parent}"


def wandb_command() -> str:
    """W&B's own command as it can be typed here: it need not be on the PATH of who types `make demo`."""
    beside, here = Path(sys.executable).with_name("wandb"), Path.cwd()
    if shutil.which("wandb"):
        return "wandb"
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def report_of(logger: WandbLogger) -> Path:
    """Where the monitor's files lie: beside Lightning's checkpoints."""
    return Path(logger.save_dir) / str(logger.name) / str(logger.version) / "slt" / "report.html"


# --------------------------------------------------------------------------------------------------------- the results
def print_table(monitor: SLTMonitor) -> None:
    print(f"\n{'step':>6}  {'loss':>6}  {'LLC':>7} +- {'stderr':<6}  {'R-hat':>6}  {'function':>8}")
    for measurement in monitor.history:
        llc = measurement["llc"]
        estimate = f"{llc['mean']:>7.2f} +- {llc['stderr']:<6.2f}"
        function = measurement.refinements["function"]["llc"]["mean"]
        print(
            f"{measurement.step:>6}  {llc['reference_loss']:>6.3f}  {estimate}  {measurement['health']['rhat']:>6.2f}  "
            f"{function:>8.2f}"
        )
    print("function: the LLC of the divergence from what the model says now (behavioral), which is never below 0.")


def simple_guesses(train: TensorDataset) -> dict[str, float]:
    """Losses, in nats, of readers who know less than a transformer: milestones for the loss curve."""
    first, second = train.tensors[0][:, :-1], train.tensors[0][:, 1:]
    counts = torch.bincount((VOCABULARY * first + second).flatten(), minlength=VOCABULARY**2)
    pairs = (counts / counts.sum()).view(VOCABULARY, VOCABULARY)
    entropy_of_bytes, entropy_of_pairs = (float(torch.special.entr(p).sum()) for p in (pairs.sum(1), pairs))
    return {
        "a reader who knows nothing": math.log(VOCABULARY),
        "... knows how frequent each byte is": entropy_of_bytes,
        "... knows which byte follows which": entropy_of_pairs - entropy_of_bytes,
    }


def print_stages(monitor: SLTMonitor) -> None:
    print("\nThe stages:")
    for stage in monitor.stages:
        told = "" if stage.announced_at_step is None else f", announced at step {stage.announced_at_step}"
        print(
            f"  {stage.type:<8} steps {stage.start_step:>5} to {stage.end_step:>5}: "
            f"LLC {stage.llc_start:6.1f} -> {stage.llc_end:6.1f}{told}"
        )


def title_of(monitor: SLTMonitor) -> str:
    """What the figure shows, as far as this run has shown it."""
    types = [stage.type for stage in monitor.stages]
    if "A" not in types:
        return "A transformer learns Python: its loss, and its LLC"
    settled = " and settles" if types[-1] == "plateau" else ""
    return f"A transformer learns Python: its loss falls, its LLC rises{settled}"


def draw_figure(monitor: SLTMonitor, milestones: dict[str, float], path: Path) -> None:
    """Loss and LLC against the training step, with stages, and with milestones for the loss."""
    figure = stage_figure(monitor.history, monitor.stages, monitor.events, title=title_of(monitor))
    loss, llc = figure.axes
    note: dict[str, Any] = {"textcoords": "offset points", "color": "0.3", "size": 9.5}
    for text, value in milestones.items():
        loss.axhline(value, color="0.4", linewidth=0.8, linestyle="--")
        # On the side where the loss is far away: above the first line all the time, above the others in the beginning
        loss.annotate(text, (0, value), (8, 3), xycoords=("axes fraction", "data"), **note)
    loss.set(ylabel="held-out loss (nats per byte)", ylim=(0, 6.2))
    steps = [measurement.step for measurement in monitor.history]
    function = [measurement.refinements["function"]["llc"]["mean"] for measurement in monitor.history]
    llc.plot(steps, function, color="black", linewidth=1.2, linestyle=(0, (4, 2)))
    place = len(steps) // 4
    told = "dashed: the LLC of what the model\nsays now, never below 0"
    llc.annotate(told, (steps[place], function[place]), (0, 10), va="bottom", ha="right", **note)
    if min(measurement["llc"]["mean"] for measurement in monitor.history) < 0:
        at = {"xy": (1, 0), "xytext": (-6, -4), "xycoords": ("axes fraction", "data")}
        text = llc.annotate(
            "below 0: in no valley yet, the chains find lower losses", ha="right", va="top", **at, **note
        )
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1})
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------------------- the run
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small language model on Python's own standard library and watch its LLC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=4000, help="length of the training in optimizer steps")
    parser.add_argument("--d-model", type=int, default=64, help=f"width of the transformer, a multiple of {HEADS}")
    parser.add_argument("--layers", type=int, default=2, help="number of transformer blocks")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order of the data, reference set and chains")
    parser.add_argument("--output-dir", type=Path, default="runs/language_model", help="where run and figure go")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: a tiny model, 12 steps, short chains")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps, args.d_model, args.layers = 12, 16, 1
    if min(args.max_steps, args.d_model, args.layers) < 1 or args.d_model % HEADS:
        parser.error(f"--max-steps, --d-model and --layers must be positive, and --d-model a multiple of {HEADS}")
    return args


def main() -> None:
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(args.seed, verbose=False)
    train, held_out = split(standard_library())
    model = LanguageModel(args.d_model, args.layers)
    monitor = make_monitor(held_out, args)
    logger = WandbLogger(
        project="slt-language-model", save_dir=args.output_dir, mode=wandb_mode(), settings=wandb.Settings(quiet=True)
    )
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        callbacks=[monitor],
        logger=logger,
        accelerator="cpu",  # a model this small gains nothing from a GPU
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, DataLoader(train, BATCH_SIZE, shuffle=True))
    total = time.perf_counter() - start
    logger.experiment.finish()

    print_table(monitor)
    print_stages(monitor)
    measuring = sum(measurement["cost"]["seconds"] for measurement in monitor.history)
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s ({measuring / total:.0%}).")
    draw_figure(monitor, simple_guesses(train), args.output_dir / "language_model.png")
    print(f"The figure: {args.output_dir / 'language_model.png'}")
    report = report_of(logger)
    if report.exists():
        print(f"The report: {report}")
    print(where_to_look(logger.experiment))


if __name__ == "__main__":
    main()
