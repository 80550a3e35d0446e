"""One run with everything on: every number has a name in words, and a panel on the dashboard, which has no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torchmetrics.regression import MeanSquaredError

from slt_callbacks import (
    LLC,
    Compressibility,
    Influence,
    LossKernel,
    Metrics,
    Refinement,
    SamplerConfig,
    Susceptibility,
    TrajectoryPCA,
    dashboard,
)
from slt_callbacks.measuring.naming import in_words
from tests.sinks.test_dashboard import images, lines, tables
from tests.sinks.test_sinks import offline_logger, records
from tests.training import data, fit, monitor

STEPS = 5
PARTS = {"first": Refinement("net.0.*"), "last": Refinement("net.4.*"), "all": Refinement(reference=data(8))}
# Words for every number, by its key without ``slt/``; those of refinements for one of them.
WORDS = {
    "llc/mean": "LLC",
    "llc/stderr": "standard error of the LLC",
    "llc/std": "spread of the LLC over chains",
    "llc/variance_llc": "LLC by the variance of the loss",
    "llc/reference_loss": "loss",
    "llc/free_energy": "free energy",
    "llc/num_train_samples": "training samples",
    "kernel/trace": "summed variance of the losses",
    "kernel/effective_rank": "effective rank of the kernel",
    "kernel/alignment": "kernel's alignment with the last one",
    "kernel/class_contrast": "kernel's contrast of classes",
    "kernel/label_alignment": "kernel's alignment with the classes",
    "influence/shift": "shift of the influence",
    "influence/peaks": "pairs whose influence turned",
    "influence/group_flips": "groups whose influence changed sides",
    "influence/group_peaks": "groups whose influence turned",
    "influence/sign_flips": "pairs whose influence changed sides",
    "influence/group/even_to_near": "influence of even on near",
    "influence/group/odd_to_near": "influence of odd on near",
    "susceptibility/uniform_share": "share of the susceptibility that all parts have in common",
    "susceptibility/pc1_share": "1st component's share of the susceptibility",
    "susceptibility/pc2_share": "2nd component's share of the susceptibility",
    "susceptibility/pc3_share": "3rd component's share of the susceptibility",
    "susceptibility/significant": "share of susceptibilities beyond noise",
    "susceptibility/even_to_first": "susceptibility of first to even",
    "susceptibility/even_to_last": "susceptibility of last to even",
    "susceptibility/odd_to_first": "susceptibility of first to odd",
    "susceptibility/odd_to_last": "susceptibility of last to odd",
    "trajectory/explained_1": "1st component's share of the trajectory",
    "trajectory/explained_2": "2nd component's share of the trajectory",
    "trajectory/explained_3": "3rd component's share of the trajectory",
    "trajectory/null_1": "1st component's share of a random walk",
    "trajectory/null_2": "2nd component's share of a random walk",
    "trajectory/null_3": "3rd component's share of a random walk",
    "trajectory/speed": "speed of the trajectory",
    "trajectory/distance/zero": "distance to zero",
    "compressibility/critical_bits": "critical bits",
    "compressibility/critical_rank": "critical rank",
    "behavior/error": "error",
    "health/failed_chains": "chains dropped",
    "health/num_valid_draws": "draws",
    "health/rhat": "R-hat",
    "health/ess": "effective sample size",
    "health/drift": "drift of the chains",
    "health/step_size": "step size of the chains",
    "health/step_bias": "bias by the step size",
    "health/stability": "share of the longest stable step",
    "health/step_gap": "excess of the LLC with steps twice as long",
    "health/noise_bias": "bias by minibatches",
    "health/acceptance": "acceptance of the chains",
    "health/num_burnin_steps": "steps of burn-in",
    "health/num_parameters": "weights that move",
    "health/nbeta": "nbeta",
    "health/localization": "localization",
    "cost/seconds": "seconds a measurement",
    "cost/sgld_steps": "gradient steps of the chains",
    "cost/overhead": "share of the training time",
    "cost/skipped": "measurements left out",
    "cost/failed": "measurements failed",
    "llc/first/mean": "first",
    "llc/first/stderr": "standard error of the LLC of first",
    "llc/first/std": "spread of the LLC over chains of first",
    "llc/first/variance_llc": "LLC by the variance of the loss of first",
    "llc/first/reference_loss": "loss of first",
    "health/first/rhat": "R-hat of first",
    "health/first/failed_chains": "chains dropped of first",
    "health/first/step_size": "step size of the chains of first",
}


class Third:
    """A detector with one event, at which the tables and figures of the run are told."""

    def update(self, step: int, value: float) -> str | None:
        return "it begins" if step == 3 else None


def outputs(module: Any, batch: Any) -> torch.Tensor:
    return module.net(batch[0])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """The monitor, and the rows of its offline W&B run, read back."""
    labels = ["even" if row % 2 else "odd" for row in range(48)]
    observables = {
        "llc": LLC(num_train_samples=48),
        "kernel": LossKernel(labels=labels),
        "influence": Influence(data(6), labels=labels, query_labels=["near"] * 6),
        "susceptibility": Susceptibility(labels=labels),
        "trajectory": TrajectoryPCA(data(6), outputs, {"zero": torch.zeros(6)}),
        "compressibility": Compressibility(),
        "behavior": Metrics({"error": MeanSquaredError()}, lambda module, batch: (outputs(module, batch), batch[1])),
    }
    with pytest.MonkeyPatch.context() as patch:
        logger = offline_logger(tmp_path_factory.mktemp("everything"), patch)
        short = SamplerConfig(num_chains=2, num_draws=8, num_burnin_steps=0)
        settings: Any = {"observables": observables, "refinements": PARTS, "sampler": short}
        live = monitor(every_n_train_steps=1, detectors={"slt/llc/mean": Third()}, **settings)
        fit(live, max_steps=STEPS, logger=logger)
        yield live, [record["history"]["item"] for record in records(logger) if record["type"] == "history"]


@pytest.fixture(scope="module")
def workspace() -> Any:
    pytest.importorskip("wandb_workspaces", reason="the extra `workspace` is not installed")
    named = ("susceptibility", "trajectory", "compressibility")
    given: Any = {"free_energy": ["llc"], "metrics": ["behavior"], "refinements": PARTS} | {key: [key] for key in named}
    return dashboard("me", "mine", save=False, **given)


def asked_and_patterns(workspace: Any) -> tuple[set[str], list[str]]:
    asked = set(chain.from_iterable(line.get("metrics", []) for line in lines(workspace)))
    return asked, [line["metricRegex"] for line in lines(workspace) if "metricRegex" in line]


def media(rows: list[dict[str, Any]], kind: str) -> set[str]:
    return {key.removesuffix("._type") for row in rows for key, value in row.items() if value == f"{kind}-file"}


def numbers(rows: list[dict[str, Any]]) -> set[str]:
    shown = media(rows, "image") | media(rows, "table")
    keys = {key for row in rows for key in row if key.startswith("slt/")}
    return {key for key in keys if not any(key.startswith(f"{one}.") for one in shown)} - {"slt/step"}


class TestNames:
    def test_every_number_has_words(self, run: tuple[Any, Any]) -> None:
        found = {key: in_words(key) for one in run[0].history for key in one.scalars()}
        of_parts = {key for key in found if {"last", "all"} & set(key.split("/"))}
        assert {key: words for key, words in found.items() if key not in of_parts} == WORDS
        for key in of_parts:
            other, mine = ("last", "first") if "last" in key.split("/") else ("all", "first")
            twin = key.replace(f"/{other}/", f"/{mine}/")
            assert found[key] == found[twin].replace(mine, other)


class TestDashboard:
    def test_every_number_is_on_a_panel(self, run: tuple[Any, Any], workspace: Any) -> None:
        asked, patterns = asked_and_patterns(workspace)
        missing = {
            key
            for key in numbers(run[1])
            if key not in asked and not any(re.fullmatch(pattern, key) for pattern in patterns)
        }
        assert missing == set()

    def test_no_panel_names_what_is_never_logged(self, run: tuple[Any, Any], workspace: Any) -> None:
        asked, patterns = asked_and_patterns(workspace)
        logged = numbers(run[1])
        assert asked - logged == set()
        assert [pattern for pattern in patterns if not any(re.fullmatch(pattern, key) for key in logged)] == []

    def test_so_it_is_with_pictures_and_tables(self, run: tuple[Any, Any], workspace: Any) -> None:
        assert set(images(workspace)) == media(run[1], "image")
        assert tables(workspace) - {"slt/changes"} == media(run[1], "table"), "no boundary in so short a run"
