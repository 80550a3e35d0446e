"""The worker's end of the channels: what it does when nobody is left at the other."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from slt_callbacks.executors import serving

FOLDER = "slt-callbacks-1-test"
# See `ends`.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set where the process would have ended, which is a thread's end here."""
    ended, threads = threading.Event(), list[threading.Thread]()

    def end(code: int) -> None:
        threads.append(threading.current_thread())
        ended.set()
        raise SystemExit

    monkeypatch.setattr(serving.os, "_exit", end)
    yield ended
    for thread in threads:
        thread.join(10)


@pytest.fixture
def sent(tmp_path: Path) -> tuple[Any, Any, Any, Any, Path]:
    """Both channels, with an estimator sent that lies in a folder of shared memory."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "0").write_bytes(b"estimator")
    (ours, work), (asks, questions) = Pipe(), Pipe()
    ours.send_bytes(pickle.dumps(("begin", folder / "0", 9)))
    return ours, asks, work, questions, folder


def test_shared_memory_goes_with_the_training_process_whichever_channel_tells_it_first(
    sent: Any, ends: threading.Event
) -> None:
    ours, asks, work, questions, folder = sent
    ours.close()
    serving.serve(work, questions, lambda packed: pytest.fail("it was asked") if packed != b"estimator" else None)  # type: ignore[arg-type,return-value]
    assert not folder.exists()
    asks.close()
    assert ends.wait(10)


def test_one_that_ends_before_the_worker_has_read_anything_leaves_nothing(sent: Any, ends: threading.Event) -> None:
    ours, asks, work, questions, folder = sent
    asks.close()
    desk = serving._Desk(questions)
    assert not ends.wait(0.2), "what was sent is not read yet"
    desk.know(folder)
    assert ends.wait(10)
    assert not folder.exists()
    ours.close()
    work.close()


def test_one_that_wants_no_more_clears_up_itself(sent: Any, ends: threading.Event) -> None:
    ours, asks, work, questions, folder = sent
    ours.send_bytes(pickle.dumps(None))
    serving.serve(work, questions, lambda packed: None)  # type: ignore[arg-type,return-value]
    assert folder.exists()
    asks.close()
    assert ends.wait(10)
