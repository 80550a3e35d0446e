"""``make bench``: every benchmark in one run, as a table, and as dated JSON (and pictures) beside it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import inspect
import json
import platform
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

import torch

from tests.benchmarks import (
    accuracy,
    automatic,
    budget,
    convergence,
    default_runs,
    defaults,
    detection,
    executors,
    growth,
    measurements,
    observables,
    peers,
    refinements,
    samplers,
    sampling,
    warm,
)
from tests.benchmarks.rows import Row

SUITES: dict[str, Callable[..., Iterable[Row]]] = {
    "sampling": sampling.rows,
    "observables": observables.rows,
    "refinements": refinements.rows,
    "detection": detection.rows,
    "growth": growth.rows,
    "peers": peers.rows,
    "automatic": automatic.rows,
    "budget": budget.rows,
    "executors": executors.rows,
    "measurements": measurements.rows,
    "defaults": defaults.rows,
    "default-runs": default_runs.rows,
    "samplers": samplers.rows,
    "convergence": convergence.rows,
    "warm": warm.rows,  # the last two set one thread for the whole process
    "accuracy": accuracy.rows,
}
ON_A_DEVICE = [name for name, rows in SUITES.items() if "device" in inspect.signature(rows).parameters]
"""Suites that a GPU can run as well."""
FIGURES = {"samplers": samplers.figure}
"""Pictures of what a suite has measured, by the name of their file."""


def machine() -> dict[str, str | int]:
    """What a reader needs to judge the figures."""
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("torch", "lightning", "slt-callbacks")}
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}; all without a name")
    parser.add_argument(
        "--output", type=Path, default=Path("build/benchmarks"), help="folder for the JSON and the pictures"
    )
    parser.add_argument("--device", default="cpu", help=f"cpu, or a GPU such as cuda, for {', '.join(ON_A_DEVICE)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"no suite {', '.join(sorted(unknown))}: there are {', '.join(SUITES)}")
    named = _named(arguments.suites, arguments.device, parser)
    warnings.simplefilter("ignore")
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    print("| what | measured | wanted | | |\n|---|---|---|---|---|")
    rows: list[Row] = []
    for measured in named.values():
        for row in measured():
            rows.append(row)
            value = "-" if row.value is None else f"{row.value:.3g} {row.unit}"
            verdict = {True: "met", False: "MISSED", None: ""}[row.met]
            print(f"| {row.name} | {value} | {row.bound} | {verdict} | {row.note} |", flush=True)
    now = datetime.datetime.now(datetime.UTC)
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "machine": facts,
        "rows": [dataclasses.asdict(r) for r in rows],
    }
    file = arguments.output / f"{now:%Y-%m-%dT%H%M%S}.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    pictures = {name: draw for name, draw in FIGURES.items() if name in named}
    for name, draw in pictures.items():
        draw(arguments.output / f"{name}.png")
    print("Written to", *(file, *(arguments.output / f"{name}.png" for name in pictures)))


def _named(suites: list[str], device: str, parser: argparse.ArgumentParser) -> dict[str, Callable[[], Iterable[Row]]]:
    """What to run: the suites of these names, or all that the device can run."""
    if device == "cpu":
        return {name: SUITES[name] for name in suites or SUITES}
    if not torch.cuda.is_available():
        parser.error("there is no GPU here")
    if unfit := set(suites) - set(ON_A_DEVICE):
        parser.error(f"{', '.join(sorted(unfit))} run on a CPU alone; on a GPU there are {', '.join(ON_A_DEVICE)}")
    return {name: functools.partial(SUITES[name], device=device) for name in suites or ON_A_DEVICE}


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


if __name__ == "__main__":
    main()
