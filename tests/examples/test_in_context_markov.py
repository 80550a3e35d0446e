"""The Markov example: a kept run is replayed; the plateau, the guesses and everything at once are run, being cheap."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from slt_callbacks import Measurement, StageDetector
from slt_callbacks.recording.watch import Watch
from tests.examples import record_markov
from tests.examples.test_language_model import check_reports, run

Record = dict[str, Any]
SPANS = (50, 200), (1000, 1500)  # steps on the plateau of the unigram, and with the bigram


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return record_markov.example()


@pytest.fixture(scope="module")
def kept() -> Record:
    """What one run with the default settings measured; its command stands in it."""
    found: Record = json.loads(record_markov.RECORD.read_text())["2"]
    return found


@pytest.fixture(scope="module")
def history(kept: Record) -> list[Measurement]:
    return list(measured(kept))


@pytest.fixture(scope="module")
def heads(example: ModuleType, kept: Record, history: list[Measurement]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = example.table_of_heads(
        example.at_unigram(history, kept["losses"]), history[-1]
    )
    return table


def measured(record: Record) -> Iterator[Measurement]:
    for point in record["history"]:
        llc = point["llc"] | {"per_chain": torch.tensor(point["llc"]["per_chain"], dtype=torch.float64)}
        parts = {
            name: {"llc": {"mean": mean, "stderr": stderr}, "health": {}}
            for name, (mean, stderr) in point["heads"].items()
        }
        others = {name: point[name] for name in ("ablation", "susceptibility", "trajectory")}
        yield Measurement(point["step"], {"llc": llc, "health": {"rhat": point["rhat"]}} | others, refinements=parts)


def losses_of(history: list[Measurement], first: int, last: float = math.inf) -> list[float]:
    return [one["llc"]["reference_loss"] for one in history if first <= one.step <= last]


class TestTheKeptRun:
    def test_the_loss_goes_from_one_guess_to_the_next(self, kept: Record, history: list[Measurement]) -> None:
        losses = kept["losses"]
        assert losses_of(history, 1, 1) == pytest.approx([losses["uniform"]], rel=0.01)
        plateau = losses_of(history, 20, 200)
        assert len(plateau) >= 5
        assert plateau == pytest.approx([losses["unigram"]] * len(plateau), rel=0.02)
        assert losses_of(history, 1500) == pytest.approx([losses["bigram"]], rel=0.05)

    def test_a_boundary_is_announced_within_five_measurements_of_the_crossing(
        self, example: ModuleType, kept: Record, history: list[Measurement]
    ) -> None:
        watch = Watch({example.UNIGRAM: StageDetector()})
        for one in history:
            watch.update(one)
        told = [
            (found.detected_at, found.key) for found in watch.found if getattr(found.event, "kind", "") == "announced"
        ]
        assert {key for _, key in told} == {example.UNIGRAM}, "the LLC alone gives none"
        assert told == [tuple(one) for one in kept["told"]], "as it was told live"
        steps = [one.step for one in history]
        crossing = steps.index(example.crossing(history, kept["losses"]["unigram"]).step)
        assert min(abs(steps.index(step) - crossing) for step, _ in told) <= 5
        watch.finish()
        assert [[one.type, one.start_step, one.announced_at_step] for one in watch.stages] == kept["stages"]

    def test_the_llc_rises_with_the_bigram(self, history: list[Measurement]) -> None:
        plateau, end = ([one["llc"] for one in history if first <= one.step <= last] for first, last in SPANS)
        error = math.hypot(*(max(one["stderr"] for one in side) / len(side) ** 0.5 for side in (plateau, end)))
        rise = sum(one["mean"] for one in end) / len(end) - sum(one["mean"] for one in plateau) / len(plateau)
        assert rise > 4 * error

    def test_the_head_that_the_bigram_stands_on_is_the_most_complex(
        self, example: ModuleType, history: list[Measurement], heads: dict[str, dict[str, float]]
    ) -> None:
        """Of the first layer, with the bigram and beyond the error bars; at the plateau it was like the others."""

        def of(head: str, first: int, last: int) -> tuple[float, float]:
            llcs = [one.refinements[head]["llc"] for one in history if first <= one.step <= last]
            return (
                sum(llc["mean"] for llc in llcs) / len(llcs),
                max(llc["stderr"] for llc in llcs) / len(llcs) ** 0.5,
            )

        best = example.carrier(heads)
        (plateau, _), (end, error) = (of(best, *span) for span in SPANS)
        assert end > 3 * plateau
        for other in [head for head in heads if head.startswith("head0.") and head != best]:
            beside, its_error = of(other, *SPANS[1])
            assert end - beside > 3 * math.hypot(error, its_error)

    def test_the_predictions_end_nearest_to_the_bigram(self, history: list[Measurement]) -> None:
        at = [
            {name: one["trajectory"][f"distance/{name}"] for name in ("uniform", "unigram", "bigram")}
            for one in history
        ]
        nearest = list(dict.fromkeys(min(distances, key=distances.__getitem__) for distances in at))
        assert nearest == ["uniform", "unigram", "bigram"], "one after the other"

    def test_the_readme_holds_what_it_prints(
        self,
        example: ModuleType,
        kept: Record,
        history: list[Measurement],
        heads: dict[str, dict[str, float]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """All but what changed most, which is not kept."""
        news = example.News()
        news.told = [(step, SimpleNamespace(key=key, step=0, changed_most="")) for step, key in kept["told"]]
        example.print_heads(heads, example.at_unigram(history, kept["losses"]), history[-1])
        example.print_what_it_knows(history, kept["losses"])
        example.print_news(history, news, kept["losses"])
        printed = capsys.readouterr().out.split("compared with the other parts.)\n")[1].splitlines()
        lines = [line for line in printed if line and "goes another way since" not in line]
        assert len(lines) == 8
        readme = (record_markov.SCRIPT.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if line not in readme] == []


class TestTheKeptControl:
    """One layer, the same sequences: it never learns what the second layer is for."""

    @pytest.fixture(scope="class")
    def control(self) -> Record:
        found: Record = json.loads(record_markov.RECORD.read_text())["1"]
        return found

    def test_the_loss_stays_at_the_unigram(self, control: Record) -> None:
        losses = losses_of(list(measured(control)), 50)
        assert len(losses) >= 15
        assert losses == pytest.approx([control["losses"]["unigram"]] * len(losses), rel=0.02)
        assert min(losses) > 1.05 * control["losses"]["bigram"]

    def test_so_does_the_llc(self, control: Record, history: list[Measurement]) -> None:
        assert [stage[0] for stage in control["stages"]] == ["plateau"]
        with_two, with_one = (
            [one["llc"] for one in run if one.step >= SPANS[1][0]] for run in (history, list(measured(control)))
        )
        error = math.hypot(*(max(one["stderr"] for one in side) / len(side) ** 0.5 for side in (with_two, with_one)))
        means = [sum(one["mean"] for one in side) / len(side) for side in (with_two, with_one)]
        assert means[0] - means[1] > 4 * error


class TestTheGuesses:
    def test_counts_begin_at_one(self, example: ModuleType) -> None:
        alternating = torch.arange(9)[None] % 2
        guesses = example.simple_guesses(alternating)
        assert guesses["uniform"].exp()[0, 4].tolist() == pytest.approx([1 / 3] * 3)
        # five states seen, three of them 0; it was followed by 1 twice
        assert guesses["unigram"].exp()[0, 4].tolist() == pytest.approx([4 / 8, 3 / 8, 1 / 8])
        assert guesses["bigram"].exp()[0, 4].tolist() == pytest.approx([1 / 5, 3 / 5, 1 / 5])

    def test_kinds_of_tokens_add_up_to_the_sequences(self, example: ModuleType) -> None:
        sequences = example.markov_chains(8)
        asked, kinds = example.kinds_of_tokens(sequences)
        assert len(asked) == len(kinds) >= 16
        assert set(kinds) == {"bigram_knows", "alike", "bigram_errs"}
        _, weights = asked.tensors
        assert torch.allclose(weights.mean(1), torch.ones(len(kinds)))
        of_a_sequence = [(one.unsqueeze(0) == asked.tensors[0]).all(1) for one in sequences]
        assert all((weights[rows] > 0).sum(0).eq(1).all() for rows in of_a_sequence), "each token is of one kind"


@pytest.mark.parametrize(("layers", "steps"), [(2, 100), (1, 300)])
def test_training_leads_to_the_plateau_and_one_layer_stays_there(example: ModuleType, layers: int, steps: int) -> None:
    """Of the code as it stands now, and not of a run that was kept."""
    pl.seed_everything(1, verbose=False)
    sequences, reference = example.markov_chains(64 * steps), example.markov_chains(256)
    model = example.Transformer(layers, heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", barebones=True)
        trainer.fit(model, DataLoader(example.whole(sequences), example.BATCH_SIZE))
    with torch.no_grad():
        loss = example.next_state_losses(model, list(example.whole(reference).tensors)).mean()
    losses = {name: float(one.mean()) for name, one in example.losses_of_guesses(reference).items()}
    assert float(loss) == pytest.approx(losses["unigram"], rel=0.02)
    assert losses["uniform"] == pytest.approx(math.log(3))


def test_a_smoke_run_shows_everything(tmp_path: Path) -> None:
    result = run(str(record_markov.SCRIPT), "--smoke", "--output-dir", "out", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^head(\d)\.(\d) +\S+ \+- \S+", result.stdout, flags=re.MULTILINE)
    assert rows == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert re.search(r"^  bigram .* never below$", result.stdout, flags=re.MULTILINE)
    assert "logging offline" in result.stdout
    assert re.search(r"^The run: +python -m wandb leet \S+$", result.stdout, flags=re.MULTILINE)
    check_reports(tmp_path, result.stdout)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    pictures = ("susceptibility/map", "influence/map", "trajectory/map", "compressibility/quantization")
    assert "in_context_markov.png" in files
    assert {f"slt/{name}-00000012.png" for name in pictures} <= files
