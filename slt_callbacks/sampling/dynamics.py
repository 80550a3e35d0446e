"""How a chain moves: one record of settings and two methods for each kind of Langevin dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch

from slt_callbacks.sampling.posterior import LocalPosterior

State = dict[str, torch.Tensor]


@runtime_checkable
class Dynamics(Protocol):
    """What a chain needs to move. Three lines of a user's own are enough; pass the object, not its name.

    A dynamics is a frozen description: everything that changes lives in the state that `init` makes. The engine calls
    `step` on pieces of the flat weight vector and may put a chain dimension in front, so a step has to be elementwise.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Drift:
        ...     step_size: float
        ...     def init(self, position):
        ...         return {}
        ...     def step(self, position, gradient, noise, anchor, posterior, state, sgld_step):
        ...         position.sub_(posterior.gradient(gradient, position, anchor), alpha=self.step_size)
        >>> isinstance(Drift(0.1), Dynamics)
        True

        What changes from step to step, such as a velocity, lives in the state:

        >>> @dataclass(frozen=True)
        ... class Underdamped:
        ...     step_size: float
        ...     friction: float = 0.1
        ...     def init(self, position):
        ...         return {"velocity": torch.zeros_like(position)}
        ...     def step(self, position, gradient, noise, anchor, posterior, state, sgld_step):
        ...         velocity = state["velocity"].mul_(1 - self.friction)
        ...         velocity.sub_(posterior.gradient(gradient, position, anchor), alpha=self.step_size)
        ...         velocity.add_(noise, alpha=(2 * self.friction * self.step_size) ** 0.5)
        ...         position.add_(velocity)
        >>> weights, flat = torch.tensor([1.0]), LocalPosterior(nbeta=1.0, localization=0.0)
        >>> dynamics, state = Underdamped(0.5), {"velocity": torch.zeros(1)}
        >>> for gradient in (2.0, 0.0):  # a push, and then it coasts
        ...     dynamics.step(weights, torch.tensor([gradient]), torch.zeros(1), torch.zeros(1), flat, state, 0)
        ...     print(round(weights.item(), 6))
        0.0
        -0.9
    """

    @property
    def step_size(self) -> float | Literal["auto"]:
        """The step size eps, or "auto"."""

    def init(self, position: torch.Tensor) -> State:
        """Fresh state for a chain at `position` ``(..., P)``: tensors of the same shape, by name."""

    def step(
        self,
        position: torch.Tensor,
        gradient: torch.Tensor,
        noise: torch.Tensor,
        anchor: torch.Tensor,
        posterior: LocalPosterior,
        state: Mapping[str, torch.Tensor],
        sgld_step: int,
    ) -> None:
        """Move `position` and `state` in place.

        Args:
            position: A piece of the chain's weights, shape ``(..., n)``; changed in place.
            gradient: Gradient of the mean minibatch loss there, shape ``(..., n)``, without `nbeta`.
            noise: Standard normal numbers, shape ``(..., n)``; may be used up.
            anchor: The same piece of the fork, shape ``(n,)``; not to be changed.
            posterior: The target.
            state: The same piece of every state tensor, shape ``(..., n)``; changed in place.
            sgld_step: Steps this state has seen before, 0 at first.
        """


def resolve_step_size(dynamics: Dynamics, curvature: float) -> Dynamics:
    """`dynamics` with a number for its step size.

    Args:
        dynamics: Any dynamics; one with a number comes back as it is.
        curvature: Largest curvature of the posterior, ``nbeta * h_max + localization``.

    Raises:
        TypeError: If `step_size` is "auto" and the dynamics has no `with_curvature` to resolve it.
        ValueError: If `step_size` is "auto" and `curvature` is not a finite positive number (`SGLD`, `RMSPropSGLD`).

    Example:
        >>> from slt_callbacks import SGLD
        >>> resolve_step_size(SGLD("auto"), curvature=80.0), resolve_step_size(SGLD(0.5), curvature=80.0)
        (SGLD(step_size=0.001), SGLD(step_size=0.5))
    """
    if dynamics.step_size != "auto":
        return dynamics
    resolve = getattr(dynamics, "with_curvature", None)
    if resolve is None:
        raise TypeError(
            f'{type(dynamics).__name__} has step_size="auto" but no method `with_curvature(curvature)` that returns '
            "it with a number: add one, or give `step_size` a number."
        )
    resolved: Dynamics = resolve(curvature)
    return resolved
