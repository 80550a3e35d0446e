"""The command `replay`, which measures a run that is over."""

from __future__ import annotations

import csv
import json
import secrets
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.replay.imports import imported
from slt_callbacks.replay.options import OptionParser, add_common, command_parser, json_object
from slt_callbacks.replay.replay import replay_checkpoints
from slt_callbacks.replay.sampler_options import read
from slt_callbacks.sinks.wandb import OwnRun

_EXAMPLES = """examples:
  python -m slt_callbacks replay checkpoints/*.ckpt --module my_project.model.Net --reference my_project.data.validation
  ... --num-chains 8 --dynamics RMSPropSGLD --dynamics.step_size 1e-3 --dynamics.damping 0.5

Checkpoints are measured in the order of their training steps; the chains go on from one to the next. The output folder
gets measurements.csv, events.json (jumps and stage boundaries), stages.csv and stages.png. Called again, also after a
crash, it measures only what is not finished."""


def parser() -> OptionParser:
    """Of all options but those of the sampler, which `read` adds."""
    made = command_parser(
        "replay",
        "CHECKPOINT ... --module PACKAGE.CLASS --reference PACKAGE.FUNCTION [options]",
        "Measure the local learning coefficient of saved checkpoints, and find jumps and stages.",
        _EXAMPLES,
    )
    add = made.add_argument
    add("checkpoints", nargs="+", help="Lightning checkpoints, or state_dict files named like step=100.pt, or folders")
    add_common(made)
    add("--observables", metavar="PACKAGE.FUNCTION", help='gives {"llc": LLC(), ...}; default: the LLC alone')
    add("--refinements", metavar="PACKAGE.FUNCTION", help='gives {"head": Refinement("head.*"), ...}; default: none')
    add("--output", default="runs/replay", metavar="DIR", help="folder for the results")
    add("--wandb_project", metavar="NAME", help="also log to this W&B project, one row a checkpoint")
    return made


def run(made: OptionParser, arguments: Sequence[str]) -> int:
    """Measure, and print what was found.

    Args:
        made: From `parser`.
        arguments: Of the command line, without the command.

    Returns:
        The exit code: 1 where a checkpoint was left out or its measurement failed.
    """
    options = read(made, arguments)
    left_out: list[Path] = []

    def on_skip(path: Path, reason: str) -> None:
        left_out.append(path)
        print(f"{path} is left out: {reason}", file=sys.stderr)

    measurements = _replay(options, on_skip)
    failed = [measurement for measurement in measurements if measurement.failed]
    print(_summary(measurements, options.output))
    for measurement in failed:
        print(f"The measurement at step {measurement.step} failed: {measurement.error}", file=sys.stderr)
    return 1 if left_out or failed else 0


def _replay(options: Namespace, on_skip: Callable[[Path, str], None]) -> list[Measurement]:
    arguments: dict[str, Any] = {
        "module": imported("--module", options.module),
        "reference": imported("--reference", options.reference),
        "loss_fn": imported("--loss-fn", options.loss_fn) if options.loss_fn else None,
        "observables": imported("--observables", options.observables)() if options.observables else None,
        "refinements": imported("--refinements", options.refinements)() if options.refinements else None,
        "init_args": json_object("--init-args", options.init_args),
    }
    for name in ("sampler", "num_samples", "output", "device", "trust", "seed"):
        arguments[name] = options[name]
    loggers = [_wandb_run(options.wandb_project, Path(options.output))] if options.wandb_project else []
    try:
        with warnings.catch_warnings():
            # told at the end, where the progress bar cannot hide it
            warnings.filterwarnings("ignore", message="The measurement at step")
            return replay_checkpoints(
                options.checkpoints, **arguments, loggers=loggers, progress=not options.no_progress, on_skip=on_skip
            )
    finally:
        for logger in loggers:
            logger.finish()


def _wandb_run(project: str, folder: Path) -> OwnRun:
    """A run that goes on where the output folder's last one stopped."""
    kept = folder / "state" / "wandb_run_id"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(secrets.token_hex(4))
    # Absolute: W&B's service keeps the working directory of the program's first run, which may be another.
    return OwnRun(project=project, id=kept.read_text(), dir=str(folder.resolve()), job_type="replay", resume="allow")


def _summary(measurements: Sequence[Measurement], output: str) -> str:
    """What was found, as the tables in the folder have it."""
    events = json.loads((Path(output) / "events.json").read_text())
    with (Path(output) / "stages.csv").open(newline="") as file:
        stages = list(csv.DictReader(file))
    lines = [f"{len(measurements)} checkpoints measured; the results are in {output}."]
    lines += [
        f"Jump of {event['key']} {'up' if event['direction'] > 0 else 'down'} at step {event['onset_step']}"
        for event in events
        if event["type"] == "JumpEvent"
    ]
    lines += [
        f"Stage {stage['stage']}: {stage['type']}, steps {stage['start_step']} to {stage['end_step']}, "
        f"from {float(stage['llc_start']):.4g} to {float(stage['llc_end']):.4g}"
        for stage in stages
    ]
    return "\n".join(lines)
