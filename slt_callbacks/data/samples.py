"""One leaf of a batch: how many samples it holds, and the same for some of them, for more, or elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from slt_callbacks.data.containers import Columns, holds_data, put_together, taken_apart

_PLAIN = (str, bytes, int, float, complex, type(None))  # their `repr` says all about them


def length(leaf: Any) -> int | None:
    """Entries of a leaf, which may be one a sample; None where it has none.

    Example:
        >>> length(torch.zeros(3, 2)), length(["a", "b"]), length(torch.tensor(1.0)), length("text")
        (3, 2, None, None)
    """
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return leaf.shape[0] if leaf.ndim else None
    return len(leaf) if isinstance(leaf, (list, tuple)) else None


def pick(leaf: Any, rows: torch.Tensor, moved: dict[torch.device, torch.Tensor]) -> Any:
    """The entries `rows` of a leaf.

    Args:
        leaf: A leaf that holds something for every sample.
        rows: Indices, int64, shape ``(B,)``, on the CPU.
        moved: The same on other devices, for it is needed once a device; filled here.

    Example:
        >>> pick(["a", "b", "c"], torch.tensor([2, 0]), {})
        ['c', 'a']
    """
    if isinstance(leaf, PackedSequence):
        sequences = unpack_sequence(leaf)
        return _packed([sequences[row] for row in rows.tolist()])
    if isinstance(leaf, np.ndarray):
        return leaf[rows.numpy()]
    if not isinstance(leaf, torch.Tensor):
        return _as_kind_of(leaf, (leaf[row] for row in rows.tolist()))
    if leaf.device not in moved:
        moved[leaf.device] = rows.to(leaf.device, non_blocking=True)
    return leaf.index_select(0, moved[leaf.device])


def join(parts: Sequence[Any]) -> Any:
    """Leaves of several batches, one after the other.

    Example:
        >>> join([torch.tensor([1]), torch.tensor([2, 3])]), join([["a"], ["b"]])
        (tensor([1, 2, 3]), ['a', 'b'])
    """
    first = parts[0]
    if isinstance(first, PackedSequence):
        return _packed([one for part in parts for one in unpack_sequence(part)])
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    if isinstance(first, torch.Tensor):
        return torch.cat(tuple(parts))
    return _as_kind_of(first, (item for part in parts for item in part))


def private(leaf: Any) -> Any:
    """A copy of a leaf that shares no data with it; an object without data, such as a tokenizer, is shared.

    Example:
        >>> tensor = torch.zeros(2)
        >>> private(tensor).data_ptr() == tensor.data_ptr()
        False
    """
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else handed_out(leaf)


def handed_out(leaf: Any) -> Any:
    """A leaf for a loss function: one that is no tensor is copied, for what it writes into an object would stay.

    Example:
        >>> names = ["a"]
        >>> handed_out(names) == names, handed_out(names) is names
        (True, False)
    """
    if isinstance(leaf, PackedSequence):
        return on_tensors(torch.clone, leaf)
    if isinstance(leaf, Columns):
        return on_tensors(lambda tensor: tensor.detach().clone(), leaf)
    if isinstance(leaf, (torch.Tensor, *_PLAIN)):
        return leaf
    if isinstance(leaf, (list, tuple)) or holds_data(leaf):
        try:
            return copy.deepcopy(leaf)
        except Exception:  # noqa: BLE001  # whatever an object's __deepcopy__ raises
            return leaf
    return leaf


def on_tensors(function: Callable[[torch.Tensor], torch.Tensor], leaf: Any) -> Any:
    """The same leaf with `function` applied to a tensor, or to the tensors in a column or a packed sequence.

    Example:
        >>> on_tensors(torch.square, torch.tensor(3.0)), on_tensors(torch.square, "text")
        (tensor(9.), 'text')
    """
    if isinstance(leaf, torch.Tensor):
        return function(leaf)
    if isinstance(leaf, PackedSequence):
        # The sizes stay on the CPU, where PyTorch wants them.
        sort, unsort = (None if part is None else function(part) for part in leaf[2:])
        return PackedSequence(function(leaf.data), leaf.batch_sizes, sort, unsort)
    if isinstance(leaf, Columns):
        return _as_kind_of(leaf, (on_tensors(function, item) for item in leaf))
    inside = taken_apart(leaf)
    if inside is None:
        return leaf
    return put_together(leaf, [on_tensors(function, item) for _, item in inside])


def move(leaf: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A leaf on `device`, floating-point tensors as `dtype`; an object with data by a method `to` of its own.

    Example:
        >>> move(torch.zeros(1), torch.device("cpu"), torch.float64).dtype
        torch.float64
    """
    if isinstance(leaf, (torch.Tensor, PackedSequence, *Columns)):
        return on_tensors(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), leaf)
    if device.type != "cpu" and callable(getattr(leaf, "to", None)) and holds_data(leaf):
        return copy.deepcopy(leaf).to(device)  # many move themselves
    return leaf


def content(leaf: Any) -> bytes | None:
    """What tells a leaf from others to the last bit; None for an object that may be equal or not.

    Example:
        >>> content(torch.tensor([1, 2])) == content(torch.tensor([1, 2])) != content(torch.tensor([1, 3]))
        True
        >>> content(object()) is None
        True
    """
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(leaf, np.ndarray) and leaf.dtype != object:
        return leaf.tobytes()
    if isinstance(leaf, _PLAIN):
        return repr(leaf).encode()
    if isinstance(leaf, dict):
        return content([part for item in leaf.items() for part in item])
    if isinstance(leaf, (list, tuple)):
        if all(isinstance(item, _PLAIN) for item in leaf):
            return repr(leaf).encode()
        parts = [content(item) for item in leaf]
        return None if None in parts else repr((type(leaf).__name__, parts)).encode()
    return None


def _packed(sequences: list[torch.Tensor]) -> PackedSequence:
    with torch.device("cpu"):  # where PyTorch wants the lengths, and not on the user's default device
        return pack_sequence(sequences, enforce_sorted=False)


def _as_kind_of(leaf: Any, items: Iterable[Any]) -> Any:
    """A list for a list, a tuple for a tuple; columns stay columns."""
    kind = type(leaf) if isinstance(leaf, Columns) else tuple if isinstance(leaf, tuple) else list
    return kind(items)
