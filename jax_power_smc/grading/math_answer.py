r"""Mathematical answers, compared as mathematics: 2\sqrt{3} is \sqrt{12}, and 0.25 is 1/4.

Reading and comparing is Math-Verify's work (https://github.com/huggingface/Math-Verify). It can
take for ever and all memory, and its own time limits need signals, so it runs in a process that
can be killed: see ``pool``.

An answer that is right by ``string_rule`` is right here too. Numbers are compared as ``numeric``
says, and a list is equal to a list alone.
"""

import functools
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Rational

from jax_power_smc.grading import numeric, spelling, string_rule
from jax_power_smc.grading.thinking import without_thinking

# Of a long response, what is read around its last box, or else at its end.
WINDOW = 2000
# Wrong answers are compared with at most this many commoner ones.
LARGEST_NUMBER_OF_LEADERS = 16
# Longer texts are compared as texts only.
LONGEST_COMPARED = 200

_MATCHES = {"latex": LatexExtractionConfig(), "expr": ExprExtractionConfig()}
_MARKED = re.compile(r"\$|\\boxed|\\fbox|\\\(|\\\[")
# One number, with commas or spaces between thousands, or with a comma for the point.
_PLAIN_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\$?"
    r"(?:(?P<thousands>\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?)|(?P<other>\d+(?:[.,]\d+)?|\.\d+))"
    r"(?P<under>\s?/\s?\d+)?\s*(?P<percent>%|percent|percentage|pct)?",
    re.IGNORECASE,
)
_DOLLAR_SIGN = re.compile(r"(?<!\\)\\\$(?=[\d.])")

# It warns, once, that its time limits are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)
numeric.install()


def judge(gold: str, response: str, opts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What ``Verdict`` holds, as JSON can.

    Args:
      gold: the answer: LaTeX, a number, or a text in which Math-Verify finds it.
      response: of the model, or an answer alone.
      opts: for cases that ask for special treatment: "match_types", a list of "latex" and "expr",
        what to look for in both texts; and Math-Verify's "strict" and "allow_set_relation_comp",
        and "precision", to how many digits numbers are rounded.
    """
    response = without_thinking(response)
    answer = string_rule.extract(response)
    same = string_rule.equal(gold, response)
    # Something was asked that the rule for strings knows nothing of.
    correct = _equal(gold, response, opts) if opts else same or _equal(gold, response, {})
    return {
        "parsed": None if answer is None else string_rule.normalise(answer) or None,
        "correct": correct,
        "correct_string": same,
    }


def merge(answers: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Answers that are equal as mathematics but not as texts, put together.

    Args:
      answers: wrong answers, as ``judge`` parsed them, each with the number of its responses.

    Returns:
      answer -> the commonest answer that is equal to it, itself if none is.
    """
    leaders: dict[str, list[Any]] = {}
    merged = {}
    # By count, then as text, so that the result does not depend on the order of the responses.
    for answer, _ in sorted(answers, key=lambda each: (-each[1], each[0])):
        short = len(answer) <= LONGEST_COMPARED
        read = _parse_answer(answer) if short else []
        equal = (leader for leader, other in leaders.items() if _same(other, read))
        merged[answer] = next(equal, answer)
        if merged[answer] == answer and read and len(leaders) < LARGEST_NUMBER_OF_LEADERS:
            leaders[answer] = read
    return merged


def _equal(gold: str, response: str, opts: Mapping[str, Any]) -> bool:
    answer = string_rule.extract(response) or response
    # A base that only one of them writes is the one that the problem asks for.
    bases = spelling.has_base(string_rule.gold_answer(gold)) == spelling.has_base(answer)
    types = tuple(opts.get("match_types", ()))
    if types:
        expected = _parse(gold, types, bases)
        given = _parse(_window(response), types, bases)
    else:
        expected, given = _read_gold(gold, bases), _read_response(response, bases)
    options = {name: opts[name] for name in ("strict", "allow_set_relation_comp") if name in opts}
    return _compare(expected, given, opts.get("precision", numeric.RELATIVE), **options)


# The same answer is asked for by many responses in a row.
@functools.lru_cache(maxsize=64)
def _read_gold(gold: str, bases: bool) -> list[Any]:
    gold = _DOLLAR_SIGN.sub("", gold)
    if _MARKED.search(gold):
        return _parse(gold, bases=bases)
    gold = string_rule.gold_answer(gold)
    # "1,22" is a number to some and a pair to others; the gold answer may be either.
    return _parse_answer(gold, bases) + _parse_number(gold)


def _read_response(response: str, bases: bool) -> list[Any]:
    if not _MARKED.search(_DOLLAR_SIGN.sub("", response)):
        answer = string_rule.extract(response) or ""
        # Math-Verify finds a number in prose, but not all of 2 1/3.
        known = string_rule.marked(response) is not None or spelling.respell(answer) != answer
        if known and string_rule.is_bare(answer):
            answer = _DOLLAR_SIGN.sub("", answer)
            if read := _parse_number(answer) + _parse_answer(answer, bases):
                return read
    return _parse(_window(response), bases=bases)


def _parse_number(answer: str) -> list[Any]:
    """Reads a text that is one number and nothing else."""
    answer = spelling.join_sign(spelling.respell(answer.strip()))
    if not (number := _PLAIN_NUMBER.fullmatch(answer)):
        return []
    thousands = (number["thousands"] or "").replace(",", "").replace(" ", "")
    amount = thousands or number["other"].replace(",", ".")
    percent = "%" if number["percent"] else ""
    return _parse(number["sign"].strip("+") + amount + (number["under"] or "") + percent)


def _parse_answer(answer: str, bases: bool = True) -> list[Any]:
    """Reads a text that is an answer and nothing else."""
    return _parse(rf"\boxed{{{answer}}}", bases=bases)


def _parse(text: str, types: Sequence[str] = ("latex", "expr"), bases: bool = True) -> list[Any]:
    text = spelling.mark_bases(spelling.respell(text), keep=bases)
    return parse(text, [_MATCHES[each] for each in types], parsing_timeout=None)


def _compare(gold: list[Any], given: list[Any], rounding: int | str, **options: Any) -> bool:
    pairs = (numeric.assigned(*pair) for pair in itertools.product(gold, given))
    return any(
        verify(one, other, float_rounding=rounding, timeout_seconds=None, **options)
        for one, other in pairs
    )


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether two wrong answers are equal; most are whole numbers, and then it is quick."""
    if one and other and isinstance(one[0], Rational) and isinstance(other[0], Rational):
        return bool(one[0] == other[0])
    return _compare(one, other, numeric.EXACT)


def _window(response: str) -> str:
    """The part of a long response that has the answer; it begins with a line, if lines are short.

    Within a line a dollar that opens a formula could not be told from one that closes it.
    """
    box = response.rfind(r"\boxed")
    middle = len(response) if box < 0 else box
    start = max(0, middle - WINDOW)
    if start and (line := response.find("\n", start, middle)) >= 0:
        start = line + 1
    # An amount of money, not the beginning of a formula.
    return _DOLLAR_SIGN.sub("", response[start : middle + WINDOW])
