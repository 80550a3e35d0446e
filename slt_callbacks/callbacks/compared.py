"""Metrics that a user logs with Lightning, to be seen beside what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slt_callbacks.basics.keys import PREFIX
from slt_callbacks.basics.plain import as_number, shown

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from slt_callbacks.basics.notices import Notices
    from slt_callbacks.measuring.measurement import Measurement


def checked_names(names: Any) -> list[str]:
    """Names of metrics, as a list of its own.

    Raises:
        TypeError: If they are no list of names.
        ValueError: If one is a number of our own.

    Example:
        >>> checked_names(("val_acc",))
        ['val_acc']
    """
    listed = isinstance(names, Sequence) and not isinstance(names, str)
    if not listed or not all(isinstance(name, str) and name for name in names):
        raise TypeError(
            "Expected `also_compare` to be a list of names under which metrics are logged, but got "
            f'{shown(names)}: write a list, such as ["val_acc"].'
        )
    for name in names:
        if name.startswith(f"{PREFIX}/"):
            raise ValueError(
                f"Expected `also_compare` to name metrics of your own, but got {name!r}: what is measured is compared "
                "in any case."
            )
    return list(dict.fromkeys(names))


def read_metrics(trainer: pl.Trainer, names: Sequence[str]) -> dict[str, float]:
    """What Lightning's callbacks see of these metrics now; NaN of one that is not there, or is no single number.

    Args:
        trainer: All ranks ask together, for at the end of an epoch Lightning may have to sum over them.
        names: Of the metrics; without any, Lightning is not asked.

    Example:
        >>> from types import SimpleNamespace
        >>> read_metrics(SimpleNamespace(callback_metrics={"val_acc": 0.5}), ["val_acc", "other"])
        {'val_acc': 0.5, 'other': nan}
    """
    if not names:
        return {}
    logged = trainer.callback_metrics
    found = {name: as_number(logged.get(name)) for name in names}
    return {name: float(value) if isinstance(value, (int, float)) else math.nan for name, value in found.items()}


def tell_unseen(names: Sequence[str], history: Sequence[Measurement], notices: Notices) -> None:
    """Say of metrics that no measurement has met with a number: a name may be misspelt.

    Args:
        names: As asked for.
        history: Every measurement of the run.
        notices: Where it is told.

    Example:
        >>> from slt_callbacks.basics.notices import Notices
        >>> from slt_callbacks.measuring.measurement import Measurement
        >>> tell_unseen(["a", "b"], [Measurement(3, {}, metrics={"a": 1.0, "b": math.nan})], Notices(print))
        `also_compare` names 'b', of which no measurement has seen a number in `trainer.callback_metrics`.
    """
    unseen = [name for name in names if all(math.isnan(one.metrics.get(name, math.nan)) for one in history)]
    if unseen and history:
        named = ", ".join(map(repr, unseen))
        notices.once(
            f"`also_compare` names {named}, of which no measurement has seen a number in `trainer.callback_metrics`."
        )
