r"""Mathematical answers, compared as mathematics: 2\sqrt{3} is \sqrt{12}, and 0.25 is 1/4.

Math-Verify (https://github.com/huggingface/Math-Verify) parses and compares. It can run forever
and use all memory, and its own time limits need signals, so it runs in a worker process that can
be killed (see ``pool``).

How an answer is graded:

    string_rule   finds the answer in the response; equal strings are equal answers
    spelling      rewrites what Math-Verify cannot read
    this module   decides which text Math-Verify parses, and as what
    numeric       compares the expressions, with its own rule for numbers

A list is equal only to a list.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse
from sympy import Rational

from jax_power_smc.grading import numeric, spelling, string_rule
from jax_power_smc.grading.thinking import strip_thinking

# How much of a long response is parsed, before and after its last box or else before its end.
WINDOW = 2000
# Each wrong answer is compared with at most this many commoner ones.
MAX_LEADERS = 16
# Longer answers are compared only as text.
MAX_COMPARED_LENGTH = 200

_MATCHES = {"latex": LatexExtractionConfig(), "expr": ExprExtractionConfig()}
_MARKED = re.compile(r"\$|\\boxed|\\fbox|\\\(|\\\[")
# One number, with commas or spaces between thousands, or with a decimal comma.
_PLAIN_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\$?"
    r"(?:(?P<thousands>\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?)|(?P<other>\d+(?:[.,]\d+)?|\.\d+))"
    r"(?P<under>\s?/\s?\d+)?\s*(?P<percent>%|percent|percentage|pct)?",
    re.IGNORECASE,
)
_DOLLAR_SIGN = re.compile(r"(?<!\\)\\\$(?=[\d.])")


def judge(gold: str, response: str, opts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the fields of ``Verdict``, as JSON values.

    Args:
      gold: the reference answer: LaTeX, a number, or a text in which Math-Verify finds it.
      response: the model's response, or only its answer.
      opts: for cases that need special treatment: "match_types", a list of "latex" and "expr",
        what to look for in both texts; "precision", the decimal places to which numbers are
        rounded; and Math-Verify's "strict" and "allow_set_relation_comp".
    """
    response = strip_thinking(response)
    same = string_rule.equal(gold, response)
    # The string rule knows nothing about the options.
    correct = _equal(gold, response, opts) if opts else same or _equal(gold, response, {})
    return {"parsed": string_rule.parsed(response), "correct": correct, "correct_string": same}


def merge(answers: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Groups answers that are equal as mathematics but not as text.

    From (wrong answer as ``judge`` parsed it, number of responses) to a dictionary: answer -> the
    commonest answer equal to it, possibly itself.
    """
    leaders: dict[str, list[Any]] = {}
    merged = {}
    # Sorted by count, then as text, so that the order of the responses does not matter.
    for answer, _ in sorted(answers, key=lambda each: (-each[1], each[0])):
        parsed = _parse_answer(answer) if len(answer) <= MAX_COMPARED_LENGTH else []
        equal = (leader for leader, other in leaders.items() if _same(other, parsed))
        merged[answer] = next(equal, answer)
        if merged[answer] == answer and parsed and len(leaders) < MAX_LEADERS:
            leaders[answer] = parsed
    return merged


def _equal(gold: str, response: str, opts: Mapping[str, Any]) -> bool:
    answer = string_rule.extract(response) or response
    reference = string_rule.reference_answer(gold)
    # If only one of them states its base, or "p.m.", it is the one that the problem means.
    keep = spelling.has_base(reference) == spelling.has_base(answer)
    keep &= bool(spelling.half_of_day(reference)) == bool(spelling.half_of_day(answer))
    types = tuple(opts.get("match_types", ()))
    if types:
        expected = _parse(gold, types, keep)
        given = _parse(_window(response), types, keep)
    else:
        expected, given = _parse_reference(gold, keep), _parse_response(response, keep)
    options = {name: opts[name] for name in ("strict", "allow_set_relation_comp") if name in opts}
    return _compare(expected, given, opts.get("precision", numeric.RELATIVE), **options)


# Many responses in a row are compared with the same reference answer.
@functools.lru_cache(maxsize=64)
def _parse_reference(gold: str, keep: bool) -> list[Any]:
    gold = _DOLLAR_SIGN.sub("", gold)
    if _MARKED.search(gold):
        return _parse(gold, keep=keep)
    gold = string_rule.reference_answer(gold)
    # "1,22" is a number to some and a pair to others; the reference may be either.
    return _parse_answer(gold, keep) + _parse_number(gold)


def _parse_response(response: str, keep: bool) -> list[Any]:
    boxed = r"\boxed" in response or r"\fbox" in response
    marked = None if boxed else string_rule.marked(response)
    # Formulas beside an answer that is marked in another way are not looked at.
    if not _MARKED.search(_DOLLAR_SIGN.sub("", response if marked is None else marked)):
        answer = string_rule.extract(response) or ""
        # Math-Verify finds a number in prose, but not all of 2 1/3 or of "12, 15".
        known = marked is not None or not _PLAIN_NUMBER.fullmatch(answer)
        if known and string_rule.is_bare(answer):
            answer = _DOLLAR_SIGN.sub("", answer)
            if parsed := _parse_number(answer) + _parse_answer(answer, keep):
                return parsed
    return _parse(_window(response), keep=keep)


def _parse_number(answer: str) -> list[Any]:
    """Parses a text that is one number and nothing else."""
    answer = spelling.join_sign(spelling.respell(answer.strip()))
    if not (number := _PLAIN_NUMBER.fullmatch(answer)):
        return []
    thousands = (number["thousands"] or "").replace(",", "").replace(" ", "")
    amount = thousands or number["other"].replace(",", ".")
    percent = "%" if number["percent"] else ""
    return _parse(number["sign"].strip("+") + amount + (number["under"] or "") + percent)


def _parse_answer(answer: str, keep: bool = True) -> list[Any]:
    """Parses a text that is an answer and nothing else."""
    return _parse(rf"\boxed{{{answer}}}", keep=keep)


def _parse(text: str, types: Sequence[str] = ("latex", "expr"), keep: bool = True) -> list[Any]:
    text = spelling.mark_half_of_day(spelling.respell(text), keep=keep)
    text = spelling.join_percentages(spelling.mark_bases(text, keep=keep))
    return parse(text, [_MATCHES[each] for each in types], parsing_timeout=None)


def _compare(expected: list[Any], given: list[Any], rounding: int | str, **options: Any) -> bool:
    pairs = itertools.product(expected, given)
    return any(numeric.verify(*pair, rounding, **options) for pair in pairs)


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether two wrong answers are equal, with a shortcut for integers, the usual case."""
    if one and other and isinstance(one[0], Rational) and isinstance(other[0], Rational):
        return bool(one[0] == other[0])
    return _compare(one, other, numeric.EXACT)


def _window(response: str) -> str:
    """The part of a long response around its answer, starting at the beginning of a line.

    In the middle of a line, a dollar sign that opens a formula looks like one that closes it.
    """
    box = response.rfind(r"\boxed")
    middle = len(response) if box < 0 else box
    start = max(0, middle - WINDOW)
    if start and (line := response.find("\n", start, middle)) >= 0:
        start = line + 1
    # \$5 is an amount of money, not the beginning of a formula.
    return _DOLLAR_SIGN.sub("", response[start : middle + WINDOW])
