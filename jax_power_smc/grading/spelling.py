r"""Rewrites numbers and signs that Math-Verify cannot read; ``string_rule`` uses it too.

Unicode characters become LaTeX (2√3 becomes 2\sqrt{3}, 2½ becomes 2\frac{1}{2}) and every kind of
minus sign becomes -; 6.6e-34 becomes 6.6\times10^{-34}, and the mixed number 2 1/3 becomes
2\frac{1}{3}.
"""

import re
import unicodedata
from collections.abc import Callable

_SUPERSCRIPTS = {ord(each): str(value) for value, each in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_SUPERSCRIPTS |= {ord("⁻"): "-", ord("⁺"): "+", ord("ⁿ"): "n"}
_SUBSCRIPTS = {ord(each): str(value) for value, each in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_FRACTIONS = {
    each: unicodedata.normalize("NFKC", each).split("\u2044") for each in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
}
_COMMANDS = {
    **{"π": r"\pi ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne "},
    **{"\u222a": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "},
    **dict.fromkeys("\u2212\u2010\u2011\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2044\u2215", "/"),
    **dict.fromkeys("\u00a0\u2009\u202f", " "),
}
_CHARACTERS = str.maketrans(_COMMANDS)
# A dash between two digits means "to", not minus, and so does a long one between words.
_DASH = re.compile(r"(?<!\d)–\s?(?=[\d.\\a-zA-Z√($])|(?<=\s)–(?=\s)|(?:(?<=[\s({\[$])|^)—(?=\d)")  # noqa: RUF001
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|\\?[a-zA-Z]+))")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}
_SCIENTIFIC = re.compile(
    r"(?<![\w.\\])(?P<sign>-?)(?P<factor>\d+(?:\.\d*)?)"
    r"(?:[eE](?P<e>[+-]?\d+)(?!\w|\.\d)"
    r"|\s*(?:[x×·*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*"  # noqa: RUF001
    r"(?:\{\s*(?P<braced>[+-]?\s?\d+)\s*\}|\((?P<bracketed>[+-]?\d+)\)|(?P<plain>[+-]?\d+)))"
)
_MIXED = re.compile(
    r"(?<![\d.,/^_])(?P<whole>\d+)(?:\s|\\[ ,;:]|~)+(?P<over>[1-9]\d*)\s?/\s?(?P<under>\d+)"
    r"(?![\d/]|[.,]\d)"
)
# A number with its base, such as 52_8, 1A_{16}, 101_{\text{two}} "52 (base 8)" or \boxed{52}_8.
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_BASES |= {"eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"}
_BASE_NAME = rf"(?:\d\d?|{'|'.join(_BASES)})"
_IN_BASE = rf"(?:in )?[bB]ase[\s-]?(?:{_BASE_NAME}(?!\w)|\$\s?{_BASE_NAME}\s?\$)"
_BASE = re.compile(
    r"(?:(?P<box>\\(?:boxed|fbox)\s?\{)\s*|(?<![\w\\}.]))"
    r"(?P<digits>\d[\dA-F]*(?:,[\dA-F]{3}){0,9})(?P<close>(?(box)\s*\})(?:\$|\\\))?)"
    rf"(?P<base>_\s?(?:\d\d?|\{{\s*{_BASE_NAME}\s*\}}"
    rf"|\\(?:text|mathrm)\{{\s*{_BASE_NAME}\s*\}}|\{{\\(?:text|mathrm)\{{\s*{_BASE_NAME}\s*\}}\}})(?!\d)"
    rf"|\s?\\text\{{\s*\(?{_IN_BASE}\)?\s*\}}|\s?\({_IN_BASE}\)|\s{_IN_BASE})"
)
# A time with its half of the day, such as "2:30 p.m." or 2 \text{ PM}.
_HALF_DAY = re.compile(
    r"(?<![\d:.])(?P<time>\d\d?(?::\d\d)?)(?:\\[ ,;:]|[\s~])*"
    r"(?P<text>\\(?:text|mbox|textnormal|mathrm)\s*\{\s*)?"
    r"(?P<half>[aApP])(?:\.\s?[mM](?:\.|(?!\w))|[mM](?!\w))(?(text)\s*\})"
)
# An Oxford comma, and "and" in text.
_AND = re.compile(r"(?<=[\d)}$]),\s*(?:\\text\s*\{\s*)?(?:and|or)(?:\s*\}\s*|\s+)(?=[-\d.$\\(])")
_PERCENTAGE = re.compile(
    r"(?<![\d.}])(?P<whole>\d{0,15})\s*\\[dt]?frac\s*"
    r"(?:(?P<over>\d)\s*(?P<under>\d)|\{(?P<above>\d{1,15})\}\s*\{(?P<below>\d{1,15})\})\s*\\?%"
)
_SPACED_SIGN = re.compile(r"^\s*([-+])\s+(?=[\d.$\\])")


def respell(text: str) -> str:
    """Rewrites a text, which may be a whole response."""
    if not text.isascii():
        text = text.translate(_CHARACTERS)
        text = _DASH.sub("-", text)
        power = re.compile(f"[{''.join(map(chr, _SUPERSCRIPTS))}]+")
        text = power.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
        text = _subscripts(text)
        for each, (over, under) in _FRACTIONS.items():
            text = text.replace(each, rf"\frac{{{over}}}{{{under}}}")
        text = _ROOT.sub(_root, text)
    text = _AND.sub(", ", text)
    return _MIXED.sub(_mixed, _SCIENTIFIC.sub(_scientific, text))


def join_sign(answer: str) -> str:
    """- 3 becomes -3, in a text that is only an answer: elsewhere it may be a list item."""
    return _SPACED_SIGN.sub(r"\1", answer)


def has_base(text: str) -> bool:
    """Whether the text has a number with its base."""
    return _BASE.search(_subscripts(text)) is not None


def join_bases(text: str) -> str:
    r"""Rewrites every number with a base as 52_{8}, inside its box or formula if it has one."""
    return _rebase(text, "_{{{}}}".format)


def mark_bases(text: str, keep: bool = True) -> str:
    r"""Rewrites 52_8 as 52\cdot B_{8}, so that numbers in different bases are not equal.

    Numbers without a base, or in base 10, are left alone. Without ``keep`` the bases are removed.
    """
    return _rebase(text, lambda base: rf"\cdot B_{{{base}}}" if keep and base != "10" else "")


def half_of_day(text: str) -> str:
    """ "a" or "p" if the text has a time with "a.m." or "p.m.", else ""."""
    found = _HALF_DAY.search(text)
    return found["half"].lower() if found else ""


def join_half_of_day(text: str) -> str:
    r"""Rewrites 2:30 \text{ p.m.} as 2:30pm."""
    return _HALF_DAY.sub(lambda found: f"{found['time']}{found['half'].lower()}m", text)


def mark_half_of_day(text: str, keep: bool = True) -> str:
    r"""Rewrites 2:30 p.m. as 2:30\cdot H_{p}, or as 2:30; as ``mark_bases`` does for bases."""

    def mark(found: re.Match[str]) -> str:
        return found["time"] + (rf"\cdot H_{{{found['half'].lower()}}}" if keep else "")

    return _HALF_DAY.sub(mark, text)


def join_percentages(text: str) -> str:
    r"""Rewrites 4\frac12\% as \frac{9}{200}, which Math-Verify can read."""
    return _PERCENTAGE.sub(_percentage, text)


def _percentage(found: re.Match[str]) -> str:
    over, under = found["over"] or found["above"], found["under"] or found["below"]
    return rf"\frac{{{int(found['whole'] or 0) * int(under) + int(over)}}}{{{100 * int(under)}}}"


def _rebase(text: str, write: Callable[[str], str]) -> str:
    def rewrite(found: re.Match[str]) -> str:
        base = re.findall(rf"\d+|{'|'.join(_BASES)}", found["base"])[0]
        mark = write(_BASES.get(base, base))
        return f"{found['box'] or ''}{found['digits']}{mark}{found['close']}"

    return _BASE.sub(rewrite, _subscripts(text))


def _subscripts(text: str) -> str:
    return re.sub(r"[₀-₉]+", lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)


def _root(found: re.Match[str]) -> str:
    inside = next(group for group in found.groups()[1:] if group is not None)
    return rf"\sqrt{_DEGREES[found[1]]}{{{inside}}}"


def _scientific(found: re.Match[str]) -> str:
    powers = (found[name] for name in ("e", "braced", "bracketed", "plain"))
    power = next(filter(None, powers)).replace(" ", "").removeprefix("+")
    return rf"{found['sign']}{found['factor']}\times10^{{{power}}}"


def _mixed(found: re.Match[str]) -> str:
    """Only a proper fraction makes a mixed number: in 1 200/3 the space separates thousands."""
    if int(found["over"]) >= int(found["under"]):
        return found[0]
    return rf"{found['whole']}\frac{{{found['over']}}}{{{found['under']}}}"
