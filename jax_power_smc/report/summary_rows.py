"""The content of summary.json by run, and its comparisons by pair."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Summary = Mapping[str, Any]
# Samplers with weighted particles, which are compared with all others.
WEIGHTED = ("PowerSMC", "WithoutReplacement")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A share in [0, 1], or a difference of two shares, with its 95% interval."""

    value: float
    ends: tuple[float, float]
    # Of a difference: those that both runs have.
    problems: int = 0

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.ends[0] > 0 or self.ends[1] < 0


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """All answers of one run.

    ``accuracy`` is by answer; for N = 1 there is only the draw, and no ``pass_at_n``, the share of
    problems that at least one of N answers solves. ``figures`` is the draw's row in the summary.
    """

    label: str
    accuracy: dict[str, Estimate]
    pass_at_n: Estimate | None
    figures: Mapping[str, Any]

    @property
    def is_plain(self) -> bool:
        """Whether this is plain decoding, the unit of the costs."""
        row = self.figures
        kind = row["sampler"], row["temperature"], row["num_particles"]
        return kind == ("Ancestral", 1, 1)


def run_summaries(summary: Summary) -> list[RunSummary]:
    """One entry for every run with a finished problem, in the order of the summary."""
    by_run: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in summary["rows"]:
        by_run.setdefault(row["run"], {})[row["answer"]] = row
    passed = {(row["run"], row["k"]): row for row in summary["pass_at_k"]}
    made = []
    for run, answers in by_run.items():
        draw = answers["draw"]
        last = passed.get((run, draw["num_particles"]))
        accuracy = {name: _estimate(row["accuracy"], row["ci95"]) for name, row in answers.items()}
        pass_at_n = None if last is None else _estimate(last["value"], last["ci95"])
        made.append(RunSummary(draw["method"], accuracy, pass_at_n, draw))
    return made


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """Paired differences of accuracy, by (method, against): the method's minus that of the other.

    The methods are samplers with weighted particles, whose draw is compared.
    """

    methods: list[str]
    against: list[str]
    cells: dict[tuple[str, str], Estimate]


def comparisons(summary: Summary, main_only: bool = False) -> Comparisons:
    """All differences in the summary.

    ``main_only`` leaves out those that add little: with greedy decoding, with temperatures other
    than 1 and 1 / alpha, and with the draw from several plain samples.
    """
    rows = {row["method"]: row for row in summary["rows"]}
    cells = {}
    for pair in summary["comparisons"]:
        if not main_only or _is_main(rows[pair["against"]], rows.values()):
            key = pair["method"], pair["against"]
            cells[key] = _estimate(pair["difference"], pair["ci95"], pair["problems"])
    return Comparisons(
        methods=list(dict.fromkeys(method for method, _ in cells)),
        # In the order of the summary's rows.
        against=[name for name in rows if any(name == against for _, against in cells)],
        cells=cells,
    )


def _is_main(row: Mapping[str, Any], rows: Sequence[Any] | Any) -> bool:
    if row["sampler"] != "Ancestral":
        return row["sampler"] in WEIGHTED or row["answer"] == "draw"
    if row["num_particles"] > 1 and row["answer"] != "draw":
        return True
    plain = [r for r in rows if r["sampler"] == "Ancestral" and r["answer"] == "draw"]
    usual = np.array([1.0, 1 / row["alpha"]])
    chosen = [r for r in plain if np.isclose(r["temperature"], usual, 1e-6, 0.0).any()] or plain
    single = [r for r in chosen if r["num_particles"] == 1] or chosen
    return row in single


def _estimate(value: float, ends: Sequence[float], problems: int = 0) -> Estimate:
    # The bootstrap is computed in float32; less than its precision is not a difference from 0.
    low, high = (round(end, 6) + 0.0 for end in ends)
    return Estimate(value, (low, high), problems)
