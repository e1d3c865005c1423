"""``load_task``: the problems of a config, with their prompts."""

import dataclasses
from collections import Counter
from typing import Any, get_args

from ml_collections import ConfigDict

from jax_power_smc.core import checks
from jax_power_smc.tasks import aime, gpqa, gsm8k, humaneval, jsonl, math500, prompts, tiny_reasoner
from jax_power_smc.tasks.base import Kind, Problem, Task
from jax_power_smc.tasks.dataset import DatasetSpec, Example
from jax_power_smc.tasks.hub_data import UnavailableError, hub_records, is_hub_dataset
from jax_power_smc.tasks.records import Record, numbered, read_records

DATASETS = {
    "math500": math500.DATASET,
    "gsm8k": gsm8k.DATASET,
    "gpqa": gpqa.DATASET,
    "humaneval": humaneval.DATASET,
    "aime": aime.DATASET,
}
TINY, OWN = "tiny_reasoner", "jsonl"
TASKS = (*DATASETS, TINY, OWN)
KINDS: tuple[Kind, ...] = get_args(Kind)
FIELDS = ("id", "question", "answer", "solution")


def load_task(config: ConfigDict, *, chat: bool | None = None) -> Task:
    """The problems that a config names.

    A dry run (``config.dry_run``) whose data set is on a hub that cannot be reached gets made-up
    problems of the same layout in its place.

    Args:
      config: an evaluation's, see ``evaluation.settings.default``.
      chat: whether the prompts are for a chat model, such as ``LoadedModel.is_chat``; what
        ``config.chat`` says comes first.

    Raises:
      ValueError: for a field that cannot be, data that is not there, or a row that is no problem,
        with its place in the file.
    """
    check_task(config)
    if config.task == TINY:
        form = config.prompt_format or prompts.QUESTION
        made = tiny_reasoner.tiny_problems(config.split, config.limit, config.problem_seed, form)
        return Task("tiny-reasoner", tuple(made), "reasoner")
    chat = bool(chat if config.chat is None else config.chat)
    benchmark, shots = _benchmark(config), []
    try:
        examples = _examples(benchmark, _read_records(config, benchmark))
        shots = _shots(config, benchmark, examples)
    except UnavailableError:
        if not config.dry_run:
            raise
        examples = _examples(benchmark, numbered(benchmark.samples, "samples")[: config.limit])
    form = config.prompt_format or (chat and benchmark.chat_prompt) or benchmark.prompt
    if chat and benchmark.kind == "code":
        shots = [dataclasses.replace(shot, solution=_code_block(shot)) for shot in shots]
    problems = tuple(
        Problem(example.id, prompts.write_prompt(form, example.question, shots), example.gold)
        for example in examples
    )
    return Task(benchmark.title, problems, benchmark.kind)


def kind_of(config: ConfigDict) -> Kind:
    """How the answers of a config's task are judged."""
    return "reasoner" if config.task == TINY else _benchmark(config).kind


def check_task(config: ConfigDict) -> None:
    """Raises ValueError for a field about the task that cannot be; no file is opened."""
    checks.one_of("config.task", config.task, TASKS)
    for name in ("data", "data_name", "few_shot_data"):
        _text_or_none(f"config.{name}", config[name])
    if config.limit is not None:
        checks.integer("config.limit", config.limit, at_least=1)
    checks.integer("config.problem_seed", config.problem_seed, at_least=0)
    checks.integer("config.few_shot", config.few_shot, at_least=0)
    prompts.check_format("config.prompt_format", config.prompt_format)
    if config.task == OWN:
        _check_own(config)
    elif config.grader is not None:
        raise ValueError(
            f"config.grader is {config.grader!r}; it must be None, because the {config.task} task "
            "has its own."
        )
    if config.task == TINY and (config.data is not None or config.few_shot):
        raise ValueError(
            f"config.data is {config.data!r} and config.few_shot {config.few_shot}; the {TINY} "
            "task has neither data nor examples."
        )
    if config.few_shot and config.few_shot_data is None:
        raise ValueError(
            f"config.few_shot is {config.few_shot}; config.few_shot_data must then name the file "
            "with the examples."
        )
    if config.task == TINY:
        checks.one_of("config.split", config.split, tiny_reasoner.SPLITS)
    elif config.task != OWN and config.data in (None, DATASETS[config.task].data):
        checks.one_of("config.split", config.split, DATASETS[config.task].splits)
    elif not isinstance(config.split, str) or not config.split:
        raise ValueError(f"config.split is {config.split!r}; it must be the name of a split.")


def _check_own(config: ConfigDict) -> None:
    """What only the user's own problems need."""
    if config.data is None:
        raise ValueError(f"config.data is None; the {OWN} task needs the file with the problems.")
    checks.one_of("config.grader", config.grader, KINDS)
    unknown = [name for name in config.fields if name not in FIELDS]
    lacking = [name for name in FIELDS if name not in config.fields]
    if unknown or lacking:
        raise ValueError(
            f"config.fields has {', '.join(config.fields)}; it must have {', '.join(FIELDS)}."
        )
    for name in FIELDS:
        value = config.fields[name]
        if value is None and name in ("id", "solution"):
            continue
        if not isinstance(value, str) or not value:
            raise ValueError(f"config.fields.{name} is {value!r}; it must be the name of a field.")


def _text_or_none(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} is {value!r}; it must be None or a text.")


def _benchmark(config: ConfigDict) -> DatasetSpec:
    if config.task == OWN:
        return jsonl.benchmark(config.fields.to_dict(), config.grader)
    return DATASETS[config.task]


def _read_records(config: ConfigDict, benchmark: DatasetSpec) -> list[Record]:
    """The first ``config.limit`` rows of what the config or the benchmark names."""
    data = str(config.data or benchmark.data)
    if not is_hub_dataset(data):
        return read_records(data)[: config.limit]
    if data != benchmark.data:
        return hub_records(data, config.data_name, config.split, config.limit)
    name = config.data_name or benchmark.data_name
    return hub_records(data, name, benchmark.splits[config.split], config.limit)


def _examples(benchmark: DatasetSpec, rows: list[Record]) -> list[Example]:
    """What the rows hold, or one sentence about what they must not."""
    if not rows:
        raise ValueError("there is nothing to evaluate: no problems.")
    examples = [benchmark.read(row) for row in rows]
    for key, times in Counter(example.id for example in examples).items():
        if times > 1:
            first, second = [r for r, e in zip(rows, examples, strict=True) if e.id == key][:2]
            raise ValueError(
                f"{first.place} and {second.place} have the same id {key!r}; every problem needs "
                "one of its own."
            )
    return examples


def _shots(config: ConfigDict, benchmark: DatasetSpec, asked: list[Example]) -> list[Example]:
    """The first ``config.few_shot`` examples that are not asked themselves."""
    if not config.few_shot:
        return []
    questions = {example.question.strip() for example in asked}
    shots: list[Example] = []
    for row in read_records(config.few_shot_data, "config.few_shot_data"):
        if len(shots) == config.few_shot:
            break
        example = benchmark.read(row)
        if example.question.strip() in questions:
            continue
        if example.solution is None:
            raise ValueError(f"{row.place} has no solution; a few-shot prompt shows worked ones.")
        shots.append(example)
    if len(shots) < config.few_shot:
        raise ValueError(
            f"config.few_shot is {config.few_shot}; {config.few_shot_data} has only {len(shots)} "
            "that are not asked themselves."
        )
    return shots


def _code_block(example: Example) -> str:
    """A solution as a chat model is asked for it."""
    return f"```python\n{example.question}{(example.solution or '').rstrip()}\n```"
