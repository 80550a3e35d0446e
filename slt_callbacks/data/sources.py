"""What may be given as a reference: where its samples are, and how they are collated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SubsetRandomSampler,
    default_collate,
)

from slt_callbacks.basics.lightning_kinds import is_combined_loader, is_data_module
from slt_callbacks.data.batches import describe

_WANTED = (
    "Expected `reference` to be a Dataset, a DataLoader, a list of batches or a function that returns one of these"
)


@dataclass(frozen=True)
class Samples:
    """Single samples, which have to be collated.

    Attributes:
        data: A map-style or an iterable data set.
        collate: Makes a batch of a list of samples.
        population: Rows that the loader's sampler keeps to; None for all.
        at_once: Whether the data set is asked for several rows by a list of them, and gives a batch.
    """

    data: Any
    collate: Callable[[Any], Any] = default_collate
    population: Sequence[int] | None = None
    at_once: bool = False

    @property
    def streams(self) -> bool:
        """Whether the samples come one after the other, and their number is not known."""
        return isinstance(self.data, IterableDataset)

    def read(self, rows: list[int]) -> Any:
        """The samples `rows`, as the loader hands them to `collate`."""
        if self.at_once:
            return self.data[rows]
        several = getattr(self.data, "__getitems__", None)
        return several(rows) if several else [self.data[row] for row in rows]


@dataclass(frozen=True)
class Batches:
    """Collated batches.

    Attributes:
        batches: In their order.
        whole: Whether these are all of them; False where they come from a stream that may have no end.
    """

    batches: Iterable[Any]
    whole: bool = True


def resolve(source: Any) -> Samples | Batches:
    """Find the samples.

    Args:
        source: As `draw_reference` takes it, but for functions. A DataModule stands for its training loader, a list of
            one loader or a CombinedLoader of one for that loader.

    Raises:
        TypeError: If it is none of these, or their meaning is not clear.
        ValueError: If a DataModule gives no loader.

    Example:
        >>> resolve([torch.zeros(3, 2)])
        Batches(batches=[tensor([[0., 0.],
                [0., 0.],
                [0., 0.]])], whole=True)
        >>> resolve(DataLoader([1.0, 2.0])).read([1])
        [2.0]
    """
    if is_data_module(source):
        return resolve(_training_loader(source))
    several = _several(source)
    if several is not None:
        if len(several) == 1:
            return resolve(several[0])
        raise TypeError(
            f"{_WANTED}, but got {describe(source)}: give one of them, or a list of the batches that the loss takes."
        )
    if isinstance(source, DataLoader):
        return _of_loader(source)
    if isinstance(source, IterableDataset):
        return Samples(source)
    if isinstance(source, (list, tuple)):
        return Batches(source)
    _check_kind(source)
    return Samples(source)


def _of_loader(loader: Any) -> Samples | Batches:
    """A loader stands for its data set, collated as it would."""
    streams = isinstance(loader.dataset, IterableDataset)
    if loader.batch_size is not None or loader.batch_sampler is not None:
        return Samples(loader.dataset, loader.collate_fn, None if streams else _population(loader))
    if not streams and _gives_lists(loader.sampler):
        return Samples(loader.dataset, loader.collate_fn, at_once=True)
    data = loader.dataset if streams else (loader.dataset[row] for row in range(len(loader.dataset)))
    return Batches(map(loader.collate_fn, data), whole=not streams)  # the data set makes the batches itself


def _population(loader: Any) -> Sequence[int] | None:
    """Rows that a sampler keeps to: those it leaves out may be held out on purpose."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    rows = sampler.indices if isinstance(sampler, SubsetRandomSampler) else sampler
    if not isinstance(rows, (list, tuple, range, torch.Tensor)):
        return None
    listed = rows.tolist() if isinstance(rows, torch.Tensor) else list(rows)
    return sorted(set(listed)) if all(isinstance(row, int) for row in listed) else None


def _gives_lists(sampler: Any) -> bool:
    """Whether a sampler names the rows of a batch at a time."""
    if isinstance(sampler, BatchSampler):
        return True
    if isinstance(sampler, Sampler) and type(sampler).__module__.startswith("torch."):
        return False
    return any(isinstance(rows, (list, tuple)) for rows in islice(iter(sampler), 1))


def _training_loader(module: Any) -> Any:
    try:
        return module.train_dataloader()
    except Exception as error:
        raise ValueError(
            f"Expected `reference`, a {type(module).__name__}, to give its training loader, but `train_dataloader()` "
            f"raised {type(error).__name__}: {error}. Call its `prepare_data()` and `setup('fit')` first, or give the "
            "data set itself."
        ) from error


def _several(source: Any) -> list[Any] | None:
    """The loaders of what holds loaders, or data sets."""
    if is_combined_loader(source):
        return list(source.flattened)
    found = list(source.values()) if isinstance(source, dict) else source
    if not isinstance(found, (list, tuple)) or not found:
        return None
    loads = (isinstance(one, (DataLoader, Dataset)) or is_data_module(one) or is_combined_loader(one) for one in found)
    return list(found) if all(loads) else None


def _check_kind(source: Any) -> None:
    if isinstance(source, (str, bytes)):
        shown = repr(source) if len(source) <= 40 else f"{source[:40]!r}..."
        raise TypeError(f"{_WANTED}, but got {shown}: give the data itself, not its name.")
    if isinstance(source, Mapping):
        raise TypeError(
            f"Expected `reference` to be a list of batches, but got one batch, {describe(source)}: write [batch]."
        )
    if hasattr(source, "__next__"):
        raise TypeError(
            f"{_WANTED}, but got {describe(source)}, which can be read once: write list(itertools.islice(batches, 8))."
        )
    if isinstance(source, torch.Tensor) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise TypeError(f"{_WANTED}, but got {describe(source)}. A single batch goes into a list: [batch].")
