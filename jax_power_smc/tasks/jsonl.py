"""Problems of the user's own, in a file or a data set whose fields the config names."""

import json
from collections.abc import Mapping
from typing import Any

from jax_power_smc.tasks import gpqa, gsm8k, humaneval, prompts
from jax_power_smc.tasks.base import Kind
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

_FORMATS: dict[Kind, str] = {
    "math": prompts.MATH,
    "choice": prompts.CHOICE,
    "code": prompts.QUESTION,
    "string": prompts.QUESTION,
    "reasoner": prompts.QUESTION,
}
_CODE = ("prompt", "test", "entry_point")


def benchmark(fields: Mapping[str, str | None], kind: Kind) -> DatasetSpec:
    """The benchmark of rows with these fields.

    Args:
      fields: names of id, question, answer and solution; an id of None is a hash of the question,
        and the solution need not be there.
      kind: how answers are judged.
    """

    def read(row: Record) -> Example:
        question = row.text(str(fields["question"]))
        named = fields["id"]
        key = record_id(row, question) if named is None else row.text(named)
        solution = fields["solution"]
        worked = row.text_or_none(solution) if solution else None
        return Example(key, question, _gold(row, str(fields["answer"]), kind), worked)

    return DatasetSpec(
        title="own problems",
        kind=kind,
        read=read,
        prompt=_FORMATS[kind],
        chat_prompt=prompts.CODE_CHAT if kind == "code" else None,
        samples=tuple(_samples(fields, kind)),
    )


def _gold(row: Record, field: str, kind: Kind) -> Any:
    """The right answer, as judges of this kind expect it."""
    if kind == "code":
        # In CSV an object can only be text.
        value = row.value(field)
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            value = None
        if not isinstance(value, Mapping) or not all(isinstance(value.get(k), str) for k in _CODE):
            raise ValueError(
                f"{row.place} has a {field} that is no object with the texts {', '.join(_CODE)}."
            )
        return {name: value[name] for name in _CODE}
    text = row.text(field).strip()
    if kind == "reasoner":
        try:
            return int(text)
        except ValueError as error:
            raise ValueError(f"{row.place} has {field} {text!r}; it must be an integer.") from error
    if kind == "choice" and not (len(text) == 1 and text.isascii() and text.isupper()):
        raise ValueError(f"{row.place} has {field} {text!r}; it must be the letter of an option.")
    return text


def _samples(fields: Mapping[str, str | None], kind: Kind) -> list[dict[str, Any]]:
    """Two made-up rows with these fields."""
    if kind == "code":
        made = [(row["prompt"], {k: row[k] for k in _CODE}) for row in humaneval.SAMPLES]
    elif kind == "choice":
        examples = [gpqa.read(Record("sample", row)) for row in gpqa.SAMPLES]
        made = [(example.question, example.gold) for example in examples]
    else:
        examples = [gsm8k.read(Record("sample", row)) for row in gsm8k.SAMPLES]
        made = [(example.question, example.gold) for example in examples]
    return [
        {
            str(fields["question"]): question,
            str(fields["answer"]): answer,
            **({fields["id"]: f"sample/{i}"} if fields["id"] is not None else {}),
        }
        for i, (question, answer) in enumerate(made)
    ]
