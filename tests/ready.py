"""Scripts in processes of their own, forked from one that has imported what takes seconds, and done nothing else.

python -m tests.ready < jobs
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# What starts no thread, which a fork would leave behind, and asks the environment for nothing that a run decides. Not
# wandb, which makes a temporary folder when it is imported: the first fork to end would delete it for all.
IMPORTED = ("lightning.pytorch", "matplotlib.figure", "scipy.signal", "sklearn.datasets", "arviz_stats.base")


def run(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: int
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of this interpreter with these arguments, a script or ``-m`` and a module, in a folder.

    What it has started is ended with it where it ends by a signal, as it does after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as kept:
        output = {name: str(Path(kept, name)) for name in ("stdout", "stderr")}
        told = {"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
        process = _process()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({**told, **output, "timeout": timeout}) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        printed = {name: Path(path).read_text(encoding="utf-8") for name, path in output.items()}
    return subprocess.CompletedProcess(list(arguments), code, **printed)


@cache
def _process() -> subprocess.Popen[str]:
    """The one that is ready, for all tests of this process; it ends where nobody can ask it any more."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PL_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ready"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.communicate)
    return process


def main() -> None:
    """Fork for one job after the other, each a line, and print its exit code."""
    for module in IMPORTED:
        import_module(module)
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
            return  # the interpreter ends as after any script
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        print(code, flush=True)


def become(
    arguments: list[str], folder: str, environment: dict[str, str], stdout: str, stderr: str, timeout: int
) -> None:
    """Be the process that these arguments start."""
    os.setsid()
    signal.alarm(timeout)  # nobody handles it: that is the end
    with Path(os.devnull).open() as nothing, Path(stdout).open("wb") as out, Path(stderr).open("wb") as err:
        for number, file in enumerate((nothing, out, err)):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", os.cpu_count() or 1)))  # as an import does
    os.chdir(folder)
    script, *sys.argv[1:] = arguments
    if script == "-m":
        sys.path[0] = folder
        module, *sys.argv[1:] = sys.argv[1:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0], sys.path[0] = script, str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
