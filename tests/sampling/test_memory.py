"""What chains remember between measurements."""

from __future__ import annotations

import math

import pytest
import torch

from slt_callbacks.sampling.chains import Chain
from slt_callbacks.sampling.memory import ChainMemory

CPU = torch.device("cpu")


def chain(index: int, at: float | None = None, steps: int = 0) -> Chain:
    """A chain, at three times `at` if it has been anywhere."""
    rng = torch.Generator()
    if at is None:
        return Chain(index, rng, rng)
    return Chain(index, rng, rng, torch.full((3,), at), {"second": torch.full((3,), at**2)}, steps)


def remembering(*chains: Chain, on_cpu: bool = False) -> ChainMemory:
    memory = ChainMemory(on_cpu)
    memory.keep(chains)
    return memory


def test_a_chain_goes_on_where_it_ended_and_a_new_one_at_the_fork() -> None:
    chains = [chain(0), chain(1), chain(2)]
    remembering(chain(0, 1.0, 5), chain(2, 3.0, 7)).resume(chains, CPU)
    found = [(c.displacement, c.state, c.sgld_step) for c in chains]
    assert found[1] == (None, None, 0)
    for (displacement, state, steps), at, expected in ((found[0], 1.0, 5), (found[2], 3.0, 7)):
        assert displacement is not None
        assert state is not None
        assert displacement.tolist() == [at] * 3
        assert state["second"].tolist() == [at**2] * 3
        assert steps == expected


def test_what_is_remembered_survives_whatever_happens_to_a_resumed_chain() -> None:
    memory, first, second = remembering(chain(0, 2.0, 5)), chain(0), chain(0)
    memory.resume([first], CPU)
    assert first.state is not None
    first.state["second"].zero_()  # as the dynamics does, in place
    first.displacement = None
    memory.resume([second], CPU)
    assert second.state is not None
    assert second.displacement is not None
    assert second.state["second"].tolist() == [4.0] * 3
    assert second.displacement.tolist() == [2.0] * 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_chain_that_has_left_the_numbers_is_forgotten(bad: float) -> None:
    gone = chain(1, 1.0, 9)
    assert gone.displacement is not None
    gone.displacement[1] = bad
    assert remembering(chain(0, 1.0, 5), gone, chain(2)).past == {0: 5}


def test_a_chain_that_is_not_handed_in_again_is_forgotten() -> None:
    memory = remembering(chain(0, 1.0, 5), chain(1, 1.0, 5))
    memory.keep([chain(1, 1.0, 6)])
    assert memory.past == {1: 6}


def test_memory_counts_places_and_states() -> None:
    assert remembering(chain(0, 1.0), chain(1, 1.0)).num_bytes == 2 * (12 + 12)
    assert ChainMemory().num_bytes == 0


def test_chains_of_other_parameters_are_forgotten_with_a_warning() -> None:
    memory = remembering(chain(0, 1.0, 5))
    memory.check(3)
    assert memory.past == {0: 5}
    with pytest.warns(UserWarning, match="kept for 3 trainable parameters, but the module now has 4"):
        memory.check(4)
    assert memory.past == {}


def test_state_goes_through_a_checkpoint() -> None:
    state = remembering(chain(0, 1.0, 5), chain(3, 2.0, 6)).state_dict()
    other = ChainMemory()
    other.load_state_dict(state)
    resumed = chain(3)
    other.resume([resumed], CPU)
    assert other.past == {0: 5, 3: 6}
    assert resumed.displacement is not None
    assert resumed.displacement.tolist() == [2.0] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_remembers_the_chains_of_all(rank: int) -> None:
    memories = [remembering(chain(0, 1.0, 5)), remembering(chain(1, 2.0, 6))]
    parts = [{}, {}]  # type: ignore[var-annotated]
    for place, (memory, own) in enumerate(zip(memories, (chain(0, 1.0, 5), chain(1, 2.0, 6)), strict=True)):
        memory.keep([own], lambda value, place=place: parts.__setitem__(place, value) or [value], place)  # type: ignore[misc]
    memories[rank].keep([chain(rank, 3.0, 8)], lambda _: parts, rank)
    assert memories[rank].past == ({0: 8, 1: 6} if rank == 0 else {1: 8})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("on_cpu", [False, True])
def test_on_cuda_chains_wait_where_they_are_told(on_cpu: bool) -> None:
    moved = chain(0, 1.0)
    assert moved.displacement is not None
    moved.displacement = moved.displacement.cuda()
    before = torch.cuda.memory_allocated()
    memory = remembering(moved, on_cpu=on_cpu)
    moved.displacement = None
    assert (torch.cuda.memory_allocated() < before) == on_cpu
    assert memory.num_bytes == 24
