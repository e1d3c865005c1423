"""GSM8K: word problems whose answers are numbers, given after "####" at the end of a solution."""

import re

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

SAMPLES = (
    {
        "question": "A box holds 12 pens. How many pens are in 4 boxes?",
        "answer": "Four boxes hold 4 * 12 = <<4*12=48>>48 pens.\n#### 48",
    },
    {
        "question": "Ann has 1500 stamps and gives away 200. How many does she keep?",
        "answer": "She keeps 1500 - 200 = <<1500-200=1300>>1300 stamps.\n#### 1,300",
    },
)
_MARK = "####"
# Calculator annotations in the solutions.
_CALCULATION = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(\.\d+)?")


def read(record: Record) -> Example:
    """Reads question (or prompt) and answer: a solution with the mark, or only a number."""
    question = record.text("question", "prompt", "problem")
    text = record.text("answer")
    worked, found, final = text.rpartition(_MARK)
    gold = final.strip().replace(",", "")
    if not gold or (not found and not _NUMBER.fullmatch(final.strip())):
        raise ValueError(
            f"{record.location} has answer {text!r}; it must be a number, or end in {_MARK} and a "
            "number."
        )
    solution: str | None
    if found and worked.strip():
        solution = f"{_CALCULATION.sub('', worked).strip()}\n" rf"The answer is \boxed{{{gold}}}."
    else:
        solution = record.text_or_none("solution")
    return Example(record_id(record, question, "id"), question, gold, solution)


DATASET = DatasetSpec(
    title="GSM8K",
    kind="math",
    read=read,
    prompt=prompts.MATH,
    samples=SAMPLES,
    data="openai/gsm8k",
    data_name="main",
    splits={"test": "test", "train": "train"},
)
