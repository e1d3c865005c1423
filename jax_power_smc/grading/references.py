"""Reference answers: what is allowed for each kind of answer."""

from typing import Any

from jax_power_smc.grading.base import LONGEST
from jax_power_smc.tasks.base import CODE_FIELDS, KINDS

LETTERS = "ABCDEFGHIJ"

_OPTS = {"match_types": list, "precision": int, "strict": bool, "allow_set_relation_comp": bool}
_MATCH_TYPES = ("latex", "expr")


def check_kind(kind: str) -> None:
    """Raises ValueError unless ``kind`` is one of ``tasks.base.Kind``."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed are {', '.join(KINDS)}.")


def parse_reference(kind: str, gold: Any) -> dict[str, Any]:
    """Checks a reference answer, and returns it as arguments for the kind's ``judge`` function.

    Args:
      kind: as in ``tasks.base.Kind``.
      gold: for "math" and "string" a text or a number, for "math" also an object with "answer" and
        "opts" (see ``math_answer.judge``); for "choice" a letter; for "code" an object with the
        texts "prompt", "test" and "entry_point"; for "reasoner" an integer.

    Raises:
      ValueError: if it is anything else.
    """
    if kind == "reasoner":
        _require(_is_number(gold) and int(gold) == gold, gold, "an integer")
        return {"gold": int(gold)}
    if kind == "choice":
        is_letter = isinstance(gold, str) and len(gold) == 1 and gold in LETTERS
        _require(is_letter, gold, "a letter from A to J")
        return {"gold": gold}
    if kind == "code":
        return {"gold": _check_code(gold)}
    if kind == "math" and isinstance(gold, dict):
        if set(gold) != {"answer", "opts"}:
            raise ValueError(
                f'gold is {_shown(gold)}; an object must have exactly "answer" and "opts".'
            )
        return {"gold": _check_answer(gold["answer"]), "opts": _check_opts(gold["opts"])}
    return {"gold": _check_answer(gold) if kind == "math" else _check_text(gold)}


def _require(holds: bool, value: Any, allowed: str, name: str = "gold") -> None:
    if not holds:
        raise ValueError(f"{name} is {_shown(value)}; it must be {allowed}.")


def _check_text(gold: Any) -> str:
    if _is_number(gold):
        return str(gold)
    is_text = isinstance(gold, str) and bool(gold.strip())
    _require(is_text, gold, "a non-empty text or a number")
    _require(len(gold) <= LONGEST, gold, f"a text of at most {LONGEST} characters")
    return gold


def _check_answer(gold: Any) -> str:
    text = _check_text(gold)
    if not text.strip("# \t\r\n"):  # GSM8K writes "#### " before its answers
        raise ValueError(f"gold is {_shown(gold)}; an answer must follow the mark.")
    return text


def _check_code(gold: Any) -> dict[str, str]:
    given = gold if isinstance(gold, dict) else {}
    fields: dict[str, Any] = {name: given.get(name) for name in CODE_FIELDS}
    are_texts = all(isinstance(text, str) for text in fields.values())
    _require(are_texts, gold, f"an object with the texts {', '.join(CODE_FIELDS)}")
    name = fields["entry_point"]
    _require(name.isidentifier(), name, "an identifier", "entry_point")
    return fields


def _check_opts(opts: Any) -> dict[str, Any]:
    _require(isinstance(opts, dict), opts, "an object", "opts")
    for name, value in opts.items():
        if name not in _OPTS or type(value) is not _OPTS[name]:
            allowed = ", ".join(f"{key} ({kind.__name__})" for key, kind in _OPTS.items())
            raise ValueError(f"opts has {name}={_shown(value)}; allowed are {allowed}.")
    types = opts.get("match_types", ["latex"])
    if not types or any(each not in _MATCH_TYPES for each in types):
        raise ValueError(
            f"opts.match_types is {_shown(types)}; allowed are {', '.join(_MATCH_TYPES)}."
        )
    return opts


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; booleans are not numbers here."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and value - value == 0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
