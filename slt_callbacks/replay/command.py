"""The command line: `python -m slt_callbacks` and the name of a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.replay import report_command

_COMMANDS = {
    "replay": "measure saved checkpoints, and find jumps and stages",
    "calibrate": "find sampler settings for a model",
    "report": "make one HTML page of the folder of a run",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Of the command line; None for those of the process.

    Returns:
        The exit code: 0, or 1 where a checkpoint was left out or its measurement failed.

    Raises:
        SystemExit: With code 2 and a message, where an argument is wrong, or jsonargparse is not installed.

    Example:
        >>> main(["replay", "gone.ckpt", "--module", "torch.nn.Linear", "--reference", "torch.zeros"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    given = sys.argv[1:] if arguments is None else arguments
    chooser = _chooser()
    chosen = chooser.parse_args(given[:1]).command
    command: Any = report_command
    if chosen != "report":
        try:
            # Only here: the package is imported without the extra that brings jsonargparse.
            from slt_callbacks.replay import calibrate_command, replay_command
        except ModuleNotFoundError as error:
            if error.name != "jsonargparse":
                raise
            chooser.exit(2, f"{chosen} needs jsonargparse, which is not installed: pip install 'slt-callbacks[cli]'\n")
        command = {"replay": replay_command, "calibrate": calibrate_command}[chosen]
    parser = command.parser()
    try:
        exit_code: int = command.run(parser, given[1:])
    except (TypeError, ValueError, FileNotFoundError, LossFnError) as error:
        if not _is_ours(error):
            raise  # from the user's own code: the traceback says where
        parser.error(str(error))
    return exit_code


def _chooser() -> argparse.ArgumentParser:
    """Of the command alone: which options there are depends on it."""
    parser = argparse.ArgumentParser(
        prog="python -m slt_callbacks", description="Live singular-learning-theory measurements."
    )
    commands = parser.add_subparsers(required=True, dest="command", metavar=f"{{{','.join(_COMMANDS)}}}")
    for name, purpose in _COMMANDS.items():
        commands.add_parser(name, help=purpose, add_help=False)
    return parser


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it, with a message that says what to write."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is None or traceback.tb_frame.f_globals["__name__"].split(".")[0] == "slt_callbacks"
