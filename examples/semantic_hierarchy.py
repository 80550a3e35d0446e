"""Watch a small network take things apart: kingdoms first, then classes, then species.

Eight items hang on a binary tree: 2 kingdoms, 4 classes, 8 species. Each has 4 of 15 features: one that all share, its
kingdom's, its class's, its own. A two-layer linear network learns the features of each item, and its theory is known
(Saxe, McClelland and Ganguli 2019, arXiv 1810.10531): it learns the tree from the root down, one stage at a time.

The Bayesian influence function shows it as a change of sides (Lee et al., arXiv 2510.12071). While the network knows
nothing, every item helps every other. Once it knows what all share, an item of the other kingdom harms: it pulls where
the kingdoms differ. Then cousins (same kingdom, other class) turn from helpful to harmful, and at last siblings.

For weights that start aligned with the tree, the moments of these flips have a closed form; from small random weights
the order is the same. Two readings of each are printed: where the curve, averaged over all pairs of a relation and
smoothed, crosses zero; and when Influence itself reported a certain flip (`events`), which is later, for it waits until
noise can no longer be the reason. Of the other kingdom it is told by the mean over a kingdom: before it turns, a single
pair helps too little (a correlation of 0.03) to be certain of.

The LLC tells the same story in stages: it rises whenever a level is learned. A third training starts from weights a
million times smaller, so that the levels come one by one; the boundaries that SLTMonitor announced while it ran are
printed beside the moments at which theory has half of a level learned.

About a minute on two CPU cores; nothing is downloaded, no W&B account is needed.

    python examples/semantic_hierarchy.py
    python examples/semantic_hierarchy.py --help
"""

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from scipy.signal import savgol_filter
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import SGLD, FileSink, Influence, MemorySink, SamplerConfig, SLTMonitor, StageEvent
from slt_callbacks.sinks.base import Publication

HIDDEN = 16
LEARNING_RATE = 0.02
START = 1e-3  # strength of every mode before training
START_OF_STAGES = 1e-12  # later and further apart, by the logarithm
LEVELS = {"root": 0, "kingdoms": 1, "classes": 2, "species": 4}  # the first mode of each
RELATIONS = ("other kingdom", "cousins", "siblings")
RELATION_OF_DISTANCE = {3: "other kingdom", 2: "cousins", 1: "siblings"}
KINGDOMS = ["plant"] * 4 + ["animal"] * 4

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, on torch 2.13
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # eight samples need none
torch.set_num_threads(1)  # kernels this small lose by a second thread


# ---------------------------------------------------------------------------------------------------------- the data
def tree() -> torch.Tensor:
    """Features of the 8 items, (8, 15): the root's, 2 kingdoms', 4 classes', 8 species'."""
    levels = [torch.eye(groups).repeat_interleave(8 // groups, dim=0) for groups in (1, 2, 4, 8)]
    return torch.cat(levels, dim=1)


def distance() -> torch.Tensor:
    """Levels up to the common ancestor of two items, (8, 8): siblings 1, cousins 2, other kingdom 3."""
    shared = tree() @ tree().T
    return 4 - shared


# --------------------------------------------------------------------------------------------------------- the model
class LinearNetwork(pl.LightningModule):
    """Two linear layers: what an item is, and which features follow."""

    def __init__(self, aligned: bool, start: float = START) -> None:
        super().__init__()
        self.first = nn.Linear(8, HIDDEN, bias=False)
        self.second = nn.Linear(HIDDEN, 15, bias=False)
        with torch.no_grad():
            if aligned:
                left, _, right = torch.linalg.svd(tree().T, full_matrices=False)
                hidden, _ = torch.linalg.qr(torch.randn(HIDDEN, 8))
                self.first.weight.copy_(math.sqrt(start) * hidden @ right)
                self.second.weight.copy_(math.sqrt(start) * left @ hidden.T)
            else:
                for layer in (self.first, self.second):
                    layer.weight.normal_(std=math.sqrt(start) / 4)

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        items, features = batch
        return (self.second(self.first(items)) - features).square().sum(1) / 2

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.per_sample_loss(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


# -------------------------------------------------------------------------------------------------------- the theory
def theory(times: torch.Tensor) -> torch.Tensor:
    """Correlation of the losses of any two items under small noise on the weights, from an aligned start: (T, 8, 8).

    Every singular mode k of the features grows by itself: a = s e^(2 s t / 8) / (e^(2 s t / 8) - 1 + s / a(0)). With
    small noise, the covariance of two losses is the inner product of their gradients, that is of what is left to learn
    (residuals) times what the items share inside (hidden), and for an item with itself also of the first layer.
    """
    _, strength, modes = torch.linalg.svd(tree().T.double(), full_matrices=False)
    growth = (2 * strength * times[:, None].double() / 8).exp()
    learned = strength * growth / (growth - 1 + strength / START)  # (T, modes)
    left = strength - learned

    def inner(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("tk,ki,kj->tij", weights, modes, modes)

    covariance = inner(left**2) * inner(learned) + inner(learned * left**2) * torch.eye(8)
    scale = covariance.diagonal(dim1=1, dim2=2).sqrt()
    return covariance / scale[:, :, None] / scale[:, None, :]


def half_times() -> dict[str, float]:
    """When half of each level is learned in the third training, in learning rate x steps."""
    _, strength, _ = torch.linalg.svd(tree().T.double(), full_matrices=False)
    times = 8 / (2 * strength) * (strength / START_OF_STAGES - 1).log()
    return {level: float(times[mode]) for level, mode in LEVELS.items()}


def by_relation(correlation: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean over the pairs of each relation, (T,) from (T, 8, 8)."""
    return {name: correlation[:, distance() == d].mean(1) for d, name in RELATION_OF_DISTANCE.items()}


def flip_time(times: torch.Tensor, influence: torch.Tensor) -> float:
    """When helping first turns into harming, interpolated."""
    crossings = ((influence[:-1] > 0) & (influence[1:] <= 0)).nonzero().flatten()
    if not len(crossings):
        return math.nan
    first = int(crossings[0])
    share = influence[first] / (influence[first] - influence[first + 1])
    return float(times[first] + share * (times[first + 1] - times[first]))


def smooth(influence: torch.Tensor) -> torch.Tensor:
    """Local parabolas through nine measurements: less noise, and no crossing moved by the curve's bend."""
    return torch.as_tensor(savgol_filter(influence.numpy(), min(9, len(influence) - 1 | 1), polyorder=2))


# ------------------------------------------------------------------------------------------------------- the running
def train(aligned: bool, args: argparse.Namespace) -> list[Publication]:
    """Train once; returns every measurement with its matrices."""
    pl.seed_everything(args.seed, verbose=False)
    items = TensorDataset(torch.eye(8), tree())
    gamma = 1e5  # so strong a tie that the weights feel nothing but noise: the theory's case
    sampler = SamplerConfig(
        # A step so large forgets where the chain was: every draw is independent. It also doubles every variance, in all
        # directions alike, which no correlation feels; with a weaker tie it would be far too large.
        SGLD(step_size=2 / gamma),
        localization=gamma,
        num_chains=64,  # many and short: a step of so small a network takes hardly longer over 64 chains than over one
        num_draws=args.num_draws,
        num_burnin_steps=2,
        engine="vectorized",
    )
    memory = MemorySink()  # the monitor's own history keeps the matrices of the last measurements only
    influence = Influence(items, KINGDOMS, KINGDOMS, order=range(8), query_order=range(8))
    monitor = SLTMonitor(
        items,
        observables={"influence": influence},
        sampler=sampler,
        schedule=lambda step: step >= args.start and step % args.every == 0,
        # No limit: these trainings take seconds, and are there to be measured. A real run keeps the default, 10 %.
        max_overhead=None,
        persistent_chains=False,
        sinks=[FileSink(args.output_dir / ("aligned" if aligned else "random")), memory],
        seed=args.seed,
    )
    fit(LinearNetwork(aligned), monitor, args.max_steps, args)
    return memory.publications


def watch_stages(args: argparse.Namespace) -> SLTMonitor:
    """Train once from tiny weights, and watch the LLC."""
    pl.seed_everything(args.seed, verbose=False)
    # The LLC counts every direction by how much its curvature adds to the tie, a smooth scale at nbeta below the tie.
    # Many short chains, all at once: the steps between two levels are hardly higher than the noise of four chains.
    sampler = SamplerConfig(
        SGLD(step_size=0.05),
        nbeta=4.0,
        localization=10.0,
        num_chains=16,
        num_draws=150,
        num_burnin_steps=20,
        engine="vectorized",
    )
    monitor = SLTMonitor(
        TensorDataset(torch.eye(8), tree()),
        sampler=sampler,
        schedule=lambda step: step % 100 == 0,
        max_overhead=None,  # as above
        sinks=[FileSink(args.output_dir / "stages")],
        seed=args.seed,
    )
    fit(LinearNetwork(aligned=True, start=START_OF_STAGES), monitor, 7000, args)
    return monitor


def fit(network: LinearNetwork, monitor: SLTMonitor, max_steps: int, args: argparse.Namespace) -> None:
    trainer = pl.Trainer(
        max_steps=max_steps,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=args.output_dir,
    )
    trainer.fit(network, DataLoader(TensorDataset(torch.eye(8), tree()), batch_size=8))


def reported(found: list[Publication]) -> dict[str, float]:
    """Median time of the flips to harmful that Influence has reported: of pairs, or of groups for the other kingdom."""
    times: dict[str, list[float]] = {name: [] for name in RELATIONS}
    for publication in found:
        for event in publication.tables.get("influence/events", ()):
            relation = relation_of(event)
            if event["flipped"] and event["after"] < 0 and (event["kind"] == "group") == (relation == "other kingdom"):
                times[relation].append(publication.measurement.step * LEARNING_RATE)
    return {name: statistics.median(at) if at else math.nan for name, at in times.items()}


def relation_of(event: Mapping[str, Any]) -> str:
    if event["kind"] == "group":
        return "other kingdom" if event["source"] != event["target"] else "same kingdom"
    return RELATION_OF_DISTANCE.get(int(distance()[int(event["source"]), int(event["target"])]), "itself")


def print_flips(
    exact: dict[str, float], crossed: dict[str, dict[str, float]], told: dict[str, dict[str, float]]
) -> None:
    print(f"\n{'turns from helpful':<18} {'closed':>8} {'aligned start':>22} {'random start':>22}")
    print(f"{'to harmful':<18} {'form':>8}" + f" {'crosses 0':>12} {'reported':>9}" * 2)
    for name in RELATIONS:
        columns = (f" {crossed[start][name]:>12.2f} {told[start][name]:>9.2f}" for start in ("aligned", "random"))
        print(f"{name:<18} {exact[name]:>8.2f}" + "".join(columns))
    print("(in units of learning rate x steps; a random start has no closed form, only the order)")


def print_stages(monitor: SLTMonitor) -> None:
    boundaries: dict[int, int] = {}
    for event in monitor.events:
        if isinstance(event, StageEvent):
            boundaries[event.boundary_id] = event.step
            if event.kind == "withdrawn":
                del boundaries[event.boundary_id]
    print(f"\n{'half learned':<18} {'closed':>8} {'nearest boundary':>22}\n{'':<18} {'form':>8} {'announced live':>22}")
    for level, exact in half_times().items():
        nearest = min((step * LEARNING_RATE for step in boundaries.values()), key=lambda time: abs(time - exact))
        print(f"{level:<18} {exact:>8.2f} {nearest:>22.2f}")


def draw_figure(
    runs: dict[str, tuple[torch.Tensor, dict[str, torch.Tensor]]],
    fine: torch.Tensor,
    exact: dict[str, float],
    title: str,
    path: Path,
) -> None:
    """Influence against training time: dots are measured, lines are the theory."""
    looks = dict(zip(RELATIONS, (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s")), strict=True))  # Okabe and Ito
    figure = Figure(figsize=(8, 6.8), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    figure.suptitle(title, fontsize=12.5, x=0.02, ha="left")
    curves = by_relation(theory(fine))
    for place, (start, (times, influence)) in zip(axes, runs.items(), strict=True):
        place.axhline(0, color="0.3", linewidth=0.8)
        for name, (colour, marker) in looks.items():
            place.plot(times, influence[name], marker, color=colour, markersize=5, label=f"{name} (measured)")
            if start == "aligned":
                place.plot(fine, curves[name], color=colour, linewidth=1.2)
                place.axvline(exact[name], color=colour, linewidth=0.8, linestyle=(0, (4, 3)))
        told = ": lines are the closed form, dashed where it turns" if start == "aligned" else ": no closed form"
        place.set_title(f"{start} start{told}", loc="left", fontsize=10.5)
        place.set_ylabel("correlation of losses")
        for height, word in ((0.99, "helps"), (0.01, "harms")):
            style = {"va": "top" if word == "helps" else "bottom", "color": "0.3", "size": 10.5, "style": "italic"}
            place.text(0.005, height, word, transform=place.transAxes, **style)
        place.spines[["top", "right"]].set_visible(False)
    axes[0].set_xlim(0, None)
    axes[1].set_xlabel("training time (learning rate x steps)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def title_of(crossed: dict[str, dict[str, float]]) -> str:
    """What the figure shows, as far as this run has shown it."""
    in_order = [sorted(RELATIONS, key=times.__getitem__) == list(RELATIONS) for times in crossed.values()]
    known = all(math.isfinite(time) for times in crossed.values() for time in times.values())
    if known and all(in_order):
        return "Items turn from helping to harming: another kingdom first, then cousins, then siblings"
    return "How items of a tree help and harm one another while a network learns them"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Influence flips its sign, level by level, while a linear network learns a tree of items.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=900, help="optimizer steps of each of the two trainings")
    parser.add_argument("--start", type=int, default=300, help="step of the first measurement")
    parser.add_argument("--every", type=int, default=20, help="steps between two measurements")
    parser.add_argument("--num-draws", type=int, default=30, help="draws a chain at each measurement")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the chains")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/semantic_hierarchy"), help="where everything goes"
    )
    args = parser.parse_args()

    start = time.perf_counter()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    fine = torch.linspace(0, args.max_steps * LEARNING_RATE, 2000)
    exact = {name: flip_time(fine, curve) for name, curve in by_relation(theory(fine)).items()}
    runs, crossed, told, measured = {}, {}, {}, []
    for kind in ("aligned", "random"):
        found = train(kind == "aligned", args)
        times = torch.tensor([publication.measurement.step * LEARNING_RATE for publication in found])
        correlation = torch.stack([publication.matrices["influence/within_correlation"] for publication in found])
        runs[kind] = (times, by_relation(correlation))
        crossed[kind] = {name: flip_time(times, smooth(curve)) for name, curve in runs[kind][1].items()}
        told[kind] = reported(found)
        measured += [publication.measurement for publication in found]
    print_flips(exact, crossed, told)
    watched = watch_stages(args)
    print_stages(watched)
    figure = args.output_dir / "semantic_hierarchy.png"
    draw_figure(runs, fine, exact, title_of(crossed), figure)
    measured += watched.history
    took, total = sum(measurement["cost"]["seconds"] for measurement in measured), time.perf_counter() - start
    print(f"\n{len(measured)} measurements took {took:.0f} s of {total:.0f} s ({took / total:.0%}).")
    print(f"The figure: {figure}, and the stages: {args.output_dir}/stages/stages.png")
    print(f"The maps:   {args.output_dir}/*/influence/map-*.png")
    for kind in ("aligned", "random", "stages"):
        report = args.output_dir / kind / "report.html"
        if report.exists():
            print(f"The report: {report}")


if __name__ == "__main__":
    main()
