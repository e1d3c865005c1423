"""What the module of a dataset declares, and what it makes of each record."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from jax_power_smc.tasks.base import Kind
from jax_power_smc.tasks.records import Record


@dataclasses.dataclass(frozen=True)
class Example:
    """A problem before its prompt is written; id and gold as in ``base.Problem``.

    The question has its options, if there are any. For few-shot prompts there may be a worked
    solution, which ends the way the prompt asks for.
    """

    id: str
    question: str
    gold: Any
    solution: str | None = None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A dataset of problems, and how to use it.

    Attributes:
      title: for people.
      kind: how answers are graded.
      read: turns a record into an example, or raises ValueError.
      prompt: the prompt's template, with ``{question}`` where the question goes.
      samples: made-up records in the layout of the hub, for dry runs and tests.
      chat_prompt: the template for chat models, if it is a different one.
      data: the dataset's name on the hub, owner/name.
      data_name: which of its configurations, or None if it has only one.
      splits: our name of a split -> its name on the hub.
    """

    title: str
    kind: Kind
    read: Callable[[Record], Example]
    prompt: str
    samples: tuple[Mapping[str, Any], ...]
    chat_prompt: str | None = None
    data: str | None = None
    data_name: str | None = None
    splits: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"test": "test"})


def record_id(record: Record, question: str, *fields: str) -> str:
    """The id of a record: the first of the fields that it has, or else a hash of the question.

    Not its position, so that it stays the same when earlier records are removed.
    """
    if record.has(*fields):
        return record.text(*fields)
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
