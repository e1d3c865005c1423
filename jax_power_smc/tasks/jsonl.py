"""The user's own problems, in a file or a hub dataset whose fields the config names."""

from collections.abc import Mapping
from typing import Any

from jax_power_smc.core.files import parse_json
from jax_power_smc.tasks import gpqa, gsm8k, humaneval, prompts
from jax_power_smc.tasks.base import CODE_FIELDS, Kind
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

_TEMPLATES: dict[Kind, str] = {
    "math": prompts.MATH,
    "choice": prompts.CHOICE,
    "code": prompts.QUESTION,
    "string": prompts.QUESTION,
    "reasoner": prompts.QUESTION,
}


def dataset(fields: Mapping[str, str | None], kind: Kind) -> DatasetSpec:
    """The dataset whose records have these fields.

    Args:
      fields: the names of the fields id, question, answer and solution. If id is None, ids are
        hashes of the questions. Records may lack the solution.
      kind: how answers are graded.
    """

    def read(record: Record) -> Example:
        question = record.text(str(fields["question"]))
        id_field, solution_field = fields["id"], fields["solution"]
        key = record_id(record, question) if id_field is None else record.text(id_field)
        solution = record.text_or_none(solution_field) if solution_field else None
        return Example(key, question, _gold(record, str(fields["answer"]), kind), solution)

    return DatasetSpec(
        title="own problems",
        kind=kind,
        read=read,
        prompt=_TEMPLATES[kind],
        chat_prompt=prompts.CODE_CHAT if kind == "code" else None,
        samples=tuple(_samples(fields, kind)),
    )


def _gold(record: Record, field: str, kind: Kind) -> Any:
    """The reference answer, as ``grading`` takes it for this kind."""
    if kind == "code":
        # A CSV cell holds the object as text.
        value = record.value(field)
        try:
            value = parse_json(value) if isinstance(value, str) else value
        except ValueError:
            value = None
        given = isinstance(value, Mapping) and all(
            isinstance(value.get(name), str) for name in CODE_FIELDS
        )
        if not given:
            raise ValueError(
                f"{record.location} has an invalid {field}; it must be an object with the texts "
                f"{', '.join(CODE_FIELDS)}."
            )
        return {name: value[name] for name in CODE_FIELDS}
    text = record.text(field).strip()
    if kind == "reasoner":
        try:
            return int(text)
        except ValueError as error:
            raise ValueError(
                f"{record.location} has {field} {text!r}; it must be an integer."
            ) from error
    if kind == "choice" and not (len(text) == 1 and text.isascii() and text.isupper()):
        raise ValueError(
            f"{record.location} has {field} {text!r}; it must be the letter of an option."
        )
    return text


def _samples(fields: Mapping[str, str | None], kind: Kind) -> list[dict[str, Any]]:
    """Two made-up records with these fields."""
    source = {"code": humaneval, "choice": gpqa}.get(kind, gsm8k)
    examples = [source.read(Record("sample", sample)) for sample in source.SAMPLES]
    return [
        {
            str(fields["question"]): example.question,
            str(fields["answer"]): example.gold,
            **({fields["id"]: f"sample/{i}"} if fields["id"] is not None else {}),
        }
        for i, example in enumerate(examples)
    ]
