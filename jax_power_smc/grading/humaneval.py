"""HumanEval: a function that a model wrote, judged by running the tests of its problem.

A response is one of

* a continuation of the prompt, as a base model writes it: it begins in the body of the function
  and is cut before the first line that is no longer indented;
* a whole function, alone, between words or in the last markdown block that has it, as a chat model
  writes it: it gets the imports and helpers that stand before the function in the prompt.

A block may be indented, as in a point of a list. What is between <think> tags is never read.

The votes for code are counted by its text, without comments and empty lines.
"""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

from jax_power_smc.grading.sandbox import Sandbox
from jax_power_smc.grading.thinking import without_thinking

# No solution of a problem is longer.
LONGEST_CODE = 50_000

# The fence may be indented, inside a list for example; the block is then as well.
_BLOCK = re.compile(r"(?P<indent>[ \t]*)```[^\n`]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
# No body of a function begins like this, however far it is indented.
_NO_BODY = re.compile(r"\s*(?:```|[-*+] |\d+[.)] )")
_STARTS_CODE = re.compile(r"(?:def|class|import|from|async def)\s|@\w")
_IMPORT_IN_BODY = re.compile(r"(?:import|from)\s[^\n(\\]*\n(?:[ \t]*\n)*[ \t]+\S")
# A line that is no code: it begins as a sentence does, with no assignment or call, or as a heading.
_WORDS = re.compile(r"(?:[A-Z][\w']*(?!\w)(?!\s*[=(\[.])|[#*>-])")
# After a function: a fence, a sentence, a heading such as "Explanation:", or a point of a list.
_ENDS_CODE = re.compile(r"```|[A-Z][a-z']* [a-z']+ |\*{0,2}[A-Z][\w ]*:\W*$|[-*] |\d+\. ")
_INDENT = "    "


class CodeWorker:
    """A ``pool.Worker`` that runs programs.

    Args:
      seconds: that each may take.
    """

    def __init__(self, seconds: float) -> None:
        self._sandbox = Sandbox(seconds)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What ``Verdict`` holds.

        Raises:
          NotJudged: it took too long.
        """
        if do != "judge":
            raise ValueError(f"do is {do!r}; code can only be judged.")
        return self._judge(**arguments)

    def close(self) -> None:
        """Kills the program that runs."""
        self._sandbox.close()

    def end(self) -> None:
        """Nothing is left to end."""

    def _judge(self, gold: Mapping[str, str], response: str) -> dict[str, Any]:
        code = solution(response, gold["prompt"], gold["entry_point"])
        if len(code) > LONGEST_CODE:  # a model that repeats itself
            return {"parsed": None, "correct": False, "correct_string": False}
        passed = self._sandbox.passes(code, gold["test"], gold["entry_point"])
        return {"parsed": normalise(code) or None, "correct": passed, "correct_string": passed}


def solution(response: str, prompt: str, entry_point: str) -> str:
    """The program in a response: the whole function with what it needs from the prompt."""
    response = without_thinking(response).replace("\r\n", "\n")
    first = next((line for line in response.split("\n") if line.strip()), "")
    if first[:1] not in (" ", "\t") or _NO_BODY.match(first):
        blocks = [_unindented(found) for found in _BLOCK.finditer(response)]
        dedented = map(textwrap.dedent, blocks)
        whole = [block for block in dedented if _defines(block, entry_point)]
        if whole:
            return _preamble(prompt, entry_point) + whole[-1]
        if blocks:
            response = blocks[-1]
        elif _defines(response, entry_point) and (code := _after_prose(response)):
            return _preamble(prompt, entry_point) + _until_prose(code)
        response = response.lstrip("\n")
        if response[:1] not in (" ", "\t"):  # who strips a text strips this too
            response = _INDENT + response
    return prompt.rstrip("\n") + "\n" + _body(response)


def normalise(code: str) -> str:
    """The code without comments of whole lines, empty lines and spaces at the ends of lines."""
    lines = (line.rstrip() for line in code.split("\n"))
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))


def _defines(code: str, entry_point: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", code, re.MULTILINE) is not None


def _unindented(block: re.Match[str]) -> str:
    """The code without the indentation that its fence has."""
    indent = re.escape(block["indent"])
    return re.sub(rf"^{indent}", "", block["code"], flags=re.MULTILINE)


def _preamble(prompt: str, entry_point: str) -> str:
    """What stands in the prompt before the function; one that the code repeats does no harm."""
    found = re.search(rf"^def {re.escape(entry_point)}\b", prompt, re.MULTILINE)
    return prompt[: found.start()] + "\n" if found else ""


def _body(continuation: str) -> str:
    """Up to the first line that is not indented, unless that closes a bracket."""
    lines = continuation.split("\n")
    for number, line in enumerate(lines):
        if line[:1] not in ("", " ", "\t", "\r", ")", "]", "}"):
            return "\n".join(lines[:number]) + "\n"
    return continuation + "\n"


def _after_prose(response: str) -> str | None:
    """From the first line of code on; None if lines before it are a body, not words."""
    lines = response.split("\n")
    for number, line in enumerate(lines):
        if _STARTS_CODE.match(line):
            code = "\n".join(lines[number:])
            # A stripped body may begin with an import: what follows is indented then.
            return None if _IMPORT_IN_BODY.match(code) else code
        if line.strip() and not _WORDS.match(line):
            return None
    return None


def _until_prose(code: str) -> str:
    """A function without a block around it, up to a line that looks like words."""
    lines = code.split("\n")
    for number, line in enumerate(lines):
        if _ENDS_CODE.match(line):
            return "\n".join(lines[:number]) + "\n"
    return code + "\n"
