"""The report as one HTML page that needs nothing else: no network, no script, no other file.

Texts of models and data sets go through the template's escaping, and before that through
``visible``; there is no other way onto the page.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from jax_power_smc.report import formatting, quality_flags
from jax_power_smc.report.footnotes import notes, went_wrong
from jax_power_smc.report.job_status import State
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.outputs import ProblemInFull
from jax_power_smc.report.sanitize import visible
from jax_power_smc.report.summary_rows import comparisons, run_rows

_TEMPLATE = "page.html.j2"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot that is drawn.

    Attributes:
      title, caption: what it shows.
      png: the file.
    """

    title: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as an address that holds all of it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclasses.dataclass(frozen=True)
class ProblemSection:
    """A problem in full, with the pictures of it."""

    problem: ProblemInFull
    pictures: Sequence[Picture]


def render(
    data: ReportData, state: State, pictures: Sequence[Picture], problems: Sequence[ProblemSection]
) -> str:
    """The page, which is valid UTF-8 when encoded.

    Args:
      data: the evaluation.
      state: how far it is, with the summary that the table is made of.
      pictures: of all problems together.
      problems: those that are shown in full.
    """
    summary = state.summary
    rows = [] if summary is None else run_rows(summary)
    config = data.about["config"]
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            model=config["model"],
            task=config["task"],
            dry_run=config["dry_run"],
            facts=_facts(data, state),
            state=state,
            summary=summary,
            rows=rows,
            notes=notes(rows, summary) if summary is not None and rows else [],
            went_wrong=went_wrong(rows),
            show=_columns(rows, state),
            comparisons=None if summary is None else comparisons(summary),
            pictures=pictures,
            problems=problems,
            shown={section.problem.id: n for n, section in enumerate(problems, start=1)},
            degenerate=quality_flags.degenerate(data),
            failures=quality_flags.failures(data),
            not_graded=quality_flags.not_graded(data),
            seeds=config["seeds"],
            config=json.dumps(config, indent=2, ensure_ascii=False),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jax_power_smc.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent,
        "share": formatting.share,
        "percent_interval": formatting.percent_interval,
        "points": formatting.points,
        "points_interval": formatting.points_interval,
        "count": formatting.count,
        "three_digits": formatting.three_digits,
        "fixed": lambda value, digits: formatting.NONE if value is None else f"{value:.{digits}f}",
    }
    return environment


def _finalized(value: Any) -> Any:
    """Every text that the template puts out, whatever it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _columns(rows: Sequence[Any], state: State) -> dict[str, bool]:
    """Columns of the table that are not always of use."""
    return {
        "problems": any(row.problems != state.problems for row in rows),
        "by_strings": any(
            abs(row.figures["accuracy_string"] - row.draw.value) > 1e-9 for row in rows
        ),
        "evidence": any(row.figures["log_evidence"] is not None for row in rows),
    }


def _facts(data: ReportData, state: State) -> list[tuple[str, str]]:
    """The headline."""
    about, config = data.about, data.about["config"]
    seeds = ", ".join(map(str, config["seeds"]))
    facts = [
        ("Model", _model(config)),
        ("Task", str(config["task"]) + (f", {config['data']}" if config["data"] else "")),
        ("Problems", f"{state.problems:,}" + ("" if state.planned else " seen so far")),
        ("Seeds" if len(config["seeds"]) > 1 else "Seed", seeds),
        ("Target", f"p^{config['alpha']:g}, at most {config['max_new_tokens']:,} new tokens"),
        ("Device", str(about["device"])),
        ("Job", state.text),
        ("Config", str(about["hash"])),
    ]
    if about.get("decided"):
        facts.insert(1, ("Prompts", f"{about['decided']}; date {about['date']}"))
    if about.get("started"):
        facts.insert(-1, ("Started", str(about["started"])))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [*facts, ("Versions", versions)]


def _model(config: dict[str, Any]) -> str:
    parts = (config["model"], config["revision"], config["dtype"])
    return ", ".join(str(part) for part in parts if part)
