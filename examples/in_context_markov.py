"""Watch a transformer learn to learn in context, and see which of its heads do it.

Every sequence comes from a Markov chain of its own: three states, and a transition matrix that no other sequence has.
What the chain does, the network can only find out from the sequence itself. It learns three ways to guess the next
state, one after the other, whose losses are known exactly: all states alike (uniform), those that are frequent in the
sequence (unigram), and those that followed the present state before (bigram). The last takes two layers: a head that
looks one state back, and heads after it that look for places where the present state came one before (induction).
With one layer, which is the control, the network stays near the unigram.

SLTMonitor measures the LLC and beside it refined ones: chains that move one head alone, a layer, the embeddings or the
unembedding; and all weights with the network's own predictions as targets ("function"). From the same chains come
susceptibilities, how the loss of each sequence answers to a part; and an observable of the example's own takes each
head out and looks at the loss. A table at the end shows the three side by side. Among the heads of a layer those have
the higher refined LLC that the network can do less without. Heads of different layers are not of a like kind: those
of the second layer have lower LLCs than their use would say.

Two to three minutes on one CPU core; nothing is downloaded, no W&B account is needed.

    python examples/in_context_markov.py               # the whole story
    python examples/in_context_markov.py --layers 1    # the control: no second layer, no bigram
    python examples/in_context_markov.py --smoke       # a few seconds: does everything run? (--help lists all flags)
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import cross_entropy, one_hot, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import (
    LLC,
    FileSink,
    Measurement,
    Refinement,
    SamplerConfig,
    SLTMonitor,
    Susceptibility,
    attention_heads,
    behavioral,
    log_linear_steps,
    stage_figure,
)
from slt_callbacks.observables.fork_view import ForkView

STATES = 3
CONTEXT = 64
WIDTH = 32
BATCH_SIZE = 64
POOL = 20_000  # sequences to learn from
REFERENCE = 256  # sequences to measure on, never learned from
PROBES = 64  # of these, the ones whose susceptibilities are asked

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers).*")  # Lightning's own
torch.set_num_threads(1)  # kernels this small lose by a second thread


# ------------------------------------------------------------------------------------------------------------ the data
def markov_chains(number: int) -> torch.Tensor:
    """A sequence each of so many chains, `CONTEXT` states to read and one more because every state predicts the next.

    Rows of the transition matrices are uniform on the simplex; sequences begin in the stationary distribution.
    """
    rows = torch.distributions.Dirichlet(torch.ones(STATES)).sample((number, STATES))
    states = [torch.matrix_power(rows, 128)[:, 0].multinomial(1)[:, 0]]
    for _ in range(CONTEXT):
        states.append(rows[torch.arange(number), states[-1]].multinomial(1)[:, 0])
    return torch.stack(states, dim=1)


def reference_losses(sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each guess loses at every state of every sequence, (N, T): counts begin at one, and grow along it."""
    seen, following = one_hot(sequences[:, :-1]).double(), sequences[:, 1:, None]
    pairs = seen[:, :-1, :, None] * seen[:, 1:, None, :]  # (N, T - 1, from, to)
    pairs = nn.functional.pad(pairs.cumsum(1), (0, 0, 0, 0, 1, 0))  # before the second state there are none
    after_present = (pairs * seen[..., None]).sum(2)
    counts = {"uniform": torch.zeros_like(seen), "unigram": seen.cumsum(1), "bigram": after_present}
    return {
        name: -((count + 1) / (count + 1).sum(2, keepdim=True)).gather(2, following)[..., 0].log()
        for name, count in counts.items()
    }


def bigram_gain(sequences: torch.Tensor) -> list[str]:
    """How much the bigram knows of a sequence that the unigram does not, in thirds."""
    losses = reference_losses(sequences)
    gain = (losses["unigram"] - losses["bigram"]).mean(1)
    thirds = torch.bucketize(gain, gain.quantile(torch.tensor([1 / 3, 2 / 3], dtype=gain.dtype)))
    return [("low", "middle", "high")[third] for third in thirds.tolist()]


# ----------------------------------------------------------------------------------------------------------- the model
class Attention(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in projections)
        return self.o_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attn = Attention(heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attn(x)


class Transformer(pl.LightningModule):
    """Attention alone: no MLP and no normalization, so that a head is four slices of weights and nothing else."""

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.states = nn.Embedding(STATES, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block(heads) for _ in range(layers)])
        self.unembed = nn.Linear(WIDTH, STATES, bias=False)
        nn.init.normal_(self.states.weight, std=0.5)
        nn.init.normal_(self.positions.weight, std=0.1)
        nn.init.normal_(self.unembed.weight, std=0.02)  # starts near the uniform guess

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.unembed(self.blocks(self.states(states) + self.positions.weight))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = next_state_losses(self, batch).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def logits(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return module(batch[0][:, :-1])


def next_state_losses(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Loss at every state of every sequence, shape (B, T)."""
    return cross_entropy(logits(module, batch).mT, batch[0][:, 1:], reduction="none")


# ------------------------------------------------------------------------------------------------------------ the heads
def make_refinements(model: Transformer) -> tuple[dict[str, Refinement], dict[str, Refinement]]:
    """Heads, and whatever else has an LLC of its own."""
    layers, heads = len(model.blocks), dict[str, Refinement]()
    for layer in range(layers):
        heads |= attention_heads(model, f"blocks.{layer}.attn")
    others = {f"layer{layer}": Refinement(f"blocks.{layer}") for layer in range(layers)}
    others["embeddings"] = Refinement(["states", "positions"])
    others["unembed"] = Refinement("unembed")
    others["function"] = Refinement(loss_fn=behavioral(logits))
    return heads, others


class Ablation:
    """How much more the network loses without a head: an observable that moves the fork, and needs no chains."""

    @torch.no_grad()
    def inspect(self, fork: ForkView) -> dict[str, float]:
        whole, found = fork.loss(), {}
        for layer, block in enumerate(fork.module.blocks):
            columns = block.attn.o_proj.weight.unflatten(1, (block.attn.heads, -1))
            for head in range(block.attn.heads):
                kept = columns[:, head].clone()
                columns[:, head] = 0
                found[f"blocks.{layer}.attn.h{head}"] = fork.loss() - whole
                columns[:, head] = kept
        return found


# ------------------------------------------------------------------------------------------------------------- the LLC
def make_monitor(
    model: Transformer, reference: torch.Tensor, schedule: Callable[[int], bool], args: argparse.Namespace
) -> SLTMonitor:
    sampler = SamplerConfig(
        localization=100.0,  # chains forget in some five steps: R-hat is near 1, and 20 times the steps tell the same
        num_draws=20,
        num_steps_bw_draws=3,  # a draw costs the losses of all probes: of neighbours one is enough
        batch_size=4,  # many cheap steps tell more than a few exact ones
    )
    if args.smoke:
        sampler = SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=4, batch_size=4)
    heads, others = make_refinements(model)
    probes = reference[:PROBES]
    return SLTMonitor(
        TensorDataset(reference),
        loss_fn=next_state_losses,
        observables={
            "llc": LLC(),
            "chi": Susceptibility(TensorDataset(probes), labels=bigram_gain(probes)),
            "ablation": Ablation(),
        },
        sampler=sampler,
        num_samples=REFERENCE,
        schedule=schedule,
        refinements=heads | others,
        max_overhead=None,  # a real run keeps the default, 10 %; in a demo that is a measurement or two
        sinks=[FileSink(args.output_dir / "slt")],
        seed=args.seed,
    )


# --------------------------------------------------------------------------------------------------------- the results
def at_unigram(history: list[Measurement], losses: dict[str, float]) -> Measurement:
    """Where the network has learned the unigram and no more: the measurement whose loss is nearest to it."""
    return min(history, key=lambda measurement: abs(measurement["llc"]["reference_loss"] - losses["unigram"]))


def table_of_heads(before: Measurement, end: Measurement) -> dict[str, dict[str, float]]:
    """What is known of every head at the unigram plateau and at the end."""
    heads = list(end["ablation"])
    chi = end["chi"]["matrix"][:, [end["chi"]["columns"].index(head) for head in heads]]
    shares = chi.square().sum(0) / chi.square().sum()  # heads are of one size, so that raw values compare
    return {
        head: {
            "llc_before": before.refinements[head]["llc"]["mean"],
            "llc_before_stderr": before.refinements[head]["llc"]["stderr"],
            "llc": end.refinements[head]["llc"]["mean"],
            "llc_stderr": end.refinements[head]["llc"]["stderr"],
            "chi_share": share,
            "ablation_before": before["ablation"][head],
            "ablation": end["ablation"][head],
        }
        for head, share in zip(heads, shares.tolist(), strict=True)
    }


def agreement(heads: dict[str, dict[str, float]], measure: str) -> float:
    """Rank correlation (Spearman) of a measure with the loss that a head is worth, mean over layers."""
    layers: dict[str, list[dict[str, float]]] = {}
    for name, row in heads.items():
        layers.setdefault(name.rpartition(".")[0], []).append(row)
    found = [
        spearmanr([row[measure] for row in rows], [row["ablation"] for row in rows]).statistic
        for rows in layers.values()
    ]
    return float(sum(found) / len(found))


def print_history(history: list[Measurement]) -> None:
    print(f"\n{'step':>6}  {'loss':>6}  {'LLC':>6} +- {'stderr':<6}  {'R-hat':>5}  {'worst of a part':>15}  function")
    for measurement in history:
        llc, parts = measurement["llc"], measurement.refinements
        worst = max(part["health"]["rhat"] for part in parts.values())
        print(
            f"{measurement.step:>6}  {llc['reference_loss']:>6.4f}  {llc['mean']:>6.2f} +- {llc['stderr']:<6.2f}  "
            f"{measurement['health']['rhat']:>5.2f}  {worst:>15.2f}  {parts['function']['llc']['mean']:>8.2f}"
        )


def print_losses(history: list[Measurement], losses: dict[str, float]) -> None:
    print(f"\n{'':<16} loss")
    for name, value in losses.items():
        below = next((m.step for m in history if m["llc"]["reference_loss"] < value), None)
        reached = "not reached" if below is None else f"passed by step {below}"
        print(f"{name:<16} {value:.4f}  {reached}")
    plateau, end = at_unigram(history, losses), history[-1]
    for name, measurement in (("network, plateau", plateau), ("network, end", end)):
        print(f"{name:<16} {measurement['llc']['reference_loss']:.4f}  at step {measurement.step}")


def print_stages(monitor: SLTMonitor) -> None:
    print("\nThe stages:")
    for stage in monitor.stages:
        told = "" if stage.announced_at_step is None else f", announced at step {stage.announced_at_step}"
        print(
            f"  {stage.type:<8} steps {stage.start_step:>4} to {stage.end_step:>4}: "
            f"LLC {stage.llc_start:5.2f} -> {stage.llc_end:5.2f}{told}"
        )


def print_heads(heads: dict[str, dict[str, float]], before: Measurement, end: Measurement) -> None:
    print(f"\n{'':<16}  {'refined LLC':^36}  {'loss without it':^19}  {'chi, share':>10}")
    steps = f"step {before.step}", f"step {end.step}"
    print(f"{'head':<16}  {steps[0]:>16}  {steps[1]:>18}  {steps[0]:>9} {steps[1]:>9}  {'of squares':>10}")
    for head, row in heads.items():
        print(
            f"{head:<16}  {row['llc_before']:>7.3f} +- {row['llc_before_stderr']:.3f}  {row['llc']:>9.3f} +- "
            f"{row['llc_stderr']:.3f}  {row['ablation_before']:>+9.4f} {row['ablation']:>+9.4f}  "
            f"{row['chi_share']:>10.1%}"
        )
    print(
        "Do they put the heads of a layer in the order of what the network loses without them? (1: yes, 0: by chance)"
    )
    for name, measure in (("refined LLC", "llc"), ("susceptibility", "chi_share")):
        print(f"  {name:<14} {agreement(heads, measure):+.2f}")
    print(
        f"Susceptibilities: all parts alike {end['chi']['uniform_share']:.0%}, then {end['chi']['pc1_share']:.0%}, "
        f"{end['chi']['pc2_share']:.0%}, {end['chi']['pc3_share']:.0%}."
    )


def draw_figure(monitor: SLTMonitor, losses: dict[str, float], path: Path) -> None:
    """Refined LLCs of the heads, the loss with its milestones, and the LLC."""
    history = monitor.history
    steps = [measurement.step for measurement in history]
    panels: dict[str, dict[str, Any]] = {}
    for head in history[-1]["ablation"]:
        path_of_layer, _, name = head.rpartition(".")
        curve = (steps, [measurement.refinements[head]["llc"]["mean"] for measurement in history])
        panels.setdefault(f"refined LLC\n{path_of_layer}", {})[name] = curve
    title = "A transformer learns to learn in context: the LLC rises with the bigram, and most in the heads that do it"
    figure = stage_figure(history, monitor.stages, monitor.events, panels=panels, title=title)
    axes = figure.axes[-2]
    for name, value in losses.items():
        axes.axhline(value, color="0.4", linewidth=0.8, linestyle="--")
        axes.annotate(
            name, (1, value), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
        )
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------------------------------------------------- the run
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small transformer on Markov chains, and measure its heads while it learns in context.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=1500, help="length of the training in optimizer steps")
    parser.add_argument("--layers", type=int, default=2, help="layers of attention; with 1 there is no bigram")
    parser.add_argument("--heads", type=int, default=4, help=f"heads a layer, a divisor of {WIDTH}")
    parser.add_argument("--seed", type=int, default=0, help="of weights, sequences, and chains")
    parser.add_argument("--output-dir", type=Path, default="runs/in_context_markov", help="where everything goes")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: 12 steps, short chains, two heads")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps, args.heads = 12, 2
    if min(args.max_steps, args.layers, args.heads) < 1 or WIDTH % args.heads:
        parser.error(f"--max-steps and --layers must be positive, and --heads a divisor of {WIDTH}")
    return args


def fit(args: argparse.Namespace, schedule: Callable[[int], bool]) -> tuple[SLTMonitor, dict[str, float]]:
    """Train once; returns what was measured, and what the simple guesses lose on the same sequences."""
    pl.seed_everything(args.seed, verbose=False)
    sequences, reference = markov_chains(POOL), markov_chains(REFERENCE)
    model = Transformer(args.layers, args.heads)
    monitor = make_monitor(model, reference, schedule, args)
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
    trainer.fit(model, DataLoader(TensorDataset(sequences), BATCH_SIZE, shuffle=True))
    return monitor, {name: float(losses.mean()) for name, losses in reference_losses(reference).items()}


def main() -> None:
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    # Log-spaced for the fast beginning, and then evenly: the bigram takes its time
    monitor, losses = fit(args, log_linear_steps(args.max_steps, num_log=9, every=max(args.max_steps // 7, 1)))
    total = time.perf_counter() - start

    before, end = at_unigram(monitor.history, losses), monitor.history[-1]
    print_history(monitor.history)
    print_losses(monitor.history, losses)
    print_stages(monitor)
    print_heads(table_of_heads(before, end), before, end)
    measuring = sum(measurement["cost"]["seconds"] for measurement in monitor.history)
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s ({measuring / total:.0%}).")
    path = args.output_dir / "in_context_markov.png"
    draw_figure(monitor, losses, path)
    print(f"The figure: {path}")


if __name__ == "__main__":
    main()
