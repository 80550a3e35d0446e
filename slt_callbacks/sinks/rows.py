"""Rows of ours in a W&B run that has a user of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from slt_callbacks.basics import keys

# Rows that wait for room, at most: a counter may be ahead of the training step for ever, as that of a user who counts
# samples, and then rows are to be seen. Lightning's metrics put it ahead by two or three, where they do.
_MOST_WAITING = 4

# W&B's counter at a row of ours that may not have been written yet. By run, because one fit may follow the other.
_OPEN_AT: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class Rows:
    """Writes one row a measurement, and loses neither these nor the user's.

    W&B has one row open at a time, under its own counter, `run.step`. ``run.log(row)`` writes that row and moves the
    counter; a user's ``run.log(row, step=k)`` is dropped, with no more than a printed warning, where the counter has
    passed `k`. So a measurement of ours does not move it: with ``commit=False`` it waits in the open row, until whoever
    logs next writes that. (``step=run.step`` would have it wait there just the same.) Where nobody has, our next
    measurement would overwrite the numbers of this one, so that we write the row ourselves; but no row of ours moves
    the counter beyond the training step, and a user who logs at ``trainer.global_step`` finds room. What would, waits
    here, in order. Measured, with a row of the user's at each of 20 steps and a measurement at each: 1 of the 20 was
    kept where every measurement moved the counter, all of them are so.

    Args:
        run: The W&B run.

    Example:
        >>> import wandb
        >>> run = wandb.init(mode="disabled")
        >>> rows = Rows(run)
        >>> rows.add({"slt/step": 3, "slt/llc/mean": 1.5}, up_to=2)
        >>> rows.close()
        >>> run.summary["slt/llc/mean"]
        1.5
        >>> run.finish()
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self._defined: set[str] = set()
        self._waiting: deque[tuple[Mapping[str, Any], Callable[[], Mapping[str, Any]]]] = deque()
        self._up_to = 0
        # Processes that share a run have no counter of their own: each row is written at once, and none is dropped.
        self._shared = getattr(run.settings, "mode", None) == "shared"

    def add(self, scalars: Mapping[str, Any], up_to: int, media: Callable[[], Mapping[str, Any]] | None = None) -> None:
        """One row more.

        Args:
            scalars: Numbers by logged key; each is defined against ``slt/step``. Without any, the row needs not be one
                of its own.
            up_to: How far training has come: a step under which its user may still log.
            media: Makes what else belongs to the row; numbers survive it where it raises.
        """
        self._up_to = max(self._up_to, up_to)
        self._waiting.append((scalars, media or dict))
        self._write(_MOST_WAITING)

    def close(self, up_to: int = 0) -> None:
        """Write all of them; the last one stays open where a user may have more to write in it.

        W&B writes an open row when the run is finished, also by the end of the process.

        Args:
            up_to: How far training has come in the end.
        """
        self._up_to = max(self._up_to, up_to)
        self._write(0)
        if self._is_open() and self._may_move():
            self._end_row()

    def _write(self, most_waiting: int) -> None:
        while self._waiting:
            scalars, media = self._waiting[0]
            if self._is_open() and (scalars or self._may_move()):
                if not self._may_move() and len(self._waiting) <= most_waiting:
                    return
                self._end_row()
            self._waiting.popleft()
            self._log(scalars, media)

    def _log(self, scalars: Mapping[str, Any], media: Callable[[], Mapping[str, Any]]) -> None:
        self._define(scalars)
        try:
            self._put({**scalars, **media()})
        except Exception:
            # A table asks the server before the row is written, an image the disk: neither may cost the numbers.
            self._put(scalars)
            raise

    def _put(self, row: Mapping[str, Any]) -> None:
        if row and self._shared:
            self.run.log(dict(row))
        elif row:
            self.run.log(dict(row), commit=False)
            _OPEN_AT[self.run] = self.run.step

    def _is_open(self) -> bool:
        """Whether the last row is still ours to write: nobody else has done it."""
        if self.run not in _OPEN_AT:
            return False
        # A run that has ended refuses this at once; its counter would keep us waiting for half a minute.
        self.run.log({}, commit=False)
        return bool(self.run.step == _OPEN_AT[self.run])

    def _may_move(self) -> bool:
        return _OPEN_AT[self.run] < self._up_to

    def _end_row(self) -> None:
        del _OPEN_AT[self.run]
        self.run.log({}, commit=True)

    def _define(self, scalars: Mapping[str, Any]) -> None:
        """By its own name each: a glob would conflict with WandbLogger's."""
        for key in scalars.keys() - self._defined:
            if "*" in key:  # a name such as "L*" is a pattern to W&B, or refused: it goes without an axis of ours
                pass
            elif key == keys.STEP:
                self.run.define_metric(key)
            elif key.startswith(f"{keys.PREFIX}/"):  # the stage and the jump of a run too
                # A bare dot would be that of a nested number, and "head0.1" would go without an axis.
                self.run.define_metric(key.replace(".", r"\."), step_metric=keys.STEP, summary="last,max")
            self._defined.add(key)
