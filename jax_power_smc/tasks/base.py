"""A task: problems, the prompt that puts each to a model, and the rule that judges an answer."""

import dataclasses
from typing import Any, Literal

# How answers are judged, see ``grading``.
Kind = Literal["math", "choice", "code", "string", "reasoner"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      id: a name, different for every problem of a task. The randomness of a problem follows from
        it, so its answers depend neither on its place in the list nor on the other problems.
      prompt: the text that is put to the model; for a chat model, the user's message.
      gold: the right answer, of a kind that JSON can hold: a text; for "reasoner" an integer; for
        "code" an object with the texts "prompt", "test" and "entry_point".
    """

    id: str
    prompt: str
    gold: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """Problems of one kind.

    Attributes:
      name: of the benchmark, for people.
      problems: in the order of their source.
      kind: how answers are judged.
    """

    name: str
    problems: tuple[Problem, ...]
    kind: Kind
