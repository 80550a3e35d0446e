"""The fork: private, complete, in the right precision; and the live module does not notice."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.pieces import pieces_of
from tests.problems import Everything, estimate, llc, settings

X = torch.linspace(-1, 1, 24).view(6, 4)


def per_sample(module: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = module(x)
    return out.square().flatten(1).sum(1)


def snapshot(module: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {
            k: v.detach().clone()
            for k, v in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items()
        },
        "versions": [p._version for p in module.parameters()] + [b._version for b in module.buffers()],
        "pointers": [p.data_ptr() for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "frozen": [p.requires_grad for p in module.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "attributes": [sorted(vars(m)) for m in module.modules()],
        "rng": (torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2:], random.getstate()),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    else:
        assert before == after


@pytest.mark.parametrize("with_grads", [False, True])
def test_estimate_leaves_the_live_module_and_every_global_generator_bit_identical(with_grads: bool) -> None:
    torch.manual_seed(1)
    module = Everything()
    module.head.register_forward_hook(lambda *_: None)
    if with_grads:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
    noise = module.noise.get_state()
    before = snapshot(module)

    def draws_numbers(fork: Any, x: torch.Tensor) -> torch.Tensor:
        np.random.rand(), random.random()
        return per_sample(fork, x + 0.01 * torch.randn_like(x))

    measurement = estimate(module, [X], draws_numbers, sampler=settings(1e-2, num_draws=5, num_burnin_steps=3))
    assert abs(llc(measurement)) > 1e-3  # the chains did move
    assert_same(before, snapshot(module))
    assert torch.equal(noise, module.noise.get_state())


def test_a_loss_that_raises_leaves_the_generators_as_they_were() -> None:
    module = nn.Linear(4, 1)
    calls = []

    def breaks(fork: Any, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3), np.random.rand(), random.random()
        calls.append(1)
        if len(calls) > 5:
            raise ZeroDivisionError
        return per_sample(fork, x)

    before = snapshot(module)
    with pytest.raises(ZeroDivisionError):
        estimate(module, [X], breaks, sampler=settings(num_draws=50))
    assert_same(before, snapshot(module))


def test_eval_mode_is_sampled_whatever_the_live_mode_is() -> None:
    torch.manual_seed(0)
    module = Everything()
    modes, masks = [], []

    def looks(fork: Any, x: torch.Tensor) -> torch.Tensor:
        modes.append(any(m.training for m in fork.modules()))
        masks.append(torch.equal(fork.drop(x), x))
        return per_sample(fork, x)

    buffers = {name: b.clone() for name, b in module.named_buffers()}
    first = estimate(module, [X], looks, sampler=settings())
    assert not any(modes)
    assert all(masks)
    assert_same(buffers, dict(module.named_buffers()))
    second = estimate(module.eval(), [X], looks, sampler=settings())
    assert llc(first) == llc(second)


def test_buffers_that_a_forward_pass_changes_start_from_the_fork_in_every_chain() -> None:
    module = Everything()
    seen = []

    def looks(fork: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append(float(fork.calls))
        return per_sample(fork, x)

    module.calls += 100
    estimate(module, [X], looks, sampler=settings(num_draws=4, num_chains=2))
    assert seen[-4:] == seen[-8:-4] == [100, 101, 102, 103]


def test_fork_copies_every_weight_and_buffer_into_storage_of_its_own() -> None:
    module = Everything()
    fork = Fork(module)
    live = {p.untyped_storage().data_ptr() for p in module.parameters() if p.requires_grad}
    live |= {b.untyped_storage().data_ptr() for b in module.buffers()}
    mine = {p.untyped_storage().data_ptr() for p in fork.module.parameters() if p.requires_grad}
    mine |= {b.untyped_storage().data_ptr() for b in fork.module.buffers()}
    assert not live & mine
    assert_same(dict(module.named_parameters()), dict(fork.module.named_parameters()))
    assert len(fork) == sum(p.numel() for p in module.parameters() if p.requires_grad)
    fork.position.fill_(2.0)
    for parameter in fork.parameters:
        assert bool((parameter == 2).all())
    assert all(any(p is q for q in fork.parameters) for p in fork.module.parameters() if p.requires_grad)


def test_tied_weights_stay_tied_and_count_once() -> None:
    fork = Fork(Everything())
    assert fork.module.tied.weight is fork.module.embed.weight
    assert len(fork) == 16 + 8 + 5


def test_frozen_parameters_never_move() -> None:
    module = Everything()
    seen = []

    def looks(fork: Any, x: torch.Tensor) -> torch.Tensor:
        seen.append([p.detach().clone() for p in fork.frozen.parameters()])
        assert not any(p.requires_grad for p in fork.frozen.parameters())
        return per_sample(fork, x)

    estimate(module, [X], looks, sampler=settings(1e-2, num_draws=6))
    for weights in seen:
        assert_same(list(module.frozen.parameters()), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_parameters_that_code_may_write_into_are_private_and_put_back(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)).to(dtype)
    module[0].requires_grad_(False)
    module[0].bias = module[0].weight  # tied
    before = snapshot(module)
    fork = Fork(module, share_frozen=False)
    own = fork.module[0].weight
    assert own is fork.module[0].bias
    own.data.mul_(2).add_(1)  # not even the version of the tensor tells of it
    assert_same(before, snapshot(module))
    fork.reset()
    torch.testing.assert_close(own.detach(), module[0].weight.detach(), check_dtype=False)
    assert not own.requires_grad


def test_frozen_parameters_are_shared_by_default_because_they_may_be_large() -> None:
    module = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1))
    assert Fork(module).module[0].weight.data_ptr() == module[0].weight.data_ptr()


class Averaging(nn.Module):
    """Its training step lets a frozen average follow the weights."""

    seen: ClassVar[list[torch.Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.fast, self.slow = nn.Linear(4, 1), nn.Linear(4, 1).requires_grad_(False)

    def training_step(self, x: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(self.slow.weight.detach().clone())
        self.slow.weight.data.lerp_(self.fast.weight.data, 0.5)
        return (self.fast(x) - self.slow(x)).square().mean()


def test_a_training_step_that_writes_into_frozen_weights_does_so_in_the_fork_and_anew_in_every_chain() -> None:
    torch.manual_seed(0)
    module = Averaging()
    before = snapshot(module)
    with pytest.warns(UserWarning, match="it keeps something from call to call"):
        measurement = estimate(module, [X], sampler=settings(1e-2, num_draws=6, num_chains=2, engine="sequential"))
    assert llc(measurement) != 0
    assert_same(before, snapshot(module))
    for place in (-12, -6):
        assert torch.equal(Averaging.seen[place], module.slow.weight)
    assert not torch.equal(Averaging.seen[-1], module.slow.weight)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_sampled_in_float32(half: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).to(half)
    module[0].weight.requires_grad_(False)
    fork = Fork(module)
    assert fork.position.dtype == torch.float32
    assert {p.dtype for p in fork.module.parameters()} == {torch.float32}
    assert {b.dtype for b in fork.module.buffers()} == {torch.float32, torch.int64}
    # An update of 1e-4 vanishes in bfloat16 next to a weight of 1; here it has to arrive.
    fork.position.add_(1e-4)
    torch.testing.assert_close(fork.displacement(), torch.full((len(fork),), 1e-4), atol=1e-6, rtol=0)
    before = snapshot(module)
    config = settings(1e-7, nbeta=1e3, num_draws=20)
    exact = copy.deepcopy(module).float()
    assert llc(estimate(module, [X], per_sample, sampler=config)) == llc(
        estimate(exact, [X], per_sample, sampler=config)
    )
    assert_same(before, snapshot(module))


def test_a_float64_module_stays_float64_on_float32_data() -> None:
    fork = Fork(nn.Linear(4, 1).double())
    assert fork.position.dtype == torch.float64
    measurement = estimate(nn.Linear(4, 1).double(), [X], per_sample, sampler=settings())
    assert llc(measurement) != 0


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["old weight norm", "weight norm", "spectral norm", "pruned"])
def test_reparametrized_modules_sample_what_is_trainable(kind: str) -> None:
    torch.manual_seed(0)
    module: nn.Module = nn.Linear(4, 3)
    if kind == "old weight norm":
        module = nn.utils.weight_norm(module)
    elif kind == "weight norm":
        module = parametrizations.weight_norm(module)
    elif kind == "spectral norm":
        module = parametrizations.spectral_norm(module)
    else:
        prune.l1_unstructured(module, "weight", 0.5)
    module(X)  # leaves a computed weight with a graph behind
    live = module.eval()(X)  # in train mode, spectral norm refines its buffers at every call
    module.train()
    before = snapshot(module)
    fork = Fork(module)
    torch.testing.assert_close(fork.module(X), live)
    fork.position.add_(torch.randn(len(fork)))
    assert not torch.allclose(fork.module(X), live)
    measurement = estimate(module, [X], per_sample, sampler=settings(1e-2))
    assert llc(measurement) != 0
    after = snapshot(module)
    before.pop("rng"), after.pop("rng")
    assert_same(before, after)
    assert len(fork) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("where", ["whole", "submodule", "call", "forward"])
def test_compiled_modules_are_sampled_uncompiled_and_stay_compiled(where: str) -> None:
    class Net(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.0

    torch.manual_seed(0)
    plain = Net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    module: Any = copy.deepcopy(plain)
    compiled: list[int] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    if where == "whole":
        module = torch.compile(module, backend=backend)
    elif where == "submodule":
        module[0] = torch.compile(module[0], backend=backend)
    elif where == "call":
        module.compile(backend=backend)
    else:
        module.forward = torch.compile(module.forward, backend=backend)
    expected = llc(estimate(plain, [X], per_sample, sampler=settings(1e-2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PyTorch says of its own compiler
        assert llc(estimate(module, [X], per_sample, sampler=settings(1e-2))) == expected
        assert compiled == []
        module(X)
        assert compiled


def test_a_child_registered_under_two_names_is_uncompiled_under_both() -> None:
    module = nn.Module()
    module.first = torch.compile(nn.Linear(4, 4), backend="eager")
    module.second = module.first
    fork = Fork(module)
    assert type(fork.module.first) is nn.Linear
    assert fork.module.second is fork.module.first


def test_recurrent_modules_use_the_forked_weights() -> None:
    class Net(nn.LSTM):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    module = Net(4, 3, batch_first=True)
    x = torch.randn(5, 2, 4)
    fork = Fork(module)
    torch.testing.assert_close(fork.module(x), module(x))
    fork.position.zero_()
    assert float(fork.module(x).detach().abs().max()) == 0
    assert llc(estimate(module, [x], per_sample, sampler=settings(1e-2))) != 0


def test_attributes_that_cannot_be_copied_are_shared_and_generators_are_private() -> None:
    module = Everything()
    fork = Fork(module)
    assert fork.module.lock is module.lock
    assert fork.module.noise is not module.noise
    assert torch.equal(fork.module.noise.get_state(), module.noise.get_state())
    state = module.noise.get_state()
    fork.module(X)
    assert torch.equal(state, module.noise.get_state())
    module.handles = [threading.Lock(), torch.Generator()]
    handles: Any = Fork(module).module.handles
    assert handles is not module.handles
    assert handles[0] is module.handles[0]
    assert handles[1] is not module.handles[1]


def test_hooks_of_a_watcher_are_dropped_and_the_users_own_work() -> None:
    module = nn.Linear(4, 1)
    seen = []

    def watch(*_: Any) -> None:
        seen.append("watcher")

    watch.__module__ = "wandb.integration.torch"
    module.register_forward_hook(watch)
    module.register_forward_hook(lambda _m, _i, out: out * 3)
    fork = Fork(module)
    torch.testing.assert_close(fork.module(X), module(X))
    assert seen == ["watcher"]  # the live one
    assert len(module._forward_hooks) == 2


def test_hooks_on_live_parameters_do_not_fire() -> None:
    module = nn.Linear(4, 1)
    fired = []
    module.weight.register_hook(lambda gradient: fired.append(gradient))
    module.weight.register_post_accumulate_grad_hook(lambda parameter: fired.append(parameter))
    estimate(module, [X], per_sample, sampler=settings())
    assert fired == []


def test_teacher_inside_the_loss_gets_no_gradients() -> None:
    teacher, student = nn.Linear(4, 1), nn.Linear(4, 1)

    def distill(module: Any, x: torch.Tensor) -> torch.Tensor:
        return (module(x) - teacher(x)).square().sum(1)

    measurement = estimate(student, [X], distill, sampler=settings(1e-2))
    assert llc(measurement) != 0
    assert [p.grad for p in teacher.parameters()] == [None, None]


@pytest.mark.parametrize("context", ["no_grad", "inference_mode", "autocast"])
def test_the_callers_context_changes_no_number_and_is_still_there_afterwards(context: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    config = settings(1e-2, num_draws=6, batch_size=3)
    expected = estimate(module, [X.clone()], per_sample, sampler=config)
    contexts = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    }
    with contexts[context]():
        # Data made inside: in inference mode its tensors are such that no backward pass takes them as they are.
        found = estimate(module, [X.clone()], per_sample, sampler=config)
        state = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert state == (context == "autocast", context == "inference_mode", context == "autocast")
    assert torch.equal(found["llc"]["loss_trace"], expected["llc"]["loss_trace"])


def test_reset_goes_back_to_the_anchor_plus_displacement() -> None:
    module = Everything()
    fork = Fork(module)
    anchor = fork.position.clone()
    fork.position.normal_()
    moved = fork.displacement()
    torch.testing.assert_close(anchor + moved, fork.position)
    position = fork.position.clone()
    fork.reset()
    assert torch.equal(fork.position, anchor)
    fork.reset(moved)
    torch.testing.assert_close(fork.position, position)


@pytest.mark.parametrize(
    "sizes", [[3], [0, 5], [2**15 + 1], [2**15, 1], [5, 2**16 + 3, 7, 0, 9], [100] * 400 + [2**17 + 5, 2**15]]
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pieces_cut_the_flat_vector_without_gap_or_overlap(sizes: list[int], device: str) -> None:
    pieces = pieces_of(sizes, device)
    flat = torch.arange(float(sum(sizes)))
    tensors = list(flat.split(sizes))
    assert torch.equal(torch.cat([piece.of(flat) for piece in pieces]), flat)
    for piece in pieces:
        assert torch.equal(piece.gather(tensors), piece.of(flat))


def test_a_parameter_in_another_memory_order_keeps_its_values() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    torch.testing.assert_close(Fork(module).module(x), module(x))
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    first, second = (
        llc(estimate(net, [x], per_sample, sampler=settings(1e-3, num_draws=5))) for net in (module, plain)
    )
    assert first == pytest.approx(second, rel=1e-4)


def test_sparse_gradients_are_taken() -> None:
    def embedded(module: Any, tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens).square().sum((1, 2))

    tokens = torch.tensor([[0, 2], [1, 2]])
    weight = torch.randn(4, 3)
    sparse, dense = (
        llc(
            estimate(
                nn.Embedding.from_pretrained(weight, freeze=False, sparse=sparse),
                [tokens],
                embedded,
                sampler=settings(),
            )
        )
        for sparse in (True, False)
    )
    assert sparse == dense != 0


def test_nothing_trainable_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected Linear to have a trainable parameter.*requires_grad=False"):
        Fork(nn.Linear(2, 1).requires_grad_(False))
    with pytest.raises(ValueError, match="Expected ReLU to have a trainable parameter"):
        Fork(nn.ReLU())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LazyLinear(2), "`weight` is uninitialized: run one batch"),
        (nn.Linear(2, 1, device="meta"), "`weight` is on the meta device"),
        (nn.Linear(2, 1, dtype=torch.complex64), "`weight` has dtype torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_parameters_that_cannot_be_sampled_are_named(module: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Fork(module)


def test_a_model_over_two_devices_is_refused() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[1].weight = nn.Parameter(torch.empty(1, 2, device="meta"))
    with pytest.raises((TypeError, ValueError), match="meta device"):
        Fork(module)
