"""The sampler on the command line: every field of `SamplerConfig`, and the class of its dynamics with its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace

from slt_callbacks.replay.imports import imported
from slt_callbacks.replay.options import OptionParser, pythonic
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sampling.dynamics import Dynamics


def add_sampler(parser: OptionParser, **defaults: Any) -> None:
    """Every field but the dynamics, as its signature and docstring have it.

    Args:
        parser: Gets a group of options.
        defaults: Other ones than the signature's, by name.
    """
    parser.add_class_arguments(SamplerConfig, skip={"dynamics"})
    parser.set_defaults(defaults)


def add_dynamics(parser: OptionParser, arguments: Sequence[str]) -> tuple[type, list[str]]:
    """The arguments of the class of dynamics, which the command line itself has to be asked for first.

    Args:
        parser: Gets a group of options.
        arguments: Of the command line.

    Returns:
        The class, and the arguments that are left to read.

    Raises:
        ValueError: If ``--dynamics`` names no class, or ``--step-size`` gives no step size.
        SystemExit: With code 2 and a message, if one of them has no value.
    """
    default = type(SamplerConfig().dynamics).__name__
    first = argparse.ArgumentParser(prog=parser.prog, usage=parser.usage, add_help=False, allow_abbrev=False)
    first.add_argument("--dynamics", default=default)
    first.add_argument("--step_size")
    chosen, rest = first.parse_known_args(pythonic(arguments))
    kind = _class_named(chosen.dynamics)
    group = parser.add_argument_group(
        "Dynamics: how a chain moves",
        f"--dynamics CLASS says how: {_or(_known())}, or package.module.Class of your own (default: {default}).\n"
        f"--step-size X is short for --dynamics.step_size X. These are the arguments of {kind.__name__}:",
    )
    group.add_class_arguments(kind, "dynamics", as_group=False, fail_untyped=False)
    return kind, rest if chosen.step_size is None else [*rest, f"--dynamics.step_size={_checked(chosen.step_size)}"]


def sampler_of(options: Namespace, dynamics: type | None = None) -> SamplerConfig:
    """The settings that the options say.

    Args:
        options: As read, with those of `add_sampler`, and of `add_dynamics` where `dynamics` is given.
        dynamics: The class; None for the default.

    Raises:
        ValueError: If a setting is outside its range.
        TypeError: If `dynamics` is the class of something else.
    """
    settings = {item.name: options[item.name] for item in fields(SamplerConfig) if item.name != "dynamics"}
    if dynamics is not None:
        settings["dynamics"] = dynamics(**vars(options.dynamics) if "dynamics" in options else {})
    return SamplerConfig(**settings)


def read(made: OptionParser, arguments: Sequence[str]) -> Namespace:
    """The options, with the sampler that they say as `sampler`.

    Args:
        made: From `parser`; gets the sampler's options.
        arguments: Of the command line, without the command.

    Raises:
        SystemExit: With code 2 and a message, if one is wrong.
        ValueError: If a setting is outside its range, or a path names nothing.

    Example:
        >>> line = "a.ckpt --module my.Net --reference my.data --nbeta 3 --dynamics RMSPropSGLD --dynamics.damping 0.5"
        >>> from slt_callbacks.replay.replay_command import parser
        >>> sampler = read(parser(), line.split()).sampler
        >>> sampler.nbeta, sampler.dynamics
        (3.0, RMSPropSGLD(step_size='auto', decay=0.99, damping=0.5))
    """
    kind, rest = add_dynamics(made, arguments)
    add_sampler(made)
    options = made.read(rest)
    options.sampler = sampler_of(options, kind)
    return options


def _known() -> dict[str, type]:
    """Those that the signature names, by their names: the others are found by their import paths."""
    hint = get_type_hints(SamplerConfig)["dynamics"]
    return {kind.__name__: kind for kind in get_args(hint) if kind is not Dynamics}


def _class_named(name: str) -> type:
    known = _known()
    if name in known:
        return known[name]
    if "." not in name.replace(":", "."):
        raise ValueError(
            f"Expected --dynamics to be {_or(known)}, or an import path such as package.module.Class, but got {name!r}."
        )
    found = imported("--dynamics", name)
    if not isinstance(found, type) or not (hasattr(found, "init") and hasattr(found, "step")):
        raise ValueError(
            f"Expected --dynamics to name a class with `step_size`, `init` and `step`, such as SGLD, but `{name}` is "
            f"{found!r}."
        )
    return found


def _or(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _checked(step_size: str) -> str:
    try:
        if step_size != "auto":
            float(step_size)
    except ValueError as error:
        raise ValueError(f'argument --step-size: expected a number or "auto", but got {step_size!r}') from error
    return step_size
