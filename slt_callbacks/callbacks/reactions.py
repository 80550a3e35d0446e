"""What to do on an event: say so, keep the weights, or stop. Any ``(trainer, pl_module, event)`` will do as well."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from slt_callbacks.callbacks.watch import FailureEvent, StepSizeEvent
from slt_callbacks.detection import JumpEvent, StageEvent
from slt_callbacks.sinks import send_alert

Reaction = Callable[[pl.Trainer, pl.LightningModule, Any], None]
_DIRECTION = {1: "up", -1: "down"}


class Alert:
    """A W&B alert for jumps, new stages and failing samplers; a Python warning where there is no W&B run.

    Titles are constant, because W&B limits alerts by title; the numbers are in the text.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     trainer = pl.Trainer(barebones=True, accelerator="cpu")
        ...     Alert()(trainer, None, FailureEvent(8, 3, "all 4 chains diverged"))
        >>> str(caught[-1].message)
        'SLT sampling fails: 3 measurements in a row up to step 8: all 4 chains diverged'
    """

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule | None, event: Any) -> None:
        """Send it, on rank 0."""
        described = describe(event)
        if described is None or not trainer.is_global_zero:
            return
        title, text = described
        if not send_alert(trainer.loggers, title, text):
            warnings.warn(f"{title}: {text}", stacklevel=2)


class SaveCheckpoint:
    """Save the weights at a jump or a new stage, and the last ones from before it that a ModelCheckpoint has kept.

    Args:
        dirpath: Where to; made when it is needed.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self._dirpath = Path(dirpath)

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
        """Save, on all ranks together."""
        if not is_news(event):
            return
        kind = "jump" if isinstance(event, JumpEvent) else "stage"
        trainer.save_checkpoint(self._dirpath / f"step={trainer.global_step}-{kind}.ckpt")
        began = event.onset_step if isinstance(event, JumpEvent) else event.step
        kept = _kept_before(trainer, began)
        if kept is not None and trainer.is_global_zero:
            shutil.copy2(kept, self._dirpath / f"before-{kind}-{kept.name}")


class StopTraining:
    """Stop at the end of the batch in which the n-th jump or new stage was found.

    Args:
        after: n.

    Raises:
        ValueError: If `after` is not a positive integer.
    """

    def __init__(self, after: int = 1) -> None:
        if isinstance(after, bool) or not isinstance(after, int) or after < 1:
            raise ValueError(f"Expected `after` to be a positive integer, but got {after!r}.")
        self._left = after

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
        """Count, and stop."""
        if is_news(event):
            self._left -= 1
            if self._left <= 0:
                trainer.should_stop = True


def is_news(event: Any) -> bool:
    """Whether an event is a jump or a new boundary, and not the correction of one."""
    return isinstance(event, JumpEvent) or (isinstance(event, StageEvent) and event.kind == "announced")


def describe(event: Any) -> tuple[str, str] | None:
    """Title and text of an alert; None for what deserves none."""
    if isinstance(event, JumpEvent):
        where = f"between step {event.onset_step} and {event.step}"
        return "LLC jump", f"{_DIRECTION[event.direction]} by {abs(event.delta):.4g} {where} (z = {event.z:.1f})"
    if isinstance(event, StageEvent):
        return ("New developmental stage", f"it began at step {event.step}") if event.kind == "announced" else None
    if isinstance(event, FailureEvent):
        return "SLT sampling fails", f"{event.count} measurements in a row up to step {event.step}: {event.error}"
    if isinstance(event, StepSizeEvent):
        return None  # a change of settings, and no news of the network
    return "SLT event", repr(event)


def _kept_before(trainer: pl.Trainer, step: int) -> Path | None:
    """The newest file of a ModelCheckpoint whose name says a step before `step`."""
    files: set[str] = set()
    for checkpoint in trainer.checkpoint_callbacks:
        if isinstance(checkpoint, ModelCheckpoint):
            files |= {*checkpoint.best_k_models, checkpoint.last_model_path, checkpoint.best_model_path}
    dated = [(int(match[1]), file) for file in files if (match := re.search(r"step=(\d+)", Path(file).name))]
    before = [(at, file) for at, file in dated if at < step and Path(file).is_file()]
    return Path(max(before)[1]) if before else None
