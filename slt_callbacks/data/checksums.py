"""What tells samples from others: checksums of what they hold, to the last bit."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from slt_callbacks.data.batches import Batch, as_lists, has_rows, leaves, signature

if TYPE_CHECKING:
    from slt_callbacks.data.reference import ReferenceSet

_PLAIN = (str, int, float, list, tuple, type(None))  # leaves that their `repr` says all about


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
            checksum = zlib.crc32(_content(leaf), checksum)
    return f"{checksum:08x}"


def short_digest(reference: ReferenceSet) -> str:
    """Twelve hexadecimal digits, for the eye: a reference function that shuffles gives other ones at every call."""
    digest = hashlib.sha256(reference.indices.numpy().tobytes())
    for batch, _ in reference.batches():
        for leaf in leaves(batch):
            if isinstance(leaf, torch.Tensor):
                digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            digest.update(_content(leaf))
    return digest.hexdigest()[:12]


def sample_digests(batch: Batch, size: int) -> Iterator[bytes]:
    """What tells each of the `size` samples of a batch from others; nothing for objects that may be equal or not.

    Example:
        >>> one, two, three = sample_digests([torch.tensor([5, 7, 5])], 3)
        >>> one == three != two
        True
    """
    everything = list(leaves(batch))
    if not all(isinstance(leaf, (torch.Tensor, *_PLAIN)) for leaf in everything):
        return
    shared = hashlib.blake2b(signature(as_lists(batch)).encode())
    for leaf in everything:
        if not has_rows(leaf, size):
            shared.update(_content(leaf))
    rows = (leaf for leaf in everything if has_rows(leaf, size))
    columns = [leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf for leaf in rows]
    for row in range(size):
        digest = shared.copy()
        for column in columns:
            digest.update(_content(column[row]))
        yield digest.digest()


def _content(leaf: Any) -> Any:
    """The bytes of a leaf."""
    if isinstance(leaf, torch.Tensor):
        return leaf.cpu().contiguous().flatten().view(torch.uint8).numpy()
    known = isinstance(leaf, _PLAIN)
    return repr(leaf).encode() if known else b""  # of another object it may show the address
