"""Errors that more than one floor has to tell apart, here or on another rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


class LossFnError(RuntimeError):
    """The user's loss function raised while it was tried; the cause is chained."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("shape"))
        (True, False)
    """
    if isinstance(error, RankFailedError):
        return error.out_of_memory
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


@dataclass(frozen=True)
class Failure:
    """What a rank tells the others of its error, which itself may be such that no process can send it.

    Attributes:
        message: Its type and text.
        out_of_memory: As `is_out_of_memory` says.
        in_loss_fn: As `is_loss_fn_error` says.
    """

    message: str
    out_of_memory: bool
    in_loss_fn: bool


class RankFailedError(RuntimeError):
    """A measurement failed on one rank or more, and therefore on all.

    Args:
        failures: Of the ranks that failed.

    Attributes:
        out_of_memory: Whether lack of memory is all that went wrong.
        in_loss_fn: Whether a loss function that raised while it was tried is all that went wrong.
    """

    def __init__(self, failures: Mapping[int, Failure]) -> None:
        super().__init__("; ".join(f"rank {rank}: {failure.message}" for rank, failure in failures.items()))
        self.out_of_memory = all(failure.out_of_memory for failure in failures.values())
        self.in_loss_fn = all(failure.in_loss_fn for failure in failures.values())


def is_loss_fn_error(error: BaseException) -> bool:
    """Whether the user's loss function raised while it was tried, here or on another rank.

    Example:
        >>> is_loss_fn_error(LossFnError("no such column")), is_loss_fn_error(ValueError("shape"))
        (True, False)
    """
    return isinstance(error, LossFnError) or (isinstance(error, RankFailedError) and error.in_loss_fn)


class PartlyFailedError(RuntimeError):
    """Some of those who were to be served have raised; the others were served all the same.

    Args:
        failures: What each of them has raised, by its name.
        num_served: How many others there are.

    Attributes:
        failures: As given.
        num_served: As given.

    Example:
        >>> PartlyFailedError({"CSVLogger runs/version_0": OSError("disk full")}, num_served=1)
        PartlyFailedError('CSVLogger runs/version_0: OSError: disk full')
    """

    def __init__(self, failures: Mapping[str, Exception], num_served: int) -> None:
        super().__init__("; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in failures.items()))
        self.failures = dict(failures)
        self.num_served = num_served
