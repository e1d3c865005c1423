"""Small evaluations and records, made by hand, for the pictures."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from jax_power_smc.evaluation.scores import AnswerScore, ItemScores
from jax_power_smc.report.load import ItemSummary, ReportData

# What no picture may choke on, or read as a formula.
HOSTILE = (
    r"$\frac{1}{$ a_b^{",
    "$x$ and $y$",
    "\ud800 lone",
    "\u202eright to left",
    "bell\x07 null\x00 escape\x1b[31m",
    "two\nlines\tand\u2028more",
    "x" * 10_000,
    "\u4e2d\u6587\u7b54\u6848" * 20,
    "\N{GRINNING FACE}\N{NAZAR AMULET} e\u0301\u0301\u0301\u0301",
    "",
    "%s {0} \\",
)


def smc(num_particles: int, **values: Any) -> dict[str, Any]:
    """An entry of ``config.samplers``."""
    return {
        "kind": "smc",
        "label": None,
        "num_particles": num_particles,
        "ramp_tokens": 0,
        "ess_threshold": 0.5,
        **values,
    }


def swor(num_particles: int) -> dict[str, Any]:
    """An entry of ``config.samplers``."""
    return {"kind": "swor", "label": None, "num_particles": num_particles, "ramp_tokens": 0}


def ancestral(num_samples: int = 1) -> dict[str, Any]:
    """An entry of ``config.samplers``."""
    return {"kind": "ancestral", "label": None, "num_samples": num_samples, "temperature": 1.0}


def item(run: str, name: str = "a", seed: int = 0, **values: Any) -> ItemSummary:
    """An item; fields of ``ItemSummary``, or ``log_evidence`` and ``failed``."""
    nothing = AnswerScore(False, False, None)
    failed = values.pop("failed", False)
    scores = ItemScores(
        item=(run, seed, name),
        answers={"draw": nothing, "vote": nothing, "best": nothing},
        right=0.0,
        num_right=0,
        num=2,
        log_evidence=values.pop("log_evidence", None),
        failed=failed,
        ungraded=0,
        degenerate=0.0,
        tokens=6,
        model_tokens=4,
        draw_length=3,
        seconds={"compile": 0.0, "prefill": 1.0, "decode": 2.0},
    )
    made = ItemSummary(
        scores=scores,
        ess=np.array([4.0, 2.0, 1.0], np.float32),
        forks=np.array([0, 2, 1], np.int32),
        lengths=np.array([3, 2], np.int32),
        weights=np.array([0.75, 0.25]),
        distinct_roots=2,
        coalescence=0,
        loops=0.0,
        very_short=0.0,
        unfinished=0.0,
        notes=(),
        failure="it broke." if failed else None,
    )
    return dataclasses.replace(made, **values)


def report(
    samplers: dict[str, dict[str, Any]],
    items: Sequence[ItemSummary],
    labels: dict[str, str] | None = None,
    summary: dict[str, Any] | None = None,
) -> ReportData:
    """An evaluation; labels are the names of the runs."""
    about = {
        "config": {"samplers": samplers},
        "labels": {run: run for run in samplers} if labels is None else labels,
        "device": "cpu",
    }
    return ReportData(epath.Path("nowhere"), about, summary, list(items))


def row(run: str, accuracy: float, seconds: float, answer: str = "draw", **values: Any) -> Any:
    """A row of the summary."""
    return {
        "run": run,
        "answer": answer,
        "accuracy": accuracy,
        "ci95": [max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)],
        "seconds_per_problem": seconds,
        "multiple": None,
        **values,
    }


def summary(rows: Sequence[Any], pass_at_k: Sequence[Any] = ()) -> dict[str, Any]:
    """A summary.json."""
    return {"device": "cpu", "rows": list(rows), "pass_at_k": list(pass_at_k)}


def particle(row: int, length: int, weight: float = 0.25, **values: Any) -> dict[str, Any]:
    """A particle of a record."""
    return {
        "row": row,
        "tokens": [7] * length,
        "log_weight": math.log(weight) if weight else None,
        "finished": True,
        "parsed": "1",
        "correct": False,
        **values,
    }


def record(particles: Sequence[Any], moves: Sequence[Any] = (), **values: Any) -> dict[str, Any]:
    """A record, as far as its ancestry is concerned."""
    return {
        "run": "smc",
        "seed": 0,
        "id": "a",
        "failure": None,
        "choice": 0,
        "particles": list(particles),
        "info": {"moves": [list(move) for move in moves]},
        **values,
    }
