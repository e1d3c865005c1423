r"""The plain rule: the answers' normalised strings are equal.

This is how papers on power sampling judged MATH: the last \boxed{...} of the response is the
answer, spelling that does not matter is undone, and the strings are compared. It knows no algebra,
so 2\sqrt{3} and \sqrt{12} differ.

A response without \boxed is read as follows; the first that is found is the answer:

* what follows the last "####", as solutions of GSM8K end;
* what follows the last "answer is" or "answer:", to the end of the sentence; of a sum such as
  "2 + 3 = 5 dollars" what it comes to, and of an amount in words the number;
* the whole response, if it is nothing but an answer (see ``is_bare``);
* the last number.

A response whose last \boxed was never closed was cut short and has no answer. Boxes with nothing
but a comma or "and" between them hold a list. What is between <think> tags is never read.
"""

import re

from jax_power_smc.grading import spelling
from jax_power_smc.grading.thinking import without_thinking

# Longer texts are no answers; normalising stays quick whatever a model wrote.
LONGEST_ANSWER = 1000
# A list in boxes is not longer.
_MOST_BOXES = 20

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed (?=[^\s{])")
_STATED = re.compile(r"(?i:\banswer(?:\s+is\s*:?|\s*:))[\s*]*")
# The end of a sentence, or of the line; a point between digits ends nothing.
_SENTENCE_END = re.compile(r"\.(?=\s|$)|\n|\.?\s*I hope")
# Of two boxes what makes them a list.
_BETWEEN_BOXES = re.compile(
    r"[\s$]*(?:(?:,|;|,?\s*(?:\\quad)?\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?)(?:\s|\\quad|[$])*)"
)
_NUMBER = re.compile(
    r"(?<![^\W_])[-\u2212\u2013]?(?<![^\W_])"
    r"(?:\d+ (?=\d+/\d)|(?=[\d.]))"  # of a mixed number
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?:/\d+| ?[\u00bc-\u00be\u2150-\u215e])?"
)
# An amount in words: "18 dollars a day", "2 1/3 cups", "2 + 3 = 5 dollars", "12, 15 and 18 cents".
_FIGURE = r"(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)"
_SIGNED = rf"(?:[-\u2212\u2013]\s?)?\$?{_FIGURE}"
_TERM = rf"\(?{_SIGNED}[)%]*(?: [a-z]+){{0,2}}"
_OPERATOR = r"\s?(?:[-+*/^\u2212\u00d7\u00f7\u00b7]|x(?= ?\d))\s?"
_SUM = re.compile(rf"(?:{_TERM}(?:{_OPERATOR}{_TERM}){{0,20}}\s?=\s?){{1,20}}(?=[-.$\d\u2212])")
_AMOUNT = re.compile(
    rf"(?P<amount>{_SIGNED}(?:(?:, ?{_SIGNED})*,? (?:and|or) {_SIGNED}"
    r"|(?: \d+)?\s?/\s?\d+| ?[\u00bc-\u00be\u2150-\u215e]|:\d\d"
    rf"|(?:\s?[+*^\u00d7]\s?\$?{_FIGURE})+)?)"
)
# What words in an answer may be: texts, environments, commands.
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
# Not the second backslash of the two that end a row of a matrix.
_RESPELLED = re.compile(
    r"(?<!\\)(?:" + "|".join(re.escape(each) + r"(?![a-zA-Z])" for each in _SPELLINGS) + ")"
)
# 11,\! 111: a comma that parts thousands.
_THIN_COMMA = re.compile(r",\s*\\!\s*")
# A unit is words behind an amount, perhaps with a power: 15\mbox{ cm}^2.
_UNIT = re.compile(
    r"(?<=[\d}])\s*\\(?:text|mbox|textnormal|mathrm)\s*\{[^{}]*[a-zA-Z][^{}]*\}(?:\^\{?\d\}?)?\s*$"
)
_TEXT = re.compile(r"\\(?:text|mbox|textnormal|mathrm|textbf|textit)\s*\{([^{}]*)\}")
_LABEL = re.compile(r"^[a-zA-Z]\w?\s*(?:=|\\in(?![a-z]))\s*")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# 12 345 is one number, and 3 5 two.
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)")
_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(?:(\d)|\{)")
_HALF_FRACTION = re.compile(r"(\\frac\{[^{}]*\})\s*(\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\w)")
_SLASH = re.compile(r"(-?)(\d+)/(\d+)")
_DECIMAL = re.compile(r"(-?)0*(\d*)\.(\d*?)0*")


def equal(gold: str, response: str) -> bool:
    """Whether the response has the right answer by this rule.

    Args:
      gold: the answer; one in dollars, in a box or at the end of a solution is found there.
      response: of the model.
    """
    answer = extract(response)
    return answer is not None and normalise(answer) == normalise(gold_answer(gold)) != ""


def gold_answer(gold: str) -> str:
    """The answer in a gold text: what ``extract`` finds where it is marked, else all of it."""
    marked = last_boxed(gold) or _after_hashes(gold)
    return gold if marked is None else marked


def extract(response: str) -> str | None:
    """The answer in a response as it is written there, or None."""
    response = without_thinking(response)
    if r"\boxed" in response or r"\fbox" in response:
        return last_boxed(response)
    answer = marked(response)
    return _last_number(response) if answer is None else answer


def marked(response: str) -> str | None:
    """The answer in a response without a box that says where it is, or is nothing else."""
    response = without_thinking(response)
    finds = (_after_hashes, _stated, _bare)
    return next((answer for find in finds if (answer := find(response)) is not None), None)


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds; None if there is none or it is not closed.

    Of boxes that a comma, "and" or "or" joins, all of them, with commas.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    held, _ = _box(text, boxes[-1].end())
    if held is None or len(boxes) == 1:
        return held
    parts, start = [held], boxes[-1].start()
    for box in reversed(boxes[max(0, len(boxes) - _MOST_BOXES) : -1]):
        before, end = _box(text, box.end())
        if before is None or not _BETWEEN_BOXES.fullmatch(text, end, start):
            break
        parts.append(before)
        start = box.start()
    return _short(", ".join(dict.fromkeys(reversed(parts))))


def _box(text: str, start: int) -> tuple[str | None, int]:
    """What a box holds whose contents begin there, and where it ends."""
    if text[start] != "{":  # \boxed 5
        held = re.split(r"[$\s]", text[start:], maxsplit=1)[0]
        return _short(held), start + len(held)
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":  # \{ and \} are printed characters
            at += 2
            continue
        depth += (text[at] == "{") - (text[at] == "}")
        if depth == 0:
            return _short(text[start + 1 : at]), at + 1
        at += 1
    return None, at


def is_bare(text: str) -> bool:
    """Whether a text is an answer and nothing else: one line without words, or just one word."""
    text = text.strip()
    if len(text) > LONGEST_ANSWER or "\n" in text or not re.search(r"\w", text):
        return False
    rest = _COMMAND.sub(" ", text)
    words = [word for word in _WORD.findall(rest) if word.lower() not in _FUNCTIONS]
    return not words or re.fullmatch(r"[^\W\d_]+[.]?", text) is not None


def normalise(answer: str) -> str:
    """The answer without differences of spelling; at most ``LONGEST_ANSWER`` characters count."""
    text = _inside(answer[:LONGEST_ANSWER].strip())
    text = spelling.respell(text.rstrip(".").strip())
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
    if _THOUSANDS.fullmatch(text):  # 12, 345 was none
        text = text.replace(",", ", ")
    if slash := _SLASH.fullmatch(text):
        text = rf"{slash[1]}\frac{{{slash[2]}}}{{{slash[3]}}}"
    return _decimal(text)


def _after_hashes(text: str) -> str | None:
    _, found, tail = text.rpartition("####")
    lines = tail.strip().splitlines() if found else []
    return _short(lines[0].strip()) if lines else None


def _stated(text: str) -> str | None:
    found = None
    for found in _STATED.finditer(text):  # noqa: B007
        pass
    if found is None:
        return None
    tail = text[found.end() :][: LONGEST_ANSWER + 1]
    answer = _SENTENCE_END.split(tail, maxsplit=1)[0].strip().strip("*").strip()
    if not answer:
        return None
    if sum_ := _SUM.match(answer):
        answer = answer[sum_.end() :]
    if is_bare(answer) or answer.startswith("\\"):
        return _short(answer)
    amount = _AMOUNT.match(answer)
    if amount is None or (answer.startswith("$") and answer.find("$", 1) > 0):  # $x$ is a formula
        return _short(answer)
    return amount["amount"].strip().replace("$", "")


def _bare(text: str) -> str | None:
    return text.strip() if is_bare(text) else None


def _last_number(text: str) -> str | None:
    numbers = _NUMBER.findall(text[-10 * LONGEST_ANSWER :])
    return _short(numbers[-1]) if numbers else None


def _short(answer: str) -> str | None:
    return answer if len(answer) <= LONGEST_ANSWER else None


def _inside(text: str) -> str:
    """Without the dollars or brackets around a formula."""
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
    r"""One spelling of a number: 0.50 -> \frac{1}{2} as in the papers, 3.0 -> 3, .25 -> 0.25."""
    number = _DECIMAL.fullmatch(text)
    if not number or not (number[2] or number[3]):
        return text
    sign, whole, part = number[1], number[2] or "0", number[3]
    if (whole, part) == ("0", "5"):
        return sign + r"\frac{1}{2}"
    return f"{sign}{whole}.{part}" if part else sign + whole
