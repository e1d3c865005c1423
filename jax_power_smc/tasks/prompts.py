r"""Prompt templates, and worked examples before the question.

A base model gets the text as it is, a chat model gets it as the user's message. The templates with
\boxed are those of the papers on power sampling. A template is plain text in which ``{question}``
is replaced, so other braces need no escaping.
"""

import hashlib
from collections.abc import Sequence

from jax_power_smc.tasks.dataset import Example

QUESTION = "{question}"
OPTIONS = "ABCD"

MATH = r"""{question}

Please reason step by step, and put your final answer within \boxed{}."""

CHOICE = r"""{question}

Please reason step by step, and put the letter of the right option within \boxed{}."""

CODE_CHAT = """Complete this Python function. Answer with one code block that holds the whole \
function and its imports.

```python
{question}
```"""


def check_template(name: str, value: object) -> None:
    """Raises ValueError unless ``value`` is a template or None."""
    if value is not None and (not isinstance(value, str) or QUESTION not in value):
        raise ValueError(f"{name} is {value!r}; it must be None or a text that has {QUESTION}.")


def write_prompt(template: str, question: str, shots: Sequence[Example] = ()) -> str:
    """The prompt of a question.

    Args:
      template: see above.
      question: the question.
      shots: examples with solutions; each precedes the question, in the same template.
    """
    worked = [f"{_with_newline(template, shot.question)}{shot.solution}\n\n" for shot in shots]
    return "".join(worked) + template.replace(QUESTION, question)


def _with_newline(template: str, question: str) -> str:
    text = template.replace(QUESTION, question)
    return text if text.endswith("\n") else f"{text}\n"


def write_options(question: str, options: Sequence[str]) -> str:
    """A question followed by its options, one per line: A) ..., B) ..."""
    listed = [f"{letter}) {text}" for letter, text in zip(OPTIONS, options, strict=True)]
    return "\n".join([question.rstrip(), "", *listed])


def shuffled(count: int, seed: str) -> list[int]:
    """A permutation of ``range(count)`` that follows from a text, the same on every machine."""

    def rank(index: int) -> bytes:
        return hashlib.blake2b(f"{index}/{seed}".encode(), digest_size=8).digest()

    return sorted(range(count), key=rank)
