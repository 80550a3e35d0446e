"""Run alone: train with W&B offline, and kill its service on the way. Prints the warnings, and what is left.

python -m tests.callbacks.wandb_killed FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import WandbLogger

from slt_callbacks import MemorySink, WandbSink
from tests.training import fingerprint, fit, monitor


class Kills(pl.Callback):
    """Ends every process that this one has started."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            for task in Path("/proc/self/task").iterdir():
                for child in (task / "children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    memory = MemorySink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(
            monitor(sinks=[WandbSink(), memory]),
            Kills(),
            logger=WandbLogger(project="tests", offline=True, save_dir=folder),
            log_every_n_steps=1000,
        )
    for warning in caught:
        print(str(warning.message).replace("\n", " "))
    print(f"{len(memory.publications)} publications, {fingerprint(trainer)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
