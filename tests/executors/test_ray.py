"""Measuring on Ray: actors that are there, that go, and a cluster that goes. Needs the extra ``[ray]``."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slt_callbacks import Estimator, RayExecutor
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.weights.snapshot import Snapshot
from tests.digests import digest
from tests.executors.leftovers import here, nothing_since
from tests.executors.obedient import DIES, FINE, RAISES, SLOW, Obeyed, estimator, obey
from tests.executors.test_executors import told, told_inline
from tests.training import fit, monitor, square_error

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="what is left behind is read from /proc"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> None:
    pytest.importorskip("ray")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[RayExecutor, Estimator]]:
    before = here()
    executor = RayExecutor(address="local", max_pending=2)
    executor.open(by_value())
    yield executor, by_value()
    executor.close()
    nothing_since(before, within=60.0)


def by_value() -> Estimator:
    """With a loss function that no other process could import."""
    made = estimator()
    return Estimator(made.reference, lambda module, batch: obey(module, batch), None, made.config, persistent=True)


class TestOneActor:
    def test_warm_chains_are_the_same_as_here(self, worker: Any) -> None:
        executor, alone = worker
        for step in (1, 2, 3):
            executor.submit(Snapshot(step, Obeyed()))
            (found,) = executor.drain(200.0)
            assert found.error is None
            assert digest(found.results) == digest(alone.measure(Obeyed(), step).results)
        assert digest(executor.state_dict()) == digest(alone.state_dict())

    def test_one_that_raises_is_a_failed_measurement(self, worker: Any) -> None:
        executor, alone = worker
        executor.submit(Snapshot(4, Obeyed(RAISES)))
        assert "no such column" in executor.drain(100.0)[0].error
        alone.attempt(Obeyed(RAISES), 4)

    def test_its_state_comes_while_it_measures(self, worker: Any) -> None:
        executor, alone = worker
        executor.submit(Snapshot(6, Obeyed(SLOW)))
        assert digest(executor.state_dict()) == digest(alone.state_dict())
        assert executor.pending == 1, "the measurement takes seconds"
        (found,) = executor.drain(100.0)
        assert digest(found.results) == digest(alone.measure(Obeyed(SLOW), 6).results)

    def test_one_that_dies_is_started_again_with_fresh_chains(self, worker: Any) -> None:
        executor, alone = worker
        found, afresh = [], by_value()
        afresh.load_state_dict(alone.state_dict(chains=False))
        for step, order in ((7, DIES), (8, FINE), (9, FINE)):
            executor.submit(Snapshot(step, Obeyed(order)))
            found += executor.drain(200.0)
        assert "WorkerLostError" in found[0].error
        assert "another is started, whose chains begin afresh" in found[0].error
        assert digest([one.results for one in found[1:]]) == digest(
            [afresh.measure(Obeyed(), step).results for step in (8, 9)]
        )


def test_a_fit_is_the_same_and_training_is_left_alone() -> None:
    inline, trained = told_inline()
    before, handlers = here(), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    hook, state = sys.excepthook, random.getstate()
    there, also_trained = told(RayExecutor(address="local", max_pending=4))
    assert digest(there) == digest(inline)
    assert also_trained == trained
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert sys.excepthook is hook
    assert random.getstate() == state
    nothing_since(before, within=60.0)


def test_a_cluster_that_goes_away_costs_measurements_and_not_the_run() -> None:
    """Of two actors, and all of Ray's processes on this machine are killed while they measure."""
    before, executor = here(), RayExecutor(num_workers=2, address="local", max_pending=2)
    executor.open(Apart(estimator()))
    executor.submit(Snapshot(1, Obeyed()))
    executor.submit(Snapshot(2, Obeyed()))
    assert [one.error for one in executor.drain(200.0)] == [None, None]
    executor.submit(Snapshot(3, Obeyed(SLOW)))
    executor.submit(Snapshot(4, Obeyed(SLOW)))
    bridge = executor._workers._channels[0].process
    for pid in descendants(bridge.pid):
        os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    found = executor.drain(200.0)
    assert [one.step for one in found] == [3, 4], "each is measured once more, or has failed"
    assert time.monotonic() - start < 200
    executor.close()
    nothing_since(before, within=60.0)


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [*descendants(int(child)), int(child)]
    return found


def test_a_machine_that_is_too_small_is_a_warning() -> None:
    watched = monitor(executor=RayExecutor(num_workers=64, address="local"), loss_fn=lambda m, b: square_error(m, b))
    with pytest.warns(UserWarning, match=r"Expected 64 workers with `num_cpus=1` to fit on this machine") as caught:
        trainer = fit(watched)
    assert trainer.global_step == 6
    assert all(one.failed for one in watched.history)
    assert len([one for one in caught if "WorkerLostError" in str(one.message)]) == 1
