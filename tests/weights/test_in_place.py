"""Chains on the shards of a live module, here over one process: what is lent comes back, whatever happens."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from slt_callbacks import SGLD, SamplerConfig
from slt_callbacks.basics.gate import Gate, OutOfStepError
from slt_callbacks.basics.ranks import Alone
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring import sharding
from slt_callbacks.measuring.estimator import Estimator

CHAINS = SamplerConfig(SGLD(1e-4), num_chains=2, num_draws=4, num_burnin_steps=2)
DATA = [torch.randn(8, 3, generator=torch.Generator().manual_seed(0))]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
        self.layers[1].eval()
        self.seen = [1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(2)
        self.last = len(x)
        found: torch.Tensor = self.layers(x)
        return found


def sharded(mesh: DeviceMesh) -> Net:
    """A module in the middle of training: with gradients, which one more backward pass would be added to."""
    torch.manual_seed(0)
    net = Net()
    fully_shard(net.layers[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    net(DATA[0]).square().sum().backward()
    return net


def squares(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return module(batch).square().mean(1)


def estimator(loss_fn: Callable[..., Any] = squares, sharded: Any = "in_place", config: Any = CHAINS) -> Estimator:
    return Estimator(draw_reference(DATA), loss_fn, None, config, sharded=sharded, ranks=Alone())


class State:
    """Everything about a module that chains on its shards could leave changed."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self.tensors = [p.to_local().clone() for p in net.parameters()] + [b.clone() for b in net.buffers()]  # type: ignore[attr-defined]
        self.gradients = [p.grad for p in net.parameters()]
        self.values = [p.grad.to_local().clone() for p in net.parameters()]  # type: ignore[attr-defined, union-attr]
        self.buffers = list(map(id, net.buffers()))
        self.modes = [part.training for part in net.modules()]
        self.attributes = (list(net.seen), net.last, sorted(vars(net)))
        self.hooks = [list(part._forward_hooks.items()) for part in net.modules()]
        self.comms = [type(group._all_gather_comm) for group in net._get_fsdp_state()._fsdp_param_groups]  # type: ignore[operator]
        self.rng = torch.get_rng_state()

    def check(self) -> None:
        now = State(self._net)
        for name in ("tensors", "values"):
            for before, after in zip(getattr(self, name), getattr(now, name), strict=True):
                assert torch.equal(before, after), name
        assert all(before is after for before, after in zip(self.gradients, now.gradients, strict=True))
        for name in ("buffers", "modes", "attributes", "hooks", "comms"):
            assert getattr(self, name) == getattr(now, name), name
        assert torch.equal(self.rng, now.rng)


class AtCall:
    """Does something once, in the middle of a chain."""

    def __init__(self, what: Callable[[], Any]) -> None:
        self.what, self.calls = what, 0

    def __call__(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        losses = squares(module, batch)
        if self.calls == 33:
            self.what()
        return losses


def fail() -> None:
    raise ValueError("corrupt sample")


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def press_inside() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "raised"),
    [(lambda: None, None), (fail, ValueError), (press, KeyboardInterrupt), (press_inside, KeyboardInterrupt)],
)
def test_what_was_lent_comes_back(
    what: Callable[[], Any], raised: type[BaseException] | None, mesh: DeviceMesh
) -> None:
    net = sharded(mesh)
    before, handler = State(net), signal.getsignal(signal.SIGINT)
    loss_fn, moved = AtCall(what), []
    net.layers[4].register_forward_pre_hook(lambda module, _: moved.append(module.weight.detach().clone()))
    before.hooks = State(net).hooks
    if raised is None:
        measurement = estimator(loss_fn).measure(net)
        assert measurement.error is None
    else:
        with pytest.raises(raised):
            estimator(loss_fn).measure(net)
    assert loss_fn.calls >= 33
    assert len({tuple(weight.flatten().tolist()) for weight in moved}) > 10, "the live module itself is moved"
    before.check()
    assert signal.getsignal(signal.SIGINT) is handler
    net(DATA[0]).sum().backward()  # FSDP2 itself goes on as well


def test_a_second_measurement_goes_on_with_its_chains_and_a_checkpoint_holds_none(mesh: DeviceMesh) -> None:
    net = sharded(mesh)
    warm = Estimator(draw_reference(DATA), squares, None, CHAINS, persistent=True, sharded="in_place", ranks=Alone())
    first, second = warm.measure(net, 1), warm.measure(net, 2)
    assert (first.error, second.error) == (None, None)
    assert warm.stored_bytes > 0
    assert warm.state_dict()["chains"] == {}


def test_other_leaves_of_the_loss_get_no_gradient(mesh: DeviceMesh) -> None:
    net, teacher = sharded(mesh), nn.Linear(3, 1)
    teacher.weight.grad = given = torch.ones(1, 3)

    def against(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (module(batch) - teacher(batch)).square().mean(1)

    assert estimator(against).measure(net).error is None
    assert teacher.weight.grad is given
    assert bool((given == 1).all())
    assert teacher.bias.grad is None


class TestRefused:
    def check(self, net: nn.Module, match: str) -> None:
        with pytest.raises(TypeError, match=match):
            estimator().check(net)

    def test_weights_that_are_not_sharded(self, mesh: DeviceMesh) -> None:
        net = Net()
        fully_shard(net.layers[0], mesh=mesh)
        self.check(net, r"`layers.1.weight` is not sharded: pass sharded=\"gathered\"")

    def test_shards_in_half_precision(self, mesh: DeviceMesh) -> None:
        net = Net().bfloat16()
        fully_shard(net, mesh=mesh)
        self.check(net, "is kept in torch.bfloat16, which swallows the noise of a step")

    def test_an_optimizer_in_the_backward_pass(self, mesh: DeviceMesh) -> None:
        net = sharded(mesh)
        next(net.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)
        self.check(net, "has a hook that runs when its gradient is there")

    def test_gradients_that_are_not_averaged(self, mesh: DeviceMesh) -> None:
        net = sharded(mesh)
        net.set_requires_gradient_sync(False)  # type: ignore[operator]
        self.check(net, "Expected FSDP2 to average gradients over the processes")

    def test_an_unknown_way(self) -> None:
        with pytest.raises(ValueError, match=r"Expected `sharded` to be one of .*, but got 'both'"):
            estimator(sharded="both")


def test_half_precision_in_the_forward_pass_is_told(mesh: DeviceMesh) -> None:
    net = fully_shard(nn.Linear(3, 1), mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.warns(UserWarning, match="Chains on shards see the loss as FSDP2 computes it, here in half precision"):
        estimator(lambda module, x: squares(module, x).float()).check(net)


@pytest.mark.parametrize(("free", "in_place"), [(100.0, True), (1e9, False)])
def test_auto_goes_by_the_free_memory(
    free: float, in_place: bool, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "free_bytes", lambda device, size: free)
    net, asked = sharded(mesh), []

    def spy(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        asked.append(module is net)
        return squares(module, batch)

    assert estimator(spy, sharded="auto").measure(net).error is None
    assert set(asked) == {in_place}


class TestGate:
    def test_nobody_passes_until_it_is_opened_again(self) -> None:
        gate = Gate(1)
        gate.fail()
        gate.fail()
        with pytest.raises(OutOfStepError, match="another process has failed"):
            gate("losses")
        gate.open()
        gate("losses")

    def test_ctrl_c_waits_for_the_end_where_nobody_comes_to_the_gate(self) -> None:
        done: list[int] = []

        def patient() -> None:
            with Gate(1).patient():
                press()
                done.append(1)

        with pytest.raises(KeyboardInterrupt):
            patient()
        assert done == [1]
