"""What a network answers on fixed probes, and what reference predictors answer there, each as one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from slt_callbacks.basics.errors import is_out_of_memory
from slt_callbacks.basics.plain import shown
from slt_callbacks.data.batches import Batch
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.observables.path import MOST_ROWS, MOST_VALUES

Outputs = Callable[[Any, Batch], torch.Tensor]
"""``(module, batch) -> outputs (B, ...)``."""
Predictor = torch.Tensor | Callable[[Batch], torch.Tensor]
"""Its outputs on all probes ``(N, ...)``, or ``(batch) -> outputs (B, ...)``."""

_OUTPUTS, _FORWARD = "outputs", "forward"  # what is asked, by the name that a user knows it under


class _Fork(Protocol):
    """What is asked of a `ForkView`."""

    @property
    def module(self) -> torch.nn.Module: ...

    def batches_of(self, samples: ReferenceSet) -> list[tuple[Batch, torch.Tensor]]: ...


class Probed:
    """Asks a module, and the reference predictors, about the probes.

    Args:
        outputs: ``(module, batch) -> tensor (B, ...)``; None for the module's `forward` of `inputs_of` a batch.
        references: By name; see `Predictor`.

    Attributes:
        samples: The probes, which the observable is given.

    Raises:
        TypeError: If `outputs` cannot be called, or a reference is neither a tensor nor callable.
        ValueError: If a reference has no name, or one with a slash.
    """

    samples: ReferenceSet

    def __init__(self, outputs: Outputs | None, references: Mapping[str, Predictor] | None) -> None:
        if outputs is not None and not callable(outputs):
            raise TypeError(
                f"Expected `outputs` to be a function (module, batch) -> tensor (B, ...), but got {shown(outputs)}."
            )
        self._outputs = outputs
        self._predictors = _checked(references)
        self._references: torch.Tensor | None = None
        self._shapes: set[tuple[int, ...]] = set()  # of the module's outputs on one probe; several of ragged ones

    @property
    def names(self) -> list[str]:
        """Of the references."""
        return list(self._predictors)

    def begin(self, samples: ReferenceSet) -> None:
        """Take the probes, and ask the references anew, for the module may be another."""
        self.samples, self._references = samples, None

    @torch.no_grad()
    def row(self, fork: _Fork) -> torch.Tensor:
        """The module's outputs on all probes, one after the other, float32 ``(D,)`` on the CPU.

        Raises:
            TypeError: If `outputs` gives no floating-point tensor.
            ValueError: If it gives not one row a probe, more values than can be kept, or raises.
        """
        self._shapes = set()

        def ask(batch: Batch) -> Any:
            found = self._answer(fork.module, batch)
            if isinstance(found, torch.Tensor):
                self._shapes.add(tuple(found.shape[1:]))
            return found

        return self._flat(fork, ask, _OUTPUTS)

    @torch.no_grad()
    def references(self, fork: _Fork) -> torch.Tensor:
        """The outputs of the reference predictors, float32 ``(R, D)``; they are asked once, after the module.

        Raises:
            TypeError: If one gives no floating-point tensor.
            ValueError: If one has another shape than the outputs of the module, or is not finite.
        """
        if self._references is None:
            found = [self._of_predictor(fork, name) for name in self._predictors]
            self._references = torch.stack(found) if found else torch.empty(0, 0, device="cpu")
        return self._references

    def _flat(self, fork: _Fork, ask: Callable[[Batch], Any], what: str) -> torch.Tensor:
        parts, places = [], []
        for batch, where in fork.batches_of(self.samples):
            found = _outputs_of(ask(batch), len(where), what)
            per_sample = found[0].numel()
            if per_sample * len(self.samples) > MOST_VALUES:
                raise ValueError(
                    f"Expected `probes` and `outputs` to give at most {MOST_VALUES} values a measurement, of which "
                    f"{MOST_ROWS} are kept ({MOST_VALUES * MOST_ROWS >> 18} MiB in single precision), but got "
                    f"{len(self.samples)} probes of {per_sample}: give fewer `probes`, or `outputs=` that gives less, "
                    "such as the logits of some positions."
                )
            parts.append(found.reshape(len(found), -1).to("cpu", torch.float32))
            places.append(where)
        return _in_order(parts, torch.cat(places))

    def _answer(self, module: Any, batch: Batch) -> Any:
        if self._outputs is not None:
            return _called(self._outputs, _OUTPUTS, module, batch)
        return _called(module, _FORWARD, inputs_of(batch))

    def _of_predictor(self, fork: _Fork, name: str) -> torch.Tensor:
        flat: torch.Tensor
        predictor, what = self._predictors[name], f"references[{name!r}]"
        if isinstance(predictor, torch.Tensor):
            found = _outputs_of(predictor.detach(), len(self.samples), what)
            flat = self._alike(found, what).flatten().to("cpu", torch.float32)
        else:
            flat = self._flat(fork, lambda batch: self._alike(_called(predictor, what, batch), what), what)
        if not bool(flat.isfinite().all()):
            raise ValueError(
                f"Expected `{what}` to be finite, but some of it is not: nothing is at a known distance from it. Clip "
                "it, such as logarithms of probabilities that may be 0."
            )
        return flat

    def _alike(self, found: Any, what: str) -> Any:
        if isinstance(found, torch.Tensor) and tuple(found.shape[1:]) not in self._shapes:
            wanted = " or ".join(str((len(self.samples), *shape)) for shape in sorted(self._shapes))
            raise ValueError(
                f"Expected `{what}` to have the shape of the module's outputs on all probes, {wanted}, but got "
                f"{(len(self.samples), *found.shape[1:])}."
            )
        return found


def inputs_of(batch: Batch) -> torch.Tensor:
    """The inputs of a batch: itself, or its first item.

    Raises:
        TypeError: If there is no telling what they are.

    Example:
        >>> inputs, targets = torch.ones(4, 2), torch.zeros(4)
        >>> inputs_of([inputs, targets]).shape
        torch.Size([4, 2])
    """
    inputs = batch[0] if isinstance(batch, (list, tuple)) and len(batch) else batch
    if not isinstance(inputs, torch.Tensor):
        raise TypeError(
            "Expected `outputs` where a batch of probes is neither a tensor nor a list whose first item is one, for "
            f"there is no telling what its inputs are, but got None and a {type(batch).__name__}: say them, such as "
            '`outputs=lambda module, batch: module(batch["x"])`.'
        )
    return inputs


def _called(function: Callable[..., Any], what: str, *arguments: Any) -> Any:
    """What a function of the user's returns; one that raises is named, unless memory has run out, which is told on."""
    try:
        return function(*arguments)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        instead = " Or say what is followed, such as `outputs=lambda module, batch: module.model(batch[0])`."
        raise ValueError(
            f"Expected `{what}` to take the probes, but it raised {type(error).__name__}: {error}. A batch of them "
            f"comes as one of the reference samples comes to the loss.{instead if what == _FORWARD else ''}"
        ) from error


def _checked(references: Mapping[str, Predictor] | None) -> dict[str, Predictor]:
    if references is not None and not isinstance(references, Mapping):
        raise TypeError(
            f'Expected `references` to be a mapping such as {{"ridge": tensor}}, but got {shown(references)}.'
        )
    for name, predictor in (references or {}).items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"Expected the keys of `references` to be names without a slash, but got {name!r}.")
        if not isinstance(predictor, torch.Tensor) and not callable(predictor):
            raise TypeError(
                f"Expected `references[{name!r}]` to be the outputs on all probes as a tensor (N, ...), or a function "
                f"(batch) -> tensor (B, ...), but got {shown(predictor)}."
            )
    return dict(references or {})


def _outputs_of(found: Any, size: int, what: str) -> torch.Tensor:
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        instead = "give `outputs=` that returns one, such as `lambda module, batch: module(batch[0]).logits`"
        raise TypeError(
            f"Expected `{what}` to give a floating-point tensor (B, ...), but got {shown(found)}: "
            f"{instead if what == _OUTPUTS else 'write `.float()`, or what makes a tensor of it'}."
        )
    if found.ndim == 0 or len(found) != size:
        raise ValueError(
            f"Expected `{what}` to give one row a probe, {size} of them, but got the shape {tuple(found.shape)}."
        )
    if found.numel() == 0:
        raise ValueError(f"Expected `{what}` to give values, but got none, of the shape {tuple(found.shape)}.")
    return found


def _in_order(parts: Sequence[torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Rows of several batches, one after the other as their probes stand; probes may differ in length."""
    order = places.argsort().tolist()
    if order == list(range(len(order))):
        return torch.cat([part.flatten() for part in parts])
    vectors = [vector for part in parts for vector in part]
    return torch.cat([vectors[place] for place in order])
