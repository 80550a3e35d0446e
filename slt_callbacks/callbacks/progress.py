"""A line for the measurement inside the user's own progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

_DESCRIPTION = "Sampling"
_REFRESH_SECONDS = 0.1  # drawing a Rich bar takes milliseconds: as long as an SGLD step


@contextmanager
def measurement_progress(
    trainer: pl.Trainer, total: int, description: str = _DESCRIPTION
) -> Iterator[Callable[[int], None]]:
    """Show a measurement of `total` SGLD steps in the trainer's Rich or TQDM bar, and take the line away at the end.

    Args:
        trainer: Whose bar it is.
        total: Steps, or whatever else is counted.
        description: In front of the bar.

    Yields:
        A function to be told how many steps were just taken. Without a bar, or on another rank than 0, it does nothing.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.is_enabled:
        progress = bar.progress
        task = bar._add_task(total, description)
        last = 0.0

        def advance(steps: int) -> None:
            nonlocal last
            progress.update(task, advance=steps)
            if time.monotonic() - last > _REFRESH_SECONDS:
                bar.refresh()
                last = time.monotonic()

        try:
            yield advance
        finally:
            progress.remove_task(task)
            bar.refresh()
    elif isinstance(bar, TQDMProgressBar) and not bar.is_disabled:
        position = 2 * bar.process_position + 1
        with Tqdm(desc=description, total=total, position=position, leave=False, file=sys.stdout) as line:
            yield lambda steps: line.update(steps) and None
    else:
        yield lambda steps: None
