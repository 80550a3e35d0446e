"""A fit in W&B's online mode, as a process of its own: the test kills it where it hangs."""

from __future__ import annotations

import os
import sys
import urllib.request

import torch
import wandb
from lightning.pytorch.loggers import WandbLogger

from slt_callbacks import Alert
from tests.callbacks.test_watch import Planted, there_and_back, watched
from tests.training import fit

STEPS = 28


def main(folder: str) -> None:
    torch.set_num_threads(1)
    logger = WandbLogger(project="tests", save_dir=folder)
    fit(watched(on_event=[Alert()], observables={"llc": Planted(there_and_back)}), max_steps=STEPS, logger=logger)
    # The monitor is done, and the run goes on: it is the user's to log to, and to end.
    assert wandb.run is not None
    wandb.run.log({"after the fit": 1.0})
    mark("fit_over")
    wandb.run.finish()


def mark(word: str) -> None:
    request = urllib.request.Request(f"{os.environ['WANDB_BASE_URL']}/mark/{word}", data=b"", method="POST")
    urllib.request.urlopen(request, timeout=5).close()


if __name__ == "__main__":
    main(sys.argv[1])
