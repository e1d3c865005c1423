"""The report as one self-contained HTML page: no network, no script, no other file.

All text of models and data sets passes through ``visible`` and then the template's escaping.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jax_power_smc.core.sanitize import visible
from jax_power_smc.report import formatting, quality_flags
from jax_power_smc.report.job_status import JobStatus
from jax_power_smc.report.load import ReportData
from jax_power_smc.report.outputs import ProblemInFull
from jax_power_smc.report.summary_rows import comparisons, run_summaries
from jax_power_smc.report.summary_tables import comparison_table, notes, results, went_wrong

_TEMPLATE = "page.html.j2"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A rendered plot."""

    title: str
    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


class ProblemSection(NamedTuple):
    """A problem in full, with its pictures."""

    problem: ProblemInFull
    pictures: Sequence[Picture]


def render(
    data: ReportData,
    status: JobStatus,
    pictures: Sequence[Picture],
    problems: Sequence[ProblemSection],
) -> str:
    """The page, which can be encoded in UTF-8; the tables are of the summary in the status."""
    summary = status.summary
    runs = [] if summary is None else run_summaries(summary)
    pairs = None if summary is None else comparisons(summary)
    config = data.about["config"]
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(
            model=config["model"],
            task=config["task"],
            dry_run=config["dry_run"],
            facts=_facts(data, status),
            status=status,
            summary=summary,
            results=results(runs, status.problems) if runs else None,
            notes=notes(runs, summary) if summary is not None and runs else [],
            went_wrong=went_wrong(runs),
            comparisons=comparison_table(pairs, pairs.methods, problems=status.problems)
            if pairs and pairs.cells
            else None,
            pictures=pictures,
            problems=problems,
            shown={section.problem.id: n for n, section in enumerate(problems, start=1)},
            degenerate=quality_flags.degenerate(data),
            failures=quality_flags.failures(data),
            ungraded=quality_flags.ungraded(data),
            seeds=config["seeds"],
            config=json.dumps(config, indent=2, ensure_ascii=False),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jax_power_smc.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_sanitized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for form in (formatting.percent, formatting.share, formatting.fixed):
        environment.filters[form.__name__] = form
    return environment


def _sanitized(value: Any) -> Any:
    """Applied to every value that the template prints."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _facts(data: ReportData, status: JobStatus) -> list[tuple[str, str]]:
    about, config = data.about, data.about["config"]
    seeds = ", ".join(map(str, config["seeds"]))
    facts = [
        ("Model", _model(config)),
        ("Task", str(config["task"]) + (f", {config['data']}" if config["data"] else "")),
        ("Problems", f"{status.problems:,}" + ("" if status.planned else " seen so far")),
        ("Seeds" if len(config["seeds"]) > 1 else "Seed", seeds),
        ("Target", f"p^{config['alpha']:g}, at most {config['max_new_tokens']:,} new tokens"),
        ("Device", str(about["device"])),
        ("Job", status.text),
        ("Config", str(about["hash"])),
    ]
    if about.get("decided"):
        facts.insert(1, ("Prompts", f"{about['decided']}; date {about['date']}"))
    if about.get("started"):
        facts.insert(-1, ("Started", str(about["started"])))
    grading = about["conditions"]["grading"]
    if grading["kind"] == "code":
        facts.insert(-1, ("Code written by the model", _CODE[grading["code_isolation"]]))
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [*facts, ("Versions", versions)]


_CODE = {
    "bubblewrap": "ran isolated, by bubblewrap",
    "none": "ran without isolation (code_isolation=none)",
}


def _model(config: dict[str, Any]) -> str:
    parts = (config["model"], config["revision"], config["dtype"])
    return ", ".join(str(part) for part in parts if part)
