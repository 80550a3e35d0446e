import threading
from typing import Any

import pytest
import torch

from slt_callbacks.basics.errors import LossFnError, RankFailedError, is_loss_fn_error, is_out_of_memory
from slt_callbacks.basics.ranks import Alone, Exchange
from tests.processes import ThreadRank, on_ranks


def test_every_rank_gets_every_value_in_order() -> None:
    assert on_ranks(3, lambda rank: Exchange(rank).gather(10 * rank.rank)) == [[0, 10, 20]] * 3


def test_the_first_rank_decides() -> None:
    assert on_ranks(2, lambda rank: Exchange(rank).first(f"rank {rank.rank}")) == ["rank 0"] * 2


def test_alone_there_is_nobody_to_wait_for() -> None:
    exchange = Exchange(Alone())
    with exchange.together():
        assert exchange.gather("x") == ["x"]
        assert exchange.first("x") == "x"
    with pytest.raises(ZeroDivisionError), exchange.together():
        _ = 1 / 0


@pytest.mark.parametrize("fails_after", [0, 1, 2])
def test_a_rank_that_fails_ends_the_work_of_all_with_its_message(fails_after: int) -> None:
    def work(rank: ThreadRank) -> None:
        exchange = Exchange(rank)
        with exchange.together():
            for turn in range(2):
                if rank.rank == 1 and turn == fails_after:
                    raise ValueError("no such sample")
                exchange.gather(turn)
            if rank.rank == 1:
                raise ValueError("no such sample")

    found = on_ranks(3, work)
    assert all(isinstance(error, RankFailedError) for error in found)
    assert {str(error) for error in found} == {"rank 1: ValueError: no such sample"}


def test_ranks_that_fail_together_all_say_why_and_nobody_waits() -> None:
    def work(rank: ThreadRank) -> None:
        with Exchange(rank).together():
            raise ValueError(f"bad {rank.rank}")

    assert {str(error) for error in on_ranks(2, work)} == {"rank 0: ValueError: bad 0; rank 1: ValueError: bad 1"}


@pytest.mark.parametrize(("second", "memory"), [(None, True), (MemoryError(), True), (ValueError("x"), False)])
def test_lack_of_memory_is_all_that_is_wrong_or_it_is_not(second: Exception | None, memory: bool) -> None:
    def work(rank: ThreadRank) -> None:
        exchange = Exchange(rank)
        error: Any = torch.OutOfMemoryError("CUDA out of memory") if rank.rank == 0 else second
        with exchange.together():
            if error is not None:
                raise error
            exchange.gather(None)

    assert [is_out_of_memory(error) for error in on_ranks(2, work)] == [memory, memory]


@pytest.mark.parametrize(("second", "told"), [(None, True), (LossFnError("b"), True), (ValueError("x"), False)])
def test_a_loss_function_that_raised_is_all_that_is_wrong_or_it_is_not(second: Exception | None, told: bool) -> None:
    def work(rank: ThreadRank) -> None:
        error = LossFnError("a") if rank.rank == 0 else second
        with Exchange(rank).together():
            if error is not None:
                raise error

    assert [is_loss_fn_error(error) for error in on_ranks(2, work)] == [told, told]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("cannot allocate memory"), False),
    ],
)
def test_what_counts_as_lack_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_real_allocation_that_the_machine_refuses_counts() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_a_rank_that_is_never_met_does_not_hang_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.processes.PATIENCE", 0.1)

    def work(rank: ThreadRank) -> None:
        if rank.rank == 0:
            rank.gather(None)

    assert isinstance(on_ranks(2, work)[0], threading.BrokenBarrierError)
