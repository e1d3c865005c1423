"""Grades responses.

    python -m launch.grade --task=math500 --input=FILE --output=FILE

The input has one JSON object per line, with ``gold`` and ``response``. The output has the same
lines in the same order, with ``parsed``, ``correct`` and ``correct_string`` added, and ``note`` if
the response could not be graded; other fields are kept.
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from jax_power_smc.cli.common import launch
from jax_power_smc.core import checks
from jax_power_smc.core.files import json_line, naming, parse_json, replacing, writing_alone
from jax_power_smc.core.progress import ProgressDisplay
from jax_power_smc.grading import isolation, string_rule
from jax_power_smc.grading.base import LONGEST, Grader, Verdict
from jax_power_smc.grading.factory import open_grader
from jax_power_smc.grading.references import parse_reference
from jax_power_smc.tasks.base import Kind
from jax_power_smc.tasks.load import DATASETS, TINY

# Task -> the kind of its answers.
KINDS: dict[str, Kind] = {
    **{name: dataset.kind for name, dataset in DATASETS.items()},
    TINY: "reasoner",
    "string": "string",
}


class Line(NamedTuple):
    """A line of the input, with its reference answer in the form that graders take."""

    fields: dict[str, Any]
    gold: Any


class Summary(NamedTuple):
    """Counts of responses, and how many seconds grading took."""

    graded: int
    correct: int
    correct_string: int
    ungraded: int
    seconds: float

    def __str__(self) -> str:
        if not self.graded:
            return "0 graded"
        by_rule, by_string = self.correct / self.graded, self.correct_string / self.graded
        return (
            f"{self.graded} graded   correct {by_rule:.1%}   by strings {by_string:.1%}   "
            f"{self.ungraded} could not be graded   {self.seconds:.1f} s"
        )


def grade(
    task: str,
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    processes: int | None = None,
    seconds: float = 10.0,
    longest: int = LONGEST,
    allow_code_execution: bool = False,
    code_isolation: str = isolation.BUBBLEWRAP,
) -> Summary:
    """Grades a file. If the output exists, it is first renamed.

    The task is a key of ``KINDS``; for the options see ``open_grader``. The output appears when it
    is complete.

    Raises:
      ValueError: if an argument or a line is invalid, or another job writes this output; nothing is
        graded then.
      OSError: if a file cannot be read or written.
    """
    checks.one_of("task", task, KINDS)
    if target.is_dir():
        raise ValueError(f"output is {os.fspath(target)}, a directory; it must be a file.")
    if target.exists() and not target.is_file():  # a device must not be renamed
        raise ValueError(f"output is {os.fspath(target)}; it must be a regular file.")
    if target.exists() and target.samefile(source):
        raise ValueError("input and output are the same file; the output needs another name.")
    started = time.monotonic()
    with open_grader(
        KINDS[task],
        processes=processes,
        seconds=seconds,
        longest=longest,
        allow_code_execution=allow_code_execution,
        code_isolation=code_isolation,
    ) as grader:
        lines = read_lines(source, task)
        target.parent.mkdir(parents=True, exist_ok=True)
        with writing_alone(target), replacing(target, keep=True) as file:

            def write(line: str) -> None:
                with naming(target):
                    file.write(line.encode())

            verdicts = _write(write, lines, grader)
    return Summary(
        graded=len(verdicts),
        correct=sum(each.correct for each in verdicts),
        correct_string=sum(each.correct_string for each in verdicts),
        ungraded=sum(each.note is not None for each in verdicts),
        seconds=time.monotonic() - started,
    )


def read_lines(source: pathlib.Path, task: str) -> list[Line]:
    """All lines of the input that are not empty.

    Raises:
      ValueError: if one is invalid, with the number of the first.
    """
    lines = []
    for number, content in enumerate(source.read_bytes().split(b"\n"), start=1):
        if content.strip():
            try:
                lines.append(_read_line(content, task))
            except ValueError as error:
                raise ValueError(f"line {number} of {os.fspath(source)}: {error}") from None
    return lines


def _read_line(content: bytes, task: str) -> Line:
    try:
        # Strict, because the output repeats what the input has.
        fields = parse_json(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError("this is not JSON.") from None
    except ValueError as error:
        raise ValueError(f"{error}.") from None
    if not isinstance(fields, dict):
        raise ValueError("this is not a JSON object.")
    for name in ("gold", "response"):
        if name not in fields:
            raise ValueError(f"the field {name} is missing.")
    if not isinstance(fields["response"], str):
        raise ValueError(f"response is a {type(fields['response']).__name__}; it must be a text.")
    gold = fields["gold"]
    if task == "gsm8k" and isinstance(gold, str):  # the whole solution, ending in "#### 18"
        gold = string_rule.reference_answer(gold)
    # Test cases for graders use this name for options.
    if KINDS[task] == "math" and fields.get("opts"):
        gold = {"answer": gold, "opts": fields["opts"]}
    parse_reference(KINDS[task], gold)
    return Line(fields, gold)


def _write(write: Callable[[str], None], lines: Sequence[Line], grader: Grader) -> list[Verdict]:
    """Grades the lines, and writes each once all lines before it are written."""
    for index, line in enumerate(lines):
        grader.submit(index, line.gold, [line.fields["response"]])
    waiting: dict[Any, Verdict] = {}
    verdicts: list[Verdict] = []
    with ProgressDisplay(None, stream=sys.stderr, transient=True) as progress:
        while grader.pending:
            for number, (verdict,) in grader.finished(wait=True):
                waiting[number] = verdict
            while len(verdicts) in waiting:
                line = lines[len(verdicts)]
                verdicts.append(waiting.pop(len(verdicts)))
                write(json_line(_graded(line.fields, verdicts[-1])))
            progress.update("grading", len(verdicts) + len(waiting), len(lines))
    return verdicts


def _graded(fields: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    graded = fields | verdict._asdict()
    if verdict.note is None:
        del graded["note"]  # the line may have one from an earlier grading
    return graded


def main(values: Any) -> None:
    """Grades the file that the flags of ``run`` name, and prints the summary."""
    summary = grade(
        values.task,
        pathlib.Path(values.input),
        pathlib.Path(values.output),
        processes=values.processes,
        seconds=values.seconds,
        longest=values.longest,
        allow_code_execution=values.allow_code_execution,
        code_isolation=values.code_isolation,
    )
    print(summary)


def run() -> None:
    """The command line."""
    flags.DEFINE_string("task", None, f"One of {', '.join(KINDS)}.")
    flags.DEFINE_string("input", None, "JSON lines with gold and response.")
    flags.DEFINE_string("output", None, "Where to write the graded lines.")
    flags.DEFINE_integer("processes", None, "Number of worker processes.")
    flags.DEFINE_float("seconds", 10.0, "Time limit for grading one response.")
    flags.DEFINE_integer(
        "longest", LONGEST, "Characters of a response; longer ones are not graded."
    )
    flags.DEFINE_bool(
        "allow_code_execution", False, "For humaneval: run model-written code on this machine."
    )
    flags.DEFINE_enum(
        "code_isolation",
        isolation.BUBBLEWRAP,
        isolation.KINDS,
        "For humaneval: what stands between that code and this machine.",
    )
    launch(main, required=["task", "input", "output"])
