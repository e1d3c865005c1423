r"""Multiple choice: the answer is a letter from A to J.

It is stated in a box, as in \boxed{C} or \boxed{\text{(C)}}, or in words, as in "the answer is (C)"
or "Answer: C)". The last statement counts. Without one, the last letter in brackets does, "(C)",
and last of all a response that is a letter and nothing more.
"""

import re

from jax_power_smc.grading import string_rule
from jax_power_smc.grading.golds import LETTERS
from jax_power_smc.grading.verdict import Verdict

_LETTER = rf"(?P<letter>[{LETTERS}])(?![^\W_])"
# What may stand before the letter: emphasis, brackets, \text{. Bounded, so that it stays quick.
_OPENING = r"(?:[\s*_(\[{$:\"'`]|\\(?:text|mathrm|mathbf|textbf|boxed) ?\{){0,20}"
# "A" and "I" are words as well: then small letters follow, other than these.
_NO_WORD = r"(?!(?<=[AI]) {1,3}(?!(?:as|because|since|and|for|with|by|is|which)\b)[a-z'’])"  # noqa: RUF001
_BOXED = re.compile(rf"\\(?:boxed|fbox) ?\{{{_OPENING}{_LETTER}{_NO_WORD}")
_NOUN = r"(?:answer|option|choice)"
_STATED = re.compile(
    rf"(?i:\b{_NOUN}\b(?: (?:to|of|for)\b[^.\n]{{0,80}}?)?(?:\*\*)?\s{{0,3}}"
    rf"(?:is|:|would be|must be))"
    rf"{_OPENING}(?i:(?:option|choice|answer)\b)?{_OPENING}{_LETTER}{_NO_WORD}"
)
_BRACKETED = re.compile(rf"\({_LETTER}\)")
_ALONE = re.compile(rf"[\s*(\[$]*{_LETTER}[\s*)\].:$]*")


def judge(gold: str, response: str) -> Verdict:
    """A verdict; the plain rule wants exactly the letter, in a box.

    Args:
      gold: a letter.
      response: of the model.
    """
    answer = parse_letter(response)
    return Verdict(answer, answer == gold, (string_rule.last_boxed(response) or "").strip() == gold)


def parse_letter(response: str) -> str | None:
    """The letter that a response chooses, or None."""
    stated = [*_BOXED.finditer(response), *_STATED.finditer(response)]
    if not stated:
        stated = [*_BRACKETED.finditer(response)]
    if stated:
        return max(stated, key=lambda found: found.start("letter"))["letter"]
    alone = _ALONE.fullmatch(response) if len(response) < 100 else None
    return alone["letter"] if alone else None
