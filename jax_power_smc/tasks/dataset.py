"""What the file of one benchmark declares, and what it makes of a row."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from jax_power_smc.tasks.base import Kind
from jax_power_smc.tasks.records import Record


@dataclasses.dataclass(frozen=True)
class Example:
    """A problem before its prompt is written.

    Attributes:
      id: see ``base.Problem``.
      question: what is asked; of a multiple choice with its options.
      gold: see ``base.Problem``.
      solution: a worked one that ends as the prompt asks for, for few-shot prompts, or None.
    """

    id: str
    question: str
    gold: Any
    solution: str | None = None


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A benchmark.

    Attributes:
      title: for people.
      kind: how answers are judged.
      read: makes an example of a row, or raises ValueError.
      prompt: what is put to the model, with ``{question}`` where the question goes.
      samples: made-up rows in the layout of the hub, for dry runs.
      chat_prompt: in place of ``prompt`` for chat models, if that is another one.
      data, data_name: the data set of the hub, and which of its configurations.
      splits: our name of a split -> that on the hub.
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


def record_id(row: Record, question: str, *fields: str) -> str:
    """The id of a row: one of the fields, or else a hash of the question.

    Not the row's number, so that it stays the same if rows before it go.
    """
    if row.has(*fields):
        return row.text(*fields)
    return hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
