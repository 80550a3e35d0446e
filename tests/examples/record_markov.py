"""Runs examples/in_context_markov.py and keeps the points that its test replays: it takes minutes.

python -m tests.examples.record_markov
python -m tests.examples.record_markov --layers 1
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from slt_callbacks import Measurement

SCRIPT = Path(__file__).parents[2] / "examples" / "in_context_markov.py"
RECORD = Path(__file__).with_name("in_context_markov.json")


def example() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("in_context_markov_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def point(measurement: Measurement) -> dict[str, Any]:
    """What the test asks of a measurement, in the shape of its results."""
    llc = measurement["llc"]
    return {
        "step": measurement.step,
        "llc": {name: rounded(llc[name]) for name in ("mean", "stderr", "reference_loss")}
        | {"per_chain": [rounded(value) for value in llc["per_chain"].tolist()]},
        "rhat": rounded(measurement["health"]["rhat"]),
        "heads": {
            name: [rounded(part["llc"][number]) for number in ("mean", "stderr")]
            for name, part in measurement.refinements.items()
        },
        "ablation": {name: rounded(value) for name, value in measurement["ablation"].items()},
        "susceptibility": {
            name: rounded(value) for name, value in measurement["susceptibility"].items() if name.startswith("bigram_")
        },
        "trajectory": {
            name: rounded(value) for name, value in measurement["trajectory"].items() if name.startswith("distance/")
        },
        "accuracy": rounded(measurement["behavior"]["accuracy"]),
        "critical_bits": rounded(measurement["compressibility"]["critical_bits"]),
    }


def rounded(value: float) -> float:
    """As short as it is certain."""
    return float(f"{value:.5g}")


def main() -> None:
    """Run, and keep."""
    module = example()
    args = module.parse_arguments()
    monitor, losses, news = module.run(args)
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    kept[f"{args.layers}"] = {
        "command": f"python -m tests.examples.record_markov --layers {args.layers} --seed {args.seed}",
        "losses": {name: rounded(loss) for name, loss in losses.items()},
        "history": [point(measurement) for measurement in monitor.history],
        "told": [[step, event.key] for step, event in news.told],
        "stages": [[stage.type, stage.start_step, stage.announced_at_step] for stage in monitor.stages],
    }
    text = json.dumps(kept, indent=0).replace("\n", " ").replace('{ "step"', '\n{ "step"')
    RECORD.write_text(text + "\n")


if __name__ == "__main__":
    main()
