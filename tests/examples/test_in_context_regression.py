"""The regression example: its predictors are the exact posterior means, and recorded runs ended at one or the other."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from slt_callbacks.stats.trajectories import random_walk_shares
from tests import ready
from tests.examples.test_language_model import check_reports

SCRIPT = Path(__file__).parents[2] / "examples" / "in_context_regression.py"
RECORDS = Path(__file__).with_name("in_context_regression")
FEW, MANY = 4, 64


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("in_context_regression_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(tasks: int) -> dict[str, Any]:
    """The curve of a whole run, as ``curve.json`` of the command that it names."""
    found: dict[str, Any] = json.loads((RECORDS / f"{tasks}-tasks.json").read_text())
    assert f"--tasks {tasks} " in found["command"]
    return found


class TestPredictors:
    def batch(self, example: ModuleType) -> Any:
        generator = torch.Generator().manual_seed(0)
        return example.regressions(torch.randn(5, example.DIMENSIONS, generator=generator), generator)

    def test_with_very_many_tasks_learning_them_by_heart_is_ridge_regression(self, example: ModuleType) -> None:
        """The mean over a pool is that over N(0, 1), but for its Monte Carlo error."""
        batch = self.batch(example)
        pool = torch.randn(100_000, example.DIMENSIONS, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(example.dmmse(pool)(batch), example.ridge(batch), rtol=0, atol=0.05)

    def test_one_task_is_known_without_looking(self, example: ModuleType) -> None:
        x, y = self.batch(example)
        task = torch.tensor([[1.0, -2.0]])
        torch.testing.assert_close(example.dmmse(task)((x, y)), (x * task).sum(-1))

    def test_of_two_tasks_the_weights_are_those_of_bayes(self, example: ModuleType) -> None:
        x, y = self.batch(example)
        pool = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        likelihood = [math.exp(-(float(y[0, 0] - x[0, 0] @ task) ** 2) / (2 * example.NOISE)) for task in pool]
        first = likelihood[0] / sum(likelihood)
        expected = first * x[0, 1, 0] + (1 - first) * x[0, 1, 1]
        assert float(example.dmmse(pool)((x, y))[0, 1]) == pytest.approx(float(expected), rel=1e-4)

    def test_ridge_regression_is_shrunk_by_the_noise(self, example: ModuleType) -> None:
        x = torch.zeros(1, example.POINTS, example.DIMENSIONS)
        x[..., 0] = 1.0
        y = torch.full((1, example.POINTS), 3.0)
        expected = [3.0 * k / (k + example.NOISE) for k in range(example.POINTS)]
        assert example.ridge((x, y))[0].tolist() == pytest.approx(expected)


def test_the_network_looks_at_nothing_that_comes_later(example: ModuleType) -> None:
    torch.manual_seed(0)
    model, (x, y) = example.Transformer(10), TestPredictors().batch(example)
    torch.nn.init.normal_(model.read.weight)
    before = model(x, y)
    x[:, 5:], y[:, 4:] = 9.0, 9.0
    torch.testing.assert_close(model(x, y)[:, :5], before[:, :5])
    assert not torch.allclose(model(x, y)[:, 5:], before[:, 5:])


def test_a_smoke_run_prints_its_table_and_leaves_a_record_like_those_that_are_kept(tmp_path: Path) -> None:
    result = ready.run([str(SCRIPT), "--smoke", "--output-dir", "out"], tmp_path, os.environ, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^ +6 +\d\.\d+ .* \d+%$", result.stdout, flags=re.MULTILINE)
    assert re.search(r"With 4 tasks it ends nearer to (dMMSE|ridge regression)", result.stdout)
    check_reports(tmp_path, result.stdout)
    made = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert made.keys() == record(FEW).keys()
    assert (tmp_path / "out" / "slt" / "trajectory" / "map-00000006.png").stat().st_size > 10_000


class TestRecords:
    """Made again by the command in the file, which leaves it as ``curve.json``."""

    def nearer(self, tasks: int) -> list[bool]:
        """At every measurement, whether the network is nearer to ridge regression."""
        found = record(tasks)
        return [one < other for one, other in zip(found["distance/ridge"], found["distance/dmmse"], strict=True)]

    def test_of_few_tasks_it_becomes_the_one_that_knows_them_by_heart(self) -> None:
        found = record(FEW)
        assert not any(self.nearer(FEW))
        assert found["distance/dmmse"][-1] < 0.5 * found["distance/ridge"][-1]
        assert found["distance/dmmse"][-1] < 0.5 * found["distance/dmmse"][0]

    def test_of_many_it_crosses_to_ridge_regression_and_stays(self) -> None:
        found, nearer = record(MANY), self.nearer(MANY)
        crossed = nearer.index(True)
        last = max(place for place, is_nearer in enumerate(nearer) if not is_nearer)
        assert not nearer[0]
        assert found["steps"][crossed] < 1000
        assert found["steps"][last] < 1000, "from here on it stays"
        assert found["distance/ridge"][-1] < 0.9 * found["distance/dmmse"][-1]

    @pytest.mark.parametrize("tasks", [FEW, MANY])
    def test_the_null_is_that_of_its_steps_and_its_own_share_is_beyond(self, tasks: int) -> None:
        found = record(tasks)
        kept = torch.tensor(found["steps"])
        for size in range(2, len(kept) + 1):
            null = float(random_walk_shares(kept[:size], 1)[0])
            assert found["null_1"][size - 1] == pytest.approx(null, rel=1e-6)
        assert found["explained_1"][-1] > found["null_1"][-1] + 0.05
