"""Sharded modules, here over one process, where a shard is the whole: what a copy keeps, and what it must not."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from slt_callbacks.weights.copies import private_copy
from slt_callbacks.weights.fork import Fork
from slt_callbacks.weights.shards import is_sharded, reshard
from slt_callbacks.weights.snapshot import Snapshot


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.seen: list[torch.Tensor] = []
        self.norm.register_forward_hook(lambda module, inputs, output: output + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.embed(x))


def sharded(mesh: DeviceMesh) -> tuple[Net, Net]:
    """The same weights twice, sharded and not."""
    torch.manual_seed(0)
    plain = Net()
    net = Net()
    net.load_state_dict(plain.state_dict())
    fully_shard(net.norm, mesh=mesh)
    fully_shard(net, mesh=mesh)
    register_fsdp_forward_method(net, "features")
    net.where = mesh  # as Lightning leaves it in the module
    return net, plain


TOKENS = torch.tensor([[0, 3], [4, 1]])


def test_a_copy_is_what_the_module_was_before_it_was_sharded(mesh: DeviceMesh) -> None:
    net, plain = sharded(mesh)
    copied = private_copy(net)
    assert [type(part) for part in copied.modules()] == [type(part) for part in plain.modules()]
    assert not is_sharded(copied)
    assert is_sharded(net)
    assert copied.head.weight is copied.embed.weight
    assert all(type(parameter.data) is torch.Tensor for parameter in copied.parameters())
    for name in ("forward", "features"):
        assert torch.equal(getattr(copied, name)(TOKENS), getattr(plain, name)(TOKENS)), name
    assert (copied.where, copied.seen == net.seen, copied.seen is net.seen) == (mesh, True, False)
    left = {name for part in copied.modules() for name in vars(part)} & {"_is_fsdp_managed_module"}
    hooks = [hook for part in copied.modules() for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks)]
    assert (left, len(hooks)) == (set(), 1), "the user's own hook alone"


def test_a_copy_shares_nothing_with_the_module_and_can_be_forked(mesh: DeviceMesh) -> None:
    net, plain = sharded(mesh)
    fork = Fork(Snapshot(3, net).captured().module)
    fork.position.add_(1.0)
    fork.module(TOKENS).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(net(TOKENS), plain(TOKENS))
    assert isinstance(net, FSDPModule)


def test_a_module_that_stayed_whole_after_validation_is_copied_with_its_present_weights(mesh: DeviceMesh) -> None:
    net, _ = sharded(mesh)
    with torch.no_grad():
        net(TOKENS)  # the outermost part stays gathered: its parameters are no DTensors now
    assert type(net.embed.weight.data) is torch.Tensor
    copied = private_copy(net)
    assert len(list(copied.parameters())) == 3
    net(TOKENS).sum().backward()
    assert net.embed.weight.grad is not None


def test_tensor_parallel_weights_are_refused(mesh: DeviceMesh) -> None:
    net = parallelize_module(nn.Sequential(nn.Linear(4, 4)), mesh, {"0": ColwiseParallel()})
    with pytest.raises(TypeError, match="Expected weights that are sharded by `fully_shard` alone, but got tensor"):
        private_copy(net)


def test_a_plain_module_is_not_sharded() -> None:
    net = Net()
    reshard(net)
    assert not is_sharded(net)
