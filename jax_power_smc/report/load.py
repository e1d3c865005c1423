"""Reads an evaluation for the report: one pass over the records, which keeps numbers only.

The records of a large job are gigabytes of tokens and texts. For each item this keeps a few
scalars, two small arrays over steps and two over particles. Which problems are shown in full
depends on all records, so those few are read in a second pass (``read_problems``).
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from jax_power_smc.evaluation import claim, conditions, store
from jax_power_smc.evaluation.records import Record, weights
from jax_power_smc.evaluation.scores import ItemScores, read


@dataclasses.dataclass(frozen=True)
class ItemSummary:
    """One problem, sampled by one run with one seed.

    Attributes:
      scores: how its answers were judged, its evidence and cost; ``scores.item`` identifies it.
      ess, forks: [steps], as in ``SampleInfo``.
      lengths: [N], tokens of each particle of positive weight.
      weights: [N], of the same particles; they sum to 1.
      distinct_roots, coalescence: as in ``SampleInfo``.
      loops, very_short, unfinished: weight of the particles that end in a loop, that are only a
        token or two long, and that reached the cap.
      notes: why particles could not be graded, without repetition.
      failure: why the whole result is invalid, or None.
    """

    scores: ItemScores
    ess: np.ndarray
    forks: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray
    distinct_roots: int
    coalescence: int
    loops: float
    very_short: float
    unfinished: float
    notes: tuple[str, ...]
    failure: str | None

    @property
    def run(self) -> str:
        """Name of the sampler in the config."""
        return self.scores.item[0]


@dataclasses.dataclass(frozen=True)
class ReportData:
    """An evaluation, finished or not: config.json, summary.json if there is one, finished items."""

    workdir: epath.Path
    about: dict[str, Any]
    summary: dict[str, Any] | None
    items: list[ItemSummary]

    @property
    def labels(self) -> dict[str, str]:
        """Run -> its name in tables, in their order."""
        return self.about["labels"]

    def items_of(self, run: str) -> list[ItemSummary]:
        return [item for item in self.items if item.run == run]

    def valid_items(self, field: str) -> dict[str, list[ItemSummary]]:
        """Run -> its valid items in which this array is not empty, for runs that have any."""
        found = {
            run: [i for i in self.items_of(run) if i.failure is None and len(getattr(i, field))]
            for run in self.labels
        }
        return {run: items for run, items in found.items() if items}


def read_report(workdir: epath.Path) -> ReportData:
    """Reads what a job has written so far.

    Raises:
      ValueError: if there is no job, none of its items is finished, a file is damaged, or a record
        was made under conditions other than the job's.
    """
    about = claim.read_config(workdir)
    if about is None:
        raise ValueError(f"{os.fspath(workdir)} is not the workdir of an evaluation.")
    items = [_item(record) for record in _records(workdir, about)]
    if not items:
        raise ValueError(f"{os.fspath(workdir)} holds no finished item yet.")
    return ReportData(workdir, about, store.read_json(workdir / "summary.json"), items)


def read_problems(data: ReportData, ids: Iterable[str]) -> dict[str, list[Record]]:
    """The job's full records of some problems, by problem id, in the order of ``ids``."""
    found: dict[str, list[Record]] = {name: [] for name in ids}
    for record in _records(data.workdir, data.about):
        if record["id"] in found:
            found[record["id"]].append(record)
    return found


def _records(workdir: epath.Path, about: dict[str, Any]) -> Iterator[Record]:
    """Those in the scope of the job's latest start, checked against config.json."""
    path = os.fspath(workdir)
    conditions.check_version(about, path)
    claim.check_hash(workdir, about)
    wanted = conditions.conditions_of(about), conditions.scope_of(about)
    return conditions.checked(store.read_records(workdir), *wanted, path)


def _item(record: Record) -> ItemSummary:
    info = record["info"]
    alive = [
        (particle, weight)
        for particle, weight in zip(record["particles"], weights(record), strict=True)
        if particle["log_weight"] is not None
    ]

    def weight_of(is_counted: Callable[[Record], bool]) -> float:
        return math.fsum(weight for particle, weight in alive if is_counted(particle))

    return ItemSummary(
        scores=read(record),
        ess=np.array(info["ess"], np.float32),
        forks=np.array(info["forks"], np.int32),
        lengths=np.array([len(particle["tokens"]) for particle, _ in alive], np.int32),
        weights=np.array([weight for _, weight in alive]),
        distinct_roots=info["distinct_roots"],
        coalescence=info["coalescence"],
        loops=weight_of(lambda particle: particle["loop"]),
        very_short=weight_of(lambda particle: particle["very_short"]),
        unfinished=weight_of(lambda particle: not particle["finished"]),
        notes=tuple(dict.fromkeys(p["note"] for p, _ in alive if p["note"] is not None)),
        failure=record["failure"],
    )
