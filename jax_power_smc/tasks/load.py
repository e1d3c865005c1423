"""``load_task``: the problems that a config names, with their prompts."""

import dataclasses
from collections import Counter
from typing import Any

from ml_collections import ConfigDict

from jax_power_smc.core import checks
from jax_power_smc.tasks import aime, gpqa, gsm8k, humaneval, jsonl, math500, prompts
from jax_power_smc.tasks.base import KINDS, Kind, Problem, Task
from jax_power_smc.tasks.dataset import DatasetSpec, Example
from jax_power_smc.tasks.hub_data import UnavailableError, hub_records, is_hub_dataset
from jax_power_smc.tasks.records import Record, numbered, read_records
from jax_power_smc.tiny_reasoner import problems

# The only place where datasets are listed.
DATASETS = {
    "math500": math500.DATASET,
    "gsm8k": gsm8k.DATASET,
    "gpqa": gpqa.DATASET,
    "humaneval": humaneval.DATASET,
    "aime": aime.DATASET,
}
TINY, OWN = "tiny_reasoner", "jsonl"
TASKS = (*DATASETS, TINY, OWN)
# Problems of the tiny reasoner if the config does not say how many.
NUM_GENERATED = 400
FIELDS = ("id", "question", "answer", "solution")


def load_task(config: ConfigDict, *, chat: bool | None = None) -> Task:
    """The problems that a config names.

    If ``config.dry_run`` is set and the dataset's hub cannot be reached, made-up problems in the
    same layout take their place.

    Args:
      config: an evaluation config, see ``evaluation.job_config.default``.
      chat: whether the prompts are for a chat model, such as ``LoadedModel.is_chat``;
        ``config.chat`` takes precedence.

    Raises:
      ValueError: if a field of the config is invalid, the data is missing, or a record is not a
        problem; the message says where the record is.
    """
    check_task(config)
    if config.task == TINY:
        template = config.prompt_format or prompts.QUESTION
        count = NUM_GENERATED if config.limit is None else config.limit
        generated = problems.problems(config.split, count, config.problem_seed)
        made = (
            Problem(p.key, prompts.write_prompt(template, p.question), p.answer) for p in generated
        )
        return Task("tiny-reasoner", tuple(made), "reasoner")
    chat = bool(chat if config.chat is None else config.chat)
    dataset, shots = _dataset(config), []
    try:
        examples = _read_examples(dataset, _read_records(config, dataset))
        shots = _read_shots(config, dataset, examples)
    except UnavailableError:
        if not config.dry_run:
            raise
        examples = _read_examples(dataset, numbered(dataset.samples, "samples")[: config.limit])
    template = config.prompt_format or (chat and dataset.chat_prompt) or dataset.prompt
    if chat and dataset.kind == "code":
        shots = [dataclasses.replace(shot, solution=_code_block(shot)) for shot in shots]
    asked = tuple(
        Problem(example.id, prompts.write_prompt(template, example.question, shots), example.gold)
        for example in examples
    )
    return Task(dataset.title, asked, dataset.kind)


def kind_of(config: ConfigDict) -> Kind:
    """How the answers of a config's task are graded."""
    return "reasoner" if config.task == TINY else _dataset(config).kind


def check_task(config: ConfigDict) -> None:
    """Raises ValueError if a field about the task is invalid; opens no file."""
    checks.one_of("config.task", config.task, TASKS)
    for name in ("data", "data_name", "few_shot_data"):
        _check_text_or_none(f"config.{name}", config[name])
    if config.limit is not None:
        checks.integer("config.limit", config.limit, at_least=1)
    checks.integer("config.problem_seed", config.problem_seed, at_least=0)
    checks.integer("config.few_shot", config.few_shot, at_least=0)
    prompts.check_template("config.prompt_format", config.prompt_format)
    if config.task == OWN:
        _check_own(config)
    elif config.grader is not None:
        raise ValueError(
            f"config.grader is {config.grader!r}; it must be None, because the {config.task} task "
            "has its own."
        )
    if config.task == TINY and (config.data is not None or config.few_shot):
        raise ValueError(
            f"config.data is {config.data!r} and config.few_shot is {config.few_shot}; the {TINY} "
            "task has neither data nor examples."
        )
    if config.few_shot and config.few_shot_data is None:
        raise ValueError(
            f"config.few_shot is {config.few_shot}; config.few_shot_data must then name the file "
            "with the examples."
        )
    if config.task == TINY:
        checks.one_of("config.split", config.split, problems.SPLITS)
    elif config.task != OWN and config.data in (None, DATASETS[config.task].data):
        checks.one_of("config.split", config.split, DATASETS[config.task].splits)
    elif not isinstance(config.split, str) or not config.split:
        raise ValueError(f"config.split is {config.split!r}; it must be the name of a split.")


def _check_own(config: ConfigDict) -> None:
    """Checks the fields that only the user's own problems need."""
    if config.data is None:
        raise ValueError(f"config.data is None; the {OWN} task needs the file with the problems.")
    checks.one_of("config.grader", config.grader, KINDS)
    if set(config.fields) != set(FIELDS):
        raise ValueError(
            f"config.fields has {', '.join(config.fields)}; it must have {', '.join(FIELDS)}."
        )
    for name in FIELDS:
        value = config.fields[name]
        if value is None and name in ("id", "solution"):
            continue
        if not isinstance(value, str) or not value:
            raise ValueError(f"config.fields.{name} is {value!r}; it must be the name of a field.")


def _check_text_or_none(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} is {value!r}; it must be None or a text.")


def _dataset(config: ConfigDict) -> DatasetSpec:
    if config.task == OWN:
        return jsonl.dataset(config.fields.to_dict(), config.grader)
    return DATASETS[config.task]


def _read_records(config: ConfigDict, dataset: DatasetSpec) -> list[Record]:
    """The first ``config.limit`` records of the data that the config or the dataset names."""
    data, seconds = str(config.data or dataset.data), config.limits.hub_seconds
    if not is_hub_dataset(data):
        return read_records(data, megabytes=_largest(config))[: config.limit]
    if data != dataset.data:
        return hub_records(data, config.data_name, config.split, config.limit, seconds)
    name = config.data_name or dataset.data_name
    return hub_records(data, name, dataset.splits[config.split], config.limit, seconds)


def _largest(config: ConfigDict) -> int:
    """Millions of bytes of a file of problems."""
    return int(config.limits.data_megabytes)


def _read_examples(dataset: DatasetSpec, records: list[Record]) -> list[Example]:
    """The examples in some records, after checking that their ids are unique."""
    if not records:
        raise ValueError("there is nothing to evaluate: no problems.")
    examples = [dataset.read(record) for record in records]
    for key, times in Counter(example.id for example in examples).items():
        if times > 1:
            pairs = zip(records, examples, strict=True)
            first, second = [record for record, example in pairs if example.id == key][:2]
            raise ValueError(
                f"{first.location} and {second.location} have the same id {key!r}; ids must be "
                "unique."
            )
    return examples


def _read_shots(config: ConfigDict, dataset: DatasetSpec, asked: list[Example]) -> list[Example]:
    """The first ``config.few_shot`` examples whose questions are not being asked."""
    if not config.few_shot:
        return []
    questions = {example.question.strip() for example in asked}
    shots: list[Example] = []
    path, largest = config.few_shot_data, _largest(config)
    for record in read_records(path, "config.few_shot_data", largest):
        if len(shots) == config.few_shot:
            break
        example = dataset.read(record)
        if example.question.strip() in questions:
            continue
        if example.solution is None:
            raise ValueError(f"{record.location} has no solution; few-shot examples need one.")
        shots.append(example)
    if len(shots) < config.few_shot:
        raise ValueError(
            f"config.few_shot is {config.few_shot}; {config.few_shot_data} has only {len(shots)} "
            "that are not asked themselves."
        )
    return shots


def _code_block(example: Example) -> str:
    """The whole function in the form that a chat model is asked for."""
    return f"```python\n{example.question}{(example.solution or '').rstrip()}\n```"
