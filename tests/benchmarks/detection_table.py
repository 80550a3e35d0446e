"""Figures of the detectors on simulated LLC series, beside the ones to reach.

    python -m tests.benchmarks.detection_table --simulator PATH/stage_sim.py [--seeds 100000:100240]

The simulator is a file of its own, not part of this repository: it makes series from seeds and scores what was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from slt_callbacks.detection import JumpDetector, StageDetector

DIRECTION = {"A": 1, "C": 1, "B": -1, "D": -1, "plateau": 0}
VARIANTS = {
    "as measured": {},
    "stderr x 0.02": {"scale": 0.02},
    "stderr x 50": {"scale": 50.0},
    "10 % missing": {"missing": 0.1},
}


def load(path: Path) -> ModuleType:
    """The simulator, from its file."""
    spec = importlib.util.spec_from_file_location("stage_sim", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"Expected `--simulator` to be a Python file, but got {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def points(series: dict[str, Any], scale: float, missing: float) -> list[tuple[int, float, float, float]]:
    """(step, value, stderr, loss) of every point, some of them made missing (a fixed choice per series)."""
    gone = np.random.default_rng(series["meta"]["seed"]).random(len(series["llc"])) < missing
    values = np.where(gone, np.nan, series["llc"])
    columns = (series["steps"], values, series["stderr"] * scale, series["loss"])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def find_jumps(series: dict[str, Any], scale: float = 1.0, missing: float = 0.0) -> list[int]:
    """Indices of the points that gave an alert."""
    detector, chains = JumpDetector(), series["meta"]["chains"]
    data = points(series, scale, missing)
    return [i for i, (step, value, stderr, _) in enumerate(data) if detector.update(step, value, stderr, chains)]


def find_stages(series: dict[str, Any], scale: float = 1.0, missing: float = 0.0) -> tuple[list[Any], list[Any]]:
    """Announcements [detected at, first estimate, last estimate], and final segments (start, end, direction)."""
    detector, told = StageDetector(), {}
    for i, (step, value, stderr, loss) in enumerate(points(series, scale, missing)):
        for event in detector.update(step, value, stderr, loss, series["meta"]["chains"]):
            if event.kind == "announced":
                told[event.boundary_id] = [i, event.index, event.index]
            else:
                told[event.boundary_id][2] = event.index if event.kind == "revised" else None
    segments, start = [], 0
    for stage in detector.finish():
        segments.append((start, start + stage.n_points, DIRECTION[stage.type]))
        start += stage.n_points
    return list(told.values()), segments


def measure(sim: ModuleType, runs: list[dict[str, Any]], **variant: float) -> dict[str, Any]:
    """Scores over all runs: jumps; boundaries as announced, as revised, and final; share of points labelled right."""
    rows: dict[str, list[Any]] = {"jump": [], "strict": [], "revised": [], "final": [], "labels": []}
    for series in runs:
        told, segments = find_stages(series, **variant)
        rows["jump"].append(sim.score(find_jumps(series, **variant), series, task="jump"))
        rows["strict"].append(sim.score([(at, first) for at, first, _ in told], series))
        rows["revised"].append(sim.score([(at, last) for at, _, last in told], series))
        rows["final"].append(sim.score([start for start, _, _ in segments[1:]], series))
        rows["labels"].append(sim.score_labels(segments, series))
    return {k: float(np.mean(v)) if k == "labels" else sim.aggregate(v) for k, v in rows.items()}


def cost(points_so_far: int) -> tuple[float, float]:
    """Milliseconds of an update of the jump and of the stage detector once they hold so many points (median of 50)."""
    values = np.random.default_rng(0).normal(0, 1, points_so_far + 50) + np.arange(points_so_far + 50) // 100 * 20.0
    jumps, stages, spent = JumpDetector(), StageDetector(), []
    for step, value in enumerate(values.tolist()):
        begin = time.perf_counter()
        jumps.update(step, value, 1.0)
        middle = time.perf_counter()
        stages.update(step, value, 1.0)
        spent.append((middle - begin, time.perf_counter() - middle))
    one, two = np.median(np.array(spent[points_so_far:]), axis=0) * 1e3
    return float(one), float(two)


def table(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Rows of (figure, must, excellent, measured)."""
    base = found["as measured"]
    jump, strict, revised, final = (base[k] for k in ("jump", "strict", "revised", "final"))
    rows = [
        ("jump F1", ".84", ".90", f"{jump['f1']:.3f}"),
        ("jump false alarms per 100 points", ".06", ".03", f"{jump['fa_per_100']:.3f}"),
        ("null runs with a jump", "6 %", "3 %", f"{jump['null_runs_with_fa']:.1%}"),
        (
            "jump delay, median / p90 (points)",
            "1 / 3",
            "1 / 2",
            f"{jump['delay_median']:.0f} / {jump['delay_p90']:.1f}",
        ),
        ("boundary F1, final", ".79", ".87", f"{final['f1']:.3f}"),
        ("boundary F1, revised online", ".73", ".80", f"{revised['f1']:.3f}"),
        ("boundary F1, strict online", "", "", f"{strict['f1']:.3f}"),
        ("boundary false alarms per 100 points, revised", ".35", ".20", f"{revised['fa_per_100']:.3f}"),
        ("boundary false alarms per 100 points, final", ".35", ".20", f"{final['fa_per_100']:.3f}"),
        ("null runs with a boundary, revised", "20 %", "10 %", f"{revised['null_runs_with_fa']:.1%}"),
        (
            "boundary delay, median / p90 (points)",
            "6 / 20",
            "5 / 15",
            f"{revised['delay_median']:.0f} / {revised['delay_p90']:.1f}",
        ),
        ("error of the final location (points)", "2.2", "1.6", f"{final['loc_mean']:.2f}"),
        ("direction labels right", ".89", ".93", f"{base['labels']:.3f}"),
    ]
    for name in list(VARIANTS)[1:]:
        limits = ("", "") if "missing" in name else (".05", ".02")
        lost = {key: base[key]["f1"] - found[name][key]["f1"] for key in ("jump", "revised", "final")}
        rows += [(f"{name}: loss of F1, {key}", *limits, f"{loss:+.3f}") for key, loss in lost.items()]
    for size in (400, 500):
        limits = ("3", ".5") if size == 400 else ("1", "")
        for name, spent in zip(("jumps", "stages"), cost(size), strict=True):
            rows.append((f"an update at {size} points, {name} (ms)", *limits, f"{spent:.2f}"))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulator", type=Path, required=True, help="the file stage_sim.py")
    parser.add_argument("--seeds", default="100000:100240", help="first:last+1; default: the held-out ones")
    arguments = parser.parse_args()
    sim = load(arguments.simulator)
    first, last = map(int, arguments.seeds.split(":"))
    runs = [sim.make_series(seed) for seed in range(first, last)]
    found = {name: measure(sim, runs, **variant) for name, variant in VARIANTS.items()}
    print(f"| {len(runs)} runs, seeds {first} ... {last - 1} | must | excellent | measured |\n|---|---|---|---|")
    for row in table(found):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
