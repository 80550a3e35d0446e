"""Numbers that other callbacks ask for before a measurement has given them."""

from __future__ import annotations

from collections.abc import Collection

import lightning.pytorch as pl

from slt_callbacks.basics.keys import is_logged, parts_of


def awaited_keys(trainer: pl.Trainer, names: Collection[str]) -> list[str]:
    """Logged keys that a ModelCheckpoint goes by and that have no value yet.

    Lightning ends the run of a ModelCheckpoint that has nothing to go by after a validation. NaN, which it takes for
    the worst of all values, lets it go on. An EarlyStopping would end the run over NaN, so what it watches as well is
    left out; it has ``strict=False`` to wait with.

    Args:
        trainer: With its callbacks.
        names: What the keys may begin with, after ``slt/``: the observables, "health" and "cost".
    """
    ours = {key for key in _monitored(trainer, "ModelCheckpoint") if _is_one_of(key, names)}
    missing = ours - _monitored(trainer, "EarlyStopping")
    return sorted(missing - set(trainer.callback_metrics)) if missing else []


def _monitored(trainer: pl.Trainer, kind: str) -> set[str]:
    """By the name of the class: those of the package pytorch_lightning are classes of their own."""
    callbacks = [c for c in trainer.callbacks if kind in {base.__name__ for base in type(c).__mro__}]  # type: ignore[attr-defined]
    return {callback.monitor for callback in callbacks if isinstance(callback.monitor, str)}


def _is_one_of(key: str, names: Collection[str]) -> bool:
    return is_logged(key) and parts_of(key)[0] in names
