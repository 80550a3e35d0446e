"""Measuring in a process beside: what it shares with the fake workers is tested there."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from slt_callbacks import Estimator, ProcessExecutor
from slt_callbacks.executors import processes
from slt_callbacks.executors.elsewhere import WorkerLostError
from slt_callbacks.executors.processes import Processes, _Channel
from slt_callbacks.measuring.apart import Apart
from slt_callbacks.weights.snapshot import Snapshot
from tests.digests import digest
from tests.executors.leftovers import here, nothing_since
from tests.executors.obedient import DIES, FINE, RAISES, SLOW, Obeyed, ends_at_once, estimator
from tests.executors.test_elsewhere import AFRESH, saving
from tests.executors.test_executors import everything, told, told_inline
from tests.training import fingerprint, fit, monitor

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="what is left behind is read from /proc"),
    pytest.mark.filterwarnings("ignore:.*(LeafSpec|resuming from a checkpoint)"),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[ProcessExecutor, Estimator]]:
    """One for all tests that leave it alive, and an estimator in this process that is asked the same."""
    before = here()
    executor, alone = ProcessExecutor(max_pending=2), estimator()
    executor.open(estimator())
    executor.submit(Snapshot(0, Obeyed()))  # it is up, whichever test is the first
    executor.drain(120.0)
    alone.measure(Obeyed(), 0)
    yield executor, alone
    executor.close()
    nothing_since(before)


@pytest.fixture(scope="module")
def in_a_fit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """What a fit tells, in the training process and beside it; and a checkpoint of the latter."""
    path, before = tmp_path_factory.mktemp("fit") / "five.ckpt", here()
    beside = told(ProcessExecutor(max_pending=4), callbacks=[saving(path)])
    nothing_since(before)
    return told_inline(), beside, path


def test_nothing_that_is_logged_differs_from_inline_but_the_moment(in_a_fit: Any) -> None:
    inline, beside, _ = in_a_fit
    assert digest(beside[0]) == digest(inline[0])


def test_training_is_bit_identical(in_a_fit: Any) -> None:
    inline, beside, _ = in_a_fit
    assert beside[1] == inline[1] == fingerprint(fit(max_steps=9))


def test_a_checkpoint_goes_on_elsewhere(in_a_fit: Any) -> None:
    """Written beside one, gone on with inline: it holds what was recorded when it was written."""
    state = torch.load(in_a_fit[2], weights_only=True)["callbacks"]
    ((_, kept),) = [(key, state) for key, state in state.items() if key.startswith("SLTMonitor")]
    recorded = [row[0] for row in kept["curve"]]
    assert sorted(kept["estimator"]["chains"]) == ([0, 1] if recorded else [])
    watched = monitor(observables=everything())
    fit(watched, ckpt_path=str(in_a_fit[2]), max_steps=8)
    assert [one.step for one in watched.history] == [6, 8]
    assert not any(one.failed for one in watched.history)


class TestOneWorker:
    def test_warm_chains_are_the_same_as_here(self, worker: Any) -> None:
        executor, alone = worker
        for step in (1, 2, 3):
            executor.submit(Snapshot(step, Obeyed()))
            (found,) = executor.drain(120.0)
            assert digest(found.results) == digest(alone.measure(Obeyed(), step).results)
        assert digest(executor.state_dict()) == digest(alone.state_dict())

    def test_one_that_raises_is_a_failed_measurement(self, worker: Any) -> None:
        executor, alone = worker
        executor.submit(Snapshot(4, Obeyed(RAISES)))
        (found,) = executor.drain(120.0)
        assert "no such column" in found.error
        assert math.isnan(found["llc"]["mean"])
        alone.attempt(Obeyed(RAISES), 4)
        executor.submit(Snapshot(5, Obeyed()))
        assert digest(executor.drain(120.0)[0].results) == digest(alone.measure(Obeyed(), 5).results)

    def test_its_state_comes_while_it_measures(self, worker: Any) -> None:
        executor, alone = worker
        executor.submit(Snapshot(6, Obeyed(SLOW)))
        start = time.monotonic()
        assert digest(executor.state_dict()) == digest(alone.state_dict())
        assert executor.pending == 1, "the measurement takes seconds"
        assert time.monotonic() - start < 60
        (found,) = executor.drain(120.0)
        assert digest(found.results) == digest(alone.measure(Obeyed(SLOW), 6).results)

    def test_ctrl_c_does_not_reach_it(self, worker: Any) -> None:
        executor, alone = worker
        os.kill(executor._workers._channels[0].process.pid, signal.SIGINT)
        executor.submit(Snapshot(7, Obeyed()))
        assert digest(executor.drain(120.0)[0].results) == digest(alone.measure(Obeyed(), 7).results)

    def test_memory_is_used_again(self, worker: Any) -> None:
        executor, _ = worker
        (folder,) = executor._workers._slots.folders
        before = len(list(folder.iterdir()))
        for step in range(8, 14):
            executor.submit(Snapshot(step, Obeyed()))
            executor.drain(120.0)
        assert len(list(folder.iterdir())) == before

    def test_one_that_is_killed_is_started_again_with_fresh_chains(self, worker: Any) -> None:
        executor, _ = worker
        for step, order in ((21, FINE), (22, DIES), (23, FINE), (24, FINE)):
            executor.submit(Snapshot(step, Obeyed(order)))
        found, afresh = executor.drain(200.0), estimator()
        assert [one.error for one in found if one.failed] == [
            f"WorkerLostError: the worker process was ended by SIGKILL{AFRESH}"
        ]
        here_again = [afresh.measure(Obeyed(), step).results for step in (23, 24)]
        assert digest([one.results for one in found[2:]]) == digest(here_again)
        executor.submit(Snapshot(25, Obeyed(SLOW)))  # it will be closed in the middle of it


def test_two_workers_measure_each_fork_as_a_first_one() -> None:
    before, executor = here(), ProcessExecutor(max_pending=2, num_workers=2)
    executor.open(Apart(estimator()))
    for step in range(3):
        executor.submit(Snapshot(step, Obeyed()))
    found = executor.drain(200.0)
    executor.close()
    nothing_since(before)
    assert digest([one.results for one in found]) == digest(
        [estimator().measure(Obeyed(), step).results for step in range(3)]
    )


@pytest.mark.parametrize("stop", [RuntimeError("stop"), KeyboardInterrupt()], ids=["exception", "Ctrl-C"])
def test_an_end_in_the_middle_leaves_nothing_behind(stop: BaseException) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                raise stop

    before, watched = here(), monitor(executor=ProcessExecutor())
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        fit(watched, Stops())
    nothing_since(before)


def ran(script: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environment)


def test_a_worker_whose_training_process_is_killed_ends_itself(tmp_path: Path) -> None:
    """Nobody is there to end it; it deletes the shared memory as well."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, sys
        from slt_callbacks import ProcessExecutor
        from slt_callbacks.weights.snapshot import Snapshot
        from tests.executors.obedient import SLOW, Obeyed, estimator
        if __name__ == "__main__":
            executor = ProcessExecutor()
            executor.open(estimator())
            executor.submit(Snapshot(1, Obeyed()))
            executor.drain()
            executor.submit(Snapshot(2, Obeyed(SLOW)))
            print(executor._workers._channels[0].process.pid, executor._workers._slots.folders[0], flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, folder = done.stdout.split()
    end = time.monotonic() + 30
    while (os.path.exists(f"/proc/{pid}") or os.path.exists(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(folder)


def test_a_script_that_trains_at_its_top_level_is_told_how_to(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        from slt_callbacks import ProcessExecutor
        from slt_callbacks.weights.snapshot import Snapshot
        from tests.executors.obedient import Obeyed, estimator
        executor = ProcessExecutor()
        executor.open(estimator())
        executor.submit(Snapshot(1, Obeyed()))
        print(executor.drain()[0].error)
        executor._workers._channels[0].process.kill()  # the next one, which would import it again
        executor.close()
        """)
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert 'put what is to run once below `if __name__ == "__main__":`' in done.stderr
    assert done.stdout.startswith("WorkerLostError: the worker process has ended with exit code 1 before its first")


class TestTheWay:
    def test_an_answer_that_cannot_be_read_is_a_loss(self) -> None:
        workers, (ours, theirs), nobody = Processes(1, ends_at_once, tuple), Pipe(), Pipe()
        workers._channels[0] = workers._asked[0] = _Channel(None, ours, nobody[0])  # type: ignore[arg-type]
        theirs.send_bytes(pickle.dumps(("answer", b"no pickle")))
        with pytest.raises(WorkerLostError, match="its answer cannot be read here: UnpicklingError"):
            workers.answer(0)
        for end in (ours, theirs, *nobody):
            end.close()

    def test_ctrl_c_does_not_reach_one_that_is_still_being_started(self) -> None:
        before, executor, alone = here(), ProcessExecutor(), estimator()
        executor.open(estimator())
        os.kill(executor._workers._channels[0].process.pid, signal.SIGINT)
        executor.submit(Snapshot(1, Obeyed()))
        (found,) = executor.drain(120.0)
        executor.close()
        assert digest(found.results) == digest(alone.measure(Obeyed(), 1).results)
        nothing_since(before)

    def test_one_that_is_still_being_started_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        codes, before, executor = [], here(), ProcessExecutor()
        end = processes.end

        def noted(process: Any) -> None:
            process.join(100)
            codes.append(process.exitcode)
            end(process)

        monkeypatch.setattr(processes, "end", noted)
        executor.open(estimator())
        executor.close()
        assert codes == [-signal.SIGTERM]
        nothing_since(before)

    def test_a_state_that_went_with_its_worker_says_so(self) -> None:
        workers = Processes(1, ends_at_once, tuple)
        try:
            workers.start(0, estimator())
            workers._channels[0].process.kill()
            with pytest.raises(WorkerLostError, match="was ended by SIGKILL"):
                workers.state(0, 0, True, 100.0)
        finally:
            workers.close()

    def test_it_can_be_pickled_before_a_fit(self) -> None:
        """As `ddp_spawn` does with all callbacks, which is then refused in words."""
        there = pickle.loads(pickle.dumps(monitor(executor=ProcessExecutor(num_threads=3))))
        assert there._asked.executor._workers._arguments()[0].num_threads == 3

    def test_a_worker_that_cannot_begin_says_why(self) -> None:
        workers = Processes(1, ends_at_once, lambda: ())
        try:
            workers.start(0, estimator())
            workers.send(0, 0, 1, workers.load(Obeyed()))
            workers.ready([0], 100.0)
            with pytest.raises(WorkerLostError, match=r"ended with exit code 3 before its first answer.*__main__"):
                workers.answer(0)
        finally:
            workers.close()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_threads": 0}, "Expected `num_threads` to be an integer of at least 1, but got 0"),
            ({"num_workers": True}, "Expected `num_workers` to be an integer of at least 1, but got True"),
            ({"max_pending": None}, "Expected `max_pending` to be an integer of at least 0, but got None"),
            ({"device": "gpu"}, "Expected `device` to name a device.*but got 'gpu'"),
            ({"device": 3.5}, "Expected `device` to name a device.*but got 3.5"),
            ({"device": "meta"}, "it holds no numbers"),
            ({"device": f"cuda:{torch.cuda.device_count()}"}, f"there are {torch.cuda.device_count()} GPUs here"),
        ],
    )
    def test_bad_arguments_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ProcessExecutor(**options)
