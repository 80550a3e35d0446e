"""The plug-ins of the README: short, whole, and sound as they stand."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from slt_callbacks import LLC, MemorySink, SamplerConfig, SLTMonitor
from tests import contracts
from tests.training import Regression, data, fingerprint, fit, square_error

README = Path(__file__).parents[1] / "README.md"
_MOST_LINES = 20


def blocks(title: str) -> list[str]:
    """The Python in one section."""
    section = README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def known() -> dict[str, Any]:
    """What the snippets take for granted."""
    return {
        "torch": torch,
        "dataclass": dataclass,
        "LLC": LLC,
        "MemorySink": MemorySink,
        "SamplerConfig": SamplerConfig,
        "SLTMonitor": SLTMonitor,
        "validation_data": data(),
        "losses": square_error,
    }


@pytest.fixture(scope="module")
def plugins() -> dict[str, Any]:
    names = known()
    for block in blocks("Writing your own")[:-1]:
        exec(block, names)
    return names


def test_every_plug_in_has_under_twenty_lines() -> None:
    found = {}
    for block in blocks("Writing your own"):
        for node in ast.parse(block).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found[node.name] = (node.end_lineno or 0) - node.lineno + 1
    assert len(found) == 7
    assert {name: lines for name, lines in found.items() if lines >= _MOST_LINES} == {}


def test_each_keeps_its_contract(plugins: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    contracts.check_observable(plugins["LargestExcess"]())
    contracts.check_detector(plugins["Above"](5.0))
    contracts.check_sink(plugins["Printer"]())
    contracts.check_dynamics(plugins["Underdamped"](1e-3))
    contracts.check_schedule(plugins["early_and_late"])
    contracts.check_executor(plugins["AtTheEnd"]())
    assert "1 1.5\n" in capsys.readouterr().out


class Net(Regression):
    """Takes inputs, and has a hidden layer of which some units are dead."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.net[1].weight[:2] = 0.0  # type: ignore[index]
            self.net[1].bias[:6] = -50.0  # type: ignore[index]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs)  # type: ignore[no-any-return]


def test_all_of_them_work_in_one_run_and_leave_it_as_it_was(
    plugins: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = dict(plugins)
    exec(blocks("Writing your own")[-1], names)
    watched = names["monitor"]
    torch.manual_seed(4)
    trained = fingerprint(fit(watched, module=Net(), max_steps=12))
    torch.manual_seed(4)
    assert fingerprint(fit(module=Net(), max_steps=12)) == trained
    assert [one.step for one in watched.history] == [1, 10]
    assert not any(one.failed for one in watched.history)
    assert [one["dead"]["share"] for one in watched.history] == [0.75, 0.75]
    assert all(one["excess"]["largest"] > 0 for one in watched.history)
    assert watched.events == [{"step": 1, "value": 0.75}]
    assert "\n10 " in capsys.readouterr().out
