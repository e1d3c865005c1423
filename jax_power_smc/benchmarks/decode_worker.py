"""Decodes prompts through an engine and counts what that took; also as a process of its own.

As a program it reads jobs as JSON lines and answers each with a line. It runs under this version of
the package and under commit afd20fd, the last one whose engine had a row for each particle. So the
two can be compared with runs that alternate, in processes that never work at the same time. It uses
only names of the public surface that both versions have.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

import jax_power_smc as psmc


class Subject(NamedTuple):
    """A model to measure; ``eos_ids`` end its answers, unless they run to the cap."""

    model: Any
    params: Any
    eos_ids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Work:
    """What is decoded.

    Attributes:
      sampler, settings: the name of the sampler's class, and its arguments.
      prompts: of token ids; the index of each is its id.
      max_new_tokens: the cap that the engine is made for.
      slots: prompts at a time.
      key: seed of the key.
      alpha: exponent of the target.
      ends: whether the model's end tokens end an answer; else all run to the cap.
      rows: R, if it is fixed. (At afd20fd there are always as many as particles.)
      cap: a smaller one of the prompts themselves, for a run that only compiles.
    """

    sampler: str
    settings: dict[str, Any]
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    slots: int
    key: int = 0
    alpha: float = 4.0
    ends: bool = True
    rows: int | None = None
    cap: int | None = None


class Run(NamedTuple):
    """What a run took.

    The counts are sums over the prompts. At afd20fd all but ``tokens`` and ``drawn_tokens`` are 0.

    Attributes:
      seconds: from the call to the last result in host memory, without those of compiling.
      decode_seconds: those of decoding alone.
      compile_seconds: what is left out of both.
      tokens: of the answers.
      drawn_tokens: drawn over all particles.
      model_tokens: distinct prefixes that the model continued: row-steps without any stalled ones.
      own_steps: steps of each prompt.
      steps, stalls, rows_there, row_steps: see ``EngineStats``.
      rows: [steps] of each prompt, its distinct prefixes.
    """

    seconds: float
    decode_seconds: float
    compile_seconds: float
    tokens: int
    drawn_tokens: int
    model_tokens: int = 0
    own_steps: int = 0
    steps: int = 0
    stalls: int = 0
    rows_there: int = 0
    row_steps: int = 0
    rows: Sequence[Sequence[int]] = ()

    @property
    def mean_rows(self) -> float:
        """Distinct prefixes of a prompt, averaged over the prompts' steps."""
        return self.model_tokens / self.own_steps

    @property
    def live_rows(self) -> float:
        """Rows that the model continued in a step, of all prompts together."""
        return self.model_tokens / self.steps


def decode(subject: Subject, work: Work) -> Run:
    """Decodes prompts, short ones first, as ``sample`` does.

    Raises:
      ValueError: if one of them failed.
    """
    target = psmc.PowerTarget(work.alpha, subject.eos_ids if work.ends else ())
    sampler = getattr(psmc, work.sampler)(**work.settings)
    cap = work.cap or work.max_new_tokens
    shortest_first = sorted(range(len(work.prompts)), key=lambda i: len(work.prompts[i]))
    fixed: dict[str, Any] = {}
    if work.rows is not None and _has_rows():
        fixed["rows"] = work.rows
    began = time.perf_counter()
    engine = psmc.Engine(
        subject.model,
        subject.params,
        sampler=sampler,
        max_prompt_tokens=max(map(len, work.prompts)),
        max_new_tokens=work.max_new_tokens,
        slots=work.slots,
        num_requests=len(work.prompts),
        **fixed,
    )
    requests = [psmc.StreamRequest(work.prompts[i], target, cap, i) for i in shortest_first]
    stream = engine.stream(requests, key=jax.random.key(work.key))
    done = list(stream)
    seconds = time.perf_counter() - began
    if failed := [one.error for one in done if one.error]:
        raise ValueError(failed[0])
    found: list[Any] = [
        one.result for one in sorted(done, key=lambda one: shortest_first[one.index])
    ]
    phases = stream.seconds
    counts: dict[str, Any] = {}
    drawn = "model_tokens"  # what it was called at afd20fd
    if _has_rows():
        drawn, stats = "drawn_tokens", engine.stats
        rows = [_rows(result.info.num_rows[0]) for result in found]
        counts = {
            "model_tokens": sum(map(sum, rows)),
            "own_steps": sum(map(len, rows)),
            **{name: getattr(stats, name) for name in ("steps", "stalls", "rows_there")},
            "row_steps": stats.row_steps,
            "rows": rows,
        }
    return Run(
        seconds - phases["compile"],
        phases["decode"],
        phases["compile"],
        sum(int(result.lengths[0, int(result.choice[0])]) for result in found),
        sum(int(getattr(result.info, drawn)[0]) for result in found),
        **counts,
    )


def load(spec: dict[str, Any]) -> Subject:
    """The model that a job names, or one with random weights in the shape that it gives."""
    return _load(json.dumps(spec, sort_keys=True))


@functools.cache
def _load(spec: str) -> Subject:
    fields = json.loads(spec)
    if "name" in fields:
        lm = psmc.load(fields["name"])
        return Subject(lm.model, lm.params, tuple(lm.eos_ids))
    model = psmc.TransformerLM(psmc.TransformerConfig(**fields["shape"]), fields["dtype"])
    return Subject(model, model.init(jax.random.key(0)))


def _has_rows() -> bool:
    """Whether this is a version in which rows are not particles."""
    return hasattr(psmc, "plain")


def _rows(num_rows: Any) -> list[int]:
    """Distinct prefixes that the model continued at each step of a prompt, from those after it."""
    after = np.asarray(num_rows)
    return [1, *after[: np.count_nonzero(after)].tolist()]


def main(jobs: TextIO, answers: TextIO) -> None:
    """Answers jobs until there are no more."""
    for line in jobs:
        job = json.loads(line)
        run = decode(load(job["model"]), Work(**job["work"]))
        answers.write(json.dumps(run._asdict()) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Whatever else is printed must not come between the answers.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(sys.stdin, replies)
