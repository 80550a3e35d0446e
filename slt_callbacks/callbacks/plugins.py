"""What a user's plug-ins have to be, looked at before the first batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from slt_callbacks.basics.plain import shown
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sinks.base import Sink


def checked_sampler(sampler: SamplerConfig | None) -> SamplerConfig:
    """The settings of the chains, or the defaults.

    Raises:
        TypeError: If they are something else.
    """
    if sampler is None:
        return SamplerConfig()
    if not isinstance(sampler, SamplerConfig):
        raise TypeError(f"Expected `sampler` to be a SamplerConfig, but got {shown(sampler)}.")
    return sampler


def checked_reactions(reactions: Any) -> list[Callable[..., None]]:
    """What to do on an event, as a list of its own.

    Raises:
        TypeError: If they are no list, or one cannot be called or is a class.
    """
    if not isinstance(reactions, Sequence) or isinstance(reactions, str):
        raise TypeError(
            "Expected `on_event` to be a list of functions (trainer, pl_module, event), but got "
            f"{shown(reactions)}: write a list, such as [Alert()]."
        )
    for reaction in reactions:
        if not callable(reaction) or isinstance(reaction, type):
            raise TypeError(
                "Expected `on_event` to hold functions (trainer, pl_module, event), such as Alert(), but got "
                f"{shown(reaction)}."
            )
    return list(reactions)


def checked_sinks(sinks: Any) -> list[Sink] | None:
    """Where measurements go, as a list of its own; None stays None.

    Raises:
        TypeError: If they are no list, or one lacks a method or is a class.
    """
    if sinks is not None and (not isinstance(sinks, Sequence) or isinstance(sinks, str)):
        raise TypeError(
            "Expected `sinks` to be a list of objects with `open`, `publish` and `close`, but got "
            f"{shown(sinks)}: write a list, such as [MemorySink()]."
        )
    for sink in sinks or ():
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(
                f"Expected `sinks` to hold objects with `open`, `publish` and `close`, but got {shown(sink)}."
            )
    return None if sinks is None else list(sinks)
