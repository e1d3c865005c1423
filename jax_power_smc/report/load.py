"""What the pictures need of an evaluation: one pass over the records that keeps numbers only.

The records of a large job are gigabytes of tokens and texts. Per item this holds some scalars, two
small arrays of steps and one number per particle; the few problems that are shown in full are read
in a second pass (``in_full``).
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from jax_power_smc.evaluation import claim, conditions, store
from jax_power_smc.evaluation.records import Record
from jax_power_smc.evaluation.scores import ItemScores, read


@dataclasses.dataclass(frozen=True)
class Item:
    """One problem, sampled by one run with one seed.

    Attributes:
      reading: how its answers were judged, its evidence and its cost; ``reading.item`` names it.
      ess: [steps], effective sample size.
      forks: [steps], particles that took over another one's past.
      lengths: [N], tokens of each particle of positive weight.
      weights: [N], of the same, in all 1.
      distinct_roots, coalescence: as in ``SampleInfo``.
      loops, very_short: weight of such particles.
      unfinished: weight of those that reached the cap.
      notes: why particles could not be judged, each once.
      failure: why the whole result means nothing, or None.
    """

    reading: ItemScores
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
        return self.reading.item[0]


@dataclasses.dataclass(frozen=True)
class ReportData:
    """An evaluation, finished or not.

    Attributes:
      workdir: where it lies.
      about: config.json: the config with its hash, labels of the runs, device and versions.
      summary: summary.json, or None if the job has not come so far.
      items: what is finished.
    """

    workdir: epath.Path
    about: dict[str, Any]
    summary: dict[str, Any] | None
    items: list[Item]

    @property
    def labels(self) -> dict[str, str]:
        """Run -> what tables call it, in the order of the table."""
        return self.about["labels"]

    def of(self, run: str) -> list[Item]:
        """The items of a run."""
        return [item for item in self.items if item.run == run]


def read_report(workdir: epath.Path) -> ReportData:
    """Reads what a job has written so far.

    Raises:
      ValueError: if there is no job, none of its items is finished, a file is damaged, or a record
        was made under other conditions than the job has.
    """
    about = claim.read_config(workdir)
    if about is None:
        raise ValueError(f"{os.fspath(workdir)} is not the workdir of an evaluation.")
    items = [_item(record) for record in _records(workdir, about)]
    if not items:
        raise ValueError(f"{os.fspath(workdir)} holds no finished item yet.")
    return ReportData(workdir, about, store.read_json(workdir / "summary.json"), items)


def in_full(workdir: epath.Path, ids: Iterable[str]) -> dict[str, list[Record]]:
    """The job's records of some problems, by problem id, in the order of ``ids``."""
    found: dict[str, list[Record]] = {name: [] for name in ids}
    about = claim.read_config(workdir)
    assert about is not None
    for record in _records(workdir, about):
        if record["id"] in found:
            found[record["id"]].append(record)
    return found


def _records(workdir: epath.Path, about: dict[str, Any]) -> Iterator[Record]:
    """Those within the scope of the job's latest start, all made as config.json says."""
    place = os.fspath(workdir)
    conditions.check_version(about, place)
    return conditions.checked(
        store.read_records(workdir),
        conditions.conditions_of(about),
        conditions.scope_of(about),
        place,
    )


def _item(record: Record) -> Item:
    info = record["info"]
    alive = [p for p in record["particles"] if p["log_weight"] is not None]
    weights = np.exp([p["log_weight"] for p in alive])
    weights = weights / weights.sum() if alive else weights
    flags = {name: np.array([p[name] for p in alive], bool) for name in ("loop", "very_short")}
    finished = np.array([p["finished"] for p in alive], bool)
    return Item(
        reading=read(record),
        ess=np.array(info["ess"], np.float32),
        forks=np.array(info["forks"], np.int32),
        lengths=np.array([len(p["tokens"]) for p in alive], np.int32),
        weights=weights,
        distinct_roots=info["distinct_roots"],
        coalescence=info["coalescence"],
        loops=float(weights[flags["loop"]].sum()),
        very_short=float(weights[flags["very_short"]].sum()),
        unfinished=float(weights[~finished].sum()),
        notes=tuple(dict.fromkeys(p["note"] for p in alive if p["note"] is not None)),
        failure=record["failure"],
    )
