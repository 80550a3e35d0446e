"""The dashboard: built without a network, and what it shows is what the monitor logs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from slt_callbacks import (
    LLC,
    Influence,
    LossKernel,
    Refinement,
    SamplerConfig,
    Susceptibility,
    TrajectoryPCA,
    dashboard,
)
from slt_callbacks.observables.media import Picture
from tests.callbacks.test_watch import PlantedLLC
from tests.sinks.backend import fake_backend
from tests.sinks.test_sinks import offline_logger, records
from tests.training import data, fit, monitor

pytest.importorskip("wandb_workspaces", reason="the extra `workspace` is not installed")

SECTIONS = ["LLC", "Stages", "Loss kernel", "Influence", "Health and cost"]
STEP_AXIS = "slt/step"
TABLES = {"slt/changes", "slt/events", "slt/stages", "slt/influence/events"}


def spec(workspace: Any) -> dict[str, Any]:
    """What would be sent to W&B; making it validates the panels."""
    content: dict[str, Any] = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return content["section"]  # type: ignore[no-any-return]


def panels(workspace: Any) -> list[dict[str, Any]]:
    return [panel for section in spec(workspace)["panelBankConfig"]["sections"] for panel in section["panels"]]


def lines(workspace: Any) -> list[dict[str, Any]]:
    return [panel["config"] for panel in panels(workspace) if panel["viewType"] == "Run History Line Plot"]


def images(workspace: Any) -> list[str]:
    return [
        key
        for panel in panels(workspace)
        if panel["viewType"] == "Media Browser"
        for key in panel["config"]["mediaKeys"]
    ]


def tables(workspace: Any) -> set[str]:
    shown = [json.dumps(panel["config"]) for panel in panels(workspace) if panel["viewType"] == "Weave"]
    return {key for config in shown for key in re.findall(r'"val": "(slt/[^"]*)"', config)}


def test_every_section_is_there_and_every_line_lies_on_the_step_of_the_fork() -> None:
    workspace = dashboard("me", "mine", save=False)
    sections = spec(workspace)["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == SECTIONS
    assert all(section["isOpen"] and section["panels"] for section in sections)
    assert {line["xAxis"] for line in lines(workspace)} == {STEP_AXIS}
    assert spec(workspace)["settings"]["xAxis"] == STEP_AXIS
    assert images(workspace) == ["slt/figure", "slt/kernel/map", "slt/influence/map"]
    assert tables(workspace) == TABLES
    assert (workspace.entity, workspace.project) == ("me", "mine")


def test_what_it_shows_is_what_a_monitor_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [index % 2 for index in range(48)]
    queries = Influence([next(iter(batches()))], labels=labels, query_labels=[0] * 6)
    observables = {"llc": PlantedLLC(), "kernel": LossKernel(labels=labels), "influence": queries}
    logger = offline_logger(tmp_path, monkeypatch)
    short = SamplerConfig(num_chains=2, num_draws=8, num_burnin_steps=0)
    every = monitor(observables=observables, sampler=short, every_n_train_steps=1)
    fit(every, max_steps=16, logger=logger)
    rows = [record["history"]["item"] for record in records(logger) if record["type"] == "history"]
    items = {key for row in rows for key in row}
    media = {
        kind: {key.removesuffix("._type") for row in rows for key, value in row.items() if value == f"{kind}-file"}
        for kind in ("image", "table")
    }
    workspace = dashboard("me", "mine", save=False)
    assert {key for line in lines(workspace) for key in line.get("metrics", [])} - items == set()
    assert set(images(workspace)) - media["image"] == set()
    assert tables(workspace) - media["table"] == set()
    (pattern,) = [line["metricRegex"] for line in lines(workspace) if "metricRegex" in line]
    groups = {key for key in items if re.fullmatch(pattern, key)}
    assert groups
    assert all(key.startswith("slt/influence/group/") for key in groups)


def test_refinements_and_susceptibilities_have_sections_of_what_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chi = Susceptibility(labels=[index % 2 for index in range(48)])
    logger = offline_logger(tmp_path, monkeypatch)
    short = SamplerConfig(num_chains=2, num_draws=8, num_burnin_steps=0)
    parts = {"first": Refinement("net.0.*"), "last": Refinement("net.4.*")}
    zero = {"zero": torch.zeros(6)}
    path = TrajectoryPCA(data(6), lambda module, batch: module.net(batch[0]), zero)
    fit(
        monitor(
            observables={"llc": LLC(), "chi": chi, "path": path},
            refinements=parts,
            sampler=short,
            every_n_train_steps=1,
        ),
        max_steps=5,
        logger=logger,
    )
    rows = [record["history"]["item"] for record in records(logger) if record["type"] == "history"]
    items = {key for row in rows for key in row}
    more: Any = {"refinements": parts, "susceptibility": ["chi"], "trajectory": ["path"]}
    workspace = dashboard("me", "mine", kernel=[], influence=[], **more, save=False)
    sections = ["LLC", "Refined LLC", "Stages", "Susceptibility", "Trajectory", "Health and cost"]
    assert [section.name for section in workspace.sections] == sections
    shown = {panel.title: panel.y for panel in workspace.sections[1].panels if hasattr(panel, "y")}
    assert shown["Refined LLC"] == ["slt/llc/first/mean", "slt/llc/last/mean"]
    assert shown["R-hat of the refinements"] == ["slt/health/first/rhat", "slt/health/last/rhat"]
    asked = {key for panel in workspace.sections[3].panels if hasattr(panel, "y") for key in panel.y or ()}
    assert asked == {f"slt/chi/{name}" for name in ("uniform_share", "significant")}
    means, shares = (panel.metric_regex for panel in workspace.sections[3].panels if getattr(panel, "metric_regex", 0))
    assert sorted(key for key in items if re.fullmatch(means, key)) == sorted(
        f"slt/chi/{label}_to_{part}" for label in (0, 1) for part in parts
    )
    assert {key for key in items if re.fullmatch(shares, key)} >= {"slt/chi/pc1_share", "slt/chi/pc2_share"}
    moved = {key for panel in workspace.sections[4].panels for key in getattr(panel, "y", None) or []}
    assert moved == {f"slt/path/{name}" for name in ("explained_1", "explained_2", "null_1", "null_2", "speed")}
    patterns = {panel.metric_regex for panel in workspace.sections[4].panels if hasattr(panel, "y")} - {None}
    assert {key for key in items if any(re.fullmatch(pattern, key) for pattern in patterns)} == {
        "slt/path/distance/zero",
        "slt/path/explained_3",
        "slt/path/null_3",
    }
    assert {key for keys in shown.values() for key in keys} | asked | moved <= items
    made = ["slt/refinements", "slt/figure", "slt/chi/map", "slt/chi/components", "slt/path/map"]
    assert images(workspace) == made
    assert {f"{key}._type" for key in images(workspace)} - {"slt/figure._type"} <= items, (
        "no event, no figure of stages"
    )


def test_refinements_of_several_llcs_share_one_plot() -> None:
    workspace = dashboard("me", "mine", llc=["loss", "finer"], refinements=["h0"], save=False)
    assert workspace.sections[1].panels[0].y == ["slt/loss/h0/mean", "slt/finer/h0/mean"]
    alone = dashboard("me", "mine", llc=[], refinements=["h0"], save=False)
    assert alone.sections[0].panels[0].y == ["slt/llc/h0/mean"], "an LLC is measured of a refinement in any case"


class Known:
    """An observable with numbers and pictures of given names."""

    def __init__(self, *names: str, pictures: tuple[str, ...] = ()) -> None:
        self.names, self.pictured = names, pictures

    def inspect(self, fork: Any) -> dict[str, float]:
        return dict.fromkeys(self.names, float(fork.point.step))

    def images(self, result: Any) -> dict[str, Picture]:
        return {name: Picture(torch.eye(2), "two steps") for name in self.pictured}


def test_what_is_read_at_the_weights_has_sections_of_what_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = offline_logger(tmp_path, monkeypatch)
    shares = [f"{name}_{number}" for name in ("explained", "null") for number in (1, 2, 3)]
    observables = {
        "llc": Known("mean", "stderr", "std", "variance_llc", "reference_loss", "free_energy", "num_train_samples"),
        "way": Known(*shares, "speed", "distance/ridge", "distance/zero", pictures=("map",)),
        "coarse": Known("critical_bits", "critical_rank"),
        "behavior": Known("accuracy", "f1_0"),
    }
    fit(monitor(observables=observables, every_n_train_steps=1), max_steps=3, logger=logger)
    items = {key for record in records(logger) if record["type"] == "history" for key in record["history"]["item"]}
    asked: dict[str, Any] = {"trajectory": ["way"], "compressibility": ["coarse"], "metrics": ["behavior"]}
    workspace = dashboard("me", "mine", kernel=[], influence=[], free_energy=["llc"], save=False, **asked)
    sections = {section.name: section.panels for section in workspace.sections}
    assert list(sections) == [
        "LLC",
        "Free energy",
        "Stages",
        "Trajectory",
        "Compressibility",
        "Metrics",
        "Health and cost",
    ]
    coarse = ["slt/coarse/quantization", "slt/coarse/factorization"]
    assert images(workspace) == ["slt/free_energy", "slt/figure", "slt/way/map", *coarse]
    assert "slt/way/map._type" in items
    for title in ("Free energy", "Trajectory", "Compressibility"):
        assert {key for panel in sections[title] if hasattr(panel, "y") for key in panel.y or ()} <= items
    patterns = [line["metricRegex"] for line in lines(workspace) if "metricRegex" in line]
    assert [sorted(key for key in items if re.fullmatch(pattern, key)) for pattern in patterns] == [
        ["slt/way/distance/ridge", "slt/way/distance/zero"],
        ["slt/way/explained_3", "slt/way/null_3"],
        ["slt/behavior/accuracy", "slt/behavior/f1_0"],
    ]


@pytest.mark.parametrize(
    "argument", ["refinements", "susceptibility", "trajectory", "compressibility", "metrics", "free_energy"]
)
def test_names_of_parts_go_into_a_list_as_well(argument: str) -> None:
    with pytest.raises(TypeError, match=rf"Expected `{argument}` to be a list of keys, such as \['k'\], but got 'k'"):
        dashboard("me", "mine", save=False, **{argument: "k"})  # type: ignore[call-overload]


def batches() -> Any:
    tensors = data().tensors
    yield [tensor[:6] for tensor in tensors]


def test_panels_of_a_section_do_not_lie_on_one_another() -> None:
    for section in spec(dashboard("me", "mine", save=False))["panelBankConfig"]["sections"]:
        corners = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in section["panels"]]
        assert len(set(corners)) == len(corners)
        assert {x for x, _ in corners} <= {0, 8, 16}


def test_observables_under_other_keys_share_the_plots() -> None:
    workspace = dashboard("me", "mine", llc=["loss", "head"], kernel=[], influence=["pull"], save=False)
    (first, *_) = lines(workspace)
    assert first["metrics"] == ["slt/loss/mean", "slt/head/mean"]
    assert images(workspace) == ["slt/figure", "slt/pull/map"]
    assert [section.name for section in workspace.sections] == [name for name in SECTIONS if name != "Loss kernel"]


def test_it_is_saved_once_and_its_address_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_backend() as backend:
        for name, value in {"BASE_URL": backend.url, "API_KEY": "0" * 40, "SILENT": "true"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("CACHE", "CONFIG", "DATA"):
            monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
        url = dashboard("tester", "tests", name="Mine")
        (view,) = backend.sent("UpsertView2")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("tester", "tests", "Mine")
    assert re.search(r"/tester/tests\?nw=\w+$", url)


@pytest.mark.parametrize(("entity", "project", "named"), [("", "mine", "entity"), ("me", None, "project")])
def test_a_missing_name_is_asked_for(entity: Any, project: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"Expected `{named}` to be the name of a W&B {named}, but got"):
        dashboard(entity, project, save=False)


def test_one_key_goes_into_a_list() -> None:
    with pytest.raises(TypeError, match=r"Expected `kernel` to be a list of keys, such as \['k'\], but got 'k'"):
        dashboard("me", "mine", kernel="k", save=False)


def test_without_the_extra_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("slt_callbacks.sinks.dashboard.import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'slt-callbacks\[workspace\]'"):
        dashboard("me", "mine", save=False)
