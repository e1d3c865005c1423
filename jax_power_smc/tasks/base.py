"""A task: problems, the prompt that puts each to a model, and the kind of its answers."""

import dataclasses
from typing import Any, Literal, get_args

# How answers are graded, see ``grading``.
Kind = Literal["math", "choice", "code", "string", "reasoner"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# What the reference answer of kind "code" holds.
CODE_FIELDS = ("prompt", "test", "entry_point")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: a name, unique within the task. The problem's random numbers follow from it, so its
        answers depend neither on its position in the list nor on the other problems.
      prompt: the text given to the model; for a chat model, the user's message.
      gold: the reference answer, a JSON value: a text; for "reasoner" an integer; for "code" an
        object with the texts ``CODE_FIELDS``.
    """

    id: str
    prompt: str
    gold: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems of one kind, which says how answers are graded, in the order of their source."""

    name: str
    problems: tuple[Problem, ...]
    kind: Kind
