"""The README: its code runs as it stands, as do the plug-ins of the docstrings, and what it leads to is there."""

from __future__ import annotations

import ast
import doctest
import pydoc
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import slt_callbacks
from slt_callbacks import LLC, Dynamics, MemorySink, SamplerConfig, SLTMonitor
from slt_callbacks.callbacks.schedule import Trigger
from slt_callbacks.executors.base import Executor
from slt_callbacks.observables.base import ForkObservable
from slt_callbacks.recording.watch import Detector
from tests import contracts
from tests.training import QUIET, Regression, data, fingerprint, fit, square_error

README = Path(__file__).parents[1] / "README.md"
PACKAGE = Path(slt_callbacks.__file__).parent
# What a user may write, beside the observable and the sink of the README: each has an example in its docstring.
DESCRIBED = (ForkObservable, Detector, Dynamics, Trigger, Executor)
_MOST_LINES = 20


def blocks(title: str | None = None) -> list[str]:
    """The Python in one section; in all of them."""
    text = README.read_text()
    section = text if title is None else text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def everything() -> dict[str, Any]:
    """What the package has by name, which the shorter snippets do not import."""
    return {name: getattr(slt_callbacks, name) for name in slt_callbacks.__all__}


def examples(kind: type) -> list[str]:
    """The lines of a docstring's example."""
    return [example.source for example in doctest.DocTestParser().get_examples(kind.__doc__ or "")]


@pytest.fixture(scope="module")
def plugins() -> dict[str, Any]:
    names = everything() | {"validation_data": data(), "losses": square_error}
    for block in blocks("Writing your own"):
        exec(block, names)
    for kind in DESCRIBED:
        own = dict(vars(sys.modules[kind.__module__])) | {"dataclass": dataclass}
        known = set(own)
        for source in examples(kind):
            exec(source, own)
        names |= {name: own[name] for name in own.keys() - known}
    return names


def test_every_plug_in_has_under_twenty_lines() -> None:
    found = {}
    for source in [*blocks("Writing your own"), *(source for kind in DESCRIBED for source in examples(kind))]:
        for node in ast.parse(source).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found[node.name] = (node.end_lineno or 0) - node.lineno + 1
    assert len(found) == 8
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
    watched = SLTMonitor(
        data(),
        square_error,
        {"llc": LLC(), "excess": plugins["LargestExcess"](), "dead": plugins["DeadUnits"]()},
        SamplerConfig(plugins["Underdamped"](step_size=1e-5)),
        schedule=plugins["early_and_late"],
        max_overhead=None,
        detectors={"slt/dead/share": plugins["Above"](0.5)},
        sinks=[plugins["Printer"](), MemorySink()],
        executor=plugins["AtTheEnd"](),
    )
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


class Tokens(pl.LightningModule):
    """A model of ten classes that has all parts which the snippets name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2, batch_first=True)})])
        self.head = nn.Linear(4, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.embed(tokens)
        return self.head(self.blocks[0]["attn"](found, found, found)[0].mean(1))  # type: ignore[index, no-any-return]

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return token_losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def token_losses(module: Any, batch: list[torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def stranger() -> dict[str, Any]:
    """A project of somebody's, by the names that the README gives to its parts."""
    torch.manual_seed(0)
    tokens = torch.randint(10, (40, 5))
    samples = TensorDataset(tokens, tokens[:, 0])
    labels = tokens[:, 0].tolist()
    return {
        "model": Tokens(),
        "train_loader": DataLoader(samples, 8),
        "losses": token_losses,
        "logits": lambda module, batch: module(batch[0]),
        "bigram_logits": torch.zeros(40, 10),
        "MulticlassAccuracy": MulticlassAccuracy,
        **dict.fromkeys(("validation_data", "train_data", "query_data", "probe_data", "code_data"), samples),
        **dict.fromkeys(("train_labels", "query_labels"), labels),
    }


def test_the_first_snippet_trains_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of W&B, which other tests are about, stands a logger that writes files."""
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", lambda project: CSVLogger(tmp_path, project))
    monkeypatch.chdir(tmp_path)
    names = stranger()
    exec(blocks()[0], names)
    assert [one.step for one in names["monitor"].history] == [50]
    assert not names["monitor"].history[0].failed
    assert (tmp_path / "my-project" / "version_0" / "slt" / "report.html").exists()


def test_every_view_can_be_asked_for_at_once() -> None:
    """No measurement is due so soon: what cannot be measured is refused before the first batch."""
    names = everything() | stranger()
    exec(blocks("More than the LLC")[0], names)
    pl.Trainer(max_steps=1, callbacks=[names["monitor"]], **QUIET).fit(names["model"], names["train_loader"])
    assert names["monitor"].history == []


def test_the_snippet_without_a_trainer_prints_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("Without a Trainer, after a run, or beside it")
    exec(block, stranger())
    assert len([float(number) for number in capsys.readouterr().out.split()]) == 3


def test_no_other_code_is_left_untried() -> None:
    assert len(blocks()) == 4


def test_what_help_is_to_be_asked_about_has_some() -> None:
    """Here and in docstrings: `help(slt_callbacks.X)`, those that are "likewise", and `help("slt_callbacks.x.y")`."""
    text = README.read_text() + "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    also = " ".join(re.findall(r"and likewise ([^.]*)\.", README.read_text()))
    public = re.findall(r"help\(slt_callbacks\.(\w+)\)", text) + re.findall(r"`(\w+)`", also)
    dotted = re.findall(r'help\("([\w.]+)"\)', text)
    assert len(public) > 15
    assert len(dotted) > 8
    assert [name for name in public if name not in slt_callbacks.__all__] == []
    assert [name for name in dotted if not getattr(pydoc.locate(name), "__doc__", None)] == []


def test_every_link_inside_leads_somewhere() -> None:
    text = README.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    files = re.findall(r"`((?:examples|tests)/[\w./]+)`", text)
    assert len(links) >= 3
    assert len(files) >= 8
    assert [name for name in [*links, *files] if not (README.parent / name).exists()] == []
