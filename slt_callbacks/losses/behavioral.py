"""A loss whose targets are the model's own outputs at w*: how fast its behaviour changes as the weights move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from slt_callbacks.basics.plain import shown
from slt_callbacks.data.batches import Batch, map_leaves
from slt_callbacks.losses.generators import global_sources, own_generators, put_back, source_of

Outputs = Callable[[Any, Batch], torch.Tensor]
"""``(module, batch) -> outputs (B, ...)``."""


class Behavioral:
    """What `behavioral` returns; a measurement binds it to the outputs at its fork.

    Attributes:
        outputs: As given.
        divergence: As given.
    """

    def __init__(self, outputs: Outputs, divergence: Literal["kl", "mse"] = "kl") -> None:
        if not callable(outputs):
            raise TypeError(
                f"Expected `outputs` to be a function (module, batch) -> tensor (B, ...), but got {shown(outputs)}."
            )
        if divergence not in _DIVERGENCES:
            raise ValueError(f'Expected `divergence` to be "kl" or "mse", but got {divergence!r}.')
        self.outputs = outputs
        self.divergence = divergence
        self.__qualname__ = (
            f'behavioral({getattr(outputs, "__qualname__", type(outputs).__qualname__)}, "{divergence}")'
        )

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Nothing: the module at w* is not known here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "Expected `behavioral` to be given as a `loss_fn`, to a monitor, to `estimate` or to a `Refinement`, which "
            "know the weights w* whose outputs are its targets, but it was called by itself."
        )

    def at(
        self, at_fork: nn.Module, draws_numbers: Callable[[], bool] = bool
    ) -> Callable[[nn.Module, Batch], torch.Tensor]:
        """The loss, for a module that stays at w*.

        Args:
            at_fork: That one.
            draws_numbers: Whether outputs depend on random numbers, which both modules are then given alike.
        """
        return _Bound(self.outputs, self.divergence, at_fork, draws_numbers)


def behavioral(outputs: Outputs, divergence: Literal["kl", "mse"] = "kl") -> Behavioral:
    r"""A loss function: the divergence of a model's outputs from those that it has at w*.

    .. math:: \ell_i(w) = KL(p_{w^*}(\cdot|x_i) \,\|\, p_w(\cdot|x_i)) \quad\text{or}\quad
              \ell_i(w) = \mathrm{mean}\,|f_w(x_i) - f_{w^*}(x_i)|^2

    It is exactly 0 at w*, which is a minimum of it wherever training is: where the LLC of the data's loss may be
    negative, because chains still find lower losses, this one is that of the present function. Near w* the loss is
    quadratic with the Fisher information ("kl") or twice J'J/d ("mse") as its curvature.

    It serves as the `loss_fn` of a monitor, of `estimate` and of a `Refinement`. Each measurement keeps a copy of the
    weights for its targets, which cost a forward pass a gradient step.

    Args:
        outputs: ``(module, batch) -> tensor (B, ...)``. For "kl" logits, classes last: ``(B, V)``, or ``(B, T, V)``,
            which gives a loss a position.
        divergence: "kl", in nats, the mean over positions; or "mse", the mean over all outputs of a sample (no 1/2).

    Raises:
        TypeError: If `outputs` cannot be called, or, from a measurement, returns no floating-point tensor.
        ValueError: If `divergence` is another, or `outputs` returns too few dimensions.

    Source: Bushnaq et al. (arXiv 2405.10927), who call it the behavioral loss.

    Example:
        >>> from slt_callbacks import LeimkuhlerMatthews, SamplerConfig, estimate
        >>> net = nn.Linear(1, 1, bias=False)
        >>> loss_fn = behavioral(lambda net, x: net(x), "mse")
        >>> config = SamplerConfig(LeimkuhlerMatthews(0.01), nbeta=50.0, localization=0.0, num_draws=1000)
        >>> llc = estimate(net, [torch.ones(2, 1)], loss_fn, sampler=config)["llc"]
        >>> llc["reference_loss"], abs(llc["mean"] - 0.5) < 0.15  # half a parameter, though nothing was trained
        (0.0, True)
    """
    return Behavioral(outputs, divergence)


class _Bound:
    def __init__(
        self, outputs: Outputs, divergence: str, at_fork: nn.Module, draws_numbers: Callable[[], bool]
    ) -> None:
        self._outputs = outputs
        self._divergence = _DIVERGENCES[divergence]
        self._at_fork = at_fork
        self._draws_numbers = draws_numbers

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        if not self._draws_numbers():
            target = self._target(batch)
            return self._divergence(target, _checked(self._outputs(module, batch)))
        sources = [source_of(generator) for generator in own_generators(module, self._outputs)]
        copied = [source_of(generator) for generator in own_generators(self._at_fork, self._outputs)]
        for source, copy in zip(sources, copied, strict=True):
            copy.put(source.get())
        with put_back([*global_sources(), *sources]):
            target = self._target(batch)
        return self._divergence(target, _checked(self._outputs(module, batch)))

    @torch.no_grad()
    def _target(self, batch: Batch) -> torch.Tensor:
        """From a copy: `outputs` may write into what it is given."""
        return _checked(self._outputs(self._at_fork, map_leaves(_clone, batch)))


def _kl(target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    if target.ndim < 2:
        raise ValueError(
            f'Expected `outputs` of a behavioral loss to return logits (B, ..., V) for "kl", but got shape '
            f"{tuple(target.shape)}."
        )
    before, now = target.log_softmax(-1), present.log_softmax(-1)
    impossible = before == -torch.inf  # masked out: 0 times the logarithm of 0 is 0, and has no gradient
    before, now = before.masked_fill(impossible, 0.0), now.masked_fill(impossible, 0.0)
    losses = (before.exp().masked_fill(impossible, 0.0) * (before - now)).sum(-1)
    return losses.flatten(2).mean(2) if losses.ndim > 2 else losses


def _mse(target: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    squares = (present - target).square()
    return squares.flatten(1).mean(1) if squares.ndim > 1 else squares


_DIVERGENCES = {"kl": _kl, "mse": _mse}


def _checked(outputs: Any) -> torch.Tensor:
    if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
        raise TypeError(
            f"Expected `outputs` of a behavioral loss to return a floating-point tensor, but got {shown(outputs)}."
        )
    if outputs.ndim == 0:
        raise ValueError(
            "Expected `outputs` of a behavioral loss to return one row a sample (B, ...), but got a scalar."
        )
    return outputs


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
