"""Refinements in a run: what is logged, said, watched, resumed, replayed, and shared among ranks."""

from __future__ import annotations

import copy
import logging
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from slt_callbacks import (
    LLC,
    Estimator,
    JumpDetector,
    JumpEvent,
    MemorySink,
    Refinement,
    SLTMonitor,
    Susceptibility,
    behavioral,
    replay_checkpoints,
)
from slt_callbacks.data.drawing import draw_reference
from slt_callbacks.measuring.overview import overview
from slt_callbacks.measuring.refinement import RefinementSet
from slt_callbacks.sampling.chains import warm_round
from slt_callbacks.weights.selection import Selection
from tests.processes import on_ranks
from tests.training import QUICK, QUIET, Regression, data, fit, monitor, square_error


def outputs(module: Regression, batch: list[torch.Tensor]) -> torch.Tensor:
    out: torch.Tensor = module.net(batch[0])
    return out[:, None]


def refinements() -> dict[str, Refinement]:
    return {
        "first": Refinement("net.0"),
        "unit": Refinement("net.4", slices={"net.4.weight": (0, 3)}),
        "function": Refinement(loss_fn=behavioral(outputs, "mse")),
    }


def observables() -> dict[str, Any]:
    return {"llc": LLC(), "chi": Susceptibility()}


def watched(**changes: Any) -> SLTMonitor:
    return monitor(**({"refinements": refinements(), "observables": observables()} | changes))


@pytest.fixture(scope="module")
def whole() -> tuple[SLTMonitor, MemorySink]:
    sink = MemorySink()
    live = watched(sinks=[sink])
    fit(live, max_steps=8)
    return live, sink


class TestARun:
    def test_every_number_is_logged_under_its_name(self, whole: tuple[SLTMonitor, MemorySink]) -> None:
        logged = whole[1].publications[-1].scalars
        for name in refinements():
            told = {key.removeprefix(f"slt/llc/{name}/") for key in logged if key.startswith(f"slt/llc/{name}/")}
            assert told == {"mean", "stderr", "std", "variance_llc", "reference_loss"}
            told = {key.removeprefix(f"slt/health/{name}/") for key in logged if key.startswith(f"slt/health/{name}/")}
            assert told == {"rhat", "failed_chains", "step_size"}
        assert logged["slt/llc/function/reference_loss"] == 0.0
        assert {"slt/chi/pc1_share", "slt/chi/uniform_share", "slt/chi/significant"} <= logged.keys()
        assert whole[1].publications[-1].measurement["chi"]["columns"] == ["first", "unit"]

    def test_settings_are_told(self, whole: tuple[SLTMonitor, MemorySink]) -> None:
        assert whole[1].config["refinements"]["unit"] == {
            "parameters": ["net.4"],
            "slices": {"net.4.weight": "(0, 3)"},
        }

    def test_the_main_posterior_is_that_of_a_run_without(self, whole: tuple[SLTMonitor, MemorySink]) -> None:
        alone = monitor()
        fit(alone, max_steps=8)
        for one, other in zip(whole[0].history, alone.history, strict=True):
            assert torch.equal(one["llc"]["loss_trace"], other["llc"]["loss_trace"])

    def test_the_matrix_stays_in_the_last_measurements_alone(self, whole: tuple[SLTMonitor, MemorySink]) -> None:
        assert "matrix" in whole[0].history[-1]["chi"]
        assert set(whole[1].publications[-1].matrices) == {
            f"chi/{name}" for name in ("matrix", "stderr", "standardized", "indices")
        }

    def test_what_they_select_is_said_before_training(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            fit(watched(), max_steps=1)
        (table,) = [record.message for record in caplog.records if record.message.startswith("Beside all")]
        assert "  unit       2    3.5%  net.4 (slices)" in table
        assert "  function  57  100.0%  *, another loss" in table
        assert "No two parts share a weight. Parts together leave out" in table

    def test_a_name_that_selects_nothing_stops_the_run(self) -> None:
        with pytest.raises(MisconfigurationException, match=r"refinements\['gone'\]: .*'nett.\*' matches none"):
            fit(monitor(refinements={"gone": Refinement("nett.*")}))

    def test_in_turn(self) -> None:
        live = watched(refinements_at_once=1, detectors={"slt/llc/unit/mean": JumpDetector()})
        fit(live, max_steps=8)
        assert [list(one.refinements) for one in live.history] == [["first"], ["unit"], ["function"], ["first"]]
        chi = live.history[0]["chi"]["matrix"]
        assert bool(chi[:, 0].isfinite().all())
        assert bool(chi[:, 1].isnan().all())


class Planted:
    """An LLC whose refinement jumps, whatever the draws are."""

    def __init__(self, up: float = 0.0) -> None:
        self.up = up

    def refine(self, parts: Any) -> dict[str, Any]:
        return {part.name: Planted(50.0) for part in parts}

    def reset(self, reference: Any) -> None:
        self.step = reference.step

    def update(self, draw: Any) -> None:
        """The draws do not matter."""

    def compute(self) -> dict[str, float]:
        return {"mean": 10.0 + self.up * (self.step > 24) + math.sin(3.0 * self.step), "stderr": 0.5}


class TestDetectors:
    def test_a_jump_of_a_part_is_found_and_of_nothing_else(self) -> None:
        live = monitor(
            observables={"llc": Planted()},
            refinements={"head": Refinement("net.4")},
            detectors={"slt/llc/head/mean": JumpDetector()},
        )
        fit(live, max_steps=40)
        (event,) = [event for event in live.events if isinstance(event, JumpEvent)]
        assert (event.key, event.onset_step) == ("slt/llc/head/mean", 26)

    @pytest.mark.parametrize("key", ["slt/llc/hed/mean", "slt/health/hed/rhat"])
    def test_a_refinement_that_there_is_not(self, key: str) -> None:
        with pytest.raises(ValueError, match=r"name refinements that there are.*there are head"):
            monitor(refinements={"head": Refinement("net.4")}, detectors={key: JumpDetector()})


class TestWithoutAnLLC:
    """Refinements always have one, under "llc", though the main posterior is asked for something else."""

    def test_it_can_be_watched_and_waited_for(self, tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path, monitor="slt/llc/last/mean")
        live = monitor(
            observables={"chi": Susceptibility()},
            refinements={"last": Refinement("net.4")},
            detectors={"slt/llc/last/mean": JumpDetector()},
            every_n_train_steps=5,
        )
        validation = DataLoader(data(), 8)
        trainer = Trainer(callbacks=[live, kept], max_steps=8, **(QUIET | {"enable_checkpointing": True}))
        trainer.fit(Validated(), DataLoader(data(), 8), validation)
        assert "slt/llc/last/mean" in trainer.callback_metrics

    def test_the_main_one_that_there_is_not_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"name refinements that there are.*'slt/llc/mean'.*there are last"):
            monitor(
                observables={"chi": Susceptibility()},
                refinements={"last": Refinement("net.4")},
                detectors={"slt/llc/mean": JumpDetector()},
            )


class Validated(Regression):
    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", square_error(self, batch).mean())


class TestAResume:
    def test_chains_steps_and_curves_go_on(self, whole: tuple[SLTMonitor, MemorySink], tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        fit(watched(), kept, max_steps=4, enable_checkpointing=True)
        second = watched()
        fit(second, max_steps=8, ckpt_path=str(tmp_path / "step=4.ckpt"))
        assert [one.step for one in second.history] == [6, 8]
        warm = warm_round(QUICK.num_burnin_steps) + QUICK.num_draws
        assert second.history[0]["cost"]["sgld_steps"] == 4 * QUICK.num_chains * warm
        for name, record in second.history[0].refinements.items():
            assert record["health"]["step_size"] == whole[0].history[1].refinements[name]["health"]["step_size"]
        before = second._run.story.before[-1]  # for the picture of all of them
        expected = whole[0].history[1].refinements["unit"]["llc"]["mean"]
        assert before.refinements["unit"]["llc"]["mean"] == expected


class TestReplay:
    def test_it_is_the_monitors_numbers(self, whole: tuple[SLTMonitor, MemorySink], tmp_path: Path) -> None:
        kept = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1)
        fit(kept, max_steps=8, enable_checkpointing=True)

        def again() -> Any:
            return replay_checkpoints(
                [tmp_path / "kept"],
                Regression,
                data(),
                square_error,
                observables=observables(),
                refinements=refinements(),
                sampler=QUICK,
                output=tmp_path / "replay",
                progress=False,
            )

        found = again()
        for one, other in zip(found, whole[0].history, strict=True):
            for name, record in other.refinements.items():
                assert one.refinements[name]["llc"]["mean"] == record["llc"]["mean"]
        assert again()[-1].refinements["unit"]["num_parameters"] == 2  # read from the folder
        with pytest.raises(ValueError, match="`refinements` was"):
            replay_checkpoints(
                [tmp_path / "kept"], Regression, data(), square_error, observables={"llc": LLC(), "chi": LLC()},
                sampler=QUICK, output=tmp_path / "replay", progress=False,
            )  # fmt: skip


class TestRanks:
    def test_chains_of_all_posteriors_are_split(self) -> None:
        torch.manual_seed(0)
        module = Regression()

        def measure(ranks: Any) -> Any:
            given = RefinementSet(refinements())
            one = Estimator(
                draw_reference(data()),
                square_error,
                observables(),
                QUICK,
                persistent=True,
                ranks=ranks,
                refinements=given,
            )
            own = copy.deepcopy(module)
            return [one.measure(own, step) for step in (1, 2)], one.expected_steps

        alone, steps = measure(None)
        for found, expected in on_ranks(2, measure):
            assert expected == steps // 2
            for one, other in zip(found, alone, strict=True):
                for name, record in one.refinements.items():
                    assert torch.equal(record["llc"]["loss_trace"], other.refinements[name]["llc"]["loss_trace"])
                torch.testing.assert_close(one["chi"]["matrix"], other["chi"]["matrix"])

    def test_where_one_fails_all_go_on_with_the_rest(self) -> None:
        torch.manual_seed(0)
        module = Regression()

        def measure(ranks: Any) -> Any:
            def broken(module: Any, batch: Any) -> torch.Tensor:
                if ranks.rank == 1:
                    raise KeyError("labels")
                return square_error(module, batch)

            given = RefinementSet({"bad": Refinement(loss_fn=broken), "good": Refinement("net.4")})
            one = Estimator(draw_reference(data()), square_error, None, QUICK, ranks=ranks, refinements=given)
            return one.measure(copy.deepcopy(module), 1)

        for found in on_ranks(2, measure):
            assert not found.failed
            assert "labels" in found.refinements["bad"]["error"]
            assert math.isfinite(found.refinements["good"]["llc"]["mean"])


class TestTheTable:
    def test_overlaps_ties_and_what_is_left_out(self) -> None:
        net = torch.nn.Sequential(torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3))
        net[1].weight = net[0].weight
        table = overview(
            {
                "row": Refinement("0", slices={"0.weight": 0}),
                "column": Refinement("1.weight", slices={"1.weight": (slice(None), 0)}),
            },
            net,
        )
        assert "row and column share 1 weights." in table
        assert "Parts together leave out 7: 0.weight, 1.bias." in table
        assert "Tied, and moved under each of its names: 0.weight = 1.weight." in table

    @pytest.mark.parametrize("number", [4, 50])
    def test_many_slices_are_looked_at_one_by_one(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every row but the last is in two of them; only of few, whose pairs are told, the masks stay."""
        alive: list[int] = []
        made: list[weakref.ref[torch.Tensor]] = []
        masks = Selection.masks

        def watched(self: Selection, module: torch.nn.Module) -> Any:
            found = masks(self, module)
            made.extend(weakref.ref(mask) for mask in found.values() if mask is not None)
            alive.append(sum(one() is not None for one in made))
            return found

        monkeypatch.setattr(Selection, "masks", watched)
        net = torch.nn.Linear(3, number + 1)
        rows = {f"row{k}": Refinement("weight", slices={"weight": slice(k, k + 2)}) for k in range(number)}
        table = overview(rows, net)
        assert max(alive) == (number if number == 4 else 2), "one, and that which takes its place"
        said = "row0 and row1 share 3 weights" if number == 4 else f"{3 * (number - 1)} weights are in several parts."
        assert said in table
        assert f"Parts together leave out {number + 1}: bias." in table
        assert ("and 10 more" in table) == (number == 50)

    def test_of_other_data_nothing_is_left_out(self) -> None:
        table = overview({"more": Refinement(reference=data())}, torch.nn.Linear(1, 1))
        assert table.splitlines()[1:] == ["  more  2  100.0%  *, other data"]


class TestTheHistory:
    def test_traces_of_parts_stay_in_the_last_measurements_alone(self) -> None:
        """A hundred parts would fill the memory with the losses of their draws; numbers stay."""
        live = monitor(refinements={"last": Refinement("net.4")}, every_n_train_steps=1)
        fit(live, max_steps=20)
        kept = ["loss_trace" in one.refinements["last"]["llc"] for one in live.history]
        assert kept == [False] * 4 + [True] * 16
        assert math.isfinite(live.history[0].refinements["last"]["llc"]["mean"])
        assert bool(live.history[0].refinements["last"]["llc"]["per_chain"].isfinite().all())
        with pytest.raises(KeyError, match="has left the history"):
            live.history[0].refinements["last"]["llc"]["loss_trace"]
