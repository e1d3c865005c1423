"""The job: every sampler on every problem with every seed, each finished item recorded at once.

An item is one problem, sampled by one run with one seed. Items that the workdir already holds are
left out, so a job that was stopped or killed goes on where it was. What comes of an item depends on
its seed, its problem's id and its sampler alone, so it does not matter in which order or company,
or after how many restarts, it is done.
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
from jax_power_smc.engine.stream import StreamRequest
from jax_power_smc.engine.validation import check_request
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
from jax_power_smc.samplers import MetropolisHastings
from jax_power_smc.targets.power import PowerTarget
from jax_power_smc.targets.stop_arrays import stop_arrays
from jax_power_smc.tasks.base import Problem, Task

# Prompts whose chains run together at most, so that records are written between calls.
CHAINS_BATCH = 128
# Items that must be finished before the rest of a run is guessed from them.
ENOUGH = 8
# Submissions that may wait for their verdicts before decoding waits for them.
MOST_PENDING = 256


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done, the same for every run but for the sampler.

    Attributes:
      lm: model and tokenizer.
      task: the problems.
      runs: the samplers.
      target: what all of them sample from.
      max_new_tokens: T, the cap.
      seeds: each gives one independent result per problem and run.
      prompts: problem id -> token ids, see ``render``.
      conditions: what the items follow from, for the records.
      slots: prompts decoded together; None for as many as the engine thinks good.
      mesh: devices that decode together; None for one.
      processes: which of how many this process is. Each does a share of the items; or, if the mesh
        is that of all of them (``decodes_together``), all decode every item and each records a
        share.
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
        """Whether the mesh is one of several processes."""
        return self.mesh is not None and self.mesh.is_multi_process


@dataclasses.dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
      label: of the run.
      done, total: items.
      accuracy: of the draws so far.
      seconds_left: for the rest of the run at the present pace, NaN while that is unknown.
    """

    label: str
    done: int
    total: int
    accuracy: float
    seconds_left: float


Report = Callable[[State], None]


def render(
    lm: LoadedModel, task: Task, chat: bool | None = None, date: datetime.date | None = None
) -> dict[str, list[int]]:
    """The token ids of every problem's prompt, by problem id.

    Args:
      lm: the model.
      task: the problems.
      chat: whether prompts go through the chat template; None for models that have learnt it.
      date: what a template takes for today.

    Raises:
      ValueError: for a prompt that cannot be, see ``LoadedModel.encode``.
    """
    return {p.id: lm.encode(p.prompt, chat=chat, date=date) for p in task.problems}


def problem_digests(task: Task) -> dict[str, str]:
    """What makes two problems of one id the same: the text, and the right answer."""
    return {p.id: digest([p.prompt, p.gold]) for p in task.problems}


def rendering_digests(prompts: Mapping[str, list[int]]) -> dict[str, str]:
    """The same of prompts as the model reads them."""
    return {name: digest(ids) for name, ids in prompts.items()}


def check(job: Job) -> None:
    """Raises ValueError for whatever would stop the job later on, before any work starts."""
    for problem in job.task.problems:
        try:
            parse_reference(job.task.kind, problem.gold)
        except ValueError as error:
            raise ValueError(f"problem {problem.id!r}: {error}") from error
    prompts = [job.prompts[problem.id] for problem in job.task.problems]
    limit = job.lm.model.max_positions
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    size = len(prompts[longest])
    if size + job.max_new_tokens > limit:
        raise ValueError(
            f"the prompt of problem {job.task.problems[longest].id!r} has {size} tokens and "
            f"max_new_tokens is {job.max_new_tokens}; together they must not exceed the model's "
            f"{limit} positions."
        )
    for run in job.runs:
        key, cap = seed_key(0), job.max_new_tokens
        check_request(job.lm.model, prompts, None, key, job.target, run.sampler, cap, job.slots)
    stop_arrays(job.target.stop, job.lm.tokenizer, job.lm.model.vocab_size)


def evaluate(
    job: Job,
    done: Sequence[ItemScores],
    writer: Writer,
    grader: Grader,
    report: Report,
    until: Callable[[], bool] = lambda: False,
) -> list[ItemScores]:
    """Does what is left, and returns what it has done.

    Args:
      job: see ``check``.
      done: the readings of the items that are finished already.
      writer: for the records.
      grader: of the task's kind.
      report: called after every item.
      until: asked between chunks of work. Once it says True, what is finished is recorded and the
        rest is left for another time.

    Raises:
      OSError: if a record cannot be written.
    """
    readings: list[ItemScores] = []
    for run in job.runs:
        own = [reading for reading in done if reading.item[0] == run.name]
        left = _left(job, run, {reading.item for reading in own})
        mine = {_item(run, *each) for each in job.processes.shard(left)}
        if not job.decodes_together:
            left = job.processes.shard(left)
        progress = _Progress(run, own, len(own) + len(mine), report)
        desk = _Desk(writer, grader, progress, mine)
        decode = _chains if _runs_chains(run) else _slots
        # They ask ``until`` themselves: what has come out together is all recorded.
        for record in decode(job, run, left, until):
            desk.take(record)
        desk.finish()
        readings += progress.readings[len(own) :]
        if until():
            break
    writer.flush()
    return readings


def _left(job: Job, run: Run, done: set[Item]) -> list[tuple[int, Problem]]:
    """(seed, problem) of the items to do, short prompts first: the prompt half of the slots then
    grows no earlier than it must."""
    problems = sorted(job.task.problems, key=lambda problem: len(problem.prompt))
    return [
        (seed, problem)
        for seed in job.seeds
        for problem in problems
        if _item(run, seed, problem) not in done
    ]


def _item(run: Run, seed: int, problem: Problem) -> Item:
    return run.name, seed, problem.id


def _runs_chains(run: Run) -> bool:
    return isinstance(run.sampler, MetropolisHastings)


def _slots(
    job: Job, run: Run, left: Sequence[tuple[int, Problem]], until: Callable[[], bool]
) -> Iterator[Record]:
    """Records without verdicts, as the engine's slots give up their prompts."""
    if not left:
        return
    prompts = job.prompts
    keys = {seed: seed_key(seed) for seed in job.seeds}
    slots = Engine(
        job.lm.model,
        job.lm.params,
        sampler=run.sampler,
        # As for the whole run: after a restart the same programs do the rest.
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
        for seed, problem in left
    ]
    booked = dict.fromkeys(PHASES, 0.0)
    stream = slots.stream(requests, key=keys[job.seeds[0]], until=until)
    for finished in stream:
        if finished.result is None:
            raise RuntimeError(f"the engine failed: {finished.error}")
        seed, problem = left[finished.index]
        record = _record(job, run, seed, problem, finished.result)
        seconds = stream.seconds
        record["seconds"] = {name: seconds[name] - booked[name] for name in PHASES}
        booked = seconds
        yield record


def _chains(
    job: Job, run: Run, left: Sequence[tuple[int, Problem]], until: Callable[[], bool]
) -> Iterator[Record]:
    """Records without verdicts, batch by batch: all chains follow one schedule."""
    if not left:
        return
    count = len(job.task.problems)
    prompts = job.prompts
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
    # Batches of one size: all rows of a batch take the time of the longest.
    width = job.slots or math.ceil(count / math.ceil(count / fitting.slots))
    for seed in job.seeds:
        problems = [problem for own, problem in left if own == seed]
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
                yield record | {"seconds": seconds}


def _record(job: Job, run: Run, seed: int, problem: Problem, result: SampleResult) -> Record:
    tokenizer = job.lm.tokenizer
    return records.unjudged(
        job.conditions.digests(_item(run, seed, problem)),
        run.name,
        seed,
        problem,
        prompt_id(problem.id),
        tokenizer.decode(job.prompts[problem.id], clean_up_tokenization_spaces=False),
        result,
        tokenizer,
    )


class _Desk:
    """Records on their way through the grader into the file, those that are this process's."""

    def __init__(
        self, writer: Writer, grader: Grader, progress: "_Progress", mine: set[Item]
    ) -> None:
        self._writer, self._grader, self._progress = writer, grader, progress
        self._mine = mine
        self._waiting: dict[Item, Record] = {}

    def take(self, record: Record) -> None:
        """Submits a record to the grader, and writes those that it is through with."""
        item = records.item_of(record)
        if item not in self._mine:
            return
        self._waiting[item] = record
        self._grader.submit(item, record["gold"], records.texts(record))
        self._write()
        while len(self._waiting) > MOST_PENDING:
            self._write(wait=True)

    def finish(self) -> None:
        """Writes all the rest."""
        while self._waiting:
            self._write(wait=True)

    def _write(self, wait: bool = False) -> None:
        for item, verdicts in self._grader.finished(wait):
            record = self._waiting.pop(item)  # type: ignore[call-overload]
            records.judge(record, verdicts)
            self._writer.add(record)
            self._progress.add(read(record))


class _Progress:
    """Counts the items of a run, those of earlier starts too."""

    def __init__(self, run: Run, done: Sequence[ItemScores], total: int, report: Report) -> None:
        self._label, self._total, self._report = run.label, total, report
        self.readings = list(done)
        self._right = sum(reading.answers["draw"].correct for reading in done)
        self._before, self._began = len(done), time.monotonic()
        self._compiling = 0.0

    def add(self, reading: ItemScores) -> None:
        """One more item is finished."""
        self.readings.append(reading)
        self._right += reading.answers["draw"].correct
        self._compiling += reading.seconds["compile"]
        done = len(self.readings)
        worked = time.monotonic() - self._began - self._compiling
        own, left = done - self._before, self._total - done
        seconds = worked / own * left if own >= ENOUGH or not left else math.nan
        self._report(State(self._label, done, self._total, self._right / done, seconds))
