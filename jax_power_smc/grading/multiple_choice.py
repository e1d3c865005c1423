r"""Multiple choice: the answer is a letter from A to J.

The first of these that the response has counts, in its last occurrence:

* a box, as in \boxed{C} or \boxed{\text{(C)}}, or a statement, as in "the answer is (C)",
  "Answer: C)", "option C is correct" or "I choose C";
* a last line that is only a letter, or an option the way the question lists it, "C) 5 m", if no
  other option is listed;
* a letter in parentheses, "(C)";
* a first line of the same form as such a last line.

Text between <think> tags is never read.
"""

import re
from collections.abc import Sequence

from jax_power_smc.grading import string_rule
from jax_power_smc.grading.base import Verdict
from jax_power_smc.grading.references import LETTERS
from jax_power_smc.grading.thinking import strip_thinking

_LETTER = rf"(?P<letter>[{LETTERS}])(?![^\W_])"
# What may precede the letter: emphasis, brackets, \text{. Bounded, to keep matching fast.
_OPENING = r"(?:[\s*_(\[{$:\"'`]|\\(?:text|mathrm|mathbf|textbf|boxed) ?\{){0,20}"
# What may follow it.
_CLOSING = r"[*_)\]}$\"'`]{0,6}"
# "A" and "I" are also words: then another lowercase word follows, none of these.
_NO_WORD = r"(?!(?<=[AI]) {1,3}(?!(?:as|because|since|and|for|with|by|is|which)\b)[a-z'’])"  # noqa: RUF001
_NOUN = r"(?:answer|option|choice)"
_BOXED = re.compile(
    rf"\\(?:boxed|fbox) ?\{{{_OPENING}(?:(?i:{_NOUN}\b){_OPENING})?{_LETTER}{_NO_WORD}"
)
_IS = r"(?:is|was|=|:|-|–|—|would be|should be|must be|has to be|seems to be)"  # noqa: RUF001
_STATED = re.compile(
    rf"(?i:\b{_NOUN}\b(?: (?:to|of|for|here|therefore|thus)\b[^.\n]{{0,80}}?)?(?:\*\*)?\s{{0,3}}"
    rf"{_IS})"
    rf"{_OPENING}(?:(?i:{_NOUN}\b){_OPENING})?{_LETTER}{_NO_WORD}"
)
_RIGHT = r"(?:correct|right|best|most (?:likely|plausible|accurate|appropriate))"
_ADVERB = r"(?:(?:indeed|clearly|definitely|thus|therefore|then|also|the|my|our|final|only) ){0,3}"
# "Option C is correct.", "C is the correct answer.", "(C) must be the best choice."
_CALLED_RIGHT = re.compile(
    rf"(?<![^\W_]){_LETTER}{_CLOSING} (?i:(?:is|must be|would be|should be|seems|looks) {_ADVERB}"
    rf"(?:{_RIGHT}\b|(?:answer|choice)\b(?! to avoid)))"
)
# "I choose C.", "I'd go with option C", "we select (C)"; and "the correct one is C".
_CHOSEN = re.compile(
    r"(?i:\b(?:I|we|let's|let us|I['’](?:d|ll|m))"  # noqa: RUF001
    r"(?: (?:would|will|should|must|therefore|thus|can|have to|am|going to)){0,2}"
    r" (?:choose|pick|select|chose|picked|selected|choosing|picking|selecting|answer"
    r"|go(?:ing)? with|went with|opt for|vote for)"
    rf"|\b{_RIGHT} (?:one|statement|letter|response) (?:is|:)"
    r"|\b(?:so|hence|thus|therefore),? (?:it is|it's|it must be)) ?:?"
    rf"{_OPENING}(?:(?i:(?:{_NOUN}|letter)\b){_OPENING})?{_LETTER}{_NO_WORD}"
    r"(?!,? (?:or|and|over|between)\b|, [A-J]\b)"
)
_BRACKETED = re.compile(rf"\({_LETTER}\)")
_HEADING = (
    r"(?i:(?:(?:the |my )?(?:final |correct )?answer|option|choice|so|thus|hence|therefore)\b)?"
)
_ALONE = re.compile(rf"[\s*_#>(\[$]*{_HEADING}[\s*:,]*{_OPENING}{_LETTER}[\s*_)\]}}.:$!]*")
_LISTED = re.compile(rf"[\s*_#>$-]*\(?{_LETTER}(?:\*\*)?[).:]\**\s+\S")
# A line that is only an answer is shorter.
_MAX_LINE_LENGTH = 100
_NOT = re.compile(
    r"(?i:\b(?:not|never|nor|isn't|isn’t|cannot|can't|don't|wouldn't|eliminate|exclude|avoid)"  # noqa: RUF001
    r"(?: (?:be|choose|pick|select|go with|think|say|believe|the|option|choice|that))*)\W{0,4}$"
)


def judge(gold: str, response: str) -> Verdict:
    """Returns the verdict; the plain string rule accepts only the letter itself, in a box."""
    response = strip_thinking(response)
    answer = parse_letter(response)
    return Verdict(answer, answer == gold, (string_rule.last_boxed(response) or "").strip() == gold)


def parse_letter(response: str) -> str | None:
    """The letter that a response chooses, None if there is none."""
    response = strip_thinking(response)
    stated = [*_BOXED.finditer(response), *_STATED.finditer(response)]
    for weaker in (_CALLED_RIGHT, _CHOSEN):
        for found in weaker.finditer(response):
            # The words before it may negate it.
            if not _NOT.search(response, max(0, found.start() - 40), found.start()):
                stated.append(found)
    if stated:
        return max(stated, key=lambda found: found.start("letter"))["letter"]
    lines = [line.strip() for line in response.split("\n") if line.strip()]
    if letter := _line(lines, -1):
        return letter
    if bracketed := _BRACKETED.findall(response):
        return bracketed[-1]
    return _line(lines, 0)


def _line(lines: Sequence[str], at: int) -> str | None:
    """The letter on its own in a line, or of the only option listed if that line lists it."""
    line = lines[at] if lines else ""
    if len(line) < _MAX_LINE_LENGTH and (alone := _ALONE.fullmatch(line)):
        return alone["letter"]
    listed = {found["letter"] for each in lines if (found := _LISTED.match(each))}
    found = _LISTED.match(line)
    return found["letter"] if found and len(listed) == 1 else None
