"""``make bench``: every benchmark in one run, as a table, and as dated JSON beside it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
from importlib import metadata
from pathlib import Path

import torch

from tests.benchmarks import peers, sampling
from tests.benchmarks.rows import Row

SUITES = {"sampling": sampling.rows, "peers": peers.rows}


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
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="which ones; all without a name")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"), help="folder for the JSON")
    arguments = parser.parse_args()
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    rows: list[Row] = []
    for suite in arguments.suites or SUITES:
        for row in SUITES[suite]():
            rows.append(row)
            value = "-" if row.value is None else f"{row.value:.3g} {row.unit}"
            verdict = {True: "met", False: "MISSED", None: ""}[row.met]
            print(f"{row.name:<52} {value:>10} {row.bound:>10} {verdict:>7}  {row.note}", flush=True)
    now = datetime.datetime.now(datetime.UTC)
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "machine": facts,
        "rows": [dataclasses.asdict(r) for r in rows],
    }
    file = arguments.output / f"{now:%Y-%m-%dT%H%M%S}.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"Written to {file}")


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


if __name__ == "__main__":
    main()
