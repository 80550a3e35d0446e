"""Draw the reference set from whatever holds the samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from slt_callbacks.basics.plain import shown
from slt_callbacks.basics.rng import generator, isolated_rng, seed_from
from slt_callbacks.data.batches import Batch, leaves, num_rows
from slt_callbacks.data.collating import check_dense, collated, grouped
from slt_callbacks.data.containers import Columns
from slt_callbacks.data.generators import Untouched
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.data.sources import Batches, resolve

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
            a list of collated batches; an IterableDataset (its first samples); a DataModule (its training loader); or a
            function that returns one of these. Generators that can be reached from it are put back.
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
    with torch.inference_mode(False), isolated_rng(seed_from(seed, _AUGMENTATION_STREAM)), _untouched(source):
        if callable(source) and not isinstance(source, (Dataset, DataLoader, torch.nn.Module)):
            with _untouched(source := source()):
                reference = _from_source(source, num_samples or at_most, seed)
        else:
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
        raise ValueError(f"Expected `num_samples` to be a positive integer or None, but got {shown(num_samples)}.")


def check_seed(seed: Any) -> None:
    """Refuse what cannot seed a generator.

    Raises:
        TypeError: If it is no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"Expected `seed` to be an integer, but got {shown(seed)}.")


@contextmanager
def _untouched(source: Any) -> Iterator[None]:
    """Leaves the generators of a data set as they were, and says what else has moved on."""
    before = Untouched(source)
    try:
        yield
    finally:
        before.put_back()
    changes = before.changes()
    if changes:
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        warnings.warn(
            f"Reading `reference` has changed {changes[0]}{more}, which is not put back: if the samples depend on it, "
            "training that reads the same object sees others than without the monitor. Give the monitor a data set of "
            "its own, such as copy.deepcopy(data).",
            stacklevel=4,
        )


def _from_source(source: Any, limit: int | None, seed: int) -> ReferenceSet:
    found = resolve(source)
    if isinstance(found, Batches):
        return _from_batches(found, limit, seed)
    if found.streams:
        samples = list(islice(iter(found.data), limit or DEFAULT_NUM_SAMPLES))
        _check_some(len(samples))
        return ReferenceSet([collated(samples, found.collate)], _up_to(len(samples)))
    chosen = _choose(len(found.data) if found.population is None else len(found.population), limit, seed)
    if found.population is not None:
        chosen = torch.tensor(found.population, device="cpu")[chosen]
    read = found.read(chosen.tolist())
    if isinstance(read, list):
        group = collated(read, found.collate)
    else:  # a batch already, which `collate` may convert
        group = collated(chosen.tolist(), lambda rows: found.collate(found.read(rows)), keep=False)
    return ReferenceSet([group], chosen, len(found.data))


def _from_batches(source: Batches, limit: int | None, seed: int) -> ReferenceSet:
    batches = []
    sizes: list[int] = []
    for batch in source.batches:
        check_dense(batch)
        sizes.append(num_rows(batch))
        batches.append(batch)
        # A stream may have no end; data of a known length is taken whole, so that the choice is over all of it.
        if not source.whole and sum(sizes) >= (limit or DEFAULT_NUM_SAMPLES):
            break
    chosen = _choose(sum(sizes), limit, seed)
    groups = grouped(batches, sizes, chosen)
    return ReferenceSet(groups, chosen, sum(sizes) if source.whole else None)


def _choose(available: int, limit: int | None, seed: int) -> torch.Tensor:
    _check_some(available)
    cpu = torch.device("cpu")  # said aloud, for `torch.set_default_device` may say otherwise
    order = torch.randperm(available, generator=generator(cpu, seed, _SAMPLES_STREAM), device=cpu)
    return order[:limit].sort().values


def _up_to(size: int) -> torch.Tensor:
    return torch.arange(size, device="cpu")


def _check_some(available: int) -> None:
    if available == 0:
        raise ValueError("Expected `reference` to hold samples, but it is empty: give at least 1.")


def _check_finite(reference: ReferenceSet) -> None:
    for batch, places in reference.batches():
        for leaf in leaves(batch):
            bad = _not_finite(leaf)
            if bad.any():
                known = bad.ndim == 1 and len(bad) == len(places)
                sample = f"sample {int(reference.indices[places[bad.nonzero()[0, 0]]])}" if known else "a shared tensor"
                raise ValueError(
                    f"Expected the samples of `reference` to be finite, but {sample} holds NaN or infinity: clean the "
                    "data, or give only clean samples to the monitor."
                )


def _not_finite(leaf: Any) -> torch.Tensor:
    """Which entries of a leaf hold NaN or infinity."""
    if isinstance(leaf, Columns):
        return torch.tensor(
            [any(bool(_not_finite(part).any()) for part in leaves(item)) for item in leaf], device="cpu"
        )
    if isinstance(leaf, PackedSequence):
        return _not_finite(leaf.data).any()
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f":
        leaf = torch.from_numpy(leaf)
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
        return torch.zeros((), dtype=torch.bool, device="cpu")
    return (~leaf.isfinite()).flatten(1).any(1) if leaf.ndim > 1 else ~leaf.isfinite()
