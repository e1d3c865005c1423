"""Runs every method on the same problems and keeps a record of each answer.

Records are appended to WORKDIR/records.jsonl as batches finish, one line per problem, seed and
row of the table; WORKDIR/summary.json is written at the end.
"""

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jax_power_smc import engine
from jax_power_smc.admission import check_request
from jax_power_smc.decode import stop_arrays
from jax_power_smc.evaluation.intervals import wilson
from jax_power_smc.evaluation.methods import Row, Run
from jax_power_smc.files import keep_older
from jax_power_smc.models.load import LoadedModel
from jax_power_smc.randomness import prompt_id
from jax_power_smc.result import PHASES, SampleResult
from jax_power_smc.samplers import checks
from jax_power_smc.target import PowerTarget

# Prompts of one call at most, so that progress is seen between calls.
LARGEST_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems with a way to read and judge an answer.

    Attributes:
      ids: a name for each problem, all different. The randomness of a problem follows from it, so
        its answers depend neither on its place in the list nor on the other problems.
      prompts: texts.
      answers: the right answer of each.
      parse: the answer in a response, or None.
    """

    ids: Sequence[str]
    prompts: Sequence[str]
    answers: Sequence[Any]
    parse: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one row of the table rests on.

    Attributes:
      run, row: what it is.
      correct: [problems], share of the seeds that were right.
      log_prob: mean log p of the chosen outputs (of all N of them for a vote).
      log_evidence: mean log Z_hat, NaN where the sampler has none.
      failed: problems times seeds of which no particle had a weight; they count as wrong, and are
        left out of the two means, which are NaN if nothing is left.
      tokens: drawn per problem, over all particles.
      seconds: per problem, without compilation.
      compile_seconds: in all.
    """

    run: Run
    row: Row
    correct: np.ndarray
    log_prob: float
    log_evidence: float
    failed: int
    tokens: float
    seconds: float
    compile_seconds: float

    @property
    def accuracy(self) -> float:
        """Mean over problems and seeds."""
        return float(self.correct.mean())


# (row name, problems done, problems in all, accuracy so far, seconds left)
Report = Callable[[str, int, int, float, float], None]


def evaluate(
    lm: LoadedModel,
    task: Task,
    runs: Sequence[Run],
    target: PowerTarget,
    max_new_tokens: int,
    seeds: Sequence[int],
    workdir: pathlib.Path,
    report: Report,
) -> list[Scores]:
    """Runs everything and returns the rows in the order of ``runs``.

    Args:
      lm: model and tokenizer.
      task: the problems.
      runs: what to run.
      target: the power target, for every run.
      max_new_tokens: cap of an output.
      seeds: each gives one independent result per problem; their scores are averaged.
      workdir: for the records; an older records.jsonl is kept under another name.
      report: called after every batch.

    Raises:
      ValueError: for bad input, before any work starts.
      OSError: if the workdir cannot be written.
    """
    if not task.prompts:
        raise ValueError("there is nothing to evaluate: no problems.")
    _check_task(task)
    check_seeds(seeds)
    prompts = [lm.encode(text) for text in task.prompts]
    _check_lengths(prompts, max_new_tokens, lm.model.max_positions)
    for run in runs:
        key = jax.random.key(0)
        check_request(lm.model, prompts, None, key, target, run.sampler, max_new_tokens, None)
    stop_arrays(target.stop, lm.tokenizer, lm.model.vocab_size)
    workdir.mkdir(parents=True, exist_ok=True)
    records = workdir / "records.jsonl"
    keep_older(records)
    scores = []
    with open(records, "w", encoding="utf-8") as file:
        for run in runs:
            scores += _evaluate_run(
                lm, task, prompts, run, target, max_new_tokens, seeds, file, report
            )
    return scores


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError unless there are seeds, all different and within 31 bits."""
    if not seeds:
        raise ValueError("there is nothing to evaluate: no seeds.")
    for index, seed in enumerate(seeds):
        # JAX drops the upper bits of a larger one without a word.
        checks.integer(f"seeds[{index}]", seed, at_least=0)
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds is {tuple(seeds)}; they must differ, because equal seeds give equal results."
        )


def _check_task(task: Task) -> None:
    """Raises ValueError unless every problem has an answer and an id of its own."""
    count = len(task.prompts)
    if len(task.answers) != count or len(task.ids) != count:
        raise ValueError(
            f"the task has {count} problems, {len(task.answers)} answers and {len(task.ids)} ids; "
            "every problem needs one of each."
        )
    if len(set(task.ids)) < count:
        raise ValueError(
            f"the task has {count} problems and {len(set(task.ids))} different ids; "
            "every problem needs one of its own."
        )


def _check_lengths(prompts: list[list[int]], max_new_tokens: int, limit: int) -> None:
    """Raises ValueError unless every output fits; the engine would see it batch by batch."""
    checks.integer("max_new_tokens", max_new_tokens, at_least=1)
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = len(prompts[longest])
    if size + max_new_tokens > limit:
        raise ValueError(
            f"problem {longest} has {size} tokens and max_new_tokens is {max_new_tokens}; "
            f"together they must not exceed the model's {limit} positions."
        )


def _evaluate_run(
    lm: LoadedModel,
    task: Task,
    prompts: list[list[int]],
    run: Run,
    target: PowerTarget,
    max_new_tokens: int,
    seeds: Sequence[int],
    file: Any,
    report: Report,
) -> list[Scores]:
    count = len(prompts)
    width = min(LARGEST_BATCH, max(1, engine.MAX_ROWS // run.sampler.num_particles))
    # Short prompts together: a batch runs as long as its longest answer.
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    batches = np.array_split(order, math.ceil(count / width))
    correct = {row.name: np.zeros(count) for row in run.rows}
    log_probs: dict[str, list[float]] = {row.name: [] for row in run.rows}
    evidence: list[float] = []
    tokens, done, failed, seconds = 0, 0, 0, dict.fromkeys(PHASES, 0.0)
    began, compiling = time.monotonic(), 0.0
    for seed in seeds:
        for batch in batches:
            result = engine.sample(
                lm.model,
                lm.params,
                [prompts[i] for i in batch],
                key=jax.random.key(seed),
                target=target,
                sampler=run.sampler,
                max_new_tokens=max_new_tokens,
                prompt_ids=[prompt_id(task.ids[i]) for i in batch],
                prompts_per_batch=len(batches[0]),  # the largest; one program serves all
                tokenizer=lm.tokenizer,
            )
            texts = result.texts(lm.tokenizer)
            for row in run.rows:
                for place, answer in enumerate(_read(result, texts, row, task.parse)):
                    index = int(batch[place])
                    right = answer["parsed"] == task.answers[index]
                    correct[row.name][index] += right / len(seeds)
                    if answer["failure"] is None:
                        log_probs[row.name].append(answer["log_prob"])
                    record = {
                        "method": row.name,
                        "num_particles": run.sampler.num_particles,
                        "seed": seed,
                        "problem": index,
                        "id": task.ids[index],
                        "prompt": task.prompts[index],
                        "gold": task.answers[index],
                        **answer,
                        "correct": bool(right),
                    }
                    file.write(json.dumps(record) + "\n")
            file.flush()
            worked = np.array([failure is None for failure in result.failures()])
            evidence += np.asarray(result.log_evidence)[worked].tolist()
            failed += int(np.sum(~worked))
            tokens += int(result.info.model_tokens.sum())
            seconds = {name: seconds[name] + result.info.seconds[name] for name in PHASES}
            done += len(batch)
            compiling = seconds["compile"]
            pace = (time.monotonic() - began - compiling) / done
            total = count * len(seeds)
            so_far = float(correct[run.rows[0].name].sum()) * len(seeds) / done
            report(run.rows[0].name, done, total, so_far, pace * (total - done))
    problems = count * len(seeds)
    return [
        Scores(
            run=run,
            row=row,
            correct=correct[row.name],
            log_prob=_mean(log_probs[row.name]),
            log_evidence=_mean(evidence),
            failed=failed,
            tokens=tokens / problems,
            seconds=(seconds["prefill"] + seconds["decode"]) / problems,
            compile_seconds=seconds["compile"],
        )
        for row in run.rows
    ]


def _read(
    result: SampleResult, texts: list[list[str]], row: Row, parse: Callable[[str], Any]
) -> list[dict[str, Any]]:
    """The answer of each prompt of a batch, read off its particles.

    A prompt none of whose particles has a weight has no answer, and says why.
    """
    answers = _answers(result, texts, row, parse)
    for answer, failure in zip(answers, result.failures(), strict=True):
        answer["failure"] = failure
        if failure is not None:
            answer.update(response=None, parsed=None, log_prob=None)
    return answers


def _answers(
    result: SampleResult, texts: list[list[str]], row: Row, parse: Callable[[str], Any]
) -> list[dict[str, Any]]:
    log_probs = np.asarray(result.log_probs, np.float64)
    if row.reading == "vote":
        answers = [[parse(text) for text in row_texts] for row_texts in texts]
        return [
            {"response": None, "parsed": winner, "log_prob": float(mean)}
            for winner, mean in zip(result.vote(answers), log_probs.mean(axis=1), strict=True)
        ]
    index = np.asarray(result.choice) if row.reading == "draw" else result.best_index()
    return [
        {
            "response": texts[p][i],
            "parsed": parse(texts[p][i]),
            "log_prob": float(log_probs[p, i]),
        }
        for p, i in enumerate(index)
    ]


def summarize(
    scores: Sequence[Scores], alpha: float, comparisons: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The content of summary.json; what is not a finite number becomes null."""
    base = scores[0].seconds
    count = len(scores[0].correct)
    return {
        "device": jax.devices()[0].device_kind,
        "problems": count,
        "rows": [
            {
                "method": s.row.name,
                "sampler": type(s.run.sampler).__name__,
                "num_particles": s.run.sampler.num_particles,
                "alpha": alpha,
                "temperature": s.run.temperature,
                "accuracy": s.accuracy,
                "ci95": list(wilson(s.accuracy, count)),
                "mean_log_prob": _finite(s.log_prob),
                "log_evidence": _finite(s.log_evidence),
                "failed": s.failed,
                "tokens_per_problem": s.tokens,
                "seconds_per_problem": s.seconds,
                "multiple": s.seconds / base,
            }
            for s in scores
        ],
        "comparisons": list(comparisons),
        "compile_seconds": sum({id(s.run): s.compile_seconds for s in scores}.values()),
    }


def _mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if values else math.nan


def _finite(value: float) -> float | None:
    """The value, or None where JSON has no way to write it."""
    return value if math.isfinite(value) else None
