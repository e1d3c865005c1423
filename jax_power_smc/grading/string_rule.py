r"""The string rule: two answers are equal if their normalised strings are.

This is how papers on power sampling graded MATH: the last \boxed{...} of the response is the
answer, differences of spelling are removed, and the strings are compared. It knows no algebra, so
2\sqrt{3} and \sqrt{12} differ.

In a response without \boxed, the answer is the first of these that it has:

* the rest of the line after the last "####", the way GSM8K's solutions end;
* the rest of the sentence after the last "answer is" or "answer:"; for a calculation such as
  "2 + 3 = 5 dollars" only its result, and for an amount with a unit only the number;
* the whole response, if it is only an answer (see ``is_bare``);
* the last number.

A response whose last \boxed is never closed was cut off and has no answer. Boxes separated only by
commas or "and" hold a list. Text between <think> tags is never read.
"""

import re

from jax_power_smc.grading import spelling
from jax_power_smc.grading.thinking import strip_thinking

# Longer texts are not answers; this keeps normalising fast, whatever the model wrote.
MAX_ANSWER_LENGTH = 1000
# The longest list in boxes.
_MAX_BOXES = 20

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed (?=[^\s{])")
_STATED = re.compile(r"(?i:\banswers?(?:\s+(?:is|are)\s*:?|\s*:))[\s*]*")
# The end of a sentence or line; a decimal point does not end a sentence.
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n|\.?\s*I hope")
# What may separate two boxes of a list.
_BETWEEN_BOXES = re.compile(
    r"[\s$]*(?:(?:,|;|,?\s*(?:\\quad)?\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?)(?:\s|\\quad|[$])*)"
)
_NUMBER = re.compile(
    r"(?<![^\W_])[-\u2212\u2013]?(?<![^\W_])"
    r"(?:\d+ (?=\d+/\d)|(?=[\d.]))"  # the integer of a mixed number
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?:/\d+| ?[\u00bc-\u00be\u2150-\u215e]|_\{\d+\})?"
)
# "The numbers are 12, 15." at the end.
_LISTED = re.compile(
    rf"\bare:? (?P<list>{_NUMBER.pattern}(?:(?:,? and |, ?)(?:{_NUMBER.pattern})){{1,20}})\.?\s*\Z"
)
# Amounts with units: "18 dollars a day", "2 1/3 cups", "2 + 3 = 5 dollars", "12, 15 and 18 cents".
_FIGURE = r"(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)"
_SIGNED = rf"(?:[-\u2212\u2013]\s?)?\$?{_FIGURE}"
_TERM = rf"\(?{_SIGNED}[)%]*(?: [a-z]+){{0,2}}"
_OPERATOR = r"\s?(?:[-+*/^\u2212\u00d7\u00f7\u00b7]|x(?= ?\d))\s?"
_SUM = re.compile(rf"(?:{_TERM}(?:{_OPERATOR}{_TERM}){{0,20}}\s?=\s?){{1,20}}(?=[-.$\d\u2212])")
# After ``respell``, which writes 3√2, 2½ and 10³ in LaTeX.
_FACTOR = (
    r"(?:\\sqrt(?:\[\d\])?\{[^{}]{1,40}\}|\\frac\{\d{1,9}\}\{\d{1,9}\}|\\(?:pi|infty)(?![a-zA-Z]))"
)
_AMOUNT = re.compile(
    rf"(?P<amount>\d\d?(?::\d\d)?\s?[aApP]\.?\s?[mM]\b\.?|(?:{_SIGNED}|-?\s?{_FACTOR})"
    rf"(?:(?:, ?{_SIGNED})*,? (?:and|or) {_SIGNED}|(?: \d+)?\s?/\s?\d+(?!\d*\s?\\)|:\d\d"
    rf"|(?:\s?{_FACTOR}|_\{{\d+\}}|\^(?:\{{[-+]?\d+\}}|[-+]?\d+)"
    rf"|\s?(?:[+*/\u00d7\u00b7]|\\times|\\cdot)\s?\$?(?:{_FIGURE}|{_FACTOR})"
    rf"|\s?-\s?(?:{_FIGURE}\s?)?{_FACTOR}){{1,20}})?)"
)
# LaTeX whose letters do not make an answer prose: text, environments, commands.
_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textnormal|mbox|mathrm|mathbf|operatorname|begin|end)\s*\{[^{}]*\}"
    r"|\\[a-zA-Z]+"
)
_WORD = re.compile(r"[^\W\d_]{3,}|\b(?i:is|it|so|we|to|of|in|at|by|no)\b")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "and", "mod")
)

_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_DROPPED = re.compile(
    r"(?<!\\)(?:\\[!,;:]|\\(?:left|right|displaystyle|degree)(?![a-zA-Z])|\\[$%])"
    r"|\^\\circ(?![a-zA-Z])|\^\{\\circ\}|[°$%\x00]"
)
_SPELLINGS = {
    **{r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac"},
    **{r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne"},
    **{r"\lbrace": r"\{", r"\rbrace": r"\}", r"\ ": " ", "~": " "},
    **{r"\quad": " ", r"\qquad": " ", "×": r"\times", "·": r"\cdot"},  # noqa: RUF001
}
# Not the second of the two backslashes that end a matrix row.
_RESPELLED = re.compile(
    r"(?<!\\)(?:" + "|".join(re.escape(each) + r"(?![a-zA-Z])" for each in _SPELLINGS) + ")"
)
# 11,\! 111: a comma that separates thousands.
_THIN_COMMA = re.compile(r",\s*\\!\s*")
# A unit is text after a number, possibly with a power: 15\mbox{ cm}^2.
_UNIT = re.compile(
    r"(?<=[\d}])\s*\\(?:text|mbox|textnormal|mathrm)\s*\{[^{}]*[a-zA-Z][^{}]*\}(?:\^\{?\d\}?)?\s*$"
)
_TEXT = re.compile(r"\\(?:text|mbox|textnormal|mathrm|textbf|textit)\s*\{([^{}]*)\}")
_LABEL = re.compile(r"^[a-zA-Z]\w?\s*(?:=|\\in(?![a-z]))\s*")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# 12 345 is one number, 3 5 is two.
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(?:(\d)|\{)")
_HALF_FRACTION = re.compile(r"(\\frac\{[^{}]*\})\s*(\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\w)")
_SLASH = re.compile(r"(-?)(\d+)/(\d+)")
_DECIMAL = re.compile(r"(-?)0*(\d*)\.(\d*?)0*")


def equal(gold: str, response: str) -> bool:
    """Whether the response is right; ``gold`` may be a solution with a box or "####"."""
    answer, reference = extract(response), reference_answer(gold)
    if answer is not None and not spelling.has_base(reference):
        answer = spelling.mark_bases(answer, keep=False)
    # If only one of them states the half of the day, it is the one that the problem means.
    if answer is not None and not (
        spelling.half_of_day(reference) and spelling.half_of_day(answer)
    ):
        answer, reference = (
            spelling.mark_half_of_day(each, keep=False) for each in (answer, reference)
        )
    return answer is not None and normalise(answer) == normalise(reference) != ""


def parsed(response: str) -> str | None:
    """The answer in a response, in one spelling; None if there is none."""
    return normalise(extract(response) or "") or None


def reference_answer(gold: str) -> str:
    """The reference answer in its text: what a box or "####" marks, else the whole text."""
    gold = spelling.join_bases(gold)
    marked = last_boxed(gold) or _after_hashes(gold)
    return gold if marked is None else marked


def extract(response: str) -> str | None:
    """The answer in a response, as written there but for 52_{8}; None if there is none."""
    response = spelling.join_bases(strip_thinking(response))
    if r"\boxed" in response or r"\fbox" in response:
        return last_boxed(response)
    answer = marked(response)
    return _last_number(response) if answer is None else answer


def marked(response: str) -> str | None:
    """The answer that a response without a box marks in another way, or consists of."""
    response = spelling.join_bases(strip_thinking(response))
    for find in (_after_hashes, _stated):
        if (answer := find(response)) is not None:
            return answer
    return response.strip() if is_bare(response) else None


def last_boxed(text: str) -> str | None:
    r"""The contents of the last \boxed{...}; None if there is none or it is not closed.

    If the last boxes are joined by commas, "and" or "or": the contents of each, joined by commas.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    contents, _ = _box(text, boxes[-1].end())
    if contents is None or len(boxes) == 1:
        return contents
    parts, start = [contents], boxes[-1].start()
    for box in reversed(boxes[max(0, len(boxes) - _MAX_BOXES) : -1]):
        before, end = _box(text, box.end())
        if before is None or not _BETWEEN_BOXES.fullmatch(text, end, start):
            break
        parts.append(before)
        start = box.start()
    return _short(", ".join(dict.fromkeys(reversed(parts))))


def _box(text: str, start: int) -> tuple[str | None, int]:
    """The contents of the box whose argument begins at ``start``, and where the box ends."""
    if text[start] != "{":  # \boxed 5
        contents = re.split(r"[$\s]", text[start:], maxsplit=1)[0]
        return _short(contents), start + len(contents)
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":  # \{ and \} are literal braces
            at += 2
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return _short(text[start + 1 : at]), at + 1
        at += 1
    return None, at


def is_bare(text: str) -> bool:
    """Whether a text is only an answer: one line without words, or a single word."""
    text = text.strip()
    if len(text) > MAX_ANSWER_LENGTH or "\n" in text or not re.search(r"\w", text):
        return False
    rest = _COMMAND.sub(" ", text)
    words = [word for word in _WORD.findall(rest) if word.lower() not in _FUNCTIONS]
    return not words or re.fullmatch(r"[^\W\d_]+[.]?", text) is not None


def normalise(answer: str) -> str:
    """The answer in one spelling; characters beyond ``MAX_ANSWER_LENGTH`` are dropped."""
    text = _strip_delimiters(answer[:MAX_ANSWER_LENGTH].strip())
    text = spelling.join_half_of_day(text)
    text = spelling.join_bases(spelling.respell(text.rstrip(".").strip()))
    text = _RESPELLED.sub(lambda found: _SPELLINGS[found[0]], _THIN_COMMA.sub(",", text))
    text = _DROPPED.sub("", text).strip()
    text = _UNIT.sub("", text)
    text = _TEXT.sub(r"\1", text)
    text = _LABEL.sub("", text)
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    text = _SHORT_FRACTION.sub(_braced, text)
    text = _HALF_FRACTION.sub(r"\1{\2}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = " ".join(text.split())
    text = _SPACED_THOUSANDS.sub(lambda found: found[0].replace(" ", ""), text)
    text = _SPACE.sub("", text).rstrip(".").removeprefix("+")
    if _THOUSANDS.fullmatch(text):  # "12, 345" was a list, not one number
        text = text.replace(",", ", ")
    if slash := _SLASH.fullmatch(text):
        text = rf"{slash[1]}\frac{{{slash[2]}}}{{{slash[3]}}}"
    return _decimal(text)


def _after_hashes(text: str) -> str | None:
    _, found, tail = text.rpartition("####")
    lines = tail.strip().splitlines() if found else []
    return _short(lines[0].strip()) if lines else None


def _stated(text: str) -> str | None:
    if not (stated := list(_STATED.finditer(text))):
        return None
    tail = text[stated[-1].end() :][: MAX_ANSWER_LENGTH + 1]
    answer = _SENTENCE_END.split(tail, maxsplit=1)[0].strip().strip("*").strip()
    if not answer:
        return None
    if sum_ := _SUM.match(answer):
        answer = answer[sum_.end() :]
    if is_bare(answer) or answer.startswith("\\"):
        return _short(answer)
    amount = _AMOUNT.match(spelling.respell(answer))
    if amount is None or (answer.startswith("$") and answer.find("$", 1) > 0):  # $x$: a formula
        return _short(answer)
    return amount["amount"].strip().replace("$", "")


def _last_number(text: str) -> str | None:
    text = text[-10 * MAX_ANSWER_LENGTH :]
    if listed := _LISTED.search(text[-MAX_ANSWER_LENGTH:]):
        return listed["list"]
    numbers = _NUMBER.findall(text)
    return _short(numbers[-1]) if numbers else None


def _short(answer: str) -> str | None:
    return answer if len(answer) <= MAX_ANSWER_LENGTH else None


def _strip_delimiters(text: str) -> str:
    """Removes the dollar signs or brackets around a formula."""
    text = text.removesuffix(".") if text.endswith(("$.", ").", "].")) else text
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : len(text) - len(closing)]
        if text.startswith(opening) and text.endswith(closing) and "$" not in inner:
            return inner.strip()
    return text


def _braced(found: re.Match[str]) -> str:
    r"""\frac12 -> \frac{1}{2}, and \frac1{x} -> \frac{1}{x}."""
    return rf"\frac{{{found[1]}}}" + (f"{{{found[2]}}}" if found[2] else "{")


def _decimal(text: str) -> str:
    r"""0.50 -> \frac{1}{2}, as in the papers; 3.0 -> 3; .25 -> 0.25."""
    number = _DECIMAL.fullmatch(text)
    if not number or not (number[2] or number[3]):
        return text
    sign, whole, part = number[1], number[2] or "0", number[3]
    if (whole, part) == ("0", "5"):
        return sign + r"\frac{1}{2}"
    return f"{sign}{whole}.{part}" if part else sign + whole
