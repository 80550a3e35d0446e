"""Watch a transformer learn to learn in context: what it knows, when that begins, and which head it stands on.

Every sequence comes from a Markov chain of its own: three states, and a transition matrix that no other sequence has.
What the chain does, the network can only find out from the sequence itself. It learns three ways to guess the next
state, one after the other, whose losses are known exactly: all states alike (uniform), those that are frequent in the
sequence (unigram), and those that followed the present state before (bigram). The last takes two layers: a head that
looks one state back, and heads after it that look for places where the present state came one before (induction).
With one layer, which is the control, the network stays near the unigram.

Everything that SLTMonitor can measure is switched on:

* the LLC, watched for stages while they happen, and so is the distance of the predictions to the unigram, which has no
  noise of chains: an alert and what changed most where each began. The LLC has too few points here for a boundary of
  its own; in simulations of this curve it took some 50 measurements;
* refined LLCs: chains that move one head alone;
* susceptibilities: for which tokens a head works, those that the bigram knows better than the unigram, or worse;
* influence: which sequences help which tokens;
* what the weights themselves tell: where the predictions move (a trajectory, with the three guesses on its map), how
  far the weights can be compressed, the accuracy; and, an observable of the example's own, the loss without each head.

Three minutes on one CPU core; nothing is downloaded and no W&B account is needed.

    python examples/in_context_markov.py               # the whole story
    python examples/in_context_markov.py --layers 1    # the control: no second layer, no bigram
    python examples/in_context_markov.py --smoke       # a few seconds: does everything run? (--help lists all flags)
"""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy, one_hot, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from slt_callbacks import (
    LLC,
    Alert,
    Compressibility,
    FileSink,
    Influence,
    Measurement,
    Metrics,
    Observable,
    Refinement,
    SamplerConfig,
    SLTMonitor,
    StageDetector,
    StageEvent,
    Susceptibility,
    TrajectoryPCA,
    WandbSink,
    attention_heads,
    log_linear_steps,
    stage_figure,
)
from slt_callbacks.observables.fork_view import ForkView

STATES = 3
CONTEXT = 32
WIDTH = 32
BATCH_SIZE = 64
POOL = 20_000  # sequences to learn from
REFERENCE = 96  # sequences to measure on, never learned from
FOLLOWED = 32  # of these, the ones whose predictions are followed through training
UNIGRAM = "slt/trajectory/distance/unigram"  # how far its predictions are from those of the unigram
ASKED = 16  # of these, the ones whose tokens are asked which head works for them

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


def simple_guesses(sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log-probabilities that each guess gives the next state, (N, T, 3): counts begin at one, and grow along it."""
    seen = one_hot(sequences[:, :-1], STATES).float()
    pairs = seen[:, :-1, :, None] * seen[:, 1:, None, :]  # (N, T - 1, from, to)
    pairs = nn.functional.pad(pairs.cumsum(1), (0, 0, 0, 0, 1, 0))  # before the second state there are none
    after_present = (pairs * seen[..., None]).sum(2)
    counts = {"uniform": torch.zeros_like(seen), "unigram": seen.cumsum(1), "bigram": after_present}
    return {name: ((count + 1) / (count + 1).sum(2, keepdim=True)).log() for name, count in counts.items()}


def losses_of_guesses(sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each guess loses at every state of every sequence, (N, T)."""
    following = sequences[:, 1:, None]
    return {name: -guess.gather(2, following)[..., 0] for name, guess in simple_guesses(sequences).items()}


def whole(sequences: torch.Tensor) -> TensorDataset:
    """Sequences with a weight for the loss at every state: of these each counts alike."""
    return TensorDataset(sequences, torch.ones(len(sequences), CONTEXT))


def kinds_of_tokens(sequences: torch.Tensor) -> tuple[TensorDataset, list[str]]:
    """Every sequence once for each kind of token in it, with the weights that make its loss that of this kind alone.

    By how probable the bigram thinks the state that came, compared with the unigram: 1.5 times as much, or as little.
    """
    losses = losses_of_guesses(sequences)
    gain = (losses["unigram"] - losses["bigram"]).exp()
    kinds = {"bigram_knows": gain > 1.5, "alike": (gain <= 1.5) & (gain >= 1 / 1.5), "bigram_errs": gain < 1 / 1.5}
    rows = [(sequence, one, name) for name, kind in kinds.items() for sequence, one in enumerate(kind) if one.any()]
    weights = torch.stack([one * CONTEXT / one.sum() for _, one, _ in rows])
    return TensorDataset(sequences[[row[0] for row in rows]], weights), [row[2] for row in rows]


def chances_of_bigram(sequences: torch.Tensor) -> list[str]:
    """How much the bigram knows of a sequence that the unigram does not, in thirds."""
    losses = losses_of_guesses(sequences)
    gain = (losses["unigram"] - losses["bigram"]).mean(1)
    thirds = torch.bucketize(gain, gain.quantile(torch.tensor([1 / 3, 2 / 3])))
    return [("little_order", "some_order", "much_order")[third] for third in thirds.tolist()]


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


def log_probabilities(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """What is followed: logits that differ by a constant are one prediction, and at no distance."""
    return logits(module, batch).log_softmax(-1)


def predicted_and_true(module: nn.Module, batch: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return logits(module, batch).flatten(0, 1), batch[0][:, 1:].flatten()


def next_state_losses(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Loss at every state of every sequence, times its weight, shape (B, T)."""
    sequences, weights = batch
    return weights * cross_entropy(logits(module, batch).mT, sequences[:, 1:], reduction="none")


# ------------------------------------------------------------------------------------------------------------ the heads
def make_refinements(model: Transformer) -> dict[str, Refinement]:
    """Every head, "head0.0" and so on: its layer, and its place in it."""
    return {
        f"head{layer}.{number}": head
        for layer in range(len(model.blocks))
        for number, head in enumerate(attention_heads(model, f"blocks.{layer}.attn").values())
    }


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
                found[f"head{layer}.{head}"] = fork.loss() - whole
                columns[:, head] = kept
        return found


# ------------------------------------------------------------------------------------------------------------- the LLC
def make_observables(reference: torch.Tensor) -> dict[str, Observable]:
    asked, kinds = kinds_of_tokens(reference[:ASKED])
    guesses = {
        name: lambda batch, name=name: simple_guesses(batch[0])[name] for name in ("uniform", "unigram", "bigram")
    }
    return {
        "llc": LLC(),
        "susceptibility": Susceptibility(asked, labels=kinds),
        "influence": Influence(asked, labels=chances_of_bigram(reference), query_labels=kinds),
        "trajectory": TrajectoryPCA(whole(reference[:FOLLOWED]), log_probabilities, references=guesses),
        "compressibility": Compressibility(tolerance=0.02),  # a fifth of what the bigram gains
        "behavior": Metrics({"accuracy": MulticlassAccuracy(STATES, average="micro")}, predicted_and_true),
        "ablation": Ablation(),
    }


class News:
    """What was announced while the network trained, and at which step: the simplest thing to do on an event."""

    def __init__(self) -> None:
        self.told: list[tuple[int, StageEvent]] = []

    def __call__(self, trainer: pl.Trainer, model: pl.LightningModule, event: object) -> None:
        if isinstance(event, StageEvent) and event.kind == "announced":
            self.told.append((trainer.global_step, event))


def make_monitor(model: Transformer, reference: torch.Tensor, args: argparse.Namespace, news: News) -> SLTMonitor:
    sampler = SamplerConfig(
        nbeta=200.0,  # tried: at n / ln n, some 20, the LLC rises from 1 to 3 only, and here from 0 to 12
        num_draws=16,
        num_steps_bw_draws=3,  # a draw costs the losses of all probes: of neighbours one is enough
        batch_size=8,  # many cheap steps tell more than a few exact ones
    )
    if args.smoke:
        sampler = SamplerConfig(num_chains=2, num_draws=4, num_burnin_steps=4, batch_size=4)
    refinements = make_refinements(model)
    return SLTMonitor(
        whole(reference),
        loss_fn=next_state_losses,
        observables=make_observables(reference),
        sampler=sampler,
        num_samples=REFERENCE,
        schedule=make_schedule(args),
        refinements=refinements,
        detectors={UNIGRAM: StageDetector()},  # beside the LLC's: it has no noise of chains, which hides early stages
        max_overhead=None,  # a real run keeps the default, 10 %; in a demo that is a measurement or two
        on_event=[Alert(), news],  # where a stage begins; online W&B sends it by mail or to Slack
        sinks=[WandbSink(), FileSink(args.output_dir / "slt")],
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
        return "W&B is disabled: what is printed and the files are all there is."
    return (
        f"The run:    python -m wandb leet {Path(run.settings.sync_file).parent}"
        if run.offline
        else f"The run:    {run.url}"
    )


# --------------------------------------------------------------------------------------------------------- the results
def loss_of(measurement: Measurement) -> float:
    return measurement["llc"]["reference_loss"]


def at_unigram(history: Sequence[Measurement], losses: dict[str, float]) -> Measurement:
    """Where the network knows the unigram and no more: the measurement whose loss is nearest to it."""
    return min(history, key=lambda measurement: abs(loss_of(measurement) - losses["unigram"]))


def crossing(history: Sequence[Measurement], loss: float) -> Measurement | None:
    """The first measurement with a lower loss."""
    return next((measurement for measurement in history if loss_of(measurement) < loss), None)


def table_of_heads(plateau: Measurement, end: Measurement) -> dict[str, dict[str, float]]:
    """What is known of every head at the unigram plateau and at the end."""
    table = {}
    for head, after in end.refinements.items():
        before = plateau.refinements[head]
        table[head] = {
            "llc_before": before["llc"]["mean"],
            "llc_before_stderr": before["llc"]["stderr"],
            "llc": after["llc"]["mean"],
            "llc_stderr": after["llc"]["stderr"],
            "ablation_before": plateau["ablation"][head],
            "ablation": end["ablation"][head],
            "chi_knows": end["susceptibility"][f"bigram_knows_to_{head}"],
            "chi_errs": end["susceptibility"][f"bigram_errs_to_{head}"],
        }
    return table


def carrier(heads: dict[str, dict[str, float]]) -> str:
    """The head of the first layer that the network can do without least."""
    return max((head for head in heads if head.startswith("head0.")), key=lambda head: heads[head]["ablation"])


def print_history(history: Sequence[Measurement]) -> None:
    print(f"\n{'':>6}  {'':>6}  {'':>16}  {'':>5}  {'accu-':>8}  {'distance, in log-probabilities, to':^36}  critical")
    print(
        f"{'step':>6}  {'loss':>6}  {'LLC':>6} +- {'stderr':<6}  {'R-hat':>5}  {'racy':>8}  "
        f"{'uniform':>10}  {'unigram':>10}  {'bigram':>10}    {'bits':>8}"
    )
    for measurement in history:
        llc, path = measurement["llc"], measurement["trajectory"]
        print(
            f"{measurement.step:>6}  {llc['reference_loss']:>6.4f}  {llc['mean']:>6.2f} +- {llc['stderr']:<6.2f}  "
            f"{measurement['health']['rhat']:>5.2f}  {measurement['behavior']['accuracy']:>8.3f}  "
            f"{path['distance/uniform']:>10.3f}  {path['distance/unigram']:>10.3f}  {path['distance/bigram']:>10.3f}  "
            f"  {measurement['compressibility']['critical_bits']:>8.2f}"
        )


def print_what_it_knows(history: Sequence[Measurement], losses: dict[str, float]) -> None:
    """The plateaus of the loss beside what the guesses lose."""
    told = {"uniform": "all states alike", "unigram": "those seen often", "bigram": "what followed before"}
    near = {"uniform": history[0], "unigram": at_unigram(history, losses), "bigram": history[-1]}
    print("\nWhat the network knows, by its loss (nats a state, on sequences that it never learned from):")
    for guess, loss in losses.items():
        found, passed = near[guess], crossing(history, loss)
        print(
            f"  {guess:<7}  {told[guess]:<20}  {loss:.4f}   network {loss_of(found):.4f} at step {found.step:>4} "
            f"({loss_of(found) / loss - 1:+.1%}), {'never below' if passed is None else f'below from {passed.step}'}"
        )


def print_stages(monitor: SLTMonitor) -> None:
    """What it was that the LLC went through, and what changed there."""
    changes = {found.stage: str(found) for found in monitor.changes}
    print("\nThe stages of the LLC:")
    for stage in monitor.stages:
        told = "" if stage.announced_at_step is None else f", announced at step {stage.announced_at_step}"
        print(
            f"  {stage.type:<7}  steps {stage.start_step:>4} to {stage.end_step:>4}: "
            f"LLC {stage.llc_start:5.2f} -> {stage.llc_end:5.2f}{told}"
        )
        if changes.get(stage.stage):
            print(f"           changed most: {changes[stage.stage]}")


def print_news(history: Sequence[Measurement], news: News, losses: dict[str, float]) -> None:
    """What was announced, and how far that was from the crossing of the unigram."""
    names = {UNIGRAM: "its distance to the unigram"}
    print("\nAnnounced while it trained:")
    for step, event in news.told:
        words = f"{names.get(event.key, 'its LLC')} goes another way since step {event.step}"
        print(f"  step {step:>4}: {words}" + (f"; changed most: {event.changed_most}" if event.changed_most else ""))
    steps, passed = [measurement.step for measurement in history], crossing(history, losses["unigram"])
    if passed is not None and news.told:
        places = [steps.index(step) - steps.index(passed.step) for step, _ in news.told if step in steps]
        place = min(places, key=abs)
        distance = f"{abs(place)} measurement{'' if abs(place) == 1 else 's'} {'after' if place > 0 else 'before'}"
        print(f"  The nearest of these came {distance} its loss crossed that of the unigram, at step {passed.step}.")


def print_heads(heads: dict[str, dict[str, float]], plateau: Measurement, end: Measurement) -> None:
    steps = f"step {plateau.step}", f"step {end.step}"
    print(f"\n{'':<9}  {'refined LLC, about':^36}  {'loss without it':^19}  {'works for tokens that the bigram':^32}")
    print(f"{'head':<9}  {steps[0]:>16}  {steps[1]:>18}  {steps[0]:>9} {steps[1]:>9}  {'knows':>15} {'errs on':>16}")
    for head, row in heads.items():
        print(
            f"{head:<9}  {row['llc_before']:>7.3f} +- {row['llc_before_stderr']:.3f}  {row['llc']:>9.3f} +- "
            f"{row['llc_stderr']:.3f}  {row['ablation_before']:>+9.4f} {row['ablation']:>+9.4f}  "
            f"{row['chi_knows']:>15.2f} {row['chi_errs']:>16.2f}"
        )
    print("(Below 0 a head works for such tokens, above 0 against them, compared with the other parts.)")
    best = carrier(heads)
    others = [row["llc"] for head, row in heads.items() if head.startswith("head0.") and head != best]
    beside = f"; the others of that layer: {', '.join(f'{llc:.2f}' for llc in others)}" if others else ""
    print(
        f"Of the first layer the network needs {best} most: without it the loss is "
        f"{heads[best]['ablation']:.3f} higher.\nIts refined LLC is {heads[best]['llc']:.2f}{beside}."
    )


def draw_figure(
    monitor: SLTMonitor, news: News, losses: dict[str, float], heads: dict[str, dict[str, float]]
) -> Figure:
    """Refined LLCs of the heads, the loss with its milestones, and the LLC with its stages."""
    history, best = monitor.history, carrier(heads)
    title = (
        "A transformer learns in context: its loss goes from one way of guessing to the next,\nits LLC rises with them"
    )
    if heads[best]["llc"] == max(row["llc"] for row in heads.values()):
        title += ", and the head that carries the last becomes complex"
    if crossing(history, (losses["unigram"] + losses["bigram"]) / 2) is None:
        title = "This transformer never guesses much better than by what is frequent"
    panel = "refined LLC\nof each head"
    figure = stage_figure(history, monitor.stages, monitor.events, panels={panel: {}}, title=title)
    of_heads, loss, _ = figure.axes
    for head in sorted(heads, key=lambda head: head == best):
        steps = [measurement.step for measurement in history]
        means = [measurement.refinements[head]["llc"]["mean"] for measurement in history]
        style = {"color": "#D55E00", "linewidth": 2.5} if head == best else {"color": "0.55", "linewidth": 1}
        of_heads.plot(steps, means, **style)
    told = f"{best}: without it the loss is {heads[best]['ablation']:.2f} higher"
    of_heads.text(0.01, 0.88, told, transform=of_heads.transAxes, color="#D55E00")  # refined LLCs begin low
    note = {"textcoords": "offset points", "color": "0.3", "size": 9}
    for name, value in losses.items():
        loss.axhline(value, color="0.4", linewidth=0.8, linestyle="--")
        loss.annotate(f"{name} guess", (0, value), (6, 3), xycoords=("axes fraction", "data"), **note)
    for step in [step for step, event in news.told if event.key == UNIGRAM]:
        loss.plot(step, 0.05, "|", transform=loss.get_xaxis_transform(), color="black", ms=13, mew=2.5)
        loss.annotate("told", (step, 0.05), (-5, -3), xycoords=loss.get_xaxis_transform(), ha="right", **note)
    loss.set_ylim(min(losses.values()) - 0.02, max(losses.values()) + 0.02)
    return figure


# ------------------------------------------------------------------------------------------------------------- the run
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small transformer on Markov chains, and watch it learn in context.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=1500, help="length of the training in optimizer steps")
    parser.add_argument("--layers", type=int, default=2, help="layers of attention; with 1 there is no bigram")
    parser.add_argument("--heads", type=int, default=2, help=f"heads a layer, a divisor of {WIDTH}")
    parser.add_argument("--seed", type=int, default=0, help="of weights, sequences, and chains")
    parser.add_argument("--output-dir", type=Path, default="runs/in_context_markov", help="where everything goes")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: 12 steps, short chains")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps = 12
    if min(args.max_steps, args.layers, args.heads) < 1 or WIDTH % args.heads:
        parser.error(f"--max-steps and --layers must be positive, and --heads a divisor of {WIDTH}")
    return args


def make_schedule(args: argparse.Namespace) -> Callable[[int], bool]:
    """Log-spaced for the fast beginning, and then evenly: the bigram takes its time."""
    if args.smoke:
        return log_linear_steps(args.max_steps, num_log=4)
    return log_linear_steps(args.max_steps, num_log=20, every=max(args.max_steps // 10, 1))


def fit(args: argparse.Namespace, news: News, logger: WandbLogger) -> tuple[SLTMonitor, dict[str, float]]:
    """Train once; returns what was measured, and what the simple guesses lose on the same sequences."""
    pl.seed_everything(args.seed, verbose=False)
    sequences, reference = markov_chains(POOL), markov_chains(REFERENCE)
    model = Transformer(args.layers, args.heads)
    monitor = make_monitor(model, reference, args, news)
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        callbacks=[monitor],
        accelerator="cpu",  # a model this small gains nothing from a GPU
        logger=logger,
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=not args.smoke,
        default_root_dir=args.output_dir,
    )
    trainer.fit(model, DataLoader(whole(sequences), BATCH_SIZE, shuffle=True))
    return monitor, {name: float(losses.mean()) for name, losses in losses_of_guesses(reference).items()}


def run(args: argparse.Namespace) -> tuple[SLTMonitor, dict[str, float], News]:
    """Train, and tell the story."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        project="slt-in-context-markov",
        save_dir=args.output_dir,
        mode=wandb_mode(),
        settings=wandb.Settings(quiet=True),
    )
    start = time.perf_counter()
    news = News()
    monitor, losses = fit(args, news, logger)
    total = time.perf_counter() - start
    logger.experiment.finish()

    plateau, end = at_unigram(monitor.history, losses), monitor.history[-1]
    heads = table_of_heads(plateau, end)
    print_history(monitor.history)
    print_heads(heads, plateau, end)
    print_what_it_knows(monitor.history, losses)
    print_stages(monitor)
    print_news(monitor.history, news, losses)
    measuring = sum(measurement["cost"]["seconds"] for measurement in monitor.history)
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s ({measuring / total:.0%}).")
    path = args.output_dir / "in_context_markov.png"
    draw_figure(monitor, news, losses, heads).savefig(path, dpi=150)
    print(f"The figure: {path}")
    report = args.output_dir / "slt" / "report.html"
    if report.exists():
        print(f"The report: {report}")
    print(f"More:       {args.output_dir / 'slt'}")
    print(where_to_look(logger.experiment))
    return monitor, losses, news


if __name__ == "__main__":
    run(parse_arguments())
