"""In a process beside: training goes on while it measures."""

from __future__ import annotations

from functools import partial

import torch

from slt_callbacks.basics.plain import shown
from slt_callbacks.executors.elsewhere import Elsewhere, check_count
from slt_callbacks.executors.numerics import Numerics
from slt_callbacks.executors.processes import Processes
from slt_callbacks.executors.serving import serve_here


class ProcessExecutor(Elsewhere):
    """Measures in a process beside the training process, which goes on meanwhile.

    At a trigger the weights and buffers are copied into shared memory, and that is all that training waits for. A
    result is published at the step of its fork when it comes, some steps later. The numbers are those of the training
    process, to the last bit where both run as many threads on the same kind of device.

    The module travels with every fork, but for data sets and loaders that it holds; loss function, observables and
    reference samples travel once, when the fit begins. They have to be pickled, so functions and classes have to stand
    at the top of a module, and a script has to train below ``if __name__ == "__main__":``. Of its trainer a loss may
    read plain numbers, such as `current_epoch`.

    Args:
        num_threads: Of a worker. On a machine whose cores are all at work, more slow down the training.
        device: Where to measure, such as "cuda:1"; None for where the module is.
        max_pending: Forks that wait, each with a copy of the weights, while the worker is busy. What is due beyond is
            skipped and counted where `max_overhead` sets a limit; with ``max_overhead=None`` training waits.
        num_workers: Processes. One keeps its chains warm, and checkpoints hold them. Several take the forks in turn,
            and each measurement stands alone: chains begin at the weights, and what compares with the measurement
            before is NaN.
        end_timeout: Seconds that the end of a fit waits for what is not finished; None for as long as it takes.

    A worker that ends is started again, unless it ends twice in a row; the measurement is a failed one, and its chains
    begin afresh; what observables have gathered, such as the path of a `TrajectoryPCA`, comes with every measurement,
    and goes on. Where each stands alone, its fork is measured once more instead.

    Raises:
        ValueError: If a number is out of range, or there is no such device.

    Example:
        >>> import torch
        >>> from slt_callbacks import ProcessExecutor, SLTMonitor
        >>> monitor = SLTMonitor([torch.zeros(8, 2)], every_n_train_steps=500, executor=ProcessExecutor())
        >>> ProcessExecutor(num_threads=0)
        Traceback (most recent call last):
        ValueError: Expected `num_threads` to be an integer of at least 1, but got 0.
    """

    def __init__(
        self,
        num_threads: int = 1,
        device: str | torch.device | None = None,
        max_pending: int = 1,
        num_workers: int = 1,
        end_timeout: float | None = 600.0,
    ) -> None:
        threads, place = check_count("num_threads", num_threads, 1), checked_device(device)
        check_count("num_workers", num_workers, 1)
        workers = Processes(num_workers, serve_here, partial(_arguments, threads, place))
        super().__init__(workers, num_workers, max_pending, end_timeout)


def _arguments(num_threads: int, device: str | None) -> tuple[Numerics, str | None]:
    return Numerics.here(num_threads), device


def checked_device(device: str | torch.device | None) -> str | None:
    """The name of a device that there is, found out without touching a GPU.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> checked_device("gpu")
        Traceback (most recent call last):
        ValueError: Expected `device` to name a device such as "cpu" or "cuda:1", or to be None for that of the module,
        but got 'gpu'.
    """
    if device is None:
        return None
    problem = (
        'Expected `device` to name a device such as "cpu" or "cuda:1", or to be None for that of the module, but got '
        f"{shown(device)}"
    )
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{problem}.") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"{problem}: there are {torch.cuda.device_count()} GPUs here.")
    if place.type == "meta":
        raise ValueError(f"{problem}: it holds no numbers.")
    return str(place)
