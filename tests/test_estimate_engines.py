"""What an Estimator decides for itself: the engine, the block size, and where chains wait."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import LLC, Estimator, Influence, LossKernel, RMSPropSGLD, SamplerConfig
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.sampling import engine_choice as engines
from slt_callbacks.sampling.engine_choice import SHORTEST_RACE
from tests.problems import settings, squared_error
from tests.processes import ThreadRank, on_ranks


def data(size: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator))]


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def estimator(config: SamplerConfig, loss_fn: Any = squared_error, **options: Any) -> Estimator:
    return Estimator(draw_reference(data()), loss_fn, None, config, persistent=True, **options)


def long_enough(**changes: Any) -> SamplerConfig:
    return settings(num_draws=20, num_burnin_steps=SHORTEST_RACE, **changes)


class Stateful(nn.Module):
    """Goes on from what it made of the last batch, as a recurrent network may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        if self.last is not None and len(self.last) == len(hidden):
            hidden = hidden + 0.1 * self.last
        self.last = hidden.detach()
        return self.second(hidden)  # type: ignore[no-any-return]


class Calls:
    """A loss function that knows how many samples each forward pass had, and whether it was batched over chains."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.batched = 0

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.sizes.append(len(batch[0]))
        losses = squared_error(module, batch)
        self.batched += torch._C._functorch.is_functorch_wrapped_tensor(losses)
        return losses


class TestAutomaticEngine:
    @pytest.mark.parametrize(("ratio", "engine"), [(0.3, "vectorized"), (0.9, "sequential")])
    def test_the_race_decides_once_and_a_resumed_run_keeps_the_decision(
        self, monkeypatch: pytest.MonkeyPatch, ratio: float, engine: str
    ) -> None:
        races = []
        monkeypatch.setattr(engines, "time_ratio", lambda *_: races.append(1) or ratio)
        calls = Calls()
        one = estimator(long_enough(), calls)
        one.measure(network(), 1)
        one.measure(network(), 2)
        assert len(races) == 1
        assert (calls.batched > 100) == (engine == "vectorized")
        resumed = estimator(long_enough(), calls)
        resumed.load_state_dict(one.state_dict())
        resumed.measure(network(), 3)
        assert len(races) == 1
        assert resumed.state_dict()["engine"] == engine

    @pytest.mark.parametrize(
        "config",
        [long_enough(num_chains=1), settings(num_draws=20, num_burnin_steps=SHORTEST_RACE - 21), settings()],
        ids=["one chain", "just too short", "a few steps"],
    )
    def test_there_is_no_race_where_it_would_not_pay(
        self, monkeypatch: pytest.MonkeyPatch, config: SamplerConfig
    ) -> None:
        monkeypatch.setattr(engines, "time_ratio", lambda *_: pytest.fail("raced"))
        one = estimator(config)
        one.measure(network(), 1)
        assert one.state_dict()["engine"] == "sequential"

    def test_the_draws_are_those_of_a_named_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "time_ratio", lambda *_: 0.1)
        automatic = estimator(long_enough()).measure(network(), 1)
        named = estimator(long_enough(engine="vectorized")).measure(network(), 1)
        assert automatic["llc"]["mean"] == named["llc"]["mean"]
        assert automatic["cost"]["sgld_steps"] == named["cost"]["sgld_steps"], "the race is not sampling"

    def test_a_module_that_cannot_be_batched_runs_one_by_one(self) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            losses = squared_error(module, batch)
            return losses if losses.sum() > -1 else losses * 2  # asks for a value, which vmap refuses

        one = estimator(long_enough(), loss_fn)
        assert not one.measure(network(), 1).failed
        assert one.state_dict()["engine"] == "sequential"

    @pytest.mark.filterwarnings("ignore:The loss of the same samples")
    @pytest.mark.parametrize("engine", ["auto", "vectorized"])
    @pytest.mark.parametrize("batch_size", [None, 4])
    def test_what_a_module_keeps_from_a_batched_step_does_not_reach_the_others(
        self, engine: Any, batch_size: int | None
    ) -> None:
        observables = {"llc": LLC(), "influence": Influence([(torch.ones(12, 3), torch.ones(12, 1))])}
        config = long_enough(engine=engine, batch_size=batch_size)
        one = Estimator(draw_reference(data()), squared_error, observables, config, persistent=True)
        module = Stateful()
        for step in (1, 2):
            assert not one.measure(module, step).failed
            assert module.last is None, "the live one least of all"

    def test_a_real_race_ends_with_one_of_the_two(self) -> None:
        one = estimator(long_enough(num_chains=8))
        assert not one.measure(network(), 1).failed
        assert one.state_dict()["engine"] in ("sequential", "vectorized")


class Greedy:
    """A loss function that runs out of memory with more than so many samples at once."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, []  # type: ignore[var-annotated]

    def __call__(self, module: Any, batch: Any) -> torch.Tensor:
        self.sizes.append(len(batch[0]))
        if len(batch[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return squared_error(module, batch)


def blocks_tried(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [int(found[1]) for found in map(re.compile(r"`block_size=(\d+)`").search, caplog.messages) if found]


class TestOutOfMemory:
    @pytest.mark.parametrize(
        ("config", "together", "most", "tried"),
        [
            (settings(), None, 6, [6]),
            (settings(), None, 1, [6, 3, 1]),
            (settings(), 4, 5, [4]),
            (settings(), 4, 2, [4, 2]),
            (settings(), 8, 6, [6]),
            (settings(batch_size=4), None, 2, [2]),
            (settings(batch_size=4), 1, 2, [1]),
            (settings(block_size=5), 12, 2, [2]),
        ],
    )
    def test_blocks_shrink_until_one_fits_and_the_numbers_are_the_same(
        self,
        caplog: pytest.LogCaptureFixture,
        config: SamplerConfig,
        together: int | None,
        most: int,
        tried: list[int],
    ) -> None:
        loss_fn = Greedy(most=12)
        one = estimator(config, loss_fn)
        one.set_together(together)
        one.check(network())
        checked, loss_fn.most = len(loss_fn.sizes), most
        with caplog.at_level(logging.INFO, "slt_callbacks"):
            found = [one.measure(network(), step) for step in (1, 2)]
        assert blocks_tried(caplog) == tried, "the second measurement knows"
        assert sum(size > most for size in loss_fn.sizes[checked:]) == len(tried)
        expected = estimator(config)
        for measurement in found:
            wanted = expected.measure(network(), measurement.step)["llc"]["mean"]
            assert measurement["llc"]["mean"] == pytest.approx(wanted, rel=1e-5)

    def test_where_no_block_fits_the_next_measurement_begins_with_the_first(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        loss_fn = Greedy(most=12)
        one = estimator(settings(), loss_fn)
        one.check(network())
        loss_fn.most = 0
        with pytest.raises(torch.OutOfMemoryError):
            one.measure(network(), 1)
        assert blocks_tried(caplog) == [6, 3, 1]
        loss_fn.most = 12  # others have left the device
        tried = len(loss_fn.sizes)
        one.measure(network(), 2)
        assert set(loss_fn.sizes[tried:]) == {12}

    def test_another_error_on_the_way_ends_the_measurement(self, caplog: pytest.LogCaptureFixture) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            if len(batch[0]) == 3:
                raise ValueError("no batch of three")
            return greedy(module, batch)

        greedy = Greedy(most=4)
        with pytest.raises(ValueError, match="no batch of three"):
            estimator(settings(), loss_fn).measure(network(), 1)
        assert blocks_tried(caplog) == [6, 3]

    def test_a_loss_that_compares_samples_is_not_taken_in_smaller_blocks(self) -> None:
        def loss_fn(module: Any, batch: Any) -> torch.Tensor:
            losses = greedy(module, batch)
            return losses + losses.mean().square()

        greedy = Greedy(most=12)
        one = estimator(settings(), loss_fn, together=4)
        with pytest.warns(UserWarning, match="compares the samples"):
            one.check(network())
        greedy.most = 3
        with pytest.raises(torch.OutOfMemoryError):
            one.measure(network(), 1)

    def test_ranks_shrink_together_though_one_alone_runs_out(self, caplog: pytest.LogCaptureFixture) -> None:
        def work(ranks: ThreadRank) -> tuple[float, set[int]]:
            loss_fn = Greedy(most=12)
            one = estimator(settings(), loss_fn, ranks=ranks)
            one.set_together(4)
            one.check(network())
            loss_fn.most = 2 if ranks.rank == 1 else 12
            first = one.measure(network(), 1)["llc"]["mean"]
            tried = len(loss_fn.sizes)
            one.measure(network(), 2)
            return first, set(loss_fn.sizes[tried:])

        wanted = estimator(settings()).measure(network(), 1)["llc"]["mean"]
        for found in on_ranks(2, work):
            assert not isinstance(found, Exception), found
            assert found == (pytest.approx(wanted, rel=1e-5), {2})
        told = [record for record in caplog.records if "ran out of memory" in record.message]
        assert [record.levelname for record in told] == ["WARNING"] * 2, "rank 0 alone is heard"

    def test_a_block_of_one_cannot_be_halved(self) -> None:
        loss_fn = Greedy(most=2)
        one = estimator(settings(block_size=1), loss_fn)
        one.check(network())
        loss_fn.most = 0
        with pytest.raises(torch.OutOfMemoryError):
            one.measure(network(), 1)

    def test_lack_of_memory_in_the_middle_leaves_the_warm_chains_where_they_were(self) -> None:
        config = settings(dynamics=RMSPropSGLD(1e-3), num_burnin_steps=20, num_draws=20)
        expected = [one.measure(network(), step) for one in [estimator(config)] for step in (1, 2)]
        loss_fn = Greedy(most=12)
        one = estimator(config, loss_fn)
        one.measure(network(), 1)
        calls = len(loss_fn.sizes)
        plain = squared_error

        def fails_late(module: Any, batch: Any) -> torch.Tensor:
            loss_fn.sizes.append(len(batch[0]))
            if len(loss_fn.sizes) == calls + 60:
                raise MemoryError
            return plain(module, batch)

        one._loss_fn = fails_late
        assert one.measure(network(), 2)["llc"]["mean"] == pytest.approx(expected[1]["llc"]["mean"], rel=1e-4)


class TestChainsThatWait:
    @pytest.mark.parametrize("dynamics", [None, RMSPropSGLD(1e-3)])
    def test_on_the_cpu_they_are_the_same(self, dynamics: Any) -> None:
        config = settings(**({} if dynamics is None else {"dynamics": dynamics}), num_burnin_steps=20, num_draws=20)
        device, cpu = estimator(config), estimator(config, store_chains="cpu")
        for step in (1, 2, 3):
            assert device.measure(network(), step)["llc"]["mean"] == cpu.measure(network(), step)["llc"]["mean"]
        assert cpu.stored_bytes == device.stored_bytes == 2 * 21 * 4 * (1 if dynamics is None else 2)

    def test_elsewhere_they_cannot_wait(self) -> None:
        with pytest.raises(ValueError, match='`store_chains` to be "device" or "cpu", but got \'disk\''):
            estimator(settings(), store_chains="disk")


class TestResumeWithOtherSettings:
    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"num_chains": 3}, "`num_chains` was 2 and is 3"),
            ({"localization": 7.0}, "`localization` was 1.0 and is 7.0"),
            ({"nbeta": 3.0}, "`nbeta` was 10.0 and is 3.0"),
            ({"batch_size": 4}, "`batch_size` was None and is 4"),
            ({"dynamics": RMSPropSGLD(1e-3)}, "`dynamics` was 'SGLD"),
        ],
    )
    def test_chains_start_afresh_and_the_message_says_why(self, changes: dict[str, Any], told: str) -> None:
        base = {"num_burnin_steps": 20, "num_draws": 20}
        old = estimator(settings(**base))
        old.measure(network(), 1)
        new = estimator(settings(**{**base, **changes}))
        with pytest.warns(UserWarning, match="start afresh") as caught:
            new.load_state_dict(old.state_dict())
        assert told in str(caught[0].message)
        fresh = estimator(settings(**{**base, **changes}))
        assert new.measure(network(), 2)["llc"]["mean"] == fresh.measure(network(), 2)["llc"]["mean"]

    def test_another_reference_set_is_told_too(self) -> None:
        old = estimator(settings())
        old.measure(network(), 1)
        new = Estimator(draw_reference(data(), 6), squared_error, {"llc": LLC(), "k": LossKernel()}, settings())
        with pytest.warns(UserWarning, match="`num_samples` was 12 and is 6"):
            new.load_state_dict(old.state_dict())

    def test_the_same_settings_are_no_news(self, recwarn: pytest.WarningsRecorder) -> None:
        old = estimator(settings())
        old.measure(network(), 1)
        estimator(settings()).load_state_dict(old.state_dict())
        assert not recwarn.list
