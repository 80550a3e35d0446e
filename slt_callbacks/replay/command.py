"""The command line: `replay`, which measures a run that is over, and `calibrate`, which finds settings for one."""

from __future__ import annotations

import argparse
import csv
import json
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES
from slt_callbacks.figures.calibration import calibration_figure
from slt_callbacks.measuring.calibrate import Calibration, CalibrationPoint, calibrate
from slt_callbacks.measuring.measurement import Measurement
from slt_callbacks.replay.replay import replay_checkpoints
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.langevin import SGLD
from slt_callbacks.sinks.wandb import OwnRun
from slt_callbacks.weights.checkpoints import load_module

_COUNTS = {
    "num_chains": "independent chains",
    "num_draws": "draws a chain",
    "num_burnin_steps": "SGLD steps before the first draw of a fresh chain",
    "batch_size": "reference samples in an SGLD step; default: all of them",
}
_WEIGHTS = {
    "nbeta": "inverse temperature times samples; default: n / ln n for n reference samples",
    "localization": "strength of the tie to the checkpoint's weights",
}
_EXAMPLE = """example:
  python -m slt_callbacks replay checkpoints/*.ckpt --module my_project.model.Net --reference my_project.data.validation

Checkpoints are measured in the order of their training steps; the chains go on from one to the next. The output folder
gets measurements.csv, events.json (jumps and stage boundaries), stages.csv and stages.png. Called again, also after a
crash, it measures only what is not finished."""

_CALIBRATE_EXAMPLE = """example:
  python -m slt_callbacks calibrate last.ckpt --module my_project.model.Net --reference my_project.data.validation

Every point of the grid is one measurement; after the first, it says how long all will take. A point is sound if no
chain diverges, the chains agree and no longer drift, and the bias of the step is small; the line to copy into the own
code and a figure come last."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line; None for those of the process.

    Returns:
        The exit code: 0, or 1 where a checkpoint was left out or its measurement failed.

    Raises:
        SystemExit: With code 2 and a message, where an argument is wrong.

    Example:
        >>> main(["replay", "gone.ckpt", "--module", "torch.nn.Linear", "--reference", "torch.zeros"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    options = _parser().parse_args(arguments)
    try:
        exit_code: int = options.run(options)
    except (TypeError, ValueError, FileNotFoundError, LossFnError) as error:
        if not _is_ours(error):
            raise  # from the user's own code: the traceback says where
        options.command.error(str(error))
    return exit_code


def _run_replay(options: argparse.Namespace) -> int:
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


def _run_calibrate(options: argparse.Namespace) -> int:
    """One line a point as it is found, then the figure and the line to copy."""
    config = {name: getattr(options, name) for name in {**_COUNTS, **_WEIGHTS}}
    (path,) = _files(options.checkpoint)
    module = load_module(_imported("--module", options.module), path, options.init_args, options.trust).to(
        options.device
    )
    print(f"{'step size':>10} {'nbeta':>8} {'localization':>12} {'LLC':>9} +- {'stderr':<7} {'R-hat':>6} {'bias':>6}")
    start = time.monotonic()
    told: list[CalibrationPoint] = []
    with tqdm(desc="Calibrate", disable=options.no_progress, leave=False) as bar:

        def on_point(point: CalibrationPoint, total: int) -> None:
            bar.total = total
            bar.update()
            bar.write(
                f"{point.step_size:>10.3g} {point.nbeta:>8.3g} {point.localization:>12g} {point.llc:>9.3g} +- "
                f"{point.stderr:<7.2g} {point.rhat:>6.2f} {point.step_bias:>6.1%}  {point.verdict}"
            )
            told.append(point)
            if len(told) == 1:
                bar.write(f"About {total * (time.monotonic() - start):.0f} s for all {total} points.", file=sys.stderr)

        found = calibrate(
            module,
            _imported("--reference", options.reference),
            _imported("--loss-fn", options.loss_fn) if options.loss_fn else None,
            step_sizes=options.step_sizes,
            nbetas=options.nbetas,
            localizations=options.localizations,
            sampler=SamplerConfig(SGLD(), **config),
            num_samples=options.num_samples,
            seed=options.seed,
            on_point=on_point,
        )
    print(f"\n{found.line()}")
    _draw(found, Path(options.output))
    return 0 if found.recommended is not None else 1


def _draw(found: Calibration, figure: Path) -> None:
    """The picture, or what to install for one: the numbers have been told."""
    figure.parent.mkdir(parents=True, exist_ok=True)
    try:
        calibration_figure(found, figure)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
    else:
        print(f"The figure: {figure}")


def _files(name: str) -> list[Path]:
    if not Path(name).is_file():
        raise FileNotFoundError(f"Expected a checkpoint, but there is no file {name}.")
    return [Path(name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slt_callbacks", description="Live singular-learning-theory measurements."
    )
    commands = parser.add_subparsers(required=True, metavar="{replay,calibrate}")
    _add_replay(commands)
    _add_calibrate(commands)
    return parser


def _add_calibrate(commands: Any) -> None:
    command = commands.add_parser(
        "calibrate",
        help="find sampler settings for a model",
        description="Measure one checkpoint over a grid of sampler settings, and say which to take.",
        epilog=_CALIBRATE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=_run_calibrate, command=command)
    add = command.add_argument
    add(
        "checkpoint",
        help="a Lightning checkpoint, or a file with a state_dict; late in training the curvature is largest",
    )
    _add_common(command)
    add("--output", default="runs/calibration.png", metavar="FILE", help="the figure; default: %(default)s")
    for name in ("step-sizes", "nbetas", "localizations"):
        add(f"--{name}", type=float, nargs="+", metavar="X", help="of the grid; default: around the usual value")
    _add_sampler(command, SamplerConfig(num_draws=200))


def _add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay",
        help="measure saved checkpoints, and find jumps and stages",
        description="Measure the local learning coefficient of saved checkpoints, and find jumps and stages.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.set_defaults(run=_run_replay, command=replay)
    add = replay.add_argument
    add("checkpoints", nargs="+", help="Lightning checkpoints, or state_dict files named like step=100.pt, or folders")
    _add_common(replay)
    add("--observables", metavar="PACKAGE.FUNCTION", help='gives {"llc": LLC(), ...}; default: the LLC alone')
    add("--output", default="runs/replay", metavar="DIR", help="folder for the results; default: %(default)s")
    add("--wandb-project", metavar="NAME", help="also log to this W&B project, one row a checkpoint")
    _add_sampler(replay, SamplerConfig())
    replay.add_argument_group("step size").add_argument(
        "--step-size", type=_step_size, default="auto", help='of SGLD; default: "auto"'
    )


def _add_common(command: argparse.ArgumentParser) -> None:
    """What says which module is measured, on what, and where."""
    add = command.add_argument
    add("--module", required=True, metavar="PACKAGE.CLASS", help="class of the module")
    add("--reference", required=True, metavar="PACKAGE.FUNCTION", help="gives the samples: a Dataset, DataLoader, ...")
    add("--loss-fn", "--loss", metavar="PACKAGE.FUNCTION", help="(module, batch) -> losses; default: the module's own")
    add("--init-args", type=_json_object, metavar="JSON", help="arguments of the class that were not saved")
    add("--num-samples", type=int, help=f"reference samples; default: {DEFAULT_NUM_SAMPLES}, or all where fewer")
    add("--seed", type=int, default=0, help="of the choice of samples and the chains; default: %(default)s")
    add("--device", default="cpu", help="where the chains run, such as cuda; default: %(default)s")
    add("--trust", action="store_true", help="read checkpoints that hold any Python object: this can run their code")
    add("--no-progress", action="store_true", help="no progress bar")


def _add_sampler(parser: argparse.ArgumentParser, default: SamplerConfig) -> None:
    group = parser.add_argument_group("sampler", "keep them over a run, or the curve has no meaning")
    kinds: list[tuple[dict[str, str], Callable[[str], Any]]] = [(_COUNTS, int), (_WEIGHTS, float)]
    for settings, kind in kinds:
        for name, meaning in settings.items():
            value = getattr(default, name)
            shown = meaning if value is None else f"{meaning}; default: {value}"
            group.add_argument(_option(name), type=kind, default=value, help=shown)


def _replay(options: argparse.Namespace, on_skip: Callable[[Path, str], None]) -> list[Measurement]:
    config = {name: getattr(options, name) for name in {**_COUNTS, **_WEIGHTS}}
    arguments: dict[str, Any] = {
        "module": _imported("--module", options.module),
        "reference": _imported("--reference", options.reference),
        "loss_fn": _imported("--loss-fn", options.loss_fn) if options.loss_fn else None,
        "observables": _imported("--observables", options.observables)() if options.observables else None,
        "sampler": SamplerConfig(SGLD(options.step_size), **config),
    }
    for name in ("num_samples", "init_args", "output", "device", "trust", "seed"):
        arguments[name] = getattr(options, name)
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


def _imported(option: str, path: str) -> Any:
    """What a dotted path such as ``package.module.Class`` names.

    Raises:
        ValueError: If there is no such module, or nothing of that name in it.
    """
    parts = path.replace(":", ".").split(".")
    for size in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:size])
        try:
            found = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                continue
            raise ValueError(f"Importing `{name}` for {option} failed: {error}. Install what it needs.") from error
        for part in parts[size:]:
            if not hasattr(found, part):
                raise ValueError(
                    f"Expected {option} to name something in `{name}`, but it has no `{part}`{_like(found)}"
                )
            found = getattr(found, part)
        return found
    raise ValueError(
        f"Expected {option} to be an import path such as package.module.name, but there is no module to import in "
        f"`{path}`: call the command in the folder that holds it, or name that folder in PYTHONPATH."
    )


def _like(module: Any) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return f": it has {', '.join(sorted(own)[:8])}." if own else "."


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"expected JSON such as '{{\"width\": 64}}', but got {text!r}: {error}"
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"width\": 64}}', but got {text!r}")
    return value


def _step_size(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'expected a number or "auto", but got {text!r}') from error


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it, with a message that says what to write."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is None or traceback.tb_frame.f_globals["__name__"].split(".")[0] == "slt_callbacks"


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
