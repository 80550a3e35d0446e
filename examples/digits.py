"""Which digits does a network treat alike, and which training image taught it which answer? Watch both while it learns.

A small convolutional network with BatchNorm learns scikit-learn's handwritten digits (real scans, shipped with the
package). At nine moments of the training SLTMonitor measures

* the loss kernel of 150 training images: how their losses move together as the weights wander. Sorted by digit, blocks
  show on the diagonal. Before the network can tell images apart only the label counts: whatever lowers the loss of one
  image lowers it for every image of that digit, and the contrast between the blocks and the rest is near 1. As training
  goes on images become individuals: the effective rank rises, the contrast falls, and the blocks that stay are
  digits whose images the network does treat alike;
* the Bayesian influence of these images on eight held-out ones: which training images help, and which harm.

Both go to W&B as images if you log there (WandbLogger); here they are files, and one figure is drawn of them. Half a
minute on two CPU cores; nothing is downloaded.

    python examples/digits.py
    python examples/digits.py --smoke    # a few seconds: does everything run?
"""

import argparse
import logging
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from slt_callbacks import LLC, SGLD, Influence, LossKernel, Measurement, SamplerConfig, SLTMonitor, log_linear_steps
from slt_callbacks.sinks import correlation_map

QUERIES = 8
SHOWN = 5  # helpful images a query

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own, on torch 2.13
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # images this small need none
torch.set_num_threads(1)  # kernels this small lose by a second thread


# ---------------------------------------------------------------------------------------------------------- the data
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training images, and one held-out image of each of the first eight digits."""
    images, classes = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(classes)
    held_out = torch.arange(len(labels)) % 5 == 0
    chosen = [int((held_out & (labels == digit)).nonzero()[3, 0]) for digit in range(QUERIES)]
    return TensorDataset(pixels[~held_out], labels[~held_out]), TensorDataset(pixels[chosen], labels[chosen])


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
            nn.Linear(256, 10),
        )

    def per_sample_loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels, reduction="none")

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.per_sample_loss(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


# ------------------------------------------------------------------------------------------------- kernel, influence
def make_monitor(
    train: TensorDataset, kernel: LossKernel, influence: Influence, args: argparse.Namespace
) -> SLTMonitor:
    sampler = SamplerConfig(
        SGLD(step_size=2e-5),
        localization=1000.0,
        num_chains=4,
        num_draws=60,
        num_burnin_steps=100,
    )
    if args.smoke:
        sampler = SamplerConfig(SGLD(2e-5), localization=1000.0, num_chains=2, num_draws=8, num_burnin_steps=4)
    return SLTMonitor(
        train,
        observables={"llc": LLC(), "kernel": kernel, "influence": influence},
        sampler=sampler,
        num_samples=40 if args.smoke else 150,
        schedule=log_linear_steps(args.max_steps, num_log=9, every=None),
        max_overhead=None,  # a real run keeps the default, 10 %
        seed=args.seed,
    )


# ------------------------------------------------------------------------------------------------------- the results
def print_table(history: list[Measurement]) -> None:
    print(f"\n{'step':>6}  {'loss':>6}  {'LLC':>6}  {'contrast':>8}  {'rank':>6}  {'alignment':>9}  {'shift':>6}")
    for measurement in history:
        kernel, influence = measurement["kernel"], measurement["influence"]
        print(
            f"{measurement.step:>6}  {measurement['llc']['reference_loss']:>6.3f}  {measurement['llc']['mean']:>6.1f}  "
            f"{kernel['class_contrast']:>8.3f}  {kernel['effective_rank']:>6.1f}  {kernel['alignment']:>9.3f}  "
            f"{influence['shift']:>6.3f}"
        )


def draw_figure(
    monitor: SLTMonitor, kernel: LossKernel, rows: torch.Tensor, data: tuple[TensorDataset, TensorDataset], path: Path
) -> None:
    """Kernels at three moments, their contrast, and the images that matter most to each query at the end."""
    history = monitor.history
    figure = Figure(figsize=(9, 11), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 2.2))
    upper.suptitle("At first only the label counts; then images become individuals", fontsize=14, x=0.02, ha="left")
    maps = upper.subplots(1, 4)
    moments = (history[0], history[len(history) // 2], history[-1])
    for place, measurement in zip(maps, moments, strict=False):
        picture = kernel.images(measurement["kernel"])["map"]
        place.imshow(correlation_map(picture.matrix).convert("RGB"))
        place.set_title(f"step {measurement.step}", fontsize=10)
        place.set_xticks([])
        place.set_yticks([])
    maps[0].set_ylabel("images, by digit")
    steps = [measurement.step for measurement in history]
    maps[3].plot(steps, [m["kernel"]["class_contrast"] for m in history], "o-", color="#D55E00", markersize=4)
    maps[3].set_ylim(0, 1.05)
    maps[3].set_xscale("log")
    maps[3].set_title("correlation within\nminus between digits", fontsize=10)
    maps[3].set_xlabel("training step")

    lower.suptitle("Training images that help each held-out digit most, and the one that harms most", x=0.02, ha="left")
    grid = lower.subplots(QUERIES, SHOWN + 2)
    correlation = history[-1]["influence"]["correlation"]
    for query, places in enumerate(grid):
        order = correlation[:, query].argsort(descending=True)
        show(places[0], data[1], query, "held out")
        for place, row in zip(places[1:], [*order[:SHOWN].tolist(), int(order[-1])], strict=True):
            show(place, data[0], int(rows[row]), f"{float(correlation[row, query]):+.2f}")
    figure.savefig(path, dpi=110)


def show(place: Axes, data: TensorDataset, index: int, title: str) -> None:
    image, label = data[index]
    place.imshow(image[0], cmap="gray_r")
    place.set_title(f"{int(label)}  ({title})", fontsize=8)
    place.set_xticks([])
    place.set_yticks([])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Loss kernel and influence of a small network on handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-steps", type=int, default=300, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order, reference set and chains")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/digits"), help="where everything goes")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: 12 steps, short chains, 40 images")
    args = parser.parse_args()
    if args.smoke:
        args.max_steps = 12

    args.output_dir.mkdir(parents=True, exist_ok=True)
    pl.seed_everything(args.seed, verbose=False)
    train, queries = digits()
    labels = train.tensors[1]
    kernel, influence = LossKernel(labels), Influence(queries, labels, queries.tensors[1])
    monitor = make_monitor(train, kernel, influence, args)
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
    trainer.fit(ConvNet(), DataLoader(train, batch_size=64, shuffle=True))
    print_table(monitor.history)
    rows = kernel.matrices(monitor.history[-1]["kernel"])["indices"]
    figure = args.output_dir / "digits.png"
    draw_figure(monitor, kernel, rows, (train, queries), figure)
    print(f"\nFigure: {figure}\nMaps:   {args.output_dir}/slt/*/map-*.png")


if __name__ == "__main__":
    main()
