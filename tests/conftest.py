"""What every test shares."""

import logging
import os
import sys
from collections.abc import Iterator

import pytest
import torch

# W&B reads these once, at its first use in a process, and that may be in any test.
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors in tests are tiny: a second thread only waits, and on a busy machine for milliseconds a step."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _lightning_speaks() -> None:
    """An example that a test has imported mutes Lightning's logger for the whole process."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


@pytest.fixture(autouse=True)
def _no_wandb_run_is_left() -> Iterator[None]:
    """A WandbLogger goes on in the run that it finds, which must not be that of the test before."""
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.run.finish()
