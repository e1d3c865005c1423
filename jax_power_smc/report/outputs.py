"""Problems in full: the question, and the outputs of every run, heaviest first."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_power_smc.evaluation.records import Record
from jax_power_smc.evaluation.records import weights as weights_of
from jax_power_smc.evaluation.scores import read
from jax_power_smc.report.load import ReportData

DRAWN = "drawn"
# Distinct outputs that are shown of a run, and how many of them are open from the start.
MOST_OUTPUTS, OPEN_OUTPUTS = 20, 2
# Characters that are shown at the beginning of a text and at its end.
HEAD, TAIL = 12_000, 6_000


@dataclasses.dataclass(frozen=True)
class Output:
    """Particles of one run whose tokens are the same; their number, and their weight together.

    ``mark`` is "right", "wrong" or "not graded", and ``note`` says why it was not graded. ``flags``
    are those of "drawn", "loop", "very short" and "unfinished" that apply.
    """

    weight: float
    copies: int
    tokens: int
    log_prob: float | None
    answer: str | None
    mark: str
    note: str | None
    flags: tuple[str, ...]
    text: str

    @property
    def is_drawn(self) -> bool:
        """Whether the sampler returned one of these particles."""
        return DRAWN in self.flags


@dataclasses.dataclass(frozen=True)
class RunOutputs:
    """The outputs of one run for one problem and one seed.

    ``failure`` says why the result is invalid; ``right`` is the weight of the correct answers, and
    ``answers`` counts the distinct ones among the particles of positive weight. ``first`` and
    ``more`` are the heaviest outputs, always with the drawn one: those that are open from the
    start, and those behind a click.
    """

    label: str
    failure: str | None
    drawn: Output | None
    right: float
    answers: int
    num_particles: int
    log_evidence: float | None
    first: list[Output]
    more: list[Output]
    left_out: int
    left_out_weight: float


@dataclasses.dataclass(frozen=True)
class ProblemInFull:
    """One problem with the outputs of all runs, for one of several seeds."""

    id: str
    prompt: str
    reference: str
    seed: int
    seeds: int
    runs: list[RunOutputs]
    records: list[Record]


def most_contested(data: ReportData, most: int = 3) -> list[str]:
    """Ids of the problems on which the runs disagree most, each split differently if possible."""
    right: dict[str, dict[str, list[float]]] = {}
    for item in data.items:
        by_run = right.setdefault(item.scores.item[2], {run: [] for run in data.labels})
        by_run[item.run].append(item.scores.right)
    patterns = {}
    spread = {}
    for name, by_run in right.items():
        means = {run: float(np.mean(scores)) for run, scores in by_run.items() if scores}
        patterns[name] = tuple((run, mean >= 0.5) for run, mean in means.items())
        # Problems that most runs have finished come first, then those with the widest split.
        spread[name] = (-len(means), -float(np.var(list(means.values()))))
    ordered = sorted(right, key=spread.__getitem__)
    first = list({patterns[name]: name for name in reversed(ordered)}.values())
    return sorted(ordered, key=lambda name: name not in first)[:most]


def problem_in_full(records: Sequence[Record], labels: Mapping[str, str]) -> ProblemInFull:
    """One problem from its records, at least one; only the first seed is shown.

    ``labels`` are the names of the runs in tables, in their order.
    """
    seeds = sorted({record["seed"] for record in records})
    shown = {record["run"]: record for record in records if record["seed"] == seeds[0]}
    ordered = [shown[run] for run in labels if run in shown]
    return ProblemInFull(
        id=records[0]["id"],
        prompt=shortened(records[0]["prompt"]),
        reference=shortened(_reference(records[0]["gold"])),
        seed=seeds[0],
        seeds=len(seeds),
        runs=[_outputs(record, labels[record["run"]]) for record in ordered],
        records=ordered,
    )


def shortened(text: str) -> str:
    """The text, or its two ends with a line in between that says how much is left out."""
    missing = len(text) - HEAD - TAIL
    if missing <= 0:
        return text
    return f"{text[:HEAD]}\n[... {missing:,} characters are left out here ...]\n{text[-TAIL:]}"


def _outputs(record: Record, label: str) -> RunOutputs:
    particles = record["particles"]
    weights = weights_of(record)
    same: dict[tuple[int, ...], list[int]] = {}
    for index, particle in enumerate(particles):
        same.setdefault(tuple(particle["tokens"]), []).append(index)
    groups = sorted(same.values(), key=lambda group: -math.fsum(weights[i] for i in group))
    choice = None if record["failure"] is not None else record["choice"]
    made = [_output(particles, group, weights, choice) for group in groups]
    shown = [output for rank, output in enumerate(made) if rank < MOST_OUTPUTS or output.is_drawn]
    first = [output for rank, output in enumerate(shown) if rank < OPEN_OUTPUTS or output.is_drawn]
    return RunOutputs(
        label=label,
        failure=record["failure"],
        drawn=next((output for output in made if output.is_drawn), None),
        right=read(record).right,
        answers=len({p["parsed"] for p, w in zip(particles, weights, strict=True) if w > 0}),
        num_particles=len(particles),
        log_evidence=record["log_evidence"],
        first=first,
        more=[output for output in shown if output not in first],
        left_out=len(made) - len(shown),
        left_out_weight=max(0.0, 1.0 - math.fsum(o.weight for o in shown)) if particles else 0.0,
    )


def _output(
    particles: Sequence[Record], group: Sequence[int], weights: Sequence[float], choice: int | None
) -> Output:
    particle = particles[group[0]]
    flags = {
        DRAWN: choice in group,
        "loop": particle["loop"],
        "very short": particle["very_short"],
        "unfinished": not particle["finished"],
    }
    mark = "right" if particle["correct"] else "wrong"
    return Output(
        weight=math.fsum(weights[i] for i in group),
        copies=len(group),
        tokens=len(particle["tokens"]),
        log_prob=particle["log_prob"],
        answer=particle["parsed"],
        mark=mark if particle["note"] is None else "not graded",
        note=particle["note"],
        flags=tuple(name for name, applies in flags.items() if applies),
        text=shortened(particle["text"]),
    )


def _reference(gold: Any) -> str:
    if isinstance(gold, str):
        return gold
    if isinstance(gold, Mapping):  # such as the parts of a programming problem
        return "\n".join(f"{name}:\n{_reference(value)}" for name, value in gold.items())
    return json.dumps(gold, ensure_ascii=False)
