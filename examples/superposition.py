"""Watch a network pack six features into two dimensions: its loss falls in steps, its LLC rises in steps.

The toy model of superposition (Elhage et al. 2022; Chen et al. 2023, arXiv 2310.06301) has six features and two hidden
dimensions: f(x) = ReLU(W'W x + b), W of shape (2, 6). An input x = mu e_i has one active feature, of strength
mu ~ U[0, 1]; the loss is |x - f(x)|^2, summed over the outputs. Where training lingers, the columns of W are the
corners of a polygon, whose loss and LLC are known, with nothing fitted: see `known_loss` and `known_llc`.

How the walk was found. Under plain SGD a feature with a negative bias and a short column is asleep for good: no input
wakes it, so it has no gradient. Starts from 2, 3 and 4 corners with noise (batches of 20 of 1000 samples, learning
rates 0.02 and 0.1, 200 seeds each, 20,000 to 40,000 steps) gave one or two plateaus, and three in some 10 of 1000 runs.
One ended at the loss of a hexagon. A sixth feature awake inside a pentagon stayed at the origin in all of 128 runs
(batches of 4 to 20, learning rates 0.1 to 0.5, 2000 steps). So here features start asleep at different depths, and
while a feature is never answered its bias rises a little at every step, as neurons that fall silent become easier to
excite (homeostasis). One starts awake, then two wake, two more, and one. That is the only change: whatever is awake
follows the gradient of the loss above, of all samples at once (192 on a grid of strengths, so that theirs is the
expected loss). W starts near zero, from the seed. Of 64 seeds in plain torch (biases a fifth as deep, asleep while no
input at all wakes them) 52 walked from the triangle to the pentagon, and 12 to a square with one feature awake at its
centre, then two. With 0.1 in the place of 0.002 for the size of W at the start it was one in eight.

Seed 0, losses and LLCs beside theory: one feature .27771 (.27778), 1.3 (1); triangle .16663 (.16667), 5.2 (6); pentagon
.06876 (.06874), 6.5 (7); pentagon with the sixth awake at its centre .06182 (.06180), 8.0 (8.5). The LLCs off by a
tenth are those of finite nbeta and of the tie; the order is that of theory. Features woke at steps 1500, 3000 and 4500.
Boundaries were announced at steps 1837, 3112, 3637 (the pentagon, after a saddle) and 5437: the last step of the LLC is
only 1.5 high, and the noise has to be known first. With 32 chains in the place of 64 it was not announced within the
run. Seeds 2, 3 and 4 walk over the same shapes, and with 128 chains announced it at steps 5287, 4837, 4762. Seed 1
walks over squares: one feature 1.3 (1); triangle 5.2 (6); square with one awake 7.4 (8), with two 8.1 (8.5), all losses
within 0.1 %. Its last step, 0.6 high in LLC, is not found.

A minute and a half; nothing is downloaded, no W&B account is needed.

    python examples/superposition.py               # the walk of one seed, with boundaries announced as it goes
    python examples/superposition.py --seeds 5     # losses and LLCs of five seeds against theory
    python examples/superposition.py --smoke       # a few seconds: does everything run? (--help lists all flags)
"""

import argparse
import logging
import math
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import minimize
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import LLC, FileSink, Measurement, SamplerConfig, SLTMonitor, StageEvent
from slt_callbacks.observables.fork_view import ForkView

FEATURES = 6
STRENGTHS = 32  # of every feature
WAKING = (1, 2, 2, 1)  # features that are awake at the start, and that wake at the end of each plateau
DEPTH = 10.0  # of the bias of a feature that sleeps for one plateau; the last ones sleep for several
LEARNING_RATE = 0.5
NAMES = {0: "nothing", 1: "one feature", 2: "line", 3: "triangle", 4: "square", 5: "pentagon", 6: "hexagon"}

_SHAPE, _LLC, _SADDLE = "#009E73", "#D55E00", "0.6"  # Okabe and Ito, and grey

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*(LeafSpec|does not have many workers).*")  # Lightning's own
torch.set_num_threads(1)  # kernels this small lose by a second thread


# ---------------------------------------------------------------------------------------------------------- the theory
def known_loss(corners: int, awake: int = 0) -> float:
    """Expected loss of a regular polygon, with so many features awake at the origin, the others asleep.

    A sleeping feature is never answered: E mu^2 = 1/3, one time in six. One that is awake at the origin always answers
    1/12, the best constant, which is 1/144 better. Up to four corners are told exactly, by columns of length 1 and
    biases 0. From five on neighbours disturb each other; the best length and bias are looked for.
    """
    rest = (FEATURES - corners) / (3 * FEATURES) - awake / (2 * FEATURES) ** 2
    return rest + (corner_loss(best_corner(corners), corners) * corners / FEATURES if corners > 4 else 0.0)


def corner_loss(corner: Sequence[float], corners: int) -> float:
    """What is lost, in all outputs, where the feature of one corner is active: (length, bias) of every corner."""
    length, bias = corner
    strength = (np.arange(2000) + 0.5) / 2000
    turn = np.cos(2 * np.pi * np.arange(corners) / corners)
    answers = np.maximum(length**2 * turn[:, None] * strength + bias, 0)
    answers[0] -= strength
    return float((answers**2).sum(0).mean())


def best_corner(corners: int) -> tuple[float, float]:
    """Length and bias of the corners of the best regular polygon."""
    if corners <= 4:
        return 1.0, 0.0
    found = minimize(
        corner_loss, (1.2, -0.3), (corners,), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}
    )
    return float(found.x[0]), float(found.x[1])


def known_llc(corners: int, awake: int = 0) -> float:
    """Learning coefficient of a polygon in the limit of large nbeta: half the number of directions that cost anything.

    Near a polygon the loss is homogeneous of degree two in these directions (some cost on one side only), so each has
    1/2. Every corner has its length and bias. Angles: from five corners on all but the common rotation; of a square
    three, for no gap may be less than a right angle; of fewer corners none, there is room. A column asleep in a
    triangle or square costs in both its coordinates, for some corner points its way; fewer corners leave it half a
    plane, and the biases of a pentagon or hexagon leave it a disc around the origin. One that is awake at the origin
    costs in its bias, too. For the pentagon (7, and 8.5 with the sixth awake) and the hexagon (8.5) these are the
    coefficients of Chen et al., appendix; the others follow in the same way.
    """
    asleep = FEATURES - corners - awake
    angles = corners - 1 if corners > 4 else 3 if corners == 4 else 0
    columns = 2 * asleep if corners in (3, 4) else 0
    return (2 * corners + angles + columns + 3 * awake) / 2


@dataclass(frozen=True)
class Shape:
    """What the columns form: corners in different directions, and features awake at the origin ("pentagon + 1")."""

    corners: int
    awake: int

    def __str__(self) -> str:
        return NAMES[self.corners] + (f" + {self.awake}" if self.awake else "")


def recognise(columns: torch.Tensor, biases: torch.Tensor) -> Shape:
    """The shape of weights (2, 6) and biases (6,): long columns closer than 40 degrees share a corner."""
    length = columns.norm(dim=0)
    angles = sorted(math.atan2(float(y), float(x)) for x, y in columns.T[length > 0.3])
    gaps = [(b - a) % (2 * math.pi) for a, b in zip(angles, [*angles[1:], *angles[:1]], strict=True)]
    corners = sum(gap > math.radians(40) for gap in gaps) if len(angles) > 1 else len(angles)
    return Shape(max(corners, min(len(angles), 1)), int(((length <= 0.3) & (biases > 0.04)).sum()))


# ----------------------------------------------------------------------------------------------------------- the model
def samples() -> torch.Tensor:
    """Every feature at every strength: 192 inputs, whose mean loss is the expected loss to four digits."""
    strengths = (torch.arange(STRENGTHS) + 0.5) / STRENGTHS
    return (torch.eye(FEATURES)[:, None] * strengths[None, :, None]).flatten(0, 1)


class Superposition(pl.LightningModule):
    def __init__(self, plateau: int) -> None:
        super().__init__()
        self.rise = DEPTH / plateau
        self.weight = nn.Parameter(0.002 * torch.randn(2, FEATURES))
        depths = [-DEPTH * turn for turn, number in enumerate(WAKING) for _ in range(number)]
        self.bias = nn.Parameter(torch.tensor(depths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return (self(batch[0]) - batch[0]).square().sum(1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        answers = self(batch[0])
        self.asleep = (answers * batch[0]).sum(0) == 0  # never an answer to the feature itself
        return (answers - batch[0]).square().sum(1).mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.bias += self.rise * self.asleep

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


class Columns:
    """The weights themselves, as numbers to log: an observable that needs no chains."""

    def inspect(self, fork: ForkView) -> dict[str, float]:
        x, y = fork.module.weight.detach()
        named = {"x": x, "y": y, "bias": fork.module.bias.detach()}
        return {f"{name}{k}": float(value) for name, values in named.items() for k, value in enumerate(values)}


def weights_of(measurement: Measurement) -> tuple[torch.Tensor, torch.Tensor]:
    found = measurement["columns"]
    x, y, bias = (torch.tensor([found[f"{name}{k}"] for k in range(FEATURES)]) for name in ("x", "y", "bias"))
    return torch.stack([x, y]), bias


# ------------------------------------------------------------------------------------------------------------- the LLC
def make_sampler(smoke: bool, num_chains: int = 64) -> SamplerConfig:
    if smoke:
        return SamplerConfig(nbeta=1e4, localization=30.0, num_chains=2, num_draws=10, num_burnin_steps=5)
    return SamplerConfig(
        nbeta=1e4,  # so sharp that the softest direction of a hexagon (curvature 0.03) is ten times as stiff as the tie
        localization=30.0,  # strong enough that chains, which stray by 0.18, do not wake what sleeps
        num_chains=num_chains,
        num_draws=100,
        batch_size=None,  # 192 small samples: all of them at once, and no noise of minibatches
        engine="vectorized",
    )


class News:
    """A reaction of one's own is any function or object to call: this one prints the news while the network trains.

    Attributes:
        boundaries: where each boundary is that stands, and the step at which it was announced.
    """

    def __init__(self) -> None:
        self.boundaries: dict[int, tuple[int, int]] = {}

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
        if not isinstance(event, StageEvent):
            return
        print(f"step {trainer.global_step:>5}: boundary {event.boundary_id} {event.kind}, at step {event.step}")
        _, told = self.boundaries.pop(event.boundary_id, (0, trainer.global_step))
        if event.kind != "withdrawn":
            self.boundaries[event.boundary_id] = (event.step, told)


def make_monitor(schedule: Any, news: News, args: argparse.Namespace) -> SLTMonitor:
    return SLTMonitor(
        TensorDataset(samples()),
        observables={"llc": LLC(), "columns": Columns()},
        # With 32 chains the error is 0.2: enough for a table, but the last step of the LLC, 1.5 high, is then not
        # certain enough to be announced before the end.
        sampler=make_sampler(args.smoke, num_chains=32 if args.seeds else 64),
        schedule=schedule,
        persistent_chains=False,  # from one polygon to the next a chain would stay behind in the valley that was left
        on_event=[news],
        max_overhead=None,  # a real run keeps the default, 10 %; in a demo this short that is a few measurements
        sinks=[FileSink(args.output_dir / f"seed{args.seed}")],
        seed=args.seed,
    )


def train(args: argparse.Namespace, schedule: Any) -> tuple[SLTMonitor, News]:
    pl.seed_everything(args.seed, verbose=False)
    steps = args.plateau * len(WAKING)
    news = News()
    monitor = make_monitor(schedule, news, args)
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=args.output_dir,
    )
    # Every step sees all samples: one batch, as often as there are steps
    trainer.fit(Superposition(args.plateau), DataLoader([[samples()]] * steps, batch_size=None))
    return monitor, news


# --------------------------------------------------------------------------------------------------------- the results
@dataclass(frozen=True)
class Plateau:
    """Measurements in a row at which the weights form one shape and the chains find nothing lower around it."""

    shape: Shape
    measurements: list[Measurement]

    @property
    def loss(self) -> float:
        return statistics.median(one["llc"]["reference_loss"] for one in self.measurements)

    @property
    def llc(self) -> float:
        return statistics.median(one["llc"]["mean"] for one in self.measurements)

    @property
    def middle(self) -> Measurement:
        return self.measurements[len(self.measurements) // 2]

    @property
    def centre(self) -> float:
        """Training step half-way between the first and the last measurement."""
        return (self.measurements[0].step + self.measurements[-1].step) / 2

    @property
    def is_known(self) -> bool:
        """Whether its loss is that of theory, within 2 %."""
        return abs(self.loss / known_loss(self.shape.corners, self.shape.awake) - 1) < 0.02


def find_plateaus(history: Sequence[Measurement]) -> list[Plateau]:
    """Three measurements or more of one shape, whose loss stays within 0.5 %, in a valley: where the LLC is positive.

    A saddle, such as a square with two features in one corner on its way to a pentagon, is flat as well, but the chains
    fall out of it: the LLC is far below 0.
    """
    return stretches([one for one in history if one["llc"]["mean"] > 0])


def find_saddles(history: Sequence[Measurement]) -> list[Plateau]:
    """The same where the LLC is negative: flat for as long, and no valley."""
    return stretches([one for one in history if one["llc"]["mean"] <= 0])


def stretches(measured: Sequence[Measurement]) -> list[Plateau]:
    found: list[Plateau] = []
    for one in measured:
        shape, loss = recognise(*weights_of(one)), one["llc"]["reference_loss"]
        if (
            found
            and found[-1].shape == shape
            and abs(loss / found[-1].measurements[-1]["llc"]["reference_loss"] - 1) < 0.005
        ):
            found[-1].measurements.append(one)
        else:
            found.append(Plateau(shape, [one]))
    return [plateau for plateau in found if len(plateau.measurements) >= 3]


def in_order(plateaus: Sequence[Plateau]) -> bool:
    """Whether the LLCs of the plateaus come in the order of theory."""
    known = [known_llc(plateau.shape.corners, plateau.shape.awake) for plateau in plateaus]
    pairs = [(a, b) for a in range(len(known)) for b in range(len(known)) if known[a] < known[b]]
    return all(plateaus[a].llc < plateaus[b].llc for a, b in pairs)


def print_plateaus(plateaus: Sequence[Plateau]) -> None:
    print(f"\n{'':<20} {'steps':>14}  {'loss':>7} {'theory':>7}  {'':>6}  {'LLC':>5} {'theory':>6}")
    for plateau in plateaus:
        corners, awake = plateau.shape.corners, plateau.shape.awake
        steps = f"{plateau.measurements[0].step} to {plateau.measurements[-1].step}"
        known = known_loss(corners, awake)
        print(
            f"{plateau.shape!s:<20} {steps:>14}  {plateau.loss:>7.5f} {known:>7.5f}  "
            f"{plateau.loss / known - 1:>+6.1%}  {plateau.llc:>5.2f} {known_llc(corners, awake):>6.1f}"
        )
    print(f"The LLCs are {'' if in_order(plateaus) else 'not '}in the order of theory.")


# --------------------------------------------------------------------------------------------------------- the picture
def draw_polygon(axes: Axes, plateau: Plateau, colour: str = _SHAPE) -> None:
    """The columns, their corners joined; at the origin a ring for a feature that is awake there."""
    weight, bias = weights_of(plateau.middle)
    long = weight.norm(dim=0) > 0.3
    awake, asleep = int((bias[~long] > 0.04).sum()), int((bias[~long] <= 0.04).sum())
    x, y = weight[:, long]
    around = torch.atan2(y, x).argsort()
    if len(around) > 2:
        axes.fill(x[around], y[around], facecolor=colour, alpha=0.2)
        axes.fill(x[around], y[around], facecolor="none", edgecolor=colour, linewidth=2)
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        axes.plot([0, a], [0, b], color=colour, linewidth=1.2)
    axes.plot(x, y, "o", color=colour, markersize=6)
    axes.plot(0, 0, "o", color="0.55", markersize=4)
    if awake:
        axes.plot(0, 0, "o", markersize=11, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=2.5)
    told = [f"{awake} in the centre"] * bool(awake) + [f"{asleep} asleep"] * bool(asleep)
    if colour == _SADDLE:
        told = ["a saddle"]
    else:
        axes.set_title(str(plateau.shape), fontsize=13, pad=0)
    axes.text(0, -1.75, ", ".join(told), ha="center", fontsize=10, color="0.3")
    axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    axes.axis("off")


def draw_levels(axes: Axes, plateaus: Sequence[Plateau], level: Any, form: str) -> None:
    """Thin lines where theory has the shapes of this run; their names keep a distance from each other."""
    low, high = axes.get_ylim()
    place = -math.inf
    for shape in sorted({plateau.shape for plateau in plateaus}, key=lambda s: float(level(s.corners, s.awake))):
        value = level(shape.corners, shape.awake)
        axes.axhline(value, color="0.5", linewidth=0.8, zorder=0)
        place = max(value, place + 0.1 * (high - low))
        coordinates = axes.get_yaxis_transform()
        axes.plot((1, 1.02), (value, place), color="0.5", linewidth=0.8, transform=coordinates, clip_on=False)
        axes.text(
            1.025, place, f"{value:{form}}  {shape}", transform=coordinates, va="center", fontsize=10, color="0.25"
        )


def draw_figure(history: Sequence[Measurement], news: News, plateaus: Sequence[Plateau], path: Path) -> None:
    """The polygons above; below them loss and LLC, with the levels of theory as thin lines."""
    steps = np.array([one.step for one in history])
    figure = Figure(figsize=(9, 6.7))
    grid = figure.add_gridspec(
        3, 1, left=0.075, right=0.8, bottom=0.125, top=0.87, hspace=0.16, height_ratios=(1.05, 1, 1)
    )
    band, loss, llc = (figure.add_subplot(grid[row]) for row in range(3))
    band.axis("off")
    for plateau in plateaus:
        draw_polygon(band.inset_axes((plateau.centre / steps[-1] - 0.12, 0.12, 0.24, 0.88)), plateau)
    for saddle in find_saddles(history):
        draw_polygon(band.inset_axes((saddle.centre / steps[-1] - 0.05, 0.12, 0.1, 0.88)), saddle, _SADDLE)
    loss.plot(steps, [one["llc"]["reference_loss"] for one in history], color="#0072B2", linewidth=2.5)
    loss.set(ylabel="loss", xticklabels=[], ylim=(0, 0.34))
    draw_llc(llc, steps, np.array([one["llc"]["mean"] for one in history]), news)
    draw_levels(loss, plateaus, known_loss, ".4f")
    draw_levels(llc, plateaus, known_llc, "g")
    for axes in (loss, llc):
        axes.set_xlim(0, steps[-1])
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (loss, llc):
        for at, _ in news.boundaries.values():
            axes.axvline(at, color="0.5", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    title = "Six features packed into a plane"
    if plateaus and all(plateau.is_known for plateau in plateaus):
        title += ": every plateau is a new shape, its loss known from theory"
    figure.suptitle(title, x=0.02, y=0.975, ha="left", fontsize=13)
    figure.savefig(path, dpi=150)


def draw_llc(axes: Axes, steps: Any, values: Any, news: News) -> None:
    """Dots within the picture, triangles where chains run downhill, far below it; at its foot what was announced."""
    low, high = -2.0, 10.0
    inside = (values > low) & (values < high)
    axes.plot(
        steps, np.where(inside, values, np.nan), "o-", color=_LLC, markersize=4, linewidth=2, label="LLC, measured"
    )
    foot = np.full((~inside).sum(), low + 0.9)
    axes.plot(steps[~inside], foot, "v", color=_LLC, markersize=5, mfc="white", label="far below 0: in no valley")
    for number, (_, at) in enumerate(news.boundaries.values()):
        label = "boundary announced (dotted: where it is)" if not number else None
        axes.plot(at, low - 0.3, "|", color="black", markersize=13, markeredgewidth=2.5, label=label)
    axes.set(ylabel="LLC", xlabel="training step", ylim=(low - 1, high), yticks=range(0, 9, 2))
    axes.figure.legend(loc="lower center", ncols=3, frameon=False, fontsize=10)


# ------------------------------------------------------------------------------------------------------------- the run
def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the toy model of superposition, and watch loss and LLC walk over known levels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--plateau", type=int, default=1500, help="steps after which the next features wake")
    parser.add_argument("--every", type=int, default=75, help="steps between two measurements")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the chains")
    parser.add_argument("--seeds", type=int, default=0, help="so many runs instead, measured seldom: only their tables")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/superposition"), help="where everything goes")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: short plateaus, short chains")
    args = parser.parse_args()
    if args.smoke:
        args.plateau, args.every = 150, 30
    if min(args.plateau, args.every) < 1:
        parser.error("--plateau and --every must be positive")
    return args


def compare_seeds(args: argparse.Namespace) -> None:
    """Several seeds, each measured five times a plateau."""
    every = max(args.plateau // 5, 1)
    right = 0
    for seed in range(args.seeds):
        args.seed = seed
        monitor, _ = train(args, lambda step: step % every == every // 2)
        plateaus = find_plateaus(monitor.history)
        print(f"\nSeed {seed}", end="")
        print_plateaus(plateaus)
        near = all(plateau.is_known for plateau in plateaus)
        right += len(plateaus) >= 3 and near and in_order(plateaus)
    print(f"\n{right} of {args.seeds}: three plateaus or more, all losses within 2 %, LLCs in the order of theory.")


def main() -> None:
    args = parse_arguments()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    if args.seeds:
        compare_seeds(args)
        return
    monitor, news = train(args, lambda step: step % args.every == args.every // 2)
    plateaus = find_plateaus(monitor.history)
    print_plateaus(plateaus)
    print(
        f"\nFeatures woke at steps {', '.join(str(turn * args.plateau) for turn in range(1, len(WAKING)))}. Boundaries:"
    )
    for at, told in news.boundaries.values():
        print(f"  at step {at:>5}, announced at step {told}")
    path = args.output_dir / "superposition.png"
    draw_figure(monitor.history, news, plateaus, path)
    measuring = sum(one["cost"]["seconds"] for one in monitor.history)
    total = time.perf_counter() - start
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s.\nThe figure: {path}")
    report = args.output_dir / f"seed{args.seed}" / "report.html"
    if report.exists():
        print(f"The report: {report}")


if __name__ == "__main__":
    main()
