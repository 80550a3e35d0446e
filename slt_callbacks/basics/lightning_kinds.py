"""Lightning's objects that the floors below `callbacks` may meet: they are known by their methods."""

from __future__ import annotations

from typing import Any

import torch


def is_data_module(value: Any) -> bool:
    """Whether an object is a DataModule: it makes loaders, and is no module of weights.

    Example:
        >>> class Data:
        ...     def train_dataloader(self): ...
        >>> is_data_module(Data()), is_data_module([])
        (True, False)
    """
    makes_loaders = callable(getattr(type(value), "train_dataloader", None))
    return makes_loaders and not isinstance(value, torch.nn.Module)


def is_combined_loader(value: Any) -> bool:
    """Whether an object is a CombinedLoader, which goes through several loaders at once.

    Example:
        >>> is_combined_loader([])
        False
    """
    return all(hasattr(type(value), name) for name in ("iterables", "flattened", "__iter__"))
