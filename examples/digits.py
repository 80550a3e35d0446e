"""A network is told which digits are even. Does it find out that there are ten of them? Watch while it learns.

A small convolutional network with BatchNorm looks at scikit-learn's handwritten digits (real scans, shipped with the
package) and learns whether each is even: which digit it is, nobody tells it. At nine moments of the training SLTMonitor
measures

* the loss kernel of 150 training images of even digits: how their losses move together as the weights wander. All have
  the same label, so what makes two of them alike is not the label: at first the losses of all images move as one, and
  the map is almost evenly red. While the network learns, blocks come out along the diagonal: it treats images of one
  digit alike, and those of different digits less and less so. The contrast between the two rises from under 0.1 to
  about 0.2, while the correlation of any two images falls: images become individuals, and the effective rank rises too;
* the Bayesian influence of these images on five held-out ones: which training images help, and which harm. Far more of
  the helpful ones than by chance show the same digit.

(Why not learn the ten digits themselves? Their blocks are there before anything is learned, contrast 0.9, and fade to
0.3 as training goes on: while the network knows nothing, whatever lowers the loss of one image lowers it for every
image with that label. That is the label's doing, not the network's.)

Both go to W&B as images if you log there (WandbLogger); here they are files, and one figure is drawn of them. Half a
minute on two CPU cores; nothing is downloaded.

    python examples/digits.py
    python examples/digits.py --smoke    # a few seconds: does everything run?
"""

import argparse
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import (
    LLC,
    FileSink,
    Influence,
    LoggerSink,
    LossKernel,
    Measurement,
    MemorySink,
    Refinement,
    SamplerConfig,
    SLTMonitor,
    WandbSink,
    behavioral,
    log_linear_steps,
)
from slt_callbacks.figures.images import diverging
from slt_callbacks.observables.labels import display_order
from slt_callbacks.sinks.base import Publication

EVEN = (0, 2, 4, 6, 8)
SHOWN = 6  # helpful images a query
_QUERY, _HARM = "#0072B2", "#D55E00"  # Okabe and Ito

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, on torch 2.13
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # images this small need none
torch.set_num_threads(1)  # kernels this small lose by a second thread


# ---------------------------------------------------------------------------------------------------------- the data
class Digits:
    """Images (1, 8, 8) and whether each is even; `classes` says which digit it is, and is not for the network."""

    def __init__(self, pixels: torch.Tensor, classes: torch.Tensor) -> None:
        self.data = TensorDataset(pixels, (classes % 2 == 0).long())
        self.pixels, self.classes = pixels, classes

    def only(self, mask: torch.Tensor) -> "Digits":
        return Digits(self.pixels[mask], self.classes[mask])


def digits() -> tuple[Digits, Digits]:
    """Training images, and one held-out image of each even digit."""
    images, classes = load_digits(return_X_y=True)
    everything = Digits(torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(classes))
    held_out = torch.arange(len(classes)) % 5 == 0
    chosen = [int((held_out & (everything.classes == digit)).nonzero()[3, 0]) for digit in EVEN]
    return everything.only(~held_out), everything.only(torch.tensor(chosen))


# --------------------------------------------------------------------------------------------------------- the model
class ConvNet(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 2),
        )

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels, reduction="none")

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.per_sample_loss(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def answers(module: ConvNet, batch: list[torch.Tensor]) -> torch.Tensor:
    """Logits of odd and even, (B, 2)."""
    logits: torch.Tensor = module.net(batch[0])
    return logits


# ------------------------------------------------------------------------------------------------- kernel, influence
def make_monitor(seen: Digits, queries: Digits, memory: MemorySink, args: argparse.Namespace) -> SLTMonitor:
    sampler = SamplerConfig(
        nbeta=300.0,  # as strong as the tie: the chains follow the loss where there is something to gain
        localization=300.0,
        num_draws=100,  # maps of two seeds correlate with .3 to .6 at 30 draws, with .8 at 150
        num_burnin_steps=20,  # twice what chains need to forget, 2 / (step_size * localization)
        batch_size=None,  # the kernel needs the losses of all samples in any case: a step on all of them gives both
    )
    if args.smoke:
        sampler = replace(sampler, num_chains=2, num_draws=8, num_burnin_steps=4)
    return SLTMonitor(
        seen.data,
        observables={
            "llc": LLC(),
            "kernel": LossKernel(seen.classes),
            "influence": Influence(queries.data, seen.classes, queries.classes),
        },
        sampler=sampler,
        num_samples=40 if args.smoke else 150,
        # The LLC of what the network says now, whether or not that is a minimum of its loss: never below 0.
        refinements={"function": Refinement(loss_fn=behavioral(answers, "kl"))},
        schedule=log_linear_steps(args.max_steps, num_log=9, every=None),
        # No limit, for a demo this short: a tenth of its few seconds of training, the default that a real run keeps,
        # pays for one measurement. What it comes to is in the last lines.
        max_overhead=None,
        # The first three are the default; the history keeps the newest matrices only, and the figure needs old ones.
        sinks=[LoggerSink(), WandbSink(), FileSink(args.output_dir / "slt"), memory],
        seed=args.seed,
    )


# ------------------------------------------------------------------------------------------------------- the results
def print_table(history: list[Measurement]) -> None:
    names = f"{'LLC:':>4} {'function':>8}  {'data':>7}  {'contrast':>8}  {'rank':>6}  {'alignment':>9}  {'shift':>6}"
    print(f"\n{'step':>6}  {'loss':>6}  {names}")
    for measurement in history:
        kernel, influence = measurement["kernel"], measurement["influence"]
        data, function = measurement["llc"], measurement.refinements["function"]["llc"]
        print(
            f"{measurement.step:>6}  {data['reference_loss']:>6.3f}  {function['mean']:>13.2f}  {data['mean']:>7.1f}  "
            f"{kernel['class_contrast']:>8.3f}  {kernel['effective_rank']:>6.1f}  {kernel['alignment']:>9.3f}  "
            f"{influence['shift']:>6.3f}"
        )
    below = [measurement.step for measurement in history if measurement["llc"]["mean"] < 0]
    print("function: the LLC of what the network says at that step (behavioral), which is never below 0.")
    up_to = f" (here up to step {below[-1]})" if below else ""
    print(f"data: the LLC of its loss on the labels, below 0{up_to} where weights nearby have a lower loss still.")
    print("contrast: mean correlation of two images of one digit, minus that of two digits; only even ones are asked.")


def most_helpful(found: list[Publication]) -> list[list[int]]:
    """Rows of the kernel that help each query most at the end, (queries, SHOWN)."""
    return found[-1].matrices["influence/correlation"].topk(SHOWN, dim=0).indices.T.tolist()


def print_helpful(found: list[Publication], seen: Digits, queries: Digits) -> None:
    classes = seen.classes[found[-1].matrices["influence/indices"]]
    same = sum(
        int((classes[rows] == asked).sum()) for rows, asked in zip(most_helpful(found), queries.classes, strict=True)
    )
    print(f"{same} of the {SHOWN * len(EVEN)} most helpful images show the digit of their query; chance: {SHOWN}.")


def draw_figure(found: list[Publication], seen: Digits, queries: Digits, path: Path) -> None:
    """Kernels at three moments, their contrast, and the images that matter most to each query at the end."""
    figure = Figure(figsize=(9.5, 10), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 2.1))
    draw_kernels(upper, found, seen)
    grid = lower.subplots(len(EVEN), SHOWN + 2, gridspec_kw={"width_ratios": [1.25] + [1] * SHOWN + [1.25]})
    lower.suptitle(
        "Which training images matter to a held-out one (blue)? Six that help it most, and in red the one that does\n"
        "least, or harms if its number is below 0. The number: how the two losses move together, from -1 to 1.",
        fontsize=10.5,
        x=0.02,
        ha="left",
    )
    correlation, rows = found[-1].matrices["influence/correlation"], found[-1].matrices["influence/indices"]
    for query, places in enumerate(grid):
        show(places[0], queries, query, "held out", _QUERY)
        chosen = [*most_helpful(found)[query], int(correlation[:, query].argmin())]
        for place, row in zip(places[1:], chosen, strict=True):
            frame = _HARM if place is places[-1] else "0.7"
            show(place, seen, int(rows[row]), f"{float(correlation[row, query]):+.2f}", frame)
    figure.savefig(path, dpi=110)


def draw_kernels(figure: SubFigure, found: list[Publication], seen: Digits) -> None:
    """Maps with a row and a column an image, those of one digit together, and how far these blocks stand out."""
    steps = [publication.measurement.step for publication in found]
    contrast = [publication.measurement["kernel"]["class_contrast"] for publication in found]
    title = "Told only which digits are even: does the network treat images of one digit alike?"
    if contrast[-1] > 2 * contrast[0]:
        title = "Told only which digits are even, the network comes to treat images of one digit alike"
    figure.suptitle(title, fontsize=13, x=0.02, ha="left")
    maps = figure.subplots(1, 4)
    # By digit, and within one as they are alike at the end: the first map, which orders the files, knows little of that
    last = found[-1].matrices
    classes = seen.classes[last["kernel/indices"]]
    order = display_order(last["kernel/correlation"], classes)
    starts = [int((classes[order] == digit).nonzero()[0]) for digit in classes[order].unique()]
    middles = [(a + b) / 2 for a, b in zip(starts, [*starts[1:], len(order)], strict=True)]
    for place, at in zip(maps, (0, len(found) // 2, len(found) - 1), strict=False):
        shown = found[at].matrices["kernel/correlation"][order][:, order]
        colours = place.imshow(shown, cmap=diverging(), vmin=-1, vmax=1)
        for start in starts[1:]:
            for line in (place.axhline, place.axvline):
                line(start - 0.5, color="black", linewidth=0.6)
        place.set_title(f"step {steps[at]}", fontsize=10)
        for axis in (place.xaxis, place.yaxis):
            axis.set_ticks(middles, [str(int(digit)) for digit in classes[order].unique()], fontsize=9)
            axis.set_tick_params(length=0)
    maps[0].set_ylabel("images of each digit")
    label = "how the losses of two images move together"
    figure.colorbar(colours, ax=list(maps[:3]), location="bottom", fraction=0.06, aspect=50, label=label)
    maps[3].plot(steps, contrast, "o-", color="#D55E00", markersize=4)
    maps[3].set(ylim=(min(0.0, *contrast), None), xscale="log", xlabel="training step", box_aspect=1)
    maps[3].set_title("pairs of one digit\nminus pairs of two", fontsize=10)
    maps[3].spines[["top", "right"]].set_visible(False)


def show(place: Axes, images: Digits, index: int, title: str, frame: str) -> None:
    place.imshow(images.pixels[index, 0], cmap="gray_r")
    place.set_title(f"{int(images.classes[index])}  ({title})", fontsize=9, pad=3)
    place.set(xticks=[], yticks=[])
    place.spines[:].set(color=frame, linewidth=2 if frame != "0.7" else 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Loss kernel and influence of a small network on handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=150, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order, reference set and chains")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits"), help="where everything goes")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: 12 steps, short chains, 40 images")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps = 12

    args.output_dir.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(args.seed, verbose=False)
    train, queries = digits()
    seen, memory = train.only(train.classes % 2 == 0), MemorySink()
    monitor = make_monitor(seen, queries, memory, args)
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=args.output_dir,
    )
    start = time.perf_counter()
    trainer.fit(ConvNet(), DataLoader(train.data, batch_size=64, shuffle=True))
    total = time.perf_counter() - start
    print_table(monitor.history)
    print_helpful(memory.publications, seen, queries)
    measuring = sum(measurement["cost"]["seconds"] for measurement in monitor.history)
    print(f"\n{len(monitor.history)} measurements took {measuring:.0f} s of {total:.0f} s ({measuring / total:.0%}).")
    figure = args.output_dir / "digits.png"
    draw_figure(memory.publications, seen, queries, figure)
    print(f"The figure: {figure}\nThe maps:   {args.output_dir}/slt/*/map-*.png")
    report = args.output_dir / "slt" / "report.html"
    if report.exists():
        print(f"The report: {report}")


if __name__ == "__main__":
    main()
