"""An estimator and a module made into bytes for another process; what cannot be is refused, with what to write."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.basics.plain import brief
from slt_callbacks.executors.carried import carry, unpacked
from slt_callbacks.measuring.estimator import Estimator


def _plain() -> type[pickle.Pickler]:
    return pickle.Pickler


@dataclass(frozen=True)
class Packing:
    """How objects are pickled.

    Args:
        pickler: Gives a class of picklers, pickle's own or one that pickles functions by value.
        by_value: Whether it does.

    Example:
        >>> import torch
        >>> from slt_callbacks.data.drawing import draw_reference
        >>> estimator = Estimator(draw_reference([torch.zeros(4, 2)]), lambda net, x: net(x).square().mean(1))
        >>> Packing().check(estimator, nn.Linear(2, 1))
        Traceback (most recent call last):
        TypeError: Expected `loss_fn` to be something that another process can be given, but pickling it raised
        PicklingError: ... Define it at the top of a module, or measure with `RayExecutor`, which takes functions as
        they are, or measure in the training process, without `executor`.
    """

    pickler: Callable[[], Any] = _plain
    by_value: bool = False

    def packed(self, estimator: Estimator) -> bytes:
        """The estimator, with its samples."""
        return self._dumps(estimator)

    def carry(self, module: nn.Module, memory: Callable[[int], torch.Tensor]) -> int:
        """As `carried.carry`."""
        return carry(module, memory, self.pickler())

    def check(self, estimator: Estimator, module: nn.Module) -> nn.Module:
        """The module as it will be unpacked.

        Raises:
            TypeError: If one of them cannot be pickled, or not be read in another process.
            Exception: Where memory runs out.
        """
        try:
            self.packed(estimator)
        except Exception as error:
            name, reason = self._culprit(estimator, error)
            raise self._refusal(name, _raised(reason), _is_of_a_name(reason)) from error
        for name, value in {} if self.by_value else estimator.given.items():
            if name != "reference" and _of_a_session(self._dumps(value)):
                raise self._refusal(f"`{name}`", "it was written in a notebook or an interactive session")
        kept: list[torch.Tensor] = []

        def memory(num_bytes: int) -> torch.Tensor:
            kept.append(torch.empty(num_bytes, dtype=torch.uint8, device="cpu"))
            return kept[0]

        try:
            end = self.carry(module, memory)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._refusal("the module", _raised(error), _is_of_a_name(error)) from error
        if not self.by_value and _of_a_session(kept[0][end:].numpy().tobytes()):
            raise self._refusal("the module", "its class was written in a notebook or an interactive session")
        try:
            return unpacked(kept[0], end)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self._refusal("the module", f"un{_raised(error)}", of_a_name=False) from error

    def _dumps(self, value: Any) -> bytes:
        file = io.BytesIO()
        self.pickler()(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return file.getvalue()

    def _culprit(self, estimator: Estimator, error: Exception) -> tuple[str, Exception]:
        """What of an estimator cannot be pickled, and why."""
        for name, value in estimator.given.items():
            try:
                self._dumps(value)
            except Exception as reason:  # noqa: BLE001  # whatever a __getstate__ raises
                return f"`{name}`", reason
        return "what is to be measured", error

    def _refusal(self, what: str, reason: str, of_a_name: bool = True) -> TypeError:
        """In words that say what to write instead.

        Args:
            what: Cannot be given to another process.
            reason: Why.
            of_a_name: Whether it is a matter of where a function or a class is defined.
        """
        other = "" if self.by_value else ", or measure with `RayExecutor`, which takes functions as they are"
        how = f"Define it at the top of a module{other}" if of_a_name else "Leave out of it what refuses"
        return TypeError(
            f"Expected {what} to be something that another process can be given, but {reason.rstrip('.')}. {how}, or "
            "measure in the training process, without `executor`."
        )


def _is_of_a_name(error: Exception) -> bool:
    return isinstance(error, (pickle.PicklingError, AttributeError))


def _raised(error: Exception) -> str:
    return f"pickling it raised {type(error).__name__}: {brief(str(error))}"


def _of_a_session(content: bytes) -> bool:
    """Whether it names something that only this process has: there is no file that another one could import."""
    main = sys.modules.get("__main__")
    return (
        b"__main__" in content and getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None
    )
