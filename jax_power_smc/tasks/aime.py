r"""AIME: competition problems whose answers are integers from 0 to 999.

Each year is a dataset of its own, and they name the same fields differently.
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


def read(record: Record) -> Example:
    """Reads problem (or Problem, question, prompt), answer, id (or ID, problem_idx), solution."""
    question = record.text("problem", "Problem", "question", "prompt")
    solution = record.text_or_none("solution", "Solution")
    answer = None
    if solution is not None and not record.has("answer", "Answer"):
        # One year has the answer only in a box at the end of the solution.
        boxes = _BOXED.findall(solution)
        answer = boxes[-1] if boxes else None
    answer = (answer or record.text("answer", "Answer")).strip()
    if not re.fullmatch(r"\d{1,3}", answer, re.ASCII):
        raise ValueError(
            f"{record.location} has answer {answer!r}; it must be an integer from 0 to 999."
        )
    key = record_id(record, question, "id", "ID", "problem_idx")
    return Example(key, question, str(int(answer)), solution)


DATASET = DatasetSpec(
    title="AIME",
    kind="math",
    read=read,
    prompt=prompts.MATH,
    samples=SAMPLES,
    data="HuggingFaceH4/aime_2024",
    # The hub calls its only split "train", although it is a test set.
    splits={"test": "train"},
)
