"""The command `calibrate`, which finds settings of the sampler for a model."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from tqdm.auto import tqdm

from slt_callbacks.figures.calibration import calibration_figure
from slt_callbacks.measuring.calibrate import Calibration, CalibrationPoint, calibrate
from slt_callbacks.replay.imports import imported
from slt_callbacks.replay.options import OptionParser, add_common, command_parser, json_object
from slt_callbacks.replay.sampler_options import read
from slt_callbacks.weights.checkpoints import load_module

_EXAMPLE = """example:
  python -m slt_callbacks calibrate last.ckpt --module my_project.model.Net --reference my_project.data.validation

Every point of the grid is one measurement; after the first, it says how long all will take. A point is sound if no
chain diverges, the chains agree and no longer drift, and neither the bias of the step nor the noise of minibatches
matters; the line to copy into the own code and a figure come last."""


def parser() -> OptionParser:
    """Of all options but those of the sampler, which `read` adds."""
    made = command_parser(
        "calibrate",
        "CHECKPOINT --module PACKAGE.CLASS --reference PACKAGE.FUNCTION [options]",
        "Measure one checkpoint over a grid of sampler settings, and say which to take.",
        _EXAMPLE,
    )
    add = made.add_argument
    add(
        "checkpoint",
        help="a Lightning checkpoint, or a file with a state_dict; late in training the curvature is largest",
    )
    add_common(made)
    add("--output", default="runs/calibration.png", metavar="FILE", help="the figure")
    for name in ("step_sizes", "nbetas", "localizations"):
        add(f"--{name}", type=float, nargs="+", metavar="X", help="of the grid; default: around the usual value")
    return made


def run(made: OptionParser, arguments: Sequence[str]) -> int:
    """One line a point as it is found, then the figure and the line to copy.

    Args:
        made: From `parser`.
        arguments: Of the command line, without the command.

    Returns:
        The exit code: 1 where no setting is sound.
    """
    options = read(made, arguments)
    if options.sampler.dynamics.step_size != "auto":
        raise ValueError("Expected the step sizes of the grid as --step-sizes X ..., but got one --step-size.")
    with tqdm(desc="Calibrate", disable=options.no_progress, leave=False) as bar:
        found = _calibrated(options, bar)
    print(f"\n{found.line()}")
    _draw(found, Path(options.output))
    return 0 if found.recommended is not None else 1


def _calibrated(options: Namespace, bar: tqdm) -> Calibration:
    path = _file(options.checkpoint)
    kind, init_args = imported("--module", options.module), json_object("--init-args", options.init_args)
    module = load_module(kind, path, init_args, options.trust).to(options.device)
    print(f"{'step size':>10} {'nbeta':>8} {'localization':>12} {'LLC':>9} +- {'stderr':<7} {'R-hat':>6} {'bias':>6}")
    start = time.monotonic()

    def on_point(point: CalibrationPoint, total: int) -> None:
        bar.total = total
        bar.update()
        bar.write(
            f"{point.step_size:>10.3g} {point.nbeta:>8.3g} {point.localization:>12g} {point.llc:>9.3g} +- "
            f"{point.stderr:<7.2g} {point.rhat:>6.2f} {point.step_bias:>6.1%}  {point.verdict}"
        )
        if not told:
            bar.write(f"About {total * (time.monotonic() - start):.0f} s for all {total} points.", file=sys.stderr)
        told.append(point)

    told: list[CalibrationPoint] = []
    return calibrate(
        module,
        imported("--reference", options.reference),
        imported("--loss-fn", options.loss_fn) if options.loss_fn else None,
        step_sizes=options.step_sizes,
        nbetas=options.nbetas,
        localizations=options.localizations,
        sampler=options.sampler,
        num_samples=options.num_samples,
        seed=options.seed,
        on_point=on_point,
    )


def _draw(found: Calibration, figure: Path) -> None:
    """The picture, or what to install for one: the numbers have been told."""
    figure.parent.mkdir(parents=True, exist_ok=True)
    try:
        calibration_figure(found, figure)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
    else:
        print(f"The figure: {figure}")


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise FileNotFoundError(f"Expected a checkpoint, but there is no file {name}.")
    return Path(name)
