"""The report of a run as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from slt_callbacks.figures.charts import compact, step_axis
from slt_callbacks.figures.kinds import COST, HEALTH
from slt_callbacks.figures.overview import overview
from slt_callbacks.figures.recorded import Recorded
from slt_callbacks.figures.sections import cost_in_words, observed, plotted, rows_of
from slt_callbacks.figures.telling import headline, jumps_told, others_told, stages_told, trust
from slt_callbacks.figures.watched import llc_key

_TEMPLATES = Path(__file__).parent / "templates"


def page(recorded: Recorded) -> str:
    """A whole HTML document: every style, script and picture is in it, and it asks nothing of a network.

    Names that come from the user are escaped, and a content security policy lets no other script run than its own.

    Args:
        recorded: The run; at least one measurement.

    Example:
        >>> from slt_callbacks import Measurement
        >>> from slt_callbacks.figures.report import Report
        >>> history = [Measurement(step, {"llc": {"mean": 2.0, "reference_loss": 0.5}}) for step in (10, 20)]
        >>> html = page(Recorded("a <b>run</b>", Report(history, observable="llc")))
        >>> "<h1>2 measurements, too few to tell stages.</h1>" in html, "a &lt;b&gt;run&lt;/b&gt;" in html
        (True, True)
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    environment.filters["compact"] = lambda text: compact(float(text or "nan"))
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("report.html").render(
        **_content(recorded),
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # our own files
        script=Markup(script),
        script_digest=digest,
    )


def _content(recorded: Recorded) -> dict[str, Any]:
    report = recorded.report
    history = report.history
    steps = np.array([one.step for one in history], dtype=float)
    axis, key = step_axis(steps), llc_key(report)
    stages = stages_told(report, recorded.changed, int(steps[-1]))
    others = others_told(report)
    shown = sorted({frame.step for frame in recorded.frames})
    return {
        "run": recorded,
        "headline": headline(report),
        "trust": trust(history, key),
        "stages": stages,
        "jumps": jumps_told(report),
        "others": others,
        "changed_most": any(told.changed for told in stages) or any(told.changed for told in others),
        "last_step": history[-1].step,
        **overview(report, stages, axis),
        "sections": observed(history, recorded.frames, axis, without=[key] if key else [], llc=key),
        "slider_steps": shown,
        "slider_places": axis.place(np.array(shown, dtype=float)).round(4).tolist(),
        "health": plotted(rows_of(history, "health"), HEALTH, axis, zeros=False),
        "cost": plotted(rows_of(history, "cost"), COST, axis, zeros=False),
        "cost_told": cost_in_words(history),
        "settings": list(_flat({name: value for name, value in recorded.config.items() if name != "refinements"})),
        "refinement_settings": list(_flat(recorded.config.get("refinements") or {})),
    }


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
