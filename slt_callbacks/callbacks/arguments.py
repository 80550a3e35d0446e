"""What `SLTMonitor` is given: checked before anything else, and told to the run's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slt_callbacks.callbacks.reactions import Reaction
from slt_callbacks.sampling.config import SamplerConfig
from slt_callbacks.sinks.base import Sink


def check_store_chains(store_chains: Any) -> None:
    """Refuse another place for persistent chains than the two there are.

    Raises:
        ValueError: If so.
    """
    if store_chains not in ("device", "cpu"):
        raise ValueError(f'Expected `store_chains` to be "device" or "cpu", but got {store_chains!r}.')


def checked_sampler(sampler: SamplerConfig | None) -> SamplerConfig:
    """The settings of the chains, or the defaults.

    Raises:
        TypeError: If they are something else.
    """
    if sampler is None:
        return SamplerConfig()
    if not isinstance(sampler, SamplerConfig):
        raise TypeError(f"Expected `sampler` to be a SamplerConfig, but got {sampler!r}.")
    return sampler


def shortened(sampler: SamplerConfig) -> SamplerConfig:
    """Enough to run every line once.

    Example:
        >>> shortened(SamplerConfig()).num_steps
        3
    """
    return replace(
        sampler,
        num_chains=min(sampler.num_chains, 2),
        num_draws=min(sampler.num_draws, 2),
        num_burnin_steps=min(sampler.num_burnin_steps, 1),
    )


def checked_reactions(reactions: Sequence[Reaction]) -> list[Reaction]:
    """What to do on an event, as a list of its own.

    Raises:
        TypeError: If they are no list, or one cannot be called or is a class.
    """
    if not isinstance(reactions, Sequence) or isinstance(reactions, str):
        raise TypeError(
            "Expected `on_event` to be a list of functions (trainer, pl_module, event), but got "
            f"{reactions!r}: write a list, such as [Alert()]."
        )
    for reaction in reactions:
        if not callable(reaction) or isinstance(reaction, type):
            raise TypeError(
                "Expected `on_event` to hold functions (trainer, pl_module, event), such as Alert(), but got "
                f"{reaction!r}."
            )
    return list(reactions)


def checked_sinks(sinks: Sequence[Sink] | None) -> list[Sink] | None:
    """Where measurements go, as a list of its own; None stays None.

    Raises:
        TypeError: If they are no list, or one lacks a method or is a class.
    """
    if sinks is not None and (not isinstance(sinks, Sequence) or isinstance(sinks, str)):
        raise TypeError(
            "Expected `sinks` to be a list of objects with `open`, `publish` and `close`, but got "
            f"{sinks!r}: write a list, such as [MemorySink()]."
        )
    for sink in sinks or ():
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(f"Expected `sinks` to hold objects with `open`, `publish` and `close`, but got {sink!r}.")
    return None if sinks is None else list(sinks)
