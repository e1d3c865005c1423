"""How far a job is, and its summary up to there."""

import dataclasses
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jax_power_smc.evaluation import job_config
from jax_power_smc.evaluation.summary import Run, summarize
from jax_power_smc.report.load import ReportData


@dataclasses.dataclass(frozen=True)
class State:
    """What is there of a job.

    Attributes:
      summary: as in summary.json, of all items that are finished now; None if the config is that
        of another version and the job never got to write one.
      done: items that are finished.
      planned: items of the whole job; None where nothing says so.
      problems: of the whole job; where nothing says so, those that were seen.
    """

    summary: dict[str, Any] | None
    done: int
    planned: int | None
    problems: int

    @property
    def is_complete(self) -> bool:
        """Whether all items are finished."""
        return self.done == self.planned

    @property
    def text(self) -> str:
        """For people."""
        if self.is_complete:
            return f"finished: {self.done:,} items"
        if self.planned is None:
            return f"not finished: {self.done:,} items so far"
        return f"not finished: {self.done:,} of {self.planned:,} items"


def state_of(data: ReportData) -> State:
    """Reads off a job how far it is, and sums up what an unfinished one has done since."""
    config, held = data.about["config"], data.summary
    ids = list(dict.fromkeys(item.reading.item[2] for item in data.items))
    problems = data.about.get("num_problems") or (held or {}).get("problems")
    per_problem = len(data.labels) * len(config["seeds"])
    done = len(data.items)
    planned = None if problems is None else problems * per_problem
    if held is None or not held["complete"]:
        held = _summarized(data, ids) or held
        if held is not None:
            size = max(problems or 0, len(ids))
            held = held | {"problems": size, "complete": done == planned}
    return State(held, done, planned, problems or len(ids))


def _summarized(data: ReportData, ids: list[str]) -> dict[str, Any] | None:
    try:
        config = ConfigDict(data.about["config"])
        samplers = job_config.samplers(config)
        runs = [Run(name, data.labels[name], sampler) for name, sampler in samplers.items()]
        alpha, seeds = float(config.alpha), list(config.seeds)
    # Whatever is missing, or unknown, in the config that another version wrote.
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("The config cannot be read, so there is no new summary: %s", error)
        return None
    readings = [item.reading for item in data.items]
    return summarize(readings, runs, ids, seeds, alpha, data.about["device"])
