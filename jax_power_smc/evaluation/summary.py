"""From the scores of all items to the table: accuracies, intervals, costs and comparisons."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_power_smc.evaluation.conditions import Scope
from jax_power_smc.evaluation.intervals import accuracy_interval, difference_interval
from jax_power_smc.evaluation.scores import ANSWERS, Answer, ItemScores
from jax_power_smc.samplers import Ancestral, Sampler


@dataclasses.dataclass(frozen=True)
class Run:
    """One sampler on all problems, with all seeds: its key in the config, and name in tables."""

    name: str
    label: str
    sampler: Sampler

    @property
    def has_weights(self) -> bool:
        """Whether its particles are a weighted sample of the target; else they are independent."""
        return self.sampler.has_evidence

    def method(self, answer: Answer) -> str:
        """The name of this answer's line in the table."""
        return self.label + {"draw": "", "vote": ", vote", "best": ", best by log p"}[answer]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers that its particles give; a single particle gives one."""
        return ANSWERS if self.sampler.num_particles > 1 else ("draw",)


class _RunScores:
    """The scores of one run on the problems that it has finished with all seeds."""

    def __init__(self, run: Run, items: Mapping[tuple[str, int], ItemScores], ids: Sequence[str]):
        self.run, self.ids = run, ids
        seeds = sorted({seed for _, seed in items})
        self.by_problem = {name: [items[name, seed] for seed in seeds] for name in ids}
        self.all = list(itertools.chain.from_iterable(self.by_problem.values()))
        seconds = [item.seconds["prefill"] + item.seconds["decode"] for item in self.all]
        self.seconds = sum(seconds) / len(seconds)

    def values(self, value: Callable[[ItemScores], float], ids: Sequence[str] | None = None) -> Any:
        """[problems, seeds], of these problems; None for all."""
        chosen = [self.by_problem[name] for name in (self.ids if ids is None else ids)]
        return np.array([[value(item) for item in items] for items in chosen], np.float64)

    def correct(self, answer: Answer, ids: Sequence[str] | None = None) -> Any:
        """[problems, seeds], whether this answer is correct."""
        return self.values(lambda item: item.answers[answer].correct, ids)

    def mean(self, value: Callable[[ItemScores], float | None]) -> float | None:
        """Over all items that have not failed and have such a value."""
        values = [value(item) for item in self.all if not item.failed]
        known = [x for x in values if x is not None]
        return float(np.mean(known)) if known else None


def summarize(
    scores: Sequence[ItemScores],
    runs: Sequence[Run],
    ids: Sequence[str],
    seeds: Sequence[int],
    alpha: float,
    device: str,
) -> dict[str, Any]:
    """The content of summary.json, and of the tables.

    Of each run, only problems finished with all seeds count, and a run without any is left out;
    differences are over the problems that both runs have. The runs are in the order of the table;
    ``ids`` are those of all problems.
    """
    tables = [table for run in runs if (table := _finished(run, scores, ids, seeds)) is not None]
    scope = Scope([run.name for run in runs], seeds, ids)
    # Plain decoding, whose cost is the unit of "multiple".
    base = next((t.seconds for t in tables if t.run.sampler == Ancestral(1.0)), None)
    return {
        "device": device,
        "problems": len(ids),
        "seeds": list(seeds),
        "complete": not scope.missing(each.item for each in scores),
        "rows": [
            _row(table, answer, alpha, base) for table in tables for answer in table.run.answers
        ],
        "pass_at_k": [row for table in tables for row in _pass_at_k(table)],
        "comparisons": _comparisons(tables),
        "compile_seconds": sum(r.seconds["compile"] for r in scores),
    }


def _finished(
    run: Run, scores: Sequence[ItemScores], ids: Sequence[str], seeds: Sequence[int]
) -> _RunScores | None:
    own = {(r.item[2], r.item[1]): r for r in scores if r.item[0] == run.name}
    complete = [name for name in ids if all((name, seed) in own for seed in seeds)]
    return _RunScores(run, own, complete) if complete else None


def _row(table: _RunScores, answer: Answer, alpha: float, base: float | None) -> dict[str, Any]:
    run = table.run
    accuracy, low, high = accuracy_interval(table.correct(answer))
    model_tokens = table.mean(lambda r: r.model_tokens)
    length = max(float(np.mean([r.draw_length for r in table.all])), 1.0)
    return {
        "run": run.name,
        "method": run.method(answer),
        "answer": answer,
        "sampler": type(run.sampler).__name__,
        "num_particles": run.sampler.num_particles,
        "alpha": alpha,
        "temperature": run.sampler.token_temperature(alpha),
        "problems": len(table.ids),
        "accuracy": accuracy,
        "ci95": [low, high],
        "accuracy_string": float(table.values(lambda r: r.answers[answer].correct_string).mean()),
        "mean_log_prob": table.mean(lambda r: r.answers[answer].log_prob),
        "log_evidence": table.mean(lambda r: r.log_evidence),
        "failed": sum(r.failed for r in table.all),
        "ungraded": sum(r.ungraded for r in table.all),
        "degenerate": float(table.values(lambda r: r.degenerate).mean()),
        "tokens_per_problem": float(np.mean([r.tokens for r in table.all])),
        "model_tokens_per_problem": model_tokens,
        "model_tokens_per_token": None if model_tokens is None else model_tokens / length,
        "seconds_per_problem": table.seconds,
        "multiple": None if not base else table.seconds / base,
    }


def _pass_at_k(table: _RunScores) -> list[dict[str, Any]]:
    """For k = 1, 2, 4, ... and N."""
    run, num = table.run, table.run.sampler.num_particles
    powers = (2**i for i in range(num.bit_length()))
    rows = []
    for k in sorted({num, *powers}) if num > 1 else ():
        passed = functools.partial(ItemScores.pass_at, k=k, independent=not run.has_weights)
        value, low, high = accuracy_interval(table.values(passed))
        row = {"run": run.name, "method": run.label, "k": k, "value": value, "ci95": [low, high]}
        rows.append(row)
    return rows


def _comparisons(tables: Sequence[_RunScores]) -> list[dict[str, Any]]:
    """Paired differences of each weighted sampler's draw.

    They are to every answer of the other samplers, and to the draws of earlier weighted ones.
    """
    pairs = []
    others = [(t, answer) for t in tables if not t.run.has_weights for answer in t.run.answers]
    for ours in tables:
        if not ours.run.has_weights:
            continue
        for theirs, answer in others:
            known = set(theirs.ids)
            shared = [name for name in ours.ids if name in known]
            if not shared:
                continue
            difference, low, high = difference_interval(
                ours.correct("draw", shared) - theirs.correct(answer, shared)
            )
            pairs.append(
                {
                    "method": ours.run.method("draw"),
                    "against": theirs.run.method(answer),
                    "problems": len(shared),
                    "difference": difference,
                    "ci95": [low, high],
                }
            )
        others.append((ours, "draw"))
    return pairs
