"""The progress of a job, and a summary of what is finished."""

import dataclasses
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jax_power_smc.evaluation import job_config
from jax_power_smc.evaluation.summary import Run, summarize
from jax_power_smc.report.load import ReportData


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """The progress of a job in items.

    ``summary`` is as in summary.json, of all items that are finished now; None if this version
    cannot read the config and the job has not written one. ``problems`` are those of the whole job;
    if their number is unknown, and with it that of the planned items, those seen so far.
    """

    summary: dict[str, Any] | None
    done: int
    planned: int | None
    problems: int

    @property
    def is_complete(self) -> bool:
        return self.done == self.planned

    @property
    def text(self) -> str:
        if self.is_complete:
            return f"finished: {self.done:,} items"
        if self.planned is None:
            return f"not finished: {self.done:,} items so far"
        return f"not finished: {self.done:,} of {self.planned:,} items"


def status_of(data: ReportData) -> JobStatus:
    """The status of a job; an unfinished one gets a new summary of its items so far."""
    summary, done = data.summary, len(data.items)
    ids = list(dict.fromkeys(item.scores.item[2] for item in data.items))
    problems = data.about.get("num_problems") or (summary or {}).get("problems")
    per_problem = len(data.labels) * len(data.about["config"]["seeds"])
    planned = None if problems is None else problems * per_problem
    if summary is None or not summary["complete"]:
        summary = _summary_so_far(data, ids) or summary
        if summary is not None:
            size = max(problems or 0, len(ids))
            summary = summary | {"problems": size, "complete": done == planned}
    return JobStatus(summary, done, planned, problems or len(ids))


def _summary_so_far(data: ReportData, ids: list[str]) -> dict[str, Any] | None:
    try:
        config = ConfigDict(data.about["config"])
        samplers = job_config.samplers(config)
        runs = [Run(name, data.labels[name], sampler) for name, sampler in samplers.items()]
        alpha, seeds = float(config.alpha), list(config.seeds)
    # Fields may be missing or unknown in a config that another version wrote.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("The config cannot be read, so there is no new summary: %s", error)
        return None
    scores = [item.scores for item in data.items]
    return summarize(scores, runs, ids, seeds, alpha, data.about["device"])
