"""A private copy of a module whose trainable parameters are views of one flat vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from slt_callbacks.basics.rng import generator
from slt_callbacks.weights.copies import copy_module
from slt_callbacks.weights.pieces import pieces_of
from slt_callbacks.weights.remembered import Remembered
from slt_callbacks.weights.selection import EVERYTHING, Selection


class Fork:
    """A private copy of `module` at its present weights, in eval mode, for a chain to move.

    The live module is read, never written: its parameters are the anchor w*, kept by reference, so a fork costs one
    vector of the size of the trainable parameters. Tied parameters stay tied; frozen ones are shared when they need no
    conversion, and never move. Half-precision weights become float32 (a bfloat16 weight swallows SGLD noise); a float64
    module stays float64.

    Args:
        module: Any module whose parameters exist. It must not be trained while the fork is in use.
        share_frozen: False gives the fork frozen parameters of its own, put back by `reset` like the buffers, for code
            that may write into them, as a training step does that keeps a running average. It costs their size, which
            in a model with low-rank adapters is nearly all of it.
        selection: Which trainable weights move. Parameters of which none does join the frozen ones; where a slice of a
            parameter is selected the whole of it is in the flat vector, and whoever moves it puts the rest back.

    Attributes:
        module: The copy; its trainable parameters are views of `position`.
        position: The chain's weights, float32 or float64, shape ``(P,)``.
        parameters: The selected parameters of `module`, views of `position`, in the order of `named_parameters`.
        own: The same by the `id` of the live parameter that each stands for.
        anchor: The live parameters, detached and flat, in the same order.
        pieces: How to walk through `position` without a temporary of its size.

    Raises:
        ValueError: If nothing is trainable, or the trainable parameters lie on several devices.
        TypeError: If a trainable parameter is uninitialized, complex, on the meta device or sharded.

    Example:
        >>> live = nn.Linear(2, 1)
        >>> fork = Fork(live)
        >>> _ = fork.position.zero_()
        >>> fork.module.weight.tolist(), bool((live.weight != 0).all())
        ([[0.0, 0.0]], True)
    """

    in_place = False  # whether a chain moves the live weights themselves

    def __init__(self, module: nn.Module, share_frozen: bool = True, selection: Selection = EVERYTHING) -> None:
        trainable = _movable(module)
        chosen = selection.masks(module)
        live = [parameter for parameter in trainable if id(parameter) in chosen]
        self._masks = [chosen[id(parameter)] for parameter in live]
        self.dtype = (
            torch.float64 if any(parameter.dtype == torch.float64 for parameter in trainable) else torch.float32
        )
        self.device = live[0].device
        self.anchor = [parameter.detach().flatten() for parameter in live]  # views, but for odd memory formats
        self.position = torch.empty(sum(p.numel() for p in live), dtype=self.dtype, device=self.device)
        self.parameters: list[torch.Tensor] = []
        start = 0
        for parameter in live:
            view = self.position[start : start + parameter.numel()].view(parameter.shape)
            self.parameters.append(nn.Parameter(view))
            start += parameter.numel()
        self.pieces = pieces_of([parameter.numel() for parameter in live], self.device.type)
        self.own = dict(zip(map(id, live), self.parameters, strict=True))
        replaced = dict(self.own)
        self._frozen: list[tuple[torch.Tensor, torch.Tensor]] = []  # the fork's own, and the live one
        for parameter in () if share_frozen else module.parameters():
            if id(parameter) not in replaced:
                own = nn.Parameter(self._convert(parameter).clone(), requires_grad=False)
                self._frozen.append((own, parameter.detach()))
                replaced[id(parameter)] = own
        self.module = copy_module(module, replaced, self._convert)
        for part in self.module.modules():  # what Lightning calls ``self.dtype``
            if getattr(part, "_dtype", None) in (torch.float16, torch.bfloat16):
                part._dtype = self.dtype  # type: ignore[assignment]
        self._remembered = Remembered(self.module)
        self._buffers = [
            (owner, name, buffer.clone())
            for owner in self.module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self.reset()

    def __len__(self) -> int:
        """Size P of the flat vector."""
        return len(self.position)

    @property
    def num_moving(self) -> int:
        """Weights that a chain moves: P, but for those of parameters of which only a slice is selected."""
        return sum(
            p.numel() if mask is None else int(mask.sum()) for p, mask in zip(self.parameters, self._masks, strict=True)
        )

    @property
    def num_here(self) -> int:
        """Those of them that this process has."""
        return self.num_moving

    def arrive(self) -> None:
        """Called before a loss is taken: the module is where `position` is, as its parameters are views of it."""

    def split(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One part ``(n,)`` a parameter of a vector ``(P,)``."""
        return torch.split(vector, [len(part) for part in self.anchor])

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """A sum over this process's weights as one over all of them."""
        return value

    def norm(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Euclidean norm of a vector that comes in parts, shape ``()``."""
        found: torch.Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
        return found

    def generator(self, *key: int) -> torch.Generator:
        """A private generator of noise for the weights."""
        return generator(self.device, *key)

    def touches(self, loss: torch.Tensor) -> bool:
        """Whether the gradient of a loss reaches a weight that moves."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return any(gradient is not None for gradient in gradients)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss to what `take_gradients` will return."""
        # `inputs` keeps gradients out of every other leaf the loss may touch, such as a live teacher.
        torch.autograd.backward(loss, inputs=self.parameters)

    def take_gradients(self) -> list[torch.Tensor]:
        """One flat gradient a parameter: what `backward` has added up, which is then forgotten."""
        gradients = []
        for parameter in self.parameters:
            gradient = parameter.grad
            parameter.grad = None
            if gradient is None:  # this parameter had no part in the loss
                gradient = torch.zeros_like(parameter)
            gradients.append((gradient.to_dense() if gradient.is_sparse else gradient).detach().flatten())
        return gradients

    def moves(self) -> torch.Tensor | None:
        """True where weights of the flat vector move, bool ``(P,)``; None where all of them do."""
        if all(mask is None for mask in self._masks):
            return None
        parts = [
            torch.ones(parameter.numel(), dtype=torch.bool, device=self.device) if mask is None else mask.flatten()
            for parameter, mask in zip(self.parameters, self._masks, strict=True)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def reset(self, displacement: torch.Tensor | None = None) -> None:
        """Back to the anchor, plus `displacement` ``(P,)`` where one is given; all else as it was at the fork."""
        torch._foreach_copy_(self.split(self.position), self.anchor)
        if displacement is not None:
            self.position.add_(displacement.to(self.device))
        for owner, name, buffer in self._buffers:
            owner._buffers[name] = buffer.clone()
        for own, frozen in self._frozen:
            own.copy_(frozen)
        self._remembered.put_back()

    @contextmanager
    def put_back(self, position: torch.Tensor | None = None) -> Iterator[None]:
        """A look elsewhere in the middle of a chain: weights, buffers and attributes are as they were when it ends.

        Args:
            position: Where to put the weights ``(P,)``, if somebody has a copy already; not to be changed.
        """
        weights = [(self.position, self.position.clone() if position is None else position)]
        weights += [(own, own.clone()) for own, _ in self._frozen]
        remembered = Remembered(self.module)
        buffers = [(owner, name, owner._buffers[name]) for owner, name, _ in self._buffers]
        for owner, name, buffer in buffers:
            owner._buffers[name] = None if buffer is None else buffer.clone()
        try:
            yield
        finally:
            for own, kept in weights:
                own.copy_(kept)
            for owner, name, buffer in buffers:
                owner._buffers[name] = buffer
            remembered.put_back()

    def buffers(self) -> list[torch.Tensor]:
        """The buffers as they were at the fork, those of the modules one after the other."""
        return [buffer for _, _, buffer in self._buffers]

    def set_buffers(self, values: Sequence[torch.Tensor]) -> None:
        """Let the fork begin with other `values`, in the order of `buffers`, from the next `reset` on."""
        self._buffers = [
            (owner, name, value.to(buffer.device))
            for (owner, name, buffer), value in zip(self._buffers, values, strict=True)
        ]

    def keep_attributes(self) -> None:
        """Let the module begin with what its attributes hold now, from the next `reset` on."""
        for part in self.module.modules():  # what Lightning calls ``self.dtype``
            if getattr(part, "_dtype", None) in (torch.float16, torch.bfloat16):
                part._dtype = self.dtype  # type: ignore[assignment]
        self._remembered = Remembered(self.module)

    def anchor_pieces(self) -> list[torch.Tensor]:
        """The anchor in the pieces and the precision of `position`: views of the live parameters where possible."""
        return [piece.gather(self.anchor).to(self.dtype) for piece in self.pieces]

    @torch.no_grad()
    def displacement(self) -> torch.Tensor:
        """``position - anchor`` as a new tensor, shape ``(P,)``."""
        moved = self.position.clone()
        for piece in self.pieces:
            piece.of(moved).sub_(piece.gather(self.anchor))
        return moved

    def held_pieces(self) -> list[torch.Tensor | None]:
        """By piece, True at the weights that stay at the anchor, bool ``(n,)``; None where all of them move."""
        moves = self.moves()
        if moves is None:
            return [None] * len(self.pieces)
        gathered = [~piece.of(moves) for piece in self.pieces]
        return [piece if bool(piece.any()) else None for piece in gathered]

    def moving(self, vectors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Flat vectors, one a parameter, with 0 where weights do not move."""
        return [
            vector if mask is None else vector * mask.flatten()
            for vector, mask in zip(vectors, self._masks, strict=True)
        ]

    def _convert(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that does not move, in the precision of the chain."""
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        if half or (tensor.is_floating_point() and self.dtype == torch.float64):
            return tensor.detach().to(self.dtype)
        return tensor.detach()


def trainable_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that chains may move.

    Raises:
        ValueError: If there is none.
    """
    live = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not live:
        raise ValueError(
            f"Expected {type(module).__name__} to have a trainable parameter, but every parameter has "
            "requires_grad=False or there are none: unfreeze what the chains should explore."
        )
    return live


def _movable(module: nn.Module) -> list[nn.Parameter]:
    live = trainable_of(module)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        problem = _problem(parameter)
        if problem:
            raise TypeError(f"Expected trainable parameters that SGLD can move, but `{name}` {problem}.")
    devices = {str(parameter.device) for parameter in live}
    if len(devices) > 1:
        raise ValueError(
            f"Expected all trainable parameters on one device, but found {sorted(devices)}: a model split over devices "
            "cannot be sampled."
        )
    return live


def _problem(parameter: nn.Parameter) -> str | None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "is uninitialized: run one batch through the lazy module first"
    if parameter.is_meta:
        return "is on the meta device: materialize the module first"
    if not parameter.is_floating_point():
        return f"has dtype {parameter.dtype}: only real floating-point parameters can be sampled"
    if type(parameter.data) is not torch.Tensor:
        return f"is a {type(parameter.data).__name__}: sharded and subclassed tensors cannot be sampled"
    return None
