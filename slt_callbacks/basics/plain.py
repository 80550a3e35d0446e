"""Values as builtins: what a config, a table, a checkpoint or a JSON file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

_SCALARS = (int, float, str, bool, type(None))


def to_builtins(value: Any, *, tensors: bool = False, tag: str = "type") -> Any:
    """A value of any kind in builtins.

    Args:
        value: Dataclasses become dicts with their name, mappings dicts, sequences lists, arrays and tensors nested
            lists; what is none of these, its `repr`.
        tensors: Whether arrays and tensors become tensors on the CPU instead, as `torch.load` reads without running
            code.
        tag: Under which a dataclass tells its name.

    Example:
        >>> to_builtins({"x": (np.float32(1.0), torch.ones(2))})
        {'x': [1.0, [1.0, 1.0]]}
        >>> to_builtins(torch.ones(2), tensors=True)
        tensor([1., 1.])
    """
    if isinstance(value, np.generic):
        return value.item()  # NumPy's doubles are floats, and no checkpoint can hold one
    if isinstance(value, _SCALARS):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        value = {tag: type(value).__name__} | {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_builtins(inner, tensors=tensors, tag=tag) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_builtins(inner, tensors=tensors, tag=tag) for inner in value]
    if tensors and isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()  # a view would be saved with all of its storage
    if tensors and isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def as_number(value: Any) -> Any:
    """A single number of any kind as an int, a float or a bool; anything else as it is.

    Example:
        >>> as_number(torch.tensor(2.0)), as_number(np.int64(3)), as_number("x")
        (2.0, 3, 'x')
    """
    single = isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0)
    return value.item() if single else value


def shown(value: Any, most: int = 120) -> str:
    """The `repr` of a value for an error message, cut where it is long, as that of data is.

    Example:
        >>> shown(0), shown([1] * 300, most=9)
        ('0', '[1, 1, 1,... (a list)')
    """
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... (a {type(value).__name__})"


def brief(text: str, most: int = 500) -> str:
    """A text of anybody's, such as that of an error which shows a whole tensor, cut in the middle where it is long.

    Example:
        >>> brief("a" * 40 + "b" * 40, most=20)
        'aaaaaaaa ... bbbbbbb'
    """
    if len(text) <= most:
        return text
    kept = most - len(" ... ")
    return f"{text[: (kept + 1) // 2]} ... {text[len(text) - kept // 2 :]}"


def as_json(value: Any) -> Any:
    """A builtin as JSON can hold it, which knows no NaN.

    Example:
        >>> as_json(math.nan), as_json(1.5)
        (None, 1.5)
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value
