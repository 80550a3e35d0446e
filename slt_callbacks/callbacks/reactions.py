"""What to do on an event: say so, keep the weights, or stop. Any ``(trainer, pl_module, event)`` will do as well."""

from __future__ import annotations

import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl

from slt_callbacks.basics.errors import PartlyFailedError
from slt_callbacks.basics.keys import is_logged, is_mean, parts_of
from slt_callbacks.basics.plain import brief, shown
from slt_callbacks.detection.jumps import JumpEvent
from slt_callbacks.detection.records import StageEvent
from slt_callbacks.measuring.naming import in_words
from slt_callbacks.recording.events import FailureEvent, StepSizeEvent
from slt_callbacks.sinks.alerts import News, send_alert
from slt_callbacks.weights.checkpoints import step_of

Reaction = Callable[[pl.Trainer, pl.LightningModule, Any], None]
_DIRECTION = {1: "up", -1: "down"}
_WAYS = {
    "A": "A (up, loss down)",
    "B": "B (down, loss down)",
    "C": "C (up, loss not down)",
    "D": "D (down, loss not down)",
}
_NEAR = 2  # measurements by which the boundary that a jump makes may lie beside the jump


class Alert:
    """A W&B alert for jumps, new stages and failing samplers; a Python warning where there is no W&B run.

    Titles are constant, so that filters and rules may know them; the key and the numbers are in the text. That of a new
    stage names the three numbers that changed most there, such as "LLC up 9.1 (z 14); accuracy 0.52 -> 0.93 (z 8.0);
    head0.1 up 2.2 (z 5.1)". A run that has sent an alert does not send it again, though training goes on from a
    checkpoint of before the event. Elsewhere than to W&B, such as to a webhook, goes any function.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     trainer = pl.Trainer(barebones=True, accelerator="cpu")
        ...     Alert()(trainer, None, FailureEvent(8, 3, "all 4 chains diverged"))
        >>> str(caught[-1].message)
        'SLT sampling fails: 3 measurements in a row up to step 8: all 4 chains diverged'

        A webhook, in its place or beside it:

        >>> import json
        >>> from urllib.request import Request, urlopen
        >>> def webhook(trainer, pl_module, event, url="data:,"):  # the address that your service gives you
        ...     described = describe(event)
        ...     if described is not None and trainer.is_global_zero:
        ...         content = json.dumps({"text": ": ".join(described)}).encode()
        ...         with urlopen(Request(url, content, {"Content-Type": "application/json"}), timeout=5):
        ...             print("sent", content.decode())
        >>> webhook(trainer, None, FailureEvent(8, 3, "diverged"))
        sent {"text": "SLT sampling fails: 3 measurements in a row up to step 8: diverged"}
    """

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule | None, event: Any) -> None:
        """Send it, on rank 0."""
        described = describe(event)
        if described is None or not trainer.is_global_zero:
            return
        title, text = described
        if isinstance(event, (JumpEvent, FailureEvent)) and trainer.global_step > event.step:
            text += f" (told at step {trainer.global_step}: it was measured beside training)"
        sent = False
        try:
            sent = send_alert(trainer.loggers, title, text, _news(event, trainer.global_step))
        except PartlyFailedError as error:
            sent = error.num_served > 0
            raise
        finally:
            if not sent:
                warnings.warn(f"{title}: {text}", stacklevel=2)


class SaveCheckpoint:
    """Save the weights at a jump or a new stage, and the last ones from before it that a ModelCheckpoint has kept.

    ``step=<step>-jump.ckpt``, or ``-stage.ckpt``, is of the measurement that gave the news, or, where that was made
    beside training, of the step at which it came, for the weights of then are gone; ``before-jump-<name>`` is a copy of
    the newest file in the folder of a ModelCheckpoint, or in its folders where its file name has slashes, that is of a
    step before the jump or the boundary; one warning says where there is none. An event of your own detector is news as
    well: ``-event.ckpt``, and a copy from before that measurement.

    Args:
        dirpath: Where to; made when it is needed.

    Raises:
        TypeError: If `dirpath` is no path.

    Example:
        >>> from tempfile import mkdtemp
        >>> trainer, model, folder = pl.Trainer(barebones=True, accelerator="cpu"), pl.LightningModule(), mkdtemp()
        >>> trainer.strategy.connect(model)  # as `fit` does
        >>> jump = JumpEvent(step=130, index=13, direction=1, delta=5.0, z=9.0, onset_step=120, onset_index=12)
        >>> SaveCheckpoint(folder)(trainer, model, jump)
        >>> [path.name for path in Path(folder).iterdir()]
        ['step=0-jump.ckpt']
        >>> shutil.rmtree(folder)
    """

    def __init__(self, dirpath: str | Path) -> None:
        if not isinstance(dirpath, (str, os.PathLike)):
            raise TypeError(
                f"Expected `dirpath` to be the path of a folder, but got {shown(dirpath)}: write "
                'SaveCheckpoint("events").'
            )
        self._dirpath = Path(dirpath)
        self._missed = False

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
        """Save, on all ranks together."""
        if not is_news(event):
            return
        kind, begin = "event", trainer.global_step  # of one of the user's own nothing is known but when it was found
        if isinstance(event, JumpEvent):
            kind, begin = "jump", event.onset_step
        elif isinstance(event, StageEvent):
            kind, begin = "stage", event.step
        _save(trainer, self._dirpath / f"step={trainer.global_step}-{kind}.ckpt")
        if not trainer.is_global_zero:
            return
        kept = _kept_before(trainer, begin, self._dirpath)
        if kept is not None:
            shutil.copy2(kept[0], self._dirpath / f"before-{kind}-{kept[1]}")
        elif not self._missed and _model_checkpoints(trainer):
            self._missed = True
            warnings.warn(
                f"SaveCheckpoint has kept the weights at step {trainer.global_step}, and none from before step {begin}:"
                " no ModelCheckpoint has them any more. Give the Trainer one that keeps what it saves, such as "
                "ModelCheckpoint(every_n_train_steps=..., save_top_k=-1).",
                stacklevel=2,
            )


class StopTraining:
    """Stop at the end of the batch in which the n-th transition was found.

    A jump and the boundary that it makes are one transition, and a boundary that was withdrawn is none; every event of
    your own detector is one. They are counted in ``monitor.events``, so those from before a resume count as well.

    Args:
        after: n.

    Raises:
        ValueError: If `after` is not a positive integer.

    Example:
        >>> trainer = pl.Trainer(barebones=True, accelerator="cpu")
        >>> jump = JumpEvent(step=130, index=13, direction=1, delta=5.0, z=9.0, onset_step=120, onset_index=12)
        >>> StopTraining()(trainer, pl.LightningModule(), jump)
        >>> trainer.should_stop
        True
    """

    def __init__(self, after: int = 1) -> None:
        if isinstance(after, bool) or not isinstance(after, int) or after < 1:
            raise ValueError(f"Expected `after` to be a positive integer, but got {after!r}.")
        self._after = after

    def __call__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: Any) -> None:
        """Count, and stop."""
        if is_news(event) and num_transitions(_events(trainer) or [event]) >= self._after:
            trainer.should_stop = True


def is_news(event: Any) -> bool:
    """Whether an event is a jump, a new boundary or of the user's own kind: no correction, and not of the sampler."""
    if isinstance(event, StageEvent):
        return event.kind == "announced"
    return not isinstance(event, (FailureEvent, StepSizeEvent))


def num_transitions(events: Sequence[Any]) -> int:
    """Jumps without the way back, events of the user's own, and boundaries: announced, not withdrawn, and of no jump.

    Example:
        >>> jump = JumpEvent(step=130, index=13, direction=1, delta=5.0, z=9.0, onset_step=120, onset_index=12)
        >>> num_transitions([jump, StageEvent("announced", 0, 12, 120), StageEvent("announced", 1, 30, 300)])
        2
    """
    jumps = [event for event in events if isinstance(event, JumpEvent)]
    stages = [event for event in events if isinstance(event, StageEvent)]
    covered = {(jump.key, index) for jump in jumps for index in _boundaries_of(jump)}
    withdrawn = {(event.key, event.boundary_id) for event in stages if event.kind == "withdrawn"}
    boundaries = [
        event
        for event in stages
        if event.kind == "announced"
        and (event.key, event.boundary_id) not in withdrawn
        and (event.key, event.index) not in covered
    ]
    own = [event for event in events if is_news(event) and not isinstance(event, (JumpEvent, StageEvent))]
    return sum(not jump.returns for jump in jumps) + len(boundaries) + len(own)


def describe(event: Any) -> tuple[str, str] | None:
    """Title and text of an alert; None for what deserves none."""
    if isinstance(event, JumpEvent):
        where = f"between step {event.onset_step} and {event.step}"
        text = f"{_DIRECTION[event.direction]} by {abs(event.delta):.4g} {where} (z = {event.z:.1f})"
        text += ", back from the jump before" if event.returns else ""
        return ("LLC jump" if _of_llc(event) else "Jump of a watched number"), f"{_named(event.key)} {text}".lstrip()
    if isinstance(event, StageEvent):
        if event.kind != "announced":
            return None
        return ("New developmental stage" if _of_llc(event) else "New stage of a watched number"), _stage_text(event)
    if isinstance(event, FailureEvent):
        return (
            "SLT sampling fails",
            f"{event.count} measurements in a row up to step {event.step}: {brief(event.error)}",
        )
    if isinstance(event, StepSizeEvent):
        return None  # a change of settings, and no news of the network
    return "SLT event", shown(event, most=400)


def _news(event: Any, step: int) -> News:
    """By what a run that has sent an alert knows the event, should it be found again.

    Args:
        event: One that deserves an alert.
        step: Training step at which it was found: of a user's own event no more is known.
    """
    if isinstance(event, JumpEvent):
        return News(f"{event.key} jump", event.onset_step)
    if isinstance(event, StageEvent):
        return News(f"{event.key} stage", event.step)
    if isinstance(event, FailureEvent):
        return News("failures", event.step)
    text = re.sub(r"0x[0-9a-f]+", "", repr(event))  # addresses are of one process
    return News(type(event).__name__, f"{step} {zlib.crc32(text.encode()):08x}")


def _of_llc(event: JumpEvent | StageEvent) -> bool:
    return not event.key or is_mean(event.key)


def _stage_text(event: StageEvent) -> str:
    changed = f"; changed most: {event.changed_most}" if event.changed_most else ""
    name = _named(event.key)
    if event.previous_step is None:
        return f"{name} a new stage began at step {event.step}{changed}".lstrip()
    before, after = (_WAYS.get(kind or "", kind) for kind in (event.previous_type, event.stage_type))
    return (
        f"{name} from {before} to {after} between step {event.previous_step} and "
        f"{event.step}: {event.value_before:.4g} then, {event.value_now:.4g} now{changed}"
    ).lstrip()


def _named(key: str) -> str:
    """What is watched, in words and by its key; of the LLC the title says it."""
    words = in_words("/".join(parts_of(key))) if is_logged(key) else key
    return key if words in ("LLC", key) else f"{words} ({key})"


def _boundaries_of(jump: JumpEvent) -> range:
    """Where the boundary that a jump makes may lie: both count the points of the same series."""
    return range(jump.onset_index - _NEAR, jump.index + _NEAR + 1)


@runtime_checkable
class _Monitor(Protocol):
    """A callback that keeps the story of a run, known by its members: its own file imports this one."""

    events: Sequence[Any]
    stages: Sequence[Any]
    history: Sequence[Any]


def _events(trainer: pl.Trainer) -> list[Any]:
    """Those of the trainer's monitor; none where the reaction is called without one."""
    return [event for one in trainer.callbacks if isinstance(one, _Monitor) for event in one.events]  # type: ignore[attr-defined]


def _save(trainer: pl.Trainer, path: Path) -> None:
    """Save on all ranks together, or fail without leaving the others waiting for ever."""
    try:
        trainer.save_checkpoint(path)
    except Exception:
        # Rank 0 alone writes, and where that fails the others are in the barrier at the end of `save_checkpoint`.
        trainer.strategy.barrier("Trainer.save_checkpoint")
        raise


def _kept_before(trainer: pl.Trainer, step: int, leave_out: Path) -> tuple[Path, str] | None:
    """The newest file of a ModelCheckpoint that is of a step before `step`, and its name below the folder.

    Args:
        trainer: With its callbacks.
        step: See above.
        leave_out: A folder whose copies do not count.
    """
    found = [kept for one in _model_checkpoints(trainer) for kept in _files_of(one)]
    own = leave_out.resolve()
    copies = [(file, name) for file, name in found if file.parent.resolve() == own and name.startswith("before-")]
    # Newest first, because reading thousands of them would take seconds
    newest = sorted(set(found).difference(copies), key=lambda kept: kept[0].stat().st_mtime_ns, reverse=True)
    for file, name in newest:
        try:
            if step_of(file, trust=False) < step:
                return file, name
        except ValueError:  # no checkpoint, or none that says its step
            continue
    return None


def _model_checkpoints(trainer: pl.Trainer) -> list[Any]:
    """By the name of their class: ``pytorch_lightning`` has one of its own."""
    named = [one for one in trainer.callbacks if "ModelCheckpoint" in {kind.__name__ for kind in type(one).__mro__}]  # type: ignore[attr-defined]
    return [one for one in named if getattr(one, "dirpath", None)]


def _files_of(checkpoint: Any) -> list[tuple[Path, str]]:
    """Each with its name below the folder: a slash in ``filename`` makes folders in it."""
    folder, depth = Path(checkpoint.dirpath), str(getattr(checkpoint, "filename", None) or "").count("/")
    files = [file for level in range(depth + 1) for file in folder.glob("*/" * level + "*.ckpt") if file.is_file()]
    return [(file, "-".join(file.relative_to(folder).parts)) for file in files]
