r"""AIME: competition problems whose answers are integers from 0 to 999.

The years are data sets of their own, with names of their own for the same fields.
"""

import re

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

SAMPLES = (
    {
        "id": 1,
        "problem": "Find the remainder when $2^{10}$ is divided by $1000$.",
        "solution": r"$2^{10} = 1024$, so the remainder is $\boxed{024}$.",
        "answer": "024",
    },
    {
        "id": 2,
        "problem": "How many positive integers below $1000$ are divisible by $9$?",
        "solution": r"They are $9k$ with $1 \le k \le 111$: $\boxed{111}$ of them.",
        "answer": "111",
    },
)
_BOXED = re.compile(r"\\boxed\{\s*(\d+)\s*\}")


def read(row: Record) -> Example:
    """Reads problem (or Problem, question), answer (or Answer), id (or ID), solution."""
    question = row.text("problem", "Problem", "question", "prompt")
    solution = row.text_or_none("solution", "Solution")
    answer = None
    if solution is not None and not row.has("answer", "Answer"):
        # One year has the answer in a box and nothing else to say.
        boxes = _BOXED.findall(solution)
        answer = boxes[-1] if boxes else None
    answer = (answer or row.text("answer", "Answer")).strip()
    if not re.fullmatch(r"\d{1,3}", answer, re.ASCII):
        raise ValueError(f"{row.place} has answer {answer!r}; it must be an integer from 0 to 999.")
    key = record_id(row, question, "id", "ID", "problem_idx")
    return Example(key, question, str(int(answer)), solution)


DATASET = DatasetSpec(
    title="AIME",
    kind="math",
    read=read,
    prompt=prompts.MATH,
    samples=SAMPLES,
    data="HuggingFaceH4/aime_2024",
    # All of it is for testing; the hub has it under the only name there is.
    splits={"test": "train"},
)
