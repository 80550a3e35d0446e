"""The command line: every setting of the sampler can be said there, and what is wrong is said in one sentence."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

import slt_callbacks
from slt_callbacks import SGLD, LeimkuhlerMatthews, RMSPropSGLD, SamplerConfig
from slt_callbacks.replay import calibrate_command, replay_command
from slt_callbacks.replay.command import main
from tests.training import Regression

ROOT = Path(slt_callbacks.__file__).parents[1]
GIVEN = ["net-step=1.pt", "--module", "tests.training.Regression", "--reference", "tests.training.data"]
EVERYTHING = SamplerConfig(
    RMSPropSGLD(1e-3, decay=0.9, damping=0.5),
    nbeta=3.5,
    localization=7.0,
    num_chains=2,
    num_draws=8,
    num_burnin_steps=4,
    num_steps_bw_draws=3,
    batch_size=16,
    block_size=8,
    engine="vectorized",
    compile=True,
    acceptance=True,
)


@dataclass(frozen=True)
class Mirrored(SGLD):
    """One's own, with an argument that is an object."""

    name: str = "left"
    inner: SGLD | None = None


class Unannotated:
    """One's own, known by its methods alone."""

    def __init__(self, step_size, twice=False):  # type: ignore[no-untyped-def]
        self.step_size = step_size
        self.twice = twice

    def init(self, position: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}

    def step(self, *_: Any) -> None:
        pass


def spelled(sampler: SamplerConfig) -> list[str]:
    """The options that say it: all but those that are None by default."""
    dynamics = type(sampler.dynamics)
    known = dynamics.__module__.startswith("slt_callbacks")
    said = ["--dynamics", dynamics.__name__ if known else f"{dynamics.__module__}.{dynamics.__name__}"]
    for item in fields(sampler.dynamics):  # type: ignore[arg-type]
        said += [f"--dynamics.{item.name}", str(getattr(sampler.dynamics, item.name))]
    for item in fields(sampler):
        value = getattr(sampler, item.name)
        if item.name != "dynamics" and (value is not None or item.default is not None):
            as_yaml = {"None": "null", "True": "true"}
            said += [f"--{item.name.replace('_', '-')}", as_yaml.get(str(value), str(value))]
    return said


def read(arguments: list[str]) -> SamplerConfig:
    found = replay_command.read(replay_command.parser(), [*GIVEN, *arguments]).sampler
    assert isinstance(found, SamplerConfig)
    return found


def told(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 2) -> str:
    """What a command that ends at once prints, in one line."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    printed = capsys.readouterr()
    return " ".join((printed.out + printed.err).split())


class Stopped(BaseException):
    """An example has made its sampler."""


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLERS: dict[str, list[Callable[[ModuleType], Any]]] = {
    "digits": [lambda module: module.make_monitor(MagicMock(), MagicMock(), MagicMock(), MagicMock())],
    "grokking": [lambda module: module.make_monitor(MagicMock(), MagicMock(), MagicMock())],
    "in_context_markov": [lambda module: module.make_monitor(MagicMock(), MagicMock(), MagicMock(), MagicMock())],
    "in_context_regression": [
        lambda module: module.make_monitor(MagicMock(), MagicMock(), MagicMock(), MagicMock()),
    ],
    "language_model": [lambda module: module.make_monitor(MagicMock(), MagicMock())],
    "semantic_hierarchy": [
        lambda module: module.train(True, MagicMock(seed=0, num_draws=150)),
        lambda module: module.watch_stages(MagicMock(seed=0)),
    ],
    "superposition": [
        lambda module: module.make_sampler(smoke=False),
        lambda module: module.make_sampler(smoke=True),
    ],
}


class TestSampler:
    def test_every_example_is_in_the_list(self) -> None:
        assert set(SAMPLERS) == {path.stem for path in (ROOT / "examples").glob("*.py")}

    @pytest.mark.parametrize(
        ("name", "number"), [(name, n) for name, made in SAMPLERS.items() for n in range(len(made))]
    )
    def test_that_of_every_example_can_be_said(self, name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[SamplerConfig] = []

        def recorded(*args: Any, **kwargs: Any) -> None:
            made.append(SamplerConfig(*args, **kwargs))
            raise Stopped

        module = example(name)
        monkeypatch.setattr(module, "SamplerConfig", recorded)
        with pytest.raises(Stopped):
            SAMPLERS[name][number](module)
        assert read(spelled(made[0])) == made[0]

    def test_every_field_can_be_said(self) -> None:
        default = SamplerConfig()
        assert all(getattr(EVERYTHING, item.name) != getattr(default, item.name) for item in fields(default))
        assert read(spelled(EVERYTHING)) == EVERYTHING

    def test_with_nothing_said_it_is_the_default(self) -> None:
        assert read([]) == SamplerConfig()

    @pytest.mark.parametrize(
        ("line", "sampler"),
        [
            ("--step-size 1e-4", SamplerConfig(LeimkuhlerMatthews(1e-4))),
            ("--step-size=auto --dynamics SGLD --dynamics.step_size 1e-4", SamplerConfig(SGLD("auto"))),
            ("--step_size 1e-4 --dynamics RMSPropSGLD", SamplerConfig(RMSPropSGLD(1e-4))),
            ("--dynamics=slt_callbacks.RMSPropSGLD", SamplerConfig(RMSPropSGLD())),
            ("--num_draws 3 --num-chains=2", SamplerConfig(num_draws=3, num_chains=2)),
            ("--nbeta null --batch-size null", SamplerConfig(batch_size=None)),
            (
                "--dynamics tests.callbacks.test_command.Mirrored --dynamics.name 1 --dynamics.inner SGLD",
                SamplerConfig(Mirrored(name="1", inner=SGLD())),
            ),
        ],
    )
    def test_one_setting_may_be_said_in_several_ways(self, line: str, sampler: SamplerConfig) -> None:
        # a module that is imported under two names has two classes of one name
        assert repr(read(shlex.split(line))) == repr(sampler)

    def test_a_class_known_by_its_methods_alone_will_do(self) -> None:
        found = read(
            ["--dynamics", f"{__name__}.Unannotated", "--dynamics.step_size", "1e-3", "--dynamics.twice", "true"]
        )
        assert vars(found.dynamics) == {"step_size": 1e-3, "twice": True}

    def test_the_chains_take_what_was_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        torch.save(Regression().state_dict(), "net-step=1.pt")
        line = "--dynamics RMSPropSGLD --dynamics.damping 0.5 --step-size 1e-6 --num-chains 2 --num-draws 4"
        more = (
            "--num-burnin-steps 2 --num-steps-bw-draws 3 --block-size 8 --engine sequential --output out --no-progress"
        )
        assert main(["replay", *GIVEN, "--loss", "tests.training.square_error", *line.split(), *more.split()]) == 0
        state = torch.load("out/state/state.pt", weights_only=True)["settings"]
        assert state["dynamics"] == "RMSPropSGLD(step_size=1e-06, decay=0.99, damping=0.5)"
        wanted = {"num_steps_bw_draws": 3, "block_size": 8, "engine": "sequential", "compile": False}
        assert wanted.items() <= state.items()

    def test_a_calibration_takes_every_field(self) -> None:
        options = calibrate_command.read(calibrate_command.parser(), [*GIVEN, *spelled(EVERYTHING)])
        assert options.sampler == EVERYTHING

    def test_a_calibration_has_step_sizes_and_no_step_size(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--step-sizes X ..." in told(capsys, ["calibrate", *GIVEN, "--step-size", "1e-3"])


class TestHelp:
    def test_it_tells_every_option_as_a_shell_spells_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        printed = told(capsys, ["replay", "--help"], code=0)
        for item in fields(SamplerConfig):
            assert f"--{item.name.replace('_', '-')} " in printed
        for option in (
            "--loss ",
            "--loss-fn ",
            "--step-size ",
            "--dynamics.step_size ",
            "--no-progress ",
            "--wandb-project ",
        ):
            assert option in printed
        assert not re.search(r" --[a-z]+_|default: null|:math:|`|<function", printed)

    def test_it_tells_the_arguments_of_the_dynamics_that_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--dynamics.damping DAMPING" not in told(capsys, ["replay", "--help"], code=0)
        assert "--dynamics.damping DAMPING Added to" in told(
            capsys, ["replay", "--dynamics", "RMSPropSGLD", "--help"], 0
        )

    def test_the_commands_are_listed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert re.search("replay measure saved .* calibrate find sampler", told(capsys, ["--help"], code=0))
        assert "the following arguments are required: {replay,calibrate,report}" in told(capsys, [])
        assert "invalid choice: 'reply' (choose from" in told(capsys, ["reply"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num-chains two", "error: argument --num-chains: expected int, but got 'two'"),
        ("--nbeta small", "error: argument --nbeta: expected float or null, but got 'small'"),
        ("--engine fast", "argument --engine: expected 'auto' or 'sequential' or 'vectorized', but got 'fast'"),
        ("--dynamics.step_size small", "argument --dynamics.step_size: expected float or 'auto', but got 'small'"),
        ("--step-size small", "argument --step-size: expected a number or \"auto\", but got 'small'"),
        ("--dynamics.dampig 1", "unrecognized arguments: --dynamics.dampig 1"),
        ("--num-dra 1", "unrecognized arguments: --num-dra 1"),
        (
            "--dynamics SGDL",
            "Expected --dynamics to be LeimkuhlerMatthews, SGLD, RMSPropSGLD, SGHMC or SGNHT, or an import path",
        ),
        ("--dynamics tests.training.data", "Expected --dynamics to name a class with `step_size`, `init` and `step`"),
        ("--dynamics torch.nn.Linear", "such as SGLD, but `torch.nn.Linear` is <class"),
        ("--dynamics tests.training.Slow", "Expected --dynamics to name something in `tests.training`, but it has no"),
        ("--dynamics.step_size -1", 'Expected `step_size` to be "auto" or a finite number >= 0, but got -1'),
        ("--block-size 0", "Expected `block_size` to be a positive integer, but got 0"),
        ("--compile true --engine sequential", 'Expected `engine` to be "vectorized" or "auto" with `compile=True`'),
    ],
)
def test_the_message_says_what_to_write(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in told(capsys, ["replay", *GIVEN, *line.split()])


def test_without_jsonargparse_the_command_says_what_to_install_and_all_else_can_be_imported() -> None:
    code = (
        "import sys; sys.modules['jsonargparse'] = None\n"
        "import slt_callbacks; [getattr(slt_callbacks, name) for name in slt_callbacks.__all__]\n"
        "from slt_callbacks.replay.command import main; main(['replay', 'a.ckpt'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    needed = "replay needs jsonargparse, which is not installed: pip install 'slt-callbacks[cli]'\n"
    assert done.stderr == needed
