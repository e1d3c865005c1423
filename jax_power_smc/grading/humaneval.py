"""HumanEval: a function that a model wrote, graded by running its problem's tests.

A response is one of

* a continuation of the prompt, as a base model writes it: it starts in the body of the function
  and is cut before the first line that is no longer indented;
* a whole function, on its own, between prose, or in the last markdown block that has it, as a chat
  model writes it: the imports and helpers that precede the function in the prompt are added.

A block may be indented, for example in a list item. Text between <think> tags is never read.

Votes for code are counted by its text, without comments and blank lines.
"""

import itertools
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from jax_power_smc.grading.sandbox import Sandbox
from jax_power_smc.grading.thinking import strip_thinking

# Characters; far more than any problem needs.
MAX_CODE_LENGTH = 50_000

# The fence may be indented, for example inside a list; the whole block is then.
_BLOCK = re.compile(r"(?P<indent>[ \t]*)```[^\n`]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
# The body of a function never starts like this, even if it is indented.
_NOT_BODY = re.compile(r"\s*(?:```|[-*+] |\d+[.)] )")
_STARTS_CODE = re.compile(r"(?:def|class|import|from|async def)\s|@\w")
_IMPORT_IN_BODY = re.compile(r"(?:import|from)\s[^\n(\\]*\n(?:[ \t]*\n)*[ \t]+\S")
# A line of prose: it starts like a sentence, without an assignment or a call, or like a heading.
_PROSE = re.compile(r"(?:[A-Z][\w']*(?!\w)(?!\s*[=(\[.])|[#*>-])")
# After a function: a fence, a sentence, a heading such as "Explanation:", or a list item.
_ENDS_CODE = re.compile(r"```|[A-Z][a-z']* [a-z']+ |\*{0,2}[A-Z][\w ]*:\W*$|[-*] |\d+\. ")
_INDENT = "    "


class CodeWorker(Sandbox):
    """A ``pool.Worker`` that runs programs."""

    def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        """Returns the fields of ``Verdict``.

        Raises:
          WorkerError: if the program took too long, or the sandbox did not start.
        """
        if function != "judge":
            raise ValueError(f'function is {function!r}; only "judge" is possible for code.')
        return self._judge(**arguments)

    def close(self) -> None:
        """Does nothing: no process outlives its call."""

    def _judge(self, gold: Mapping[str, str], response: str) -> dict[str, Any]:
        code = solution(response, gold["prompt"], gold["entry_point"])
        if len(code) > MAX_CODE_LENGTH:  # a model that repeats itself
            return {"parsed": None, "correct": False, "correct_string": False}
        helpers = _preamble(gold["prompt"], gold["entry_point"])
        passed = self.passes(code, helpers, gold["test"], gold["entry_point"])
        return {"parsed": normalise(code) or None, "correct": passed, "correct_string": passed}


def solution(response: str, prompt: str, entry_point: str) -> str:
    """The program in a response: the whole function, with what it needs from the prompt."""
    response = strip_thinking(response).replace("\r\n", "\n")
    first = next((line for line in response.split("\n") if line.strip()), "")
    if first[:1] not in (" ", "\t") or _NOT_BODY.match(first):
        blocks = [_unindented(found) for found in _BLOCK.finditer(response)]
        dedented = map(textwrap.dedent, blocks)
        whole = [block for block in dedented if _defines(block, entry_point)]
        if whole:
            return _preamble(prompt, entry_point) + whole[-1]
        if blocks:
            response = blocks[-1]
        elif _defines(response, entry_point) and (code := _after_prose(response)):
            return _preamble(prompt, entry_point) + _until(code, _ENDS_CODE.match)
        response = response.lstrip("\n")
        if response[:1] not in (" ", "\t"):  # stripping the text removed the first indent
            response = _INDENT + response
    # The body ends before the first line that is not indented and does not close a bracket.
    body = _until(response, lambda line: line[:1] not in ("", *" \t\r)]}"))
    return prompt.rstrip("\n") + "\n" + body


def normalise(code: str) -> str:
    """The code without comment lines, blank lines and trailing spaces."""
    lines = (line.rstrip() for line in code.split("\n"))
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def _defines(code: str, entry_point: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", code, re.MULTILINE) is not None


def _unindented(block: re.Match[str]) -> str:
    """The code of a block without the indentation of its fence."""
    indent = re.escape(block["indent"])
    return re.sub(rf"^{indent}", "", block["code"], flags=re.MULTILINE)


def _preamble(prompt: str, entry_point: str) -> str:
    """Everything in the prompt before the function; it does no harm if the code repeats it."""
    found = re.search(rf"^def {re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return prompt[: found.start()] + "\n" if found else ""


def _after_prose(response: str) -> str | None:
    """The response from its first line of code; None if what precedes it is a body, not prose."""
    lines = response.split("\n")
    for number, line in enumerate(lines):
        if _STARTS_CODE.match(line):
            code = "\n".join(lines[number:])
            # A stripped body may start with an import; then the next line is indented.
            return None if _IMPORT_IN_BODY.match(code) else code
        if line.strip() and not _PROSE.match(line):
            return None
    return None


def _until(text: str, is_end: Callable[[str], object]) -> str:
    """The lines before the first one that ends it."""
    lines = itertools.takewhile(lambda line: not is_end(line), text.split("\n"))
    return "".join(f"{line}\n" for line in lines)
