r"""Prompts: what surrounds a question, and worked examples before it.

A base model gets the text as it is, a chat model the same text as the user's message.

The format with \boxed is that of the papers on power sampling; a format is plain text in which
``{question}`` is replaced, so other braces stand for themselves.
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


def check_format(name: str, value: object) -> None:
    """Raises ValueError unless value is a format, or None."""
    if value is not None and (not isinstance(value, str) or QUESTION not in value):
        raise ValueError(f"{name} is {value!r}; it must be None or a text with {QUESTION} in it.")


def write_prompt(form: str, question: str, shots: Sequence[Example] = ()) -> str:
    """The prompt of a question.

    Args:
      form: a format.
      question: what is asked.
      shots: examples with solutions; each goes before it in the same format.
    """
    worked = [f"{_on_lines(form, shot.question)}{shot.solution}\n\n" for shot in shots]
    return "".join(worked) + form.replace(QUESTION, question)


def _on_lines(form: str, question: str) -> str:
    """A prompt that ends with the end of a line."""
    text = form.replace(QUESTION, question)
    return text if text.endswith("\n") else f"{text}\n"


def write_options(question: str, options: Sequence[str]) -> str:
    """A question with its options, one on a line: A) ..., B) ..."""
    listed = [f"{letter}) {text}" for letter, text in zip(OPTIONS, options, strict=True)]
    return "\n".join([question.rstrip(), "", *listed])


def shuffled(count: int, seed: str) -> list[int]:
    """An order of ``count`` things that follows from a text, the same on every machine."""

    def rank(index: int) -> bytes:
        return hashlib.blake2b(f"{index}/{seed}".encode(), digest_size=8).digest()

    return sorted(range(count), key=rank)
