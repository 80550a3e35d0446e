"""The report: what it says is what was measured, also of a run that was killed or resumed, and it needs no network."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from slt_callbacks import FileSink, Influence, LossKernel, Measurement, Refinement, Stage, write_report
from slt_callbacks.figures.charts import Axis, Curve, chart, compact, scale, step_axis
from slt_callbacks.observables.media import Media, Picture
from slt_callbacks.replay.command import main
from slt_callbacks.sinks.base import Publication
from slt_callbacks.sinks.folder import evenly, read_folder
from slt_callbacks.sinks.journal import read_rows
from tests.browser import CHROMIUM, chromium
from tests.callbacks.test_watch import JUMP_AT, PlantedLLC, planted
from tests.training import data, fit, monitor

STEPS = 20
HOSTILE = "<script>alert('x')<"  # a name may hold anything but a slash
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """A document, taken apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(" ".join(data.split()))

    def attributes(self, *names: str) -> list[str]:
        return [str(attributes[name]) for _, attributes in self.tags for name in names if name in attributes]

    @property
    def text(self) -> str:
        return " ".join(text for tag, texts in self.texts.items() if tag not in ("style", "script") for text in texts)


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


class Killed(FileSink):
    """The process ends before its run does."""

    def finish(self, report: Any) -> None:
        pass

    def close(self) -> None:
        pass


def watched(*sinks: Any) -> Any:
    labels = [HOSTILE if row % 2 else "plain" for row in range(48)]
    influence = Influence(data(6), labels=labels)
    observables = {"llc": PlantedLLC(), "kernel": LossKernel(labels=labels), "influence": influence}
    refinements = {HOSTILE: Refinement("net.0.*"), "last": Refinement("net.4.*")}
    return monitor(observables=observables, refinements=refinements, sinks=list(sinks) or None, every_n_train_steps=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The version folder of a whole run, and its monitor; beside it a checkpoint of step 8."""
    root = tmp_path_factory.mktemp("run")
    kept = ModelCheckpoint(root, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    live = watched()
    logger = CSVLogger(root, name="", version="whole")
    fit(live, kept, max_steps=STEPS, enable_checkpointing=True, logger=logger, log_every_n_steps=1)
    return root / "whole", live


@pytest.fixture(scope="module")
def page(run: tuple[Path, Any]) -> Page:
    return page_of(run[0] / "slt")


class TestContent:
    def test_the_story_stands_on_top(self, run: tuple[Path, Any], page: Page) -> None:
        stages = run[1].stages
        assert len(stages) == 2
        level = compact((stages[1].llc_start + stages[1].llc_end) / 2)
        assert page.texts["h1"] == [f"The LLC held until step {JUMP_AT}, then held near {level}."]
        assert page.texts["title"][0].endswith(page.texts["h1"][0])
        for stage in stages:
            assert f"steps {stage.start_step} to {stage.end_step}" in page.text
        assert f"announced at step {stages[1].announced_at_step}, " in page.text
        (jump,) = [event for event in run[1].events if type(event).__name__ == "JumpEvent"]
        told = f"The LLC jumped up by {compact(jump.delta)} at step {jump.onset_step}, told at step {jump.step}."
        assert told in page.text
        assert "What changed most there" in page.text

    def test_every_section_is_there_in_order(self, page: Page) -> None:
        sections = ["Refined LLCs", "Loss kernel", "Influence", "What changed at each boundary", "Health and cost"]
        assert page.texts["h2"] == [*sections, "Settings and versions"]

    def test_points_say_their_numbers(self, page: Page) -> None:
        told = [text for text in page.texts["title"] if text.startswith("step ")]
        for step in range(1, STEPS + 1):
            assert any(text.startswith(f"step {step}: {compact(planted(step))} ± 0.1") for text in told)

    def test_whether_it_can_be_trusted_is_said_by_the_chains(self, run: tuple[Path, Any], page: Page) -> None:
        apart = sum(one["health"]["rhat"] > 1.2 for one in run[1].history)
        assert apart > STEPS / 2, "chains of eight draws"
        assert f"The chains disagree in {apart} of {STEPS} measurements" in page.text
        assert "Do not trust these numbers yet." in page.text

    def test_settings_and_versions(self, page: Page) -> None:
        count = sum(attributes.get("scope") == "row" for _, attributes in page.tags)
        cells = dict(zip(page.texts["th"][-count:], page.texts["td"][-count:], strict=True))
        assert cells["sampler.num_chains"] == "2"
        assert cells["version of torch"] == torch.__version__.partition("+")[0] or cells["version of torch"]
        assert cells["seed"] == "0"

    def test_every_picture_and_chart_has_words(self, page: Page) -> None:
        images = [attributes for tag, attributes in page.tags if tag == "img"]
        assert {str(image["alt"]).split(",")[0] for image in images} == {"kernel/map", "influence/map"}
        assert f"kernel/map, step {STEPS}: " in " ".join(str(image["alt"]) for image in images)
        charts = [attributes for tag, attributes in page.tags if tag == "svg"]
        assert all(chart["role"] == "img" and str(chart["aria-label"]).endswith(".") for chart in charts)
        assert len(charts) > 12


class TestSections:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What no short fit has: every kind of observable, many refinements, many groups, and a chain that failed."""
        sink = FileSink(tmp_path_factory.mktemp("kinds"))
        sink.open([], {"detectors": {"slt/other/trace": [], "slt/second/mean": []}})
        for step in range(1, 7):
            x = step / 6
            taken = x if step % 2 else math.nan  # in turn
            distances = {"explained_1": 0.9, "null_1": 0.6, "distance/ridge": x, "distance/<b>": 1.0}
            results = {
                "own": {f"number{place}": x for place in range(15)},
                "behavior": {"accuracy[0]": x},
                "way": distances,
                "chi": {
                    "uniform_share": x,
                    "significant": x,
                    **{f"{a}_to_{b}": taken for a in ("code", "prose") for b in ("head0", "head1")},
                },
                "first": {"mean": x, "reference_loss": 1.0},
                "second": {"mean": step + 0.5, "stderr": 0.25, "reference_loss": 2.0, "free_energy": 100 * x},
                "coarse": {"critical_bits": 3 + x},
                "pull": {"sign_flips": 0.0, **{f"group/{place}_to_0": place * x for place in range(10)}},
                "kernel": {"effective_rank": x},
                "other": {"effective_rank": x},
                "health": {"rhat": 1.0 + x / 10, "failed_chains": 0, "stability": 0.4, "step_bias": 0.2},
                "cost": {"seconds": 2.0, "sgld_steps": 500, "overhead": 0.08, "skipped": 3},
            }
            heads = {f"h{place}": {"second": {"mean": place * x}, "num_parameters": 4} for place in range(30)}
            publish(sink, Measurement(step, results, refinements=heads))
        write_report(sink._folder)
        return sink._folder

    def test_known_kinds_come_in_their_order_and_ones_own_last(self, folder: Path) -> None:
        kernels = ["Loss kernel: kernel", "Loss kernel: other"]
        kinds = ["Influence", "Susceptibility", "Trajectory", "Compressibility", "own", "behavior", "first"]
        assert page_of(folder).texts["h2"] == [
            "Refined LLCs",
            *kernels,
            *kinds,
            "Health and cost",
            "Settings and versions",
        ]

    def test_the_llc_that_is_watched_is_the_one_on_top(self, folder: Path) -> None:
        page = page_of(folder)
        assert "step 3: 3.5 ± 0.25" in page.texts["title"]
        assert "Free energy in nats: n times the loss, and the LLC times ln n" in page.texts["span"]

    def test_numbers_of_one_plot_share_it_and_what_is_left_out_is_said(self, folder: Path) -> None:
        page = page_of(folder)
        legends = page.texts["li"]
        assert legends[legends.index("ridge") + 1] == "<b>"
        assert [f"{place} on 0" in legends for place in range(10)] == [False] * 2 + [True] * 8
        assert "the 8 of 10 that vary most" in page.texts["small"]
        assert "3 more numbers are in measurements.jsonl." in page.text
        assert "The 24 of 30 that vary most." in page.text
        assert "h29" in page.texts["span"]
        assert "h0" not in page.texts["span"]
        assert {"accuracy[0]", "number0"} <= set(page.texts["span"])

    def test_compressibility_is_told_beside_the_llc(self, folder: Path) -> None:
        told = "Rank correlation with the LLC \u201csecond\u201d over the run: critical bits 1.00"
        assert told in page_of(folder).text, "which of the two is said"

    def test_susceptibilities_have_a_chart_for_each_label_with_the_parts_on_it(self, folder: Path) -> None:
        page = page_of(folder)
        for label in ("code", "prose"):
            assert f"Mean susceptibility to {label}" in page.texts["span"]
        legends = page.texts["li"]
        assert legends[legends.index("head0") + 1] == "head1"
        lines = [str(attributes["d"]) for _, attributes in page.tags if attributes.get("class") == "line"]
        joined = [line for line in lines if line.count("M") == 1 and line.count("L") == 2]
        assert len(joined) == 4, "over the three measurements that did not take them"

    def test_health_is_told_where_there_is_something_to_tell(self, folder: Path) -> None:
        page = page_of(folder)
        assert "In 6 measurements the step size biases the LLC by more than 5 %." in page.text
        assert "Read these numbers with care." in page.text
        assert "Chains dropped" not in page.text, "none was"
        cost = "6 measurements took 12 s and 3,000 gradient steps, 8 % of the training time; "
        assert f"{cost}3 were left out for the budget." in page.text


class TestSafety:
    def test_it_asks_nothing_of_a_network(self, page: Page) -> None:
        assert page.attributes("src")
        assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
        assert all(link.startswith("#") for link in page.attributes("href", "action", "srcset", "data"))
        assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
        written = " ".join([*page.texts["style"], *page.texts["script"], *page.attributes("style")])
        assert not re.search(r"https?:|//\w|url\(|@import", written.replace("// One", ""))
        (policy,) = [content for content in page.attributes("content") if "default-src" in content]
        assert policy.startswith("default-src 'none'; img-src data:;")

    def test_names_of_a_user_are_no_markup(self, page: Page) -> None:
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert HOSTILE in page.text
        assert "alert" not in "".join(page.texts["script"])


class TestJournal:
    def test_the_lines_are_the_measurements(self, run: tuple[Path, Any]) -> None:
        rows = read_rows(run[0] / "slt")
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        read = read_folder(run[0]).report
        for one, other in zip(run[1].history, read.history, strict=True):
            assert other.results.pop("detection", {}).keys() == {"phi"}  # type: ignore[attr-defined]
            np.testing.assert_equal(other.main_scalars(), one.main_scalars())
            np.testing.assert_equal(other.refined_numbers(), one.refined_numbers())
            parts = {name: record["num_parameters"] for name, record in one.refinements.items()}
            assert {name: record["num_parameters"] for name, record in other.refinements.items()} == parts
        assert list(read.stages) == list(run[1].stages)

    def test_what_is_not_finite_is_null(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path)
        sink.open([], {"bound": math.inf})
        publish(sink, Measurement(3, {"llc": {"mean": math.nan, "stderr": math.inf}}, "all chains diverged"))
        (line,) = (tmp_path / "measurements.jsonl").read_text().splitlines()
        row = json.loads(line, parse_constant=pytest.fail)
        assert row["scalars"] == {"slt/step": 3, "slt/llc/mean": None, "slt/llc/stderr": None}
        assert row["error"] == "all chains diverged"
        assert json.loads((tmp_path / "settings.json").read_text(), parse_constant=pytest.fail)["ended"] is False

    def test_a_killed_run_leaves_a_report_of_what_there_is(self, run: tuple[Path, Any], tmp_path: Path) -> None:
        """It went on from step 8 in the folder of a run that had come to 20, and was killed at 15."""
        shutil.copytree(run[0] / "slt", tmp_path, dirs_exist_ok=True)
        fit(watched(Killed(tmp_path)), max_steps=15, ckpt_path=str(run[0].parent / "step=8.ckpt"))
        assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, 16))
        with (tmp_path / "measurements.jsonl").open("ab") as file:
            file.write(b'{"step": 16, "scal')  # in the middle of a line
        (tmp_path / "kernel" / "map-00000015.png").write_bytes(b"\x89PNG half a pict")
        assert write_report(tmp_path) == tmp_path / "report.html"
        page = page_of(tmp_path)
        assert "this is what it had recorded up to step 15" in page.text
        assert "The LLC jumped up" in page.text, "the story so far is told at events"
        told = {int(step) for alt in page.attributes("alt") for step in re.findall(r"kernel/map, step (\d+)", alt)}
        assert told == set(range(1, 15)), "no half picture, and none of the run that went on to 20"

    def test_a_resumed_run_replaces_what_it_goes_back_behind_and_in_a_new_folder_has_the_whole_story(
        self, run: tuple[Path, Any], tmp_path: Path
    ) -> None:
        same, new = tmp_path / "same", tmp_path / "new"
        shutil.copytree(run[0] / "slt", same)
        before = (same / "measurements.jsonl").read_text().splitlines()
        live = watched(FileSink(same), FileSink(new))
        fit(live, max_steps=10, ckpt_path=str(run[0].parent / "step=8.ckpt"))
        after = (same / "measurements.jsonl").read_text().splitlines()
        assert after[:8] == before[:8]
        for folder in (same, new):
            rows = read_rows(folder)
            assert [row["step"] for row in rows] == list(range(1, 11))
            for row in rows:
                assert row["scalars"].items() >= {"slt/step": row["step"], "slt/llc/mean": planted(row["step"])}.items()
            assert "The LLC jumped" not in page_of(folder).text, "which lies behind step 10"
        assert ["time" in row for row in read_rows(new)] == [False] * 8 + [True] * 2, "when is known no more"

    def test_another_run_in_the_same_folder_is_not_told_of_the_first(
        self, run: tuple[Path, Any], tmp_path: Path
    ) -> None:
        shutil.copytree(run[0] / "slt", tmp_path, dirs_exist_ok=True)
        sink = FileSink(tmp_path)
        sink.open([], {})
        publish(sink, Measurement(1, {"llc": {"mean": 1.0}}))
        assert [row["step"] for row in read_rows(tmp_path)] == [1]
        write_report(tmp_path)
        assert page_of(tmp_path).texts["h1"] == ["One measurement, too few to tell stages."]


def publish(sink: FileSink, measurement: Measurement) -> None:
    sink.publish(Publication(measurement, measurement.logged(), log_step=measurement.step - 1))


class TestFolders:
    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (None, r"but there is no folder .*gone\."),
            ("", r"lightning_logs/version_0/slt, but there is no measurements\.jsonl in .*gone\."),
            ("half a li", r"but its measurements\.jsonl has no measurement yet\."),
        ],
    )
    def test_one_without_measurements_is_refused(self, tmp_path: Path, make: str | None, told: str) -> None:
        folder = tmp_path / "gone"
        if make is not None:
            folder.mkdir()
        if make:
            (folder / "measurements.jsonl").write_text(make)
        with pytest.raises(FileNotFoundError, match=rf"Expected `folder` to be the folder of a run .*{told}"):
            write_report(folder)

    def test_the_command_takes_either_and_needs_no_extra(
        self, run: tuple[Path, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "jsonargparse", None)
        for folder in (run[0], run[0] / "slt"):
            assert main(["report", str(folder)]) == 0
            assert capsys.readouterr().out == f"The report: {run[0] / 'slt' / 'report.html'}\n"
        with pytest.raises(SystemExit, match="2"):
            main(["report", str(run[0].parent / "nothing")])
        assert "error: Expected `folder` to be the folder of a run" in capsys.readouterr().err

    def test_changes_and_their_table(self, tmp_path: Path) -> None:
        sink = FileSink(tmp_path)
        sink.open([], {})
        for step in range(1, 7):
            publish(sink, Measurement(step, {"llc": {"mean": 1.0}}))
        header = "stage,type,status,start_step,end_step,n_points,llc_start,llc_end,delta_llc,delta_llc_se,loss_start,"
        header += "loss_end,delta_loss,slope_per_log_step,evidence,announced_at_step,revised,open,changed_most\n"
        rows = ["0,plateau,final,1,3,3,1,1,0,0,nan,nan,nan,0,0,,False,False,"]
        rows += ["1,A,final,4,6,3,1,2,1,.1,3,1,-2,0,9,5,False,True,<i> up 2 (z 5.0)"]
        (tmp_path / "stages.csv").write_text(header + "\n".join(rows) + "\n")
        changes = ["stage,step,name,key,before,after,end,z", "1,4,<i>,slt/<i>/mean,1,3.14159,2,5"]
        changes += ["2,9,elsewhere,slt/b/mean,1,2,3,"]
        (tmp_path / "changes.csv").write_text("\n".join(changes) + "\n")
        write_report(tmp_path)
        page = page_of(tmp_path)
        assert "What changed most there: <i> up 2 (z 5.0)." in page.text
        assert page.texts["td"][:5] == ["4", "<i>", "1", "3.14", "5"]
        assert "elsewhere" not in page.text, "a boundary behind the last measurement is of another run"


class TestStory:
    """What is told of a run that has not ended, of numbers beside the LLC, and of one without chains."""

    def written(self, folder: Path, results: Any, events: Any = (), stages: str = "") -> Page:
        sink = Killed(folder)
        sink.open([], {"detectors": {"slt/llc/mean": [], "slt/trajectory/distance/zero": []}})
        for step in range(1, 9):
            publish(sink, Measurement(step, results))
        (folder / "events.json").write_text(json.dumps(list(events)))
        if stages:
            header = ",".join([*(field.name for field in fields(Stage)), "changed_most"])
            (folder / "stages.csv").write_text(f"{header}\n{stages}\n")
        write_report(folder)
        return page_of(folder)

    def test_a_stage_that_is_open_goes_up_to_the_last_measurement(self, tmp_path: Path) -> None:
        stage = "0,A,provisional,1,5,5,1.371,18.85,17,1,1.0979,0.94235,-1,0,0,,False,True,"
        page = self.written(tmp_path, {"llc": {"mean": 1.0}}, stages=stage)
        assert page.texts["h1"] == ["One stage: the LLC rose all the way to step 8."]
        assert "The LLC rose from 1.4 to 18.9 while the loss fell from 1.098 to 0.942." in page.texts["b"]
        assert "Shaded: the stages. A: LLC up, loss down." in page.text, "those that there are"

    def test_turns_of_other_watched_numbers_are_told_in_words(self, tmp_path: Path) -> None:
        told = {"type": "StageEvent", "kind": "announced", "key": "slt/trajectory/distance/zero", "boundary_id": 0}
        told |= {"step": 3, "detected_at": 5, "previous_step": 2, "previous_type": "B", "stage_type": "plateau"}
        told |= {"value_before": 0.4678, "value_now": 0.2661, "changed_most": "<b> up 0.16 (z 3.7)"}
        gone = told | {"boundary_id": 1, "step": 6, "detected_at": 7}
        moved = {"type": "StageEvent", "kind": "revised", "key": told["key"], "boundary_id": 0, "step": 4}
        withdrawn = moved | {"kind": "withdrawn", "boundary_id": 1, "detected_at": 8}
        jump = {"type": "JumpEvent", "key": "slt/own/x", "direction": -1, "delta": -2.5, "onset_step": 6, "step": 7}
        mine = {"type": "str", "key": "slt/own/x", "event": "it begins", "detected_at": 4}
        events = [told, gone, moved | {"detected_at": 6}, withdrawn, jump | {"detected_at": 7}, mine]
        page = self.written(tmp_path, {"llc": {"mean": 1.0}}, events)
        turns = ["Distance to zero fell until step 4, then held: 0.468 at step 2, 0.266 at step 5."]
        assert page.texts["b"] == [*turns, "Own x jumped down by 2.5 at step 6."]
        assert "What changed most there: <b> up 0.16 (z 3.7)." in page.text
        assert "units of its own noise" in page.text

    def test_many_turns_are_counted(self, tmp_path: Path) -> None:
        jump = {"type": "JumpEvent", "key": "slt/own/x", "direction": 1, "delta": 2.5, "onset_step": 6, "step": 7}
        page = self.written(tmp_path, {"llc": {"mean": 1.0}}, [jump] * 9)
        assert page.texts["b"] == ["Own x jumped up by 2.5 at step 6."] * 6 + ["3 more events in events.json."]

    def test_without_chains_nothing_is_doubted_and_a_cost_of_many_times_is_said_so(self, tmp_path: Path) -> None:
        cost = {"seconds": 1.0, "sgld_steps": 0, "overhead": 12.678, "skipped": 0}
        page = self.written(tmp_path, {"behavior": {"accuracy": 0.5}, "cost": cost, "health": {"rhat": math.nan}})
        assert "These numbers can be trusted." in page.text
        assert "No chains were needed: all of it was read at the weights themselves." in page.text
        assert "12.7 times the training time" in page.text
        assert "half the number of its weights" not in page.text, "no LLC, no word of it"


class TestCharts:
    @pytest.mark.parametrize(
        ("low", "high", "labels"),
        [
            (0, 8e-8, ["0", "2e\u22128", "4e\u22128", "6e\u22128", "8e\u22128"]),
            (0, 3e9, ["0", "1e9", "2e9", "3e9"]),
            (-2, 2, ["\u22122", "\u22121", "0", "1", "2"]),
            (0, 400_000, ["0", "100,000", "200,000", "300,000", "400,000"]),
        ],
    )
    def test_labels_stay_short(self, low: float, high: float, labels: list[str]) -> None:
        assert [tick.label for tick in Axis(low, high).ticks(4)] == labels

    def test_an_axis_has_labels_to_read_it_by_up_to_its_end(self) -> None:
        steps = np.array([1.0, 2, 5, 10, 50, 600])
        drawn = chart("own", [Curve("own", steps, np.linspace(0.99, 1.096, 6))], step_axis(steps))
        assert drawn is not None
        assert [tick.label for tick in drawn.below] == ["1", "10", "100", "600"]
        assert len(drawn.left) >= 3
        even = chart("own", [Curve("own", steps, steps)], step_axis(np.arange(1.0, 9952, 50)))
        assert even is not None
        assert len(even.below) >= 3

    @pytest.mark.parametrize(("value", "wanted"), [(0.0, (0.0, 1.0)), (0.02, (0.01, 0.03)), (-4.0, (-6.0, -2.0))])
    def test_what_does_not_change_is_a_line_across_the_middle_or_on_the_ground(self, value: float, wanted: Any) -> None:
        assert scale([Curve("own", np.arange(3.0), np.array([value, math.nan, value]))]) == wanted


class TestSize:
    def test_pictures_of_many_steps_are_thinned_evenly_and_the_page_says_so(self, tmp_path: Path) -> None:
        sink = Killed(tmp_path)
        sink.open([], {})
        noise = torch.rand(128, 128, generator=torch.Generator().manual_seed(0))
        for step in range(1, 501):
            pictures = {"kernel/map": Picture(noise, "noise")} if step <= 480 and step % 8 == 0 else {}
            results = {
                "llc": {"mean": math.sin(step), "stderr": 0.1, "reference_loss": 1 / step},
                "kernel": {"trace": 1.0},
            }
            publish(sink, Measurement(step, results, media=Media(pictures)))
        path = write_report(tmp_path)
        page = page_of(tmp_path)
        assert page.attributes("src").__len__() == 48
        assert "Of the pictures of 60 training steps, those of 48, evenly chosen, are in this page" in page.text
        shown = [int(attributes["data-step"] or 0) for _, attributes in page.tags if "data-step" in attributes]
        assert shown[0] == 8
        assert shown[-1] == 480
        assert set(np.diff(shown)) == {8, 16}
        pictured = sum(file.stat().st_size for file in (tmp_path / "kernel").iterdir()) * 48 / 60
        assert pictured * 4 / 3 < path.stat().st_size < pictured * 4 / 3 + 400_000

    def test_large_pictures_are_fewer(self, tmp_path: Path) -> None:
        sink = Killed(tmp_path)
        sink.open([], {})
        for step in range(20):
            publish(sink, Measurement(step, {}))
        (tmp_path / "own").mkdir()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000), dtype=np.uint8)).save(
            tmp_path / "own" / "map-00000000.png"
        )
        for step in range(1, 20):
            shutil.copy(tmp_path / "own" / "map-00000000.png", tmp_path / "own" / f"map-{step:08d}.png")
        shutil.copy(tmp_path / "own" / "map-00000000.png", tmp_path / "own" / "map-00000090.png")  # of another run
        recorded = read_folder(tmp_path)
        assert recorded.num_pictured == 20
        assert [frame.step for frame in recorded.frames] == evenly(20, 8)

    @pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (60, 48), (1000, 48), (9, 2)])
    def test_evenly(self, count: int, most: int) -> None:
        places = evenly(count, most)
        assert len(places) == min(count, most)
        if count:
            assert {0, count - 1} <= set(places)
            assert max(np.diff(places), default=1) - min(np.diff(places), default=1) <= 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser_the_slider_obeys_the_keyboard_and_nothing_is_complained_of(run: tuple[Path, Any]) -> None:
    with chromium() as browser:
        browser.resize(390, 844)
        browser.prefer("light")
        browser.open(run[0] / "slt" / "report.html")
        assert browser.value("document.scrollingElement.scrollWidth <= innerWidth"), "a phone need not scroll sideways"
        seen = "[document.activeElement.getAttribute('aria-valuetext'), document.querySelector('output').textContent]"
        maps = "[...document.querySelectorAll('.frames figure:not([hidden])')].map((one) => one.dataset.step)"
        browser.value("document.querySelectorAll('input')[1].focus()")
        for key, step in (("ArrowLeft", 19), ("ArrowLeft", 18), ("ArrowRight", 19), ("Home", 1), ("End", 20)):
            browser.press(key)
            assert browser.value(seen) == [f"step {step}"] * 2
            assert browser.value(maps) == [str(step)] * 2, "all sections show one step"
        assert browser.value("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        light = browser.value("getComputedStyle(document.body).backgroundColor")
        browser.prefer("dark")
        assert browser.value("getComputedStyle(document.body).backgroundColor") != light
        folded = "[...document.querySelectorAll('details')].map((one) => one.open)"
        assert set(browser.value(folded)) == {False}
        browser.value("dispatchEvent(new Event('beforeprint'))")
        assert set(browser.value(folded)) == {True}, "on paper nothing can be opened"
        browser.value("dispatchEvent(new Event('afterprint'))")
        assert set(browser.value(folded)) == {False}
        assert browser.problems == []
        assert {address.partition(":")[0] for address in browser.requests} == {"file", "data"}
