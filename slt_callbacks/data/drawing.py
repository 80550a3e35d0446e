"""Draw the reference set from whatever holds the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from slt_callbacks.basics.rng import generator, isolated_rng, seed_from
from slt_callbacks.data.batches import (
    Batch,
    concatenate,
    describe,
    leaves,
    map_leaves,
    num_rows,
    signature,
    take_rows,
)
from slt_callbacks.data.reference import Group, ReferenceSet

DEFAULT_NUM_SAMPLES = 256


_SAMPLES_STREAM, _AUGMENTATION_STREAM = 101, 102  # apart from the streams of the chains, which start at 0


# Without the types of their samples, which LightningCLI would take for the class to make.
Reference = Dataset | DataLoader | Sequence[Batch] | Callable[[], Any]  # type: ignore[type-arg]


def draw_reference(
    source: Reference, num_samples: int | None = None, seed: int = 0, at_most: int | None = None
) -> ReferenceSet:
    """Draw the reference set: a seeded choice without replacement, kept in the order of the data.

    Args:
        source: A map-style Dataset; a DataLoader (it stands for its dataset and its `collate_fn`, not for its shuffle);
            a list of collated batches; an IterableDataset (its first samples); or a function that returns one of these.
        num_samples: How many; None for all of them (an IterableDataset gives 256).
        seed: Decides which.
        at_most: Without `num_samples`: so many, or all where there are fewer.

    Raises:
        TypeError: If `source` is none of the above or holds a sparse tensor, or `seed` is no integer.
        ValueError: If there are fewer samples than asked for, none at all, or one that is not finite.

    Example:
        >>> reference = draw_reference([torch.arange(6.0), torch.arange(6.0, 10.0)], num_samples=4, seed=1)
        >>> len(reference), reference.batches()[0][0].equal(reference.indices.float())
        (4, True)
    """
    check_num_samples(num_samples)
    check_seed(seed)
    # Out of inference mode: its tensors cannot be saved for a backward pass.
    with torch.inference_mode(False), isolated_rng(seed_from(seed, _AUGMENTATION_STREAM)):
        if callable(source) and not isinstance(source, (Dataset, DataLoader)):
            source = source()
        reference = _from_source(source, num_samples or at_most, seed)
    if num_samples is not None and len(reference) < num_samples:
        raise ValueError(
            f"Expected `num_samples` to be at most the {len(reference)} samples of `reference`, but got {num_samples}."
        )
    _check_finite(reference)
    return reference


def check_num_samples(num_samples: Any) -> None:
    """Refuse what cannot be a number of samples.

    Raises:
        ValueError: If it is neither a positive integer nor None.
    """
    number = isinstance(num_samples, int) and not isinstance(num_samples, bool)
    if num_samples is not None and not (number and num_samples > 0):
        raise ValueError(f"Expected `num_samples` to be a positive integer or None, but got {num_samples!r}.")


def check_seed(seed: Any) -> None:
    """Refuse what cannot seed a generator.

    Raises:
        TypeError: If it is no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"Expected `seed` to be an integer, but got {seed!r}.")


def _from_source(source: Any, limit: int | None, seed: int) -> ReferenceSet:
    collate: Callable[[list[Any]], Batch] = default_collate
    if isinstance(source, DataLoader):
        if source.batch_size is None and source.batch_sampler is None:  # the data set makes the batches itself
            known = not isinstance(source.dataset, IterableDataset)
            return _from_batches(_first_batches(source.dataset, limit), limit, seed, known)
        collate, source = source.collate_fn, source.dataset
    if isinstance(source, IterableDataset):
        wanted = limit or DEFAULT_NUM_SAMPLES
        samples = list(islice(iter(source), wanted))
        _check_some(len(samples))
        return _collated(samples, torch.arange(len(samples)), collate)
    if isinstance(source, (list, tuple)):
        return _from_batches(list(source), limit, seed)
    if isinstance(source, (str, bytes)):
        raise TypeError(
            "Expected `reference` to be a Dataset, a DataLoader, a list of batches or a function that returns one of "
            f"these, but got {source!r}: give the data itself, not its name."
        )
    if isinstance(source, torch.Tensor) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        raise TypeError(
            "Expected `reference` to be a Dataset, a DataLoader, a list of batches or a function that returns one of "
            f"these, but got {describe(source)}. A single batch goes into a list: [batch]."
        )
    if isinstance(source, dict):
        raise TypeError(
            f"Expected `reference` to be a list of batches, but got one batch, {describe(source)}: write [batch]."
        )
    chosen = _choose(len(source), limit, seed)
    return _collated([source[index] for index in chosen.tolist()], chosen, collate, len(source))


def _first_batches(dataset: Any, limit: int | None) -> list[Batch]:
    batches, count = [], 0
    stream: Iterable[Batch] = (
        iter(dataset) if isinstance(dataset, IterableDataset) else (dataset[index] for index in range(len(dataset)))
    )
    for batch in stream:
        batches.append(batch)
        count += num_rows(batch)
        # A stream may have no end; data of a known length is taken whole, so that the choice is over all of it.
        if isinstance(dataset, IterableDataset) and count >= (limit or DEFAULT_NUM_SAMPLES):
            break
    return batches


def _collated(
    samples: list[Any], indices: torch.Tensor, collate: Callable[[list[Any]], Batch], source_size: int | None = None
) -> ReferenceSet:
    try:
        batch = collate(samples)
    except (TypeError, RuntimeError) as error:
        _check_dense(samples)
        raise type(error)(
            f"The samples of `reference` could not be collated into one batch ({error}). Give a DataLoader with a "
            "`collate_fn` that pads them, or a list of batches."
        ) from error
    _check_dense(batch)
    if num_rows(batch) != len(samples):
        raise ValueError(
            f"Expected `collate_fn` to stack {len(samples)} samples along the first dimension, but got "
            f"{describe(batch)}: give `reference` as a list of batches of one sample each, or as padded tensors."
        )
    return ReferenceSet([Group(_private(batch), torch.arange(len(samples)))], indices, source_size)


def _from_batches(batches: list[Batch], limit: int | None, seed: int, whole: bool = True) -> ReferenceSet:
    for batch in batches:
        _check_dense(batch)
    sizes = [num_rows(batch) for batch in batches]
    chosen = _choose(sum(sizes), limit, seed)
    columns: dict[str, list[tuple[Batch, torch.Tensor]]] = {}
    start = 0
    for batch, size in zip(batches, sizes, strict=True):
        inside = ((chosen >= start) & (chosen < start + size)).nonzero().flatten()
        if len(inside):
            part = take_rows(batch, chosen[inside] - start, size)
            columns.setdefault(signature(part), []).append((part, inside))
        start += size
    groups = [
        Group(_private(concatenate([part for part, _ in column])), torch.cat([places for _, places in column]))
        for column in columns.values()
    ]
    return ReferenceSet(groups, chosen, sum(sizes) if whole else None)


def _choose(available: int, limit: int | None, seed: int) -> torch.Tensor:
    _check_some(available)
    order = torch.randperm(available, generator=generator(torch.device("cpu"), seed, _SAMPLES_STREAM))
    return order[:limit].sort().values


def _check_some(available: int) -> None:
    if available == 0:
        raise ValueError("Expected `reference` to hold samples, but it is empty: give at least 1.")


def _check_dense(batch: Batch) -> None:
    for leaf in leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided:
            raise TypeError(
                f"Expected `reference` to hold dense tensors, but got one of layout {leaf.layout}: write "
                "tensor.to_dense()."
            )


def _private(batch: Batch) -> Batch:
    return map_leaves(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, batch)


def _check_finite(reference: ReferenceSet) -> None:
    for batch, places in reference.batches():
        for leaf in _floating(batch):
            bad = (~leaf.isfinite()).flatten(1).any(1) if leaf.ndim > 1 else ~leaf.isfinite()
            if bad.any():
                known = bad.ndim == 1 and len(bad) == len(places)
                sample = f"sample {int(reference.indices[places[bad.nonzero()[0, 0]]])}" if known else "a shared tensor"
                raise ValueError(
                    f"Expected the samples of `reference` to be finite, but {sample} holds NaN or infinity: clean the "
                    "data, or give only clean samples to the monitor."
                )


def _floating(batch: Batch) -> Iterator[torch.Tensor]:
    return (leaf for leaf in leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
