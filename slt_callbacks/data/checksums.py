"""What tells samples from others: checksums of what they hold, to the last bit."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from slt_callbacks.data.batches import Batch, as_lists, leaves, signature
from slt_callbacks.data.samples import content


def fingerprint_of(batches: Iterable[Batch], source_size: int | None, rows: Sequence[int]) -> str:
    """A checksum of the tensors and strings of samples, and of where they stand in the user's data.

    Args:
        batches: The samples.
        source_size: Samples in the whole of the data, or None.
        rows: Of the samples in the data.
    """
    checksum = zlib.crc32(repr((source_size, list(rows))).encode())
    for batch in batches:
        for leaf in leaves(batch):
            checksum = zlib.crc32(content(leaf) or b"", checksum)
    return f"{checksum:08x}"


def short_digest(batches: Iterable[Batch], rows: torch.Tensor) -> str:
    """Twelve hexadecimal digits, for the eye: a reference function that shuffles gives other ones at every call.

    Args:
        batches: The samples.
        rows: Of the samples in the user's data, int64 ``(N,)``.
    """
    digest = hashlib.sha256(rows.numpy().tobytes())
    for batch in batches:
        for leaf in leaves(batch):
            if isinstance(leaf, torch.Tensor):
                digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(content(leaf) or b"")
    return digest.hexdigest()[:12]


def sample_digests(batch: Batch, own: Sequence[bool], size: int) -> Iterator[bytes]:
    """What tells each of the `size` samples of a batch from others; nothing for objects that may be equal or not.

    Args:
        batch: All of them.
        own: Of each leaf, whether it holds something for every sample.
        size: How many they are.

    Example:
        >>> one, two, three = sample_digests([torch.tensor([5, 7, 5])], [True], 3)
        >>> one == three != two
        True
    """
    everything = list(leaves(batch))
    if not all(isinstance(leaf, torch.Tensor) or content(leaf) is not None for leaf in everything):
        return
    shared = hashlib.blake2b(signature(as_lists(batch), own).encode())
    columns = []
    for leaf, is_own in zip(everything, own, strict=True):
        if is_own:
            columns.append(_entries(leaf))
        else:
            shared.update(content(leaf) or b"")
    for row in range(size):
        digest = shared.copy()
        for column in columns:
            digest.update(content(column[row]) or b"")
        yield digest.digest()


def _entries(leaf: Any) -> Any:
    """One entry a sample, on the CPU."""
    if isinstance(leaf, PackedSequence):
        return unpack_sequence(leaf)
    return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf
