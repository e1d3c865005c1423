"""The job: every sampler on every problem with every seed; each finished item is recorded at once.

An item is one problem, sampled by one run with one seed. Items that the workdir already holds are
skipped, so a job that was stopped or killed resumes where it was. The result of an item depends
only on its seed, its problem's id and its sampler, and so neither on the order of the items, nor on
which of them are decoded together, nor on restarts.
"""

import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from jax.sharding import Mesh

from jax_power_smc.core.prng import prompt_id, seed_key
from jax_power_smc.core.process_group import SINGLE_PROCESS, ProcessGroup
from jax_power_smc.engine import sample
from jax_power_smc.engine.engine import Engine
from jax_power_smc.engine.sample import Stopped
from jax_power_smc.engine.slot_plan import plan_slots
from jax_power_smc.engine.stats import EngineStats
from jax_power_smc.engine.stream import StreamRequest
from jax_power_smc.engine.validation import check_prompt, check_request
from jax_power_smc.evaluation import records
from jax_power_smc.evaluation.conditions import Conditions, digest
from jax_power_smc.evaluation.records import Item, Record
from jax_power_smc.evaluation.scores import ItemScores, read
from jax_power_smc.evaluation.store import Writer
from jax_power_smc.evaluation.summary import Run
from jax_power_smc.grading.base import Grader
from jax_power_smc.grading.references import parse_reference
from jax_power_smc.models.checkpoints.loaded_model import LoadedModel
from jax_power_smc.results.result import PHASES, SampleResult
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_arrays import stop_arrays
from jax_power_smc.tasks.base import Problem, Task

# At most this many prompts run their chains together, so that records are written in between.
CHAINS_BATCH = 128
# Items that must be finished before the time left is estimated from them.
ENOUGH = 8
# How many submissions may wait for their verdicts; then decoding waits for the grader.
MAX_PENDING = 256


@dataclasses.dataclass(frozen=True)
class Job:
    """What there is to do.

    Attributes:
      lm: model and tokenizer.
      task: the problems.
      runs: the samplers.
      target: what all of them sample from.
      max_new_tokens: T, the cap.
      seeds: each gives one independent result per problem and run.
      prompts: problem id -> token ids, see ``tokenize``.
      conditions: what the items depend on, for the records.
      slots: how many prompts are decoded together; None lets the engine choose.
      mesh: the devices that decode together; None for one.
      processes: this process and the others. Each does a share of the items; or, if the mesh spans
        them all (``decodes_together``), all decode every item and each records a share.
    """

    lm: LoadedModel
    task: Task
    runs: Sequence[Run]
    target: PowerTarget
    max_new_tokens: int
    seeds: Sequence[int]
    prompts: Mapping[str, list[int]]
    conditions: Conditions
    slots: int | None = None
    mesh: Mesh | None = None
    processes: ProcessGroup = SINGLE_PROCESS

    @property
    def decodes_together(self) -> bool:
        """Whether the mesh spans several processes."""
        return self.mesh is not None and self.mesh.is_multi_process


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run in items, and the accuracy of its draws so far.

    ``seconds_left`` is for the rest of the run at the present pace; NaN as long as it is unknown.
    ``stats`` is what the engine's rows were used for; None for chains.
    """

    label: str
    done: int
    total: int
    accuracy: float
    seconds_left: float
    stats: EngineStats | None = None


Report = Callable[[Progress], None]


def tokenize(
    lm: LoadedModel, task: Task, chat: bool | None = None, date: datetime.date | None = None
) -> dict[str, list[int]]:
    """The token ids of every problem's prompt, by problem id; see ``LoadedModel.encode``."""
    return {p.id: lm.encode(p.prompt, chat=chat, date=date) for p in task.problems}


def problem_digests(task: Task) -> dict[str, str]:
    """Problem id -> digest of its text and reference answer."""
    return {p.id: digest([p.prompt, p.gold]) for p in task.problems}


def rendering_digests(prompts: Mapping[str, list[int]]) -> dict[str, str]:
    """Problem id -> digest of the prompt's tokens."""
    return {name: digest(ids) for name, ids in prompts.items()}


def check(job: Job) -> None:
    """Raises ValueError for anything that would stop the job later; before any work starts."""
    for problem in job.task.problems:
        try:
            parse_reference(job.task.kind, problem.gold)
        except ValueError as error:
            raise ValueError(f"problem {problem.id!r}: {error}") from error
    prompts = [job.prompts[problem.id] for problem in job.task.problems]
    model, key, cap = job.lm.model, seed_key(0), job.max_new_tokens
    longest = max(job.task.problems, key=lambda problem: len(job.prompts[problem.id])).id
    size = len(job.prompts[longest])
    if size + cap > model.max_positions:
        raise ValueError(
            f"the prompt of problem {longest!r} has {size} tokens and max_new_tokens is {cap}; "
            f"together they must not exceed the model's {model.max_positions} positions."
        )
    for index, prompt in enumerate(prompts):
        check_prompt(index, prompt, model, cap)
    for run in job.runs:
        check_request(model, prompts[:1], None, key, job.target, run.sampler, cap, job.slots)
    stop_arrays(job.target.stop, job.lm.tokenizer, model.vocab_size)


def evaluate(
    job: Job,
    done: Sequence[ItemScores],
    writer: Writer,
    grader: Grader,
    report: Report,
    until: Callable[[], bool] = lambda: False,
) -> list[ItemScores]:
    """Does the items that are left, and returns their scores.

    Args:
      job: see ``check``.
      done: the scores of the items that are finished already.
      writer, grader: for the records, and for the task's kind of answer.
      report: called after every item.
      until: called between chunks of work. Once it returns True, what is finished is recorded and
        the rest is left for another time.

    Raises:
      OSError: if a record cannot be written.
    """
    scores: list[ItemScores] = []
    for run in job.runs:
        before = [each for each in done if each.item[0] == run.name]
        remaining = _remaining(job, run, {each.item for each in before})
        share = {_item(run, *each) for each in job.processes.shard(remaining)}
        if not job.decodes_together:
            remaining = job.processes.shard(remaining)
        recorder = _Recorder(run, writer, grader, report, before, share)
        decode = _chains if run.sampler.runs_as_chains else _streamed
        # These call ``until`` themselves: whatever has been decoded together is all recorded.
        for record, stats in decode(job, run, remaining, until) if remaining else ():
            recorder.submit(record, stats)
        recorder.finish()
        scores += recorder.scores
        if until():
            break
    writer.flush()
    return scores


def _remaining(job: Job, run: Run, done: set[Item]) -> list[tuple[int, Problem]]:
    """(seed, problem) of the items to do.

    Short prompts come first, so that the rows grow no earlier than they must.
    """
    problems = sorted(job.task.problems, key=lambda problem: len(problem.prompt))
    return [
        (seed, problem)
        for seed in job.seeds
        for problem in problems
        if _item(run, seed, problem) not in done
    ]


def _item(run: Run, seed: int, problem: Problem) -> Item:
    return run.name, seed, problem.id


def _streamed(
    job: Job, run: Run, items: Sequence[tuple[int, Problem]], until: Callable[[], bool]
) -> Iterator[tuple[Record, EngineStats]]:
    """Records without verdicts, as the engine finishes their prompts, with its counts so far."""
    prompts, keys = job.prompts, {seed: seed_key(seed) for seed in job.seeds}
    engine = Engine(
        job.lm.model,
        job.lm.params,
        sampler=run.sampler,
        # Those of the whole run, so that a restart needs no other programs.
        max_prompt_tokens=max(map(len, prompts.values())),
        num_requests=len(prompts) * len(keys),
        max_new_tokens=job.max_new_tokens,
        slots=job.slots,
        tokenizer=job.lm.tokenizer,
        mesh=job.mesh,
    )
    requests = [
        StreamRequest(
            prompts[problem.id], job.target, job.max_new_tokens, prompt_id(problem.id), keys[seed]
        )
        for seed, problem in items
    ]
    recorded = dict.fromkeys(PHASES, 0.0)
    stream = engine.stream(requests, key=keys[job.seeds[0]], until=until)
    for finished in stream:
        if finished.result is None:
            raise RuntimeError(f"the engine failed: {finished.error}")
        seed, problem = items[finished.index]
        record = _record(job, run, seed, problem, finished.result)
        seconds = stream.seconds
        record["seconds"] = {name: seconds[name] - recorded[name] for name in PHASES}
        recorded = seconds
        yield record, engine.stats


def _chains(
    job: Job, run: Run, items: Sequence[tuple[int, Problem]], until: Callable[[], bool]
) -> Iterator[tuple[Record, None]]:
    """Records without verdicts, batch by batch: all chains of a batch follow one schedule."""
    count, prompts = len(job.task.problems), job.prompts
    fitting, _ = plan_slots(
        job.lm.model,
        job.lm.params,
        run.sampler,
        prompt_tokens=max(map(len, prompts.values())),
        new_tokens=job.max_new_tokens,
        wanted=min(count, CHAINS_BATCH),
        slots=job.slots,
        memory_limit=None,
        mesh=job.mesh,
    )
    # Batches of equal size: every prompt of a batch takes the time of the longest.
    width = job.slots or math.ceil(count / math.ceil(count / fitting.slots))
    for seed in job.seeds:
        problems = [problem for own, problem in items if own == seed]
        for first in range(0, len(problems), width):
            batch = problems[first : first + width]
            try:
                result = sample.sample(
                    job.lm.model,
                    job.lm.params,
                    [prompts[problem.id] for problem in batch],
                    key=seed_key(seed),
                    target=job.target,
                    sampler=run.sampler,
                    max_new_tokens=job.max_new_tokens,
                    prompt_ids=[prompt_id(problem.id) for problem in batch],
                    prompts_per_batch=width,
                    tokenizer=job.lm.tokenizer,
                    mesh=job.mesh,
                    until=until,
                )
            except Stopped:
                return
            seconds = {name: result.info.seconds[name] / len(batch) for name in PHASES}
            for place, problem in enumerate(batch):
                record = _record(job, run, seed, problem, result.one(place))
                yield record | {"seconds": seconds}, None


def _record(job: Job, run: Run, seed: int, problem: Problem, result: SampleResult) -> Record:
    digests, tokenizer = job.conditions.digests(_item(run, seed, problem)), job.lm.tokenizer
    rendered = tokenizer.decode(job.prompts[problem.id], clean_up_tokenization_spaces=False)
    number = prompt_id(problem.id)
    return records.ungraded_record(
        digests, run.name, seed, problem, number, rendered, result, tokenizer
    )


class _Recorder:
    """Passes this process's records of a run through the grader and on to the file.

    ``before`` are the scores of the items that earlier starts finished, ``share`` the items that
    this process records.
    """

    def __init__(
        self,
        run: Run,
        writer: Writer,
        grader: Grader,
        report: Report,
        before: Sequence[ItemScores],
        share: set[Item],
    ) -> None:
        self._label, self._writer, self._grader, self._report = run.label, writer, grader, report
        self._before, self._share = len(before), share
        self._began = time.monotonic()
        self._pending: dict[Item, Record] = {}
        self.scores: list[ItemScores] = []
        self._correct = sum(each.answers["draw"].correct for each in before)
        self._compiling = 0.0
        self._stats: EngineStats | None = None

    def submit(self, record: Record, stats: EngineStats | None) -> None:
        """Submits a record to the grader, and writes those that have been graded."""
        self._stats = stats
        item = records.item_of(record)
        if item not in self._share:
            return
        self._pending[item] = record
        texts = [particle["text"] for particle in record["particles"]]
        self._grader.submit(item, record["gold"], texts)
        self._write_graded()
        while len(self._pending) > MAX_PENDING:
            self._write_graded(wait=True)

    def finish(self) -> None:
        """Waits for all verdicts and writes the rest."""
        while self._pending:
            self._write_graded(wait=True)

    def _write_graded(self, wait: bool = False) -> None:
        for item, verdicts in self._grader.finished(wait):
            record = self._pending.pop(item)  # type: ignore[call-overload]
            for particle, verdict in zip(record["particles"], verdicts, strict=True):
                particle.update(verdict._asdict())
            self._writer.add(record)
            self._add(read(record))

    def _add(self, scores: ItemScores) -> None:
        self.scores.append(scores)
        self._correct += scores.answers["draw"].correct
        self._compiling += scores.seconds["compile"]
        new, left = len(self.scores), len(self._share) - len(self.scores)
        done = self._before + new
        worked = time.monotonic() - self._began - self._compiling
        seconds = worked / new * left if new >= ENOUGH or not left else math.nan
        accuracy = self._correct / done
        self._report(Progress(self._label, done, done + left, accuracy, seconds, self._stats))
