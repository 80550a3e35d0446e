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

from slt_callbacks.executors.elsewhere import Elsewhere
from slt_callbacks.executors.process import ProcessExecutor
from slt_callbacks.executors.ray import RayExecutor
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.replay.imports import imported
from slt_callbacks.replay.options import OptionParser, add_common, command_parser, json_object
from slt_callbacks.replay.replay import replay_checkpoints
from slt_callbacks.replay.sampler_options import read
from slt_callbacks.sinks.wandb import OwnRun

_EXECUTORS: dict[str, Callable[[int], Elsewhere]] = {
    "process": lambda workers: ProcessExecutor(num_workers=workers, max_pending=workers),
    "ray": lambda workers: RayExecutor(num_workers=workers, max_pending=workers),
}
_EXAMPLES = """examples:
  python -m slt_callbacks replay checkpoints/*.ckpt --module my_project.model.Net --reference my_project.data.validation
  ... --num-chains 8 --dynamics RMSPropSGLD --dynamics.step_size 1e-3 --dynamics.damping 0.5
  ... --executor ray --workers 8

Checkpoints are measured in the order of their training steps; the chains go on from one to the next. With --executor
many are measured at once, and the chains of each start cold, at its weights. The output folder gets measurements.csv,
events.json (jumps and stage boundaries), stages.csv and stages.png. Called again, also after a crash, it measures only
what is not finished."""


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
    add("--executor", choices=sorted(_EXECUTORS), help="measure many checkpoints at once, each with chains of its own")
    add("--workers", type=int, help="how many at once, with --executor; default: 2")
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

    executor = _executor(options.executor, options.workers)
    if executor is not None:
        print(f"{executor.num_workers} workers measure; the chains of each checkpoint start cold, at its weights.")
    measurements = _replay(options, on_skip, executor)
    failed = [measurement for measurement in measurements if measurement.failed]
    print(_summary(measurements, options.output))
    for measurement in failed:
        print(f"The measurement at step {measurement.step} failed: {measurement.error}", file=sys.stderr)
    return 1 if left_out or failed else 0


def _executor(kind: str | None, workers: int | None) -> Elsewhere | None:
    """Where to measure; None for this process.

    Raises:
        ValueError: If there is none of the kind, or workers are asked for without one.
    """
    if kind is None:
        if workers is not None:
            raise ValueError(f"argument --workers: expected --executor with it, such as ray, but got {workers} alone")
        return None
    try:
        return _EXECUTORS[kind](2 if workers is None else workers)
    except ModuleNotFoundError as error:
        raise ValueError(f"argument --executor: {error}") from error


def _replay(options: Namespace, on_skip: Callable[[Path, str], None], executor: Elsewhere | None) -> list[Measurement]:
    arguments: dict[str, Any] = {
        "executor": executor,
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
