"""What a posterior beside the main one differs in: fewer weights, other data, or another loss."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from slt_callbacks.basics.plain import shown
from slt_callbacks.data.checksums import short_digest
from slt_callbacks.data.drawing import Reference
from slt_callbacks.data.reference import ReferenceSet
from slt_callbacks.losses.functions import LossFn, check_loss_fn, name_of_loss
from slt_callbacks.weights.selection import Selection

_LONG = 60  # characters of an index that are told as they are


@dataclass(frozen=True)
class Refinement:
    r"""A posterior that is sampled beside the main one, with chains, a step size and a health of its own.

    .. math:: \hat\lambda_{V}(w^*) = nbeta \left(\mathbb{E}_{(u^*, v)}[L'(w)] - L'(w^*)\right)

    The chains move the selected weights v alone, the others stay at u*; L' is the loss on the data that are given.
    nbeta and localization are the main posterior's numbers, so that refined LLCs can be compared: it is their order
    that means something, among parts of a like kind, and not their level. At the start of a fit a table says how many
    weights each part has, which share some, and what they leave out.

    Args:
        parameters: Which trainable weights move: a parameter's name, a module's path, a glob, or a list of these. A
            tied parameter is selected under any of its names.
        slices: By parameter, an index as in ``tensor[index]``, or a list of such: of this parameter only these weights.
            The other selected parameters stay whole.
        reference: Other samples, whatever a monitor takes as `reference`; None for the main ones.
        loss_fn: Another loss, such as `behavioral`; None for the main one.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If no parameter is named.

    Source: Wang et al. (arXiv 2410.02984), section 3: weight-refined and data-refined LLCs.

    Example:
        >>> import torch
        >>> from slt_callbacks import LeimkuhlerMatthews, SamplerConfig, estimate
        >>> class Bowl(torch.nn.Module):  # the loss is quadratic, with couplings
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
        >>> def loss_fn(bowl, batch):
        ...     return (bowl.a**2 + bowl.b**2 + bowl.a * bowl.b).expand(len(batch))
        >>> config = SamplerConfig(LeimkuhlerMatthews(0.01), nbeta=50.0, localization=5.0, num_draws=800)
        >>> measurement = estimate(Bowl(), [torch.zeros(2, 1)], loss_fn, sampler=config,
        ...                        refinements={"a": Refinement("a")})
        >>> refined = measurement.refinements["a"]
        >>> abs(refined["llc"]["mean"] - 0.476) < 0.15, refined["num_parameters"]  # nbeta h / (2 (nbeta h + gamma))
        (True, 1)
    """

    parameters: str | Sequence[str] = "*"
    _: KW_ONLY
    slices: Mapping[str, Any] | None = None
    reference: Reference | ReferenceSet | None = None
    loss_fn: LossFn | None = None

    def __post_init__(self) -> None:
        patterns = [self.parameters] if isinstance(self.parameters, str) else self.parameters
        if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(
                "Expected `parameters` to be a parameter's name, a module's path, a glob, or a list of these, but got "
                f"{shown(self.parameters)}."
            )
        if not patterns:
            raise ValueError('Expected `parameters` to name at least one parameter, or "*" for all, but got none.')
        if self.slices is not None and not isinstance(self.slices, Mapping):
            raise TypeError(
                f'Expected `slices` to be a dict of indices by parameter, such as {{"head.weight": slice(0, 8)}}, but '
                f"got {shown(self.slices)}."
            )
        check_loss_fn(self.loss_fn)

    @property
    def selection(self) -> Selection:
        """The weights that move."""
        return Selection(self.parameters, dict(self.slices or {}))

    @property
    def of_weights(self) -> bool:
        """Whether it differs from the main posterior in its weights alone."""
        return self.reference is None and self.loss_fn is None

    def told(self) -> dict[str, Any]:
        """What two measurements must share to be points of one curve, in builtins; the samples have to be drawn.

        Example:
            >>> Refinement("blocks.0.*").told()
            {'parameters': ['blocks.0.*']}
        """
        patterns = [self.parameters] if isinstance(self.parameters, str) else list(self.parameters)
        found: dict[str, Any] = {"parameters": patterns}
        if self.slices:
            found["slices"] = {name: _told(index) for name, index in self.slices.items()}
        if isinstance(self.reference, ReferenceSet):
            digest = short_digest((batch for batch, _ in self.reference.batches()), self.reference.indices)
            found["reference"] = f"{len(self.reference)} samples {digest}"
        if self.loss_fn is not None:
            found["loss_fn"] = name_of_loss(self.loss_fn, self)  # type: ignore[arg-type]  # it has a function
        return found


@dataclass(frozen=True)
class RefinementSet:
    """The refinements of a run.

    Args:
        given: By the name that they are logged under; None for none.
        at_once: How many of them a measurement takes, in turn; None for all.

    Attributes:
        by_name: The same as a dict.

    Raises:
        TypeError: If `given` is no mapping from names to `Refinement`, or `at_once` is no integer.
        ValueError: If a name is empty, has a slash, or differs from another in nothing but case; or if `at_once` is not
            between 1 and their number.

    Example:
        >>> list(RefinementSet({"head": Refinement("head")}).by_name)
        ['head']
    """

    given: Any = None
    at_once: int | None = None
    by_name: dict[str, Refinement] = field(init=False)

    def __post_init__(self) -> None:
        if self.given is not None and not isinstance(self.given, Mapping):
            raise TypeError(
                'Expected `refinements` to be a mapping such as {"head": Refinement("head.*")}, but got '
                f"{shown(self.given)}."
            )
        object.__setattr__(self, "by_name", dict(self.given or {}))
        _check_names(self.by_name)
        _check_number(self.at_once, len(self.by_name))

    def drawn(self, draw: Callable[[Reference], ReferenceSet]) -> RefinementSet:
        """The same with their samples drawn.

        Args:
            draw: From what a user gives to the samples.

        Raises:
            TypeError: As `draw`, with the name of the refinement.
            ValueError: Likewise.
        """
        return replace(self, given={name: _drawn(name, one, draw) for name, one in self.by_name.items()})

    def names(self, observables: set[str]) -> set[str]:
        """Under which numbers are logged, where these observables are asked for: refinements always have an LLC."""
        return observables | {"llc"} if self.by_name else observables

    def told(self) -> dict[str, dict[str, Any]]:
        """As `Refinement.told`, by name."""
        return {name: refinement.told() for name, refinement in self.by_name.items()}


def _told(index: Any) -> str:
    """An index in words, all of it: the `repr` of a long tensor leaves out what is in the middle."""
    if isinstance(index, (tuple, list)):
        parts = ", ".join(map(_told, index))
        return f"[{parts}]" if isinstance(index, list) else f"({parts})"
    if not hasattr(index, "tolist"):
        return repr(index)
    text = repr(index.tolist())
    return text if len(text) < _LONG else f"{text[:_LONG]}... {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _check_names(refinements: Mapping[Any, Any]) -> None:
    alike: dict[str, str] = {}
    for name, refinement in refinements.items():
        if not isinstance(name, str) or not name.strip() or "/" in name:
            raise ValueError(f"Expected the keys of `refinements` to be names without a slash, but got {name!r}.")
        if not isinstance(refinement, Refinement):
            raise TypeError(f"Expected `refinements[{name!r}]` to be a Refinement, but got {shown(refinement)}.")
        other = alike.setdefault(name.strip().casefold(), name)
        if other != name:
            raise ValueError(
                f"Expected the keys of `refinements` to differ in more than case and spaces, but got {other!r} and "
                f"{name!r}: rename one of them."
            )


def _check_number(at_once: Any, count: int) -> None:
    if at_once is None:
        return
    if isinstance(at_once, bool) or not isinstance(at_once, int):
        raise TypeError(f"Expected `refinements_at_once` to be an integer or None, but got {shown(at_once)}.")
    if not 1 <= at_once <= count:
        raise ValueError(
            f"Expected `refinements_at_once` to be between 1 and the number of `refinements`, {count}, but got "
            f"{at_once}."
        )


def _drawn(name: str, refinement: Refinement, draw: Callable[[Reference], ReferenceSet]) -> Refinement:
    if refinement.reference is None or isinstance(refinement.reference, ReferenceSet):
        return refinement
    try:
        return replace(refinement, reference=draw(refinement.reference))
    except (TypeError, ValueError) as error:
        raise type(error)(f"refinements[{name!r}]: {error}") from error
