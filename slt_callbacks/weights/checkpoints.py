"""Saved weights as a series: which training step a file belongs to, and the module it holds."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Where Lightning's WeightAveraging and what derives from it put the weights that training goes on with: ``state_dict``
# then holds the averaged ones, which the live monitor did not measure.
_RAW = "current_model_state"

OnSkip = Callable[[Path, str], None]
"""Told of a checkpoint that is left out, and why."""


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint and the training step it was saved at."""

    step: int
    path: Path


def in_step_order(checkpoints: Iterable[str | Path], on_skip: OnSkip, trust: bool = False) -> list[SavedStep]:
    """Find the training step of every checkpoint and put them in order.

    The step is the ``global_step`` that Lightning writes into a checkpoint; failing that, the ``step=123`` that its
    name holds.

    Args:
        checkpoints: Files, or folders, which stand for the ``.ckpt`` files in them.
        on_skip: Told of a file that cannot be read, or has no step.
        trust: As in `load_module`.

    Raises:
        FileNotFoundError: If there is no such file or folder, or a folder holds no ``.ckpt`` file.
        ValueError: If no checkpoint is given, none has a step, or two have the same.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (20, 3):
        ...     torch.save({"weight": torch.zeros(1)}, folder / f"net-step={step}.ckpt")
        >>> [saved.step for saved in in_step_order([folder], on_skip=print)]
        [3, 20]
    """
    files = [file for path in checkpoints for file in _files(Path(path))]
    if not files:
        raise ValueError("Expected at least one checkpoint, but got none: name files, or folders with .ckpt files.")
    found: dict[int, SavedStep] = {}
    reasons = []
    for file in files:
        try:
            step = step_of(file, trust)
        except ValueError as error:
            reasons.append(str(error))
            on_skip(file, str(error))
            continue
        if step in found:
            raise ValueError(
                f"Expected one checkpoint a step, but {found[step].path} and {file} are both of step {step}: leave one "
                "out."
            )
        found[step] = SavedStep(step, file)
    if not found:
        raise ValueError(
            f"Expected checkpoints with a training step, but none of the {len(files)} can be used; the first: "
            f"{reasons[0]}"
        )
    return [found[step] for step in sorted(found)]


def load_module(
    module: type[nn.Module], path: Path, init_args: Mapping[str, Any] | None = None, trust: bool = False
) -> nn.Module:
    """The module with the weights of a checkpoint, on the CPU.

    Args:
        module: Its class. A Lightning checkpoint of a LightningModule is loaded by ``load_from_checkpoint``; for
            anything else the class is called with `init_args` and the weights are put in.
        path: A Lightning checkpoint or a saved ``state_dict``. Where a callback has averaged the weights, those that
            training went on with are taken, as a live monitor does.
        init_args: Arguments of the class that the checkpoint does not hold; they win over the saved ones.
        trust: Whether the file may hold objects other than tensors and builtins, which can run code when it is read.

    Raises:
        ValueError: If the file cannot be read, or does not fit the class.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "step=5.pt"
        >>> torch.save(nn.Linear(2, 1).state_dict(), path)
        >>> load_module(nn.Linear, path, {"in_features": 2, "out_features": 1})
        Linear(in_features=2, out_features=1, bias=True)
    """
    arguments = dict(init_args or {})
    content = _read(path, trust)
    try:
        load = getattr(module, "load_from_checkpoint", None)
        if load is not None and "state_dict" in content:
            # Lightning 2.5 has no `weights_only`; the file has already been read in the safe way above.
            safely = {"weights_only": not trust} if "weights_only" in inspect.signature(load).parameters else {}
            loaded: nn.Module = load(path, map_location="cpu", **safely, **arguments)
            if _RAW in content:
                loaded.load_state_dict(content[_RAW])
            return loaded
        made = module(**arguments)
        made.load_state_dict(content.get(_RAW, content.get("state_dict", content)))
    except Exception as error:
        raise ValueError(f"{_what_to_give(error)} ({type(error).__name__}: {error})") from error
    return made


def step_of(path: Path, trust: bool) -> int:
    """The training step of a checkpoint: the ``global_step`` that it holds, else the ``step=123`` of its name.

    Args:
        path: As in `load_module`.
        trust: As in `load_module`.

    Raises:
        ValueError: If the file cannot be read, or says no step.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> torch.save({"global_step": 7}, path)
        >>> step_of(path, trust=False)
        7
    """
    step = _read(path, trust).get("global_step")
    if isinstance(step, int):
        return step
    named = re.search(r"step=(\d+)", path.name)
    if named is None:
        raise ValueError("it holds no `global_step`, and its name no step: rename it, as in `model-step=100.pt`.")
    return int(named[1])


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(path.glob("*.ckpt"))
        if not inside:
            raise FileNotFoundError(f"Expected {path} to hold .ckpt files, but it has none: name the files themselves.")
        return inside
    if not path.is_file():
        raise FileNotFoundError(f"Expected checkpoints that exist, but there is no file {path}.")
    return [path]


def _read(path: Path, trust: bool) -> Mapping[str, Any]:
    """What a file holds; the tensors stay on the disk until they are used."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it cannot be read as tensors and builtins alone; if it holds other objects, and you trust whoever made "
            f"it, say so: `--trust` (trust=True). ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:
        raise ValueError(f"it cannot be read. ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}: save `module.state_dict()`, or a Lightning checkpoint.")
    return content


def _what_to_give(error: Exception) -> str:
    if isinstance(error, TypeError) and "argument" in str(error):
        return "the module cannot be made from the saved hyperparameters alone: pass --init-args (init_args)."
    return "its weights do not fit the module: is it the class, and are they the arguments, that it was saved with?"
