"""Options of a command: spelled as a shell spells them, typed as Python's signatures type them."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from slt_callbacks.data.drawing import DEFAULT_NUM_SAMPLES

# How jsonargparse tells of a value that no type of the signature takes, over as many lines as there are types. Where a
# class is among these, its lines say what is wrong with its arguments.
_SIMPLE = r"(?:<class '\w+'>|typing\.Literal\[[^\]]*\]|, )+"
_REFUSED = re.compile(
    r'Parser key "(?P<key>[\w.]+)":\s+'
    rf"(?:Does not validate against any of the Union subtypes\s+Subtypes: \[(?P<types>{_SIMPLE})\]\n.*Given value: "
    rf"|Expected a (?P<type>{_SIMPLE})\. Got value: )(?P<value>.*)",
    re.DOTALL,
)
_TYPE = re.compile(r"<class '(\w+)'>|typing\.Literal\[(.*?)\]")


class OptionParser(ArgumentParser):
    """An option is a name of Python's with dashes for its underscores, in what is read and in what is told.

    So a signature gives its options without a word on how they are spelled. Underscores are understood as well.

    Example:
        >>> parser = OptionParser()
        >>> _ = parser.add_argument("--num_samples", type=int)
        >>> parser.read(["--num-samples", "3"]).num_samples
        3
    """

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The options, with objects where their types are classes.

        Raises:
            SystemExit: With code 2 and a message, if one is wrong.
        """
        options: Namespace = self.instantiate(self.parse_args(pythonic(arguments)))
        return options

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """All of them, for a reader at a shell."""
        return _shell_spelling(super().format_help(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with code 2 and one sentence."""
        super().error(_shell_spelling(_REFUSED.sub(_one_sentence, message)), ex)


def command_parser(command: str, operands: str, description: str, epilog: str) -> OptionParser:
    """The parser of one command, still without options.

    Args:
        command: Its name.
        operands: What the usage line shows behind the name.
        description: Above the list of options.
        epilog: Below it, as it is.

    Example:
        >>> print(command_parser("report", "FOLDER", "Write a report.", "").format_help())
        usage: python -m slt_callbacks report FOLDER
        ...
    """
    return OptionParser(
        prog=f"python -m slt_callbacks {command}",
        usage=f"%(prog)s {operands}",
        description=description,
        epilog=epilog,
        formatter_class=_Help,
        allow_abbrev=False,  # a beginning that is clear today may not be when an option is added
    )


def pythonic(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line with the underscores of Python in the names of options.

    Example:
        >>> pythonic(["a-b.ckpt", "--num-draws=1e-3", "--loss-fn", "my-name"])
        ['a-b.ckpt', '--num_draws=1e-3', '--loss_fn', 'my-name']
    """
    return [re.sub(r"^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), argument) for argument in arguments]


def add_common(parser: OptionParser) -> None:
    """What says which module is measured, on what, and where."""
    add = parser.add_argument
    add("--module", required=True, metavar="PACKAGE.CLASS", help="class of the module")
    add("--reference", required=True, metavar="PACKAGE.FUNCTION", help="gives the samples: a Dataset, DataLoader, ...")
    add("--loss_fn", "--loss", metavar="PACKAGE.FUNCTION", help="(module, batch) -> losses; default: the module's own")
    add("--init_args", metavar="JSON", help="arguments of the class that were not saved")
    add("--num_samples", type=int, help=f"reference samples; default: {DEFAULT_NUM_SAMPLES}, or all where fewer")
    add("--seed", type=int, default=0, help="of the choice of samples and the chains")
    add("--device", default="cpu", help="where the chains run, such as cuda")
    add("--trust", action="store_true", help="read checkpoints that hold any Python object: this can run their code")
    add("--no_progress", action="store_true", help="no progress bar")


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """A JSON object from an option; None where it was not given.

    Raises:
        ValueError: If it is none.

    Example:
        >>> json_object("--init-args", '{"width": 64}')
        {'width': 64}
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"argument {option}: expected JSON such as '{{\"width\": 64}}', but got {text!r}: {error}"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"argument {option}: expected a JSON object such as '{{\"width\": 64}}', but got {text!r}")
    return value


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    def _expand_help(self, action: argparse.Action) -> str:
        """Without the markup of docstrings, and without the null and False of what was not given."""
        told = re.sub(r":math:`\\|`", "", super()._expand_help(action))
        return re.sub(r" \(default: (null|False)\)|, default: null(?=\))", "", told)


def _shell_spelling(text: str) -> str:
    return re.sub(r"(?<![\w.-])--[a-z_]+", lambda name: name[0].replace("_", "-"), text)


def _one_sentence(refused: re.Match[str]) -> str:
    told = _TYPE.sub(lambda kind: kind[1] or kind[2], refused["types"] or refused["type"])
    wanted = told.replace("NoneType", "null").replace(", ", " or ")
    return f"argument --{refused['key']}: expected {wanted}, but got {refused['value'].strip()!r}"
