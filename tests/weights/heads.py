"""What the heads of an attention layer are, found by running it: which weights the output of each depends on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from slt_callbacks.measuring.refinement import Refinement


def masks(module: nn.Module, head: Refinement) -> dict[str, torch.Tensor]:
    """By the name of each parameter, where a refinement moves it."""
    chosen = head.selection.masks(module)
    found = {}
    for name, parameter in module.named_parameters():
        mask = chosen.get(id(parameter), torch.zeros(parameter.shape, dtype=torch.bool))
        found[name] = torch.ones(parameter.shape, dtype=torch.bool) if mask is None else mask
    return found


class Tap:
    """What passes a point of a layer where the outputs of its heads are side by side.

    Attributes:
        gate: (heads,), by which those of each head are multiplied.
        seen: (heads, ...), what passed last.
    """

    def __init__(self, heads: int) -> None:
        self.gate = torch.ones(heads, dtype=torch.float64)
        self.seen = torch.empty(0)

    def __call__(self, joined: torch.Tensor) -> torch.Tensor:
        heads = joined.unflatten(-1, (len(self.gate), -1)).movedim(-2, 0)
        self.seen = heads.detach().clone()
        return (heads * self.gate.view(-1, *[1] * (heads.ndim - 1))).movedim(0, -2).flatten(-2)

    @contextmanager
    def only(self, kept: Collection[int]) -> Iterator[None]:
        """These heads alone."""
        before, self.gate = self.gate, torch.zeros_like(self.gate)
        self.gate[list(kept)] = 1.0
        try:
            yield
        finally:
            self.gate = before


def tap_input(projection: nn.Module, heads: int) -> Tap:
    """A tap before the output projection."""
    tap = Tap(heads)
    projection.register_forward_pre_hook(lambda _, args: (tap(args[0]), *args[1:]))
    return tap


def check_heads(
    module: nn.Module,
    heads: Mapping[str, Refinement],
    tap: Tap,
    run: Callable[[], torch.Tensor],
    *,
    path: str,
    group: int = 1,
    shared: Collection[str] = (),
    undecided: Collection[str] = (),
) -> None:
    """Asserts that the weights of every head are what its output is made of and goes through, and no others.

    Args:
        module: In double precision.
        heads: As `attention_heads` returns them.
        tap: On the layer.
        run: What follows from the layer's output.
        path: Of the layer.
        group: How many heads share keys and values.
        shared: Parameters of the layer that belong to no head.
        undecided: Those with directions that change nothing, as the bias of keys has.
    """
    own = {name for name, _ in module.named_parameters() if name.startswith(path)}
    assert set(shared) | set(undecided) <= own
    chosen = [masks(module, head) for head in heads.values()]
    assert len(chosen) == len(tap.gate)
    _check_gradients(module, chosen, tap, run, own - set(shared), undecided)
    _check_cover(chosen, own, shared, group)
    for head in range(len(chosen)):
        _check_moving(module, chosen[head], tap, run, head, group)
        if group == 1:
            _check_zeroing(module, chosen[head], tap, run, head)


def _check_gradients(
    module: nn.Module, chosen: list[dict[str, torch.Tensor]], tap: Tap, run: Any, own: set[str], undecided: Any
) -> None:
    parameters = dict(module.named_parameters())
    for head, mask in enumerate(chosen):
        with tap.only([head]):
            out = run()
        weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).sin().view_as(out)
        found = torch.autograd.grad((out * weight).sum(), list(parameters.values()), allow_unused=True)
        reached = dict(zip(parameters, found, strict=True))
        for name in own:
            assert reached[name] is not None, name
            if name in undecided:
                assert not reached[name][~mask[name]].any(), (name, head)
            else:
                assert torch.equal(reached[name] != 0, mask[name]), (name, head)


def _check_cover(chosen: list[dict[str, torch.Tensor]], own: set[str], shared: Any, group: int) -> None:
    """Every weight of the layer is of one head, or of those that share a key and a value; other weights are of none."""
    for name in chosen[0]:
        times = torch.stack([mask[name] for mask in chosen]).sum(0)
        if name not in own or name in shared:
            assert not times.any(), name
        else:
            assert set(times.unique().tolist()) <= {1, group}, name


def _check_moving(
    module: nn.Module, mask: dict[str, torch.Tensor], tap: Tap, run: Callable[[], torch.Tensor], head: int, group: int
) -> None:
    run()
    before = tap.seen
    with _changed(module, mask, lambda weights: weights + torch.linspace(-1, 1, weights.numel(), dtype=weights.dtype)):
        run()
    moved = [not torch.allclose(one, other, rtol=1e-9) for one, other in zip(before, tap.seen, strict=True)]
    assert moved == [other // group == head // group for other in range(len(before))]


def _check_zeroing(
    module: nn.Module, mask: dict[str, torch.Tensor], tap: Tap, run: Callable[[], torch.Tensor], head: int
) -> None:
    whole = run()
    with tap.only(set(range(len(tap.gate))) - {head}):
        ablated = run()
    with _changed(module, mask, torch.zeros_like):
        zeroed = run()
    assert not torch.allclose(ablated, whole)
    torch.testing.assert_close(zeroed, ablated, rtol=1e-5, atol=1e-6)  # transformers norms in single precision


@contextmanager
def _changed(
    module: nn.Module, mask: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """The selected weights changed."""
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter[mask[name]] = change(parameter[mask[name]])
    yield
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(before[name])
