"""Whatever the caller has switched on, w*, draws, probes and singles are asked in one way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from slt_callbacks import SGLD, Influence, LossKernel, SamplerConfig, estimate
from slt_callbacks.basics.errors import LossFnError
from slt_callbacks.losses import measured
from slt_callbacks.losses.measured import MeasuredLoss
from slt_callbacks.losses.world import own_world
from slt_callbacks.weights.fork import Fork
from tests.problems import Weights, llc, settings

# At a localization of 1e9 a chain with a step of 1e-12 stays where it is.
FROZEN = SamplerConfig(SGLD(1e-12), nbeta=40.0, localization=1e9, num_chains=2, num_draws=4, num_burnin_steps=0)


class Padded(nn.Module):
    """A classifier of padded sequences that takes the mean over all positions, the padded ones too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        padding = torch.arange(x.shape[1]) >= lengths[:, None]
        out: torch.Tensor = self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))
        return out


def cross_entropy(module: Any, batch: Any) -> torch.Tensor:
    x, lengths, y = batch
    return nn.functional.cross_entropy(module(x, lengths), y, reduction="none")


def sequences(size: int = 12) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(size, 6, 8, generator=generator)
    lengths = torch.arange(size) % 5 + 1
    lengths[0] = 6
    return [(x, lengths, torch.arange(size) % 2)]


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_attention_over_padded_positions_is_one_loss_with_gradient_and_without(
    scalar: bool, batch_size: int | None
) -> None:
    def loss_fn(module: Any, batch: Any) -> torch.Tensor:
        losses = cross_entropy(module, batch)
        return losses.mean() if scalar else losses

    config = dataclasses.replace(FROZEN, batch_size=batch_size)
    assert llc(estimate(Padded().train(), sequences(), loss_fn, sampler=config)) == pytest.approx(0, abs=1e-4)


def test_the_kernel_of_padded_sequences_is_that_of_the_gradients() -> None:
    module, data = Padded().train(), sequences()
    gamma = 1e6
    config = SamplerConfig(
        SGLD(1 / gamma), nbeta=1e-3, localization=gamma, num_chains=2, num_draws=250, num_burnin_steps=20, batch_size=2
    )  # in minibatches: the kernel's losses are taken without gradient
    found = estimate(module, data, cross_entropy, observables={"kernel": LossKernel()}, sampler=config)
    module.eval()
    losses = cross_entropy(module, data[0])  # with gradient: no fast path
    slopes = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)])
        for loss in losses
    ]
    # From w* at gamma eps = 1 the stationary variance of a weight is 1/(gamma (1 - 1/4)).
    trace = sum(float(slope.square().sum()) for slope in slopes) / (gamma * 0.75)
    assert float(torch.as_tensor(found["kernel"]["covariance"]).trace()) == pytest.approx(trace, rel=0.15)


@pytest.mark.parametrize("before", [True, False])
def test_what_was_switched_on_comes_back(before: bool) -> None:
    original = torch.utils.checkpoint.CheckpointFunction
    torch.backends.mha.set_fastpath_enabled(before)
    try:
        with torch.autograd.set_detect_anomaly(before, check_nan=False):
            with own_world(nn.Linear(1, 1), 0):
                assert not torch.is_anomaly_enabled()
                assert not torch.backends.mha.get_fastpath_enabled()
            with pytest.raises(RuntimeError, match="inside"), own_world(nn.Linear(1, 1), 0):
                raise RuntimeError("inside")
            assert torch.is_anomaly_enabled() == before
            assert not torch.is_anomaly_check_nan_enabled()
        assert torch.backends.mha.get_fastpath_enabled() == before
        assert torch.utils.checkpoint.CheckpointFunction is original
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# Anomaly detection


def cliff(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """A loss whose value is finite everywhere, and whose gradient is NaN above 0.6."""
    w = module.w[0]
    return (w.square() / 2 + 0 * torch.where(w > 0.6, 0 * w, 0 * w + 1).sqrt()).expand(len(batch))


def test_under_anomaly_detection_one_chain_fails_and_not_all() -> None:
    config = settings(0.1, nbeta=1.0, num_chains=6, num_draws=20)
    plain = estimate(Weights(1), [torch.zeros(2, 1)], cliff, sampler=config)
    assert 0 < plain["health"]["failed_chains"] < 6
    with torch.autograd.set_detect_anomaly(True):
        watched = estimate(Weights(1), [torch.zeros(2, 1)], cliff, sampler=config)
    assert watched["health"]["failed_chains"] == plain["health"]["failed_chains"]
    assert llc(watched) == llc(plain)


def test_no_gradient_of_a_chain_is_taken_under_anomaly_detection() -> None:
    seen: list[bool] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            seen.append(torch.is_anomaly_enabled())
            return gradient

    def loss_fn(module: Any, x: torch.Tensor) -> torch.Tensor:
        losses: torch.Tensor = Watched.apply(module(x).square().mean(1))  # type: ignore[no-untyped-call]
        return losses

    with torch.autograd.set_detect_anomaly(True):
        estimate(nn.Linear(4, 4), [torch.ones(4, 4)], loss_fn, sampler=settings(1e-4, num_draws=5))
        assert torch.is_anomaly_enabled()
    assert len(seen) > 10
    assert not any(seen)


# Checkpointing


class Deep(nn.Module):
    """Three blocks, checkpointed in one of several ways."""

    def __init__(self, how: str = "none") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 5)
        self.blocks = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
        self.head, self.how = nn.Linear(5, 1), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        if self.how == "none":
            h = self.blocks(h)
        elif self.how == "sequential":
            h = checkpoint_sequential(self.blocks, 2, h, use_reentrant=True)
        else:
            h = checkpoint(self.blocks, h, use_reentrant=self.how == "reentrant")
        out: torch.Tensor = self.head(h)
        return out


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "sequential"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_a_checkpointed_module_is_sampled_as_it_would_be_without(how: str, batch_size: int | None) -> None:
    x = torch.linspace(-1, 1, 60).view(20, 3) ** 3

    def measure(module: nn.Module) -> Any:
        observables: Any = {"kernel": LossKernel(), "influence": Influence([x[:4] + 0.1])}
        config = settings(1e-3, batch_size=batch_size, engine="sequential")
        return estimate(module, [x], lambda m, b: m(b).square()[:, 0], observables=observables, sampler=config)

    plain, checkpointed = measure(Deep()), measure(Deep(how))
    torch.testing.assert_close(checkpointed["kernel"]["covariance"], plain["kernel"]["covariance"])
    torch.testing.assert_close(checkpointed["influence"]["bif"], plain["influence"]["bif"])


def test_a_live_teacher_inside_a_checkpoint_gets_no_gradient() -> None:
    teacher = Deep("reentrant")

    def distill(module: Any, x: torch.Tensor) -> torch.Tensor:
        return (module(x) - teacher(x)).square()[:, 0]

    estimate(nn.Linear(3, 1), [torch.ones(6, 3)], distill, sampler=settings(1e-3))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_backward_pass_that_raises_says_what_to_write() -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise RuntimeError("only .backward() will do")

    with pytest.raises(LossFnError, match=r"gradient of the loss raised RuntimeError: only .backward\(\) will do"):
        estimate(nn.Linear(3, 1), [torch.ones(6, 3)], lambda m, x: Refuses.apply(m(x))[:, 0], sampler=settings())


# Recurrent layers, which on a GPU have a gradient in train mode alone


class Recurrent(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(3, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.head, self.drop = nn.Linear(4, 1), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.drop(self.layer(x)[0]))[:, -1]
        return out


class Own(nn.LSTM):
    def forward(self, *args: Any) -> Any:  # may ask `self.training` itself
        return super().forward(*args)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_in_train_mode_on_a_gpu_and_give_what_they_do_in_eval_mode(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = Recurrent(kind).train(), torch.linspace(-1, 1, 60).view(4, 5, 3)
    expected = Recurrent(kind).eval()(x)
    fork = Fork(module)
    loss = MeasuredLoss(lambda m, b: m(b)[:, 0], module, fork)
    assert not fork.module.layer.training, "on a CPU there is no need"
    monkeypatch.setattr(measured, "_device_of", lambda part: "cuda")
    twin = loss.attend(Fork(module).module)
    assert twin.layer.training
    assert not twin.drop.training
    torch.testing.assert_close(twin(x), expected)
    assert (module.layer.dropout, Recurrent(Own).layer.dropout) == (0.5, 0.5)
    own = loss.attend(Fork(Recurrent(Own)).module)
    assert not own.layer.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuDNN is on GPUs")
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_are_sampled_on_a_gpu(kind: Any) -> None:
    x = torch.linspace(-1, 1, 60).view(4, 5, 3)
    found = [
        llc(estimate(Recurrent(kind).to(device), [x], lambda m, b: m(b).square()[:, 0], sampler=settings(1e-12)))
        for device in ("cpu", "cuda")
    ]
    assert found[1] == pytest.approx(found[0], abs=1e-3)


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_an_autocast_that_the_loss_enters_itself_sees_the_weights_of_the_step(engine: Any) -> None:
    """The cache of cast weights lasts as long as the outermost autocast, which would be ours."""

    def in_bfloat16(module: Any, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(batch)
        return out.float().square().mean(1)

    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(16, 4)
    config = settings(num_draws=20, num_burnin_steps=10, engine=engine)
    found = estimate(net, [x], in_bfloat16, sampler=config)["llc"]
    plain = estimate(net, [x], lambda module, batch: module(batch).square().mean(1), sampler=config)["llc"]
    assert found["mean"] == pytest.approx(plain["mean"], rel=0.1)
