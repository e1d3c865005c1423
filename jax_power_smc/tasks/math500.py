"""MATH-500: competition problems whose answers are mathematical expressions."""

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

SAMPLES = (
    {
        "problem": "What is the sum of the three smallest primes?",
        "solution": r"The primes are $2, 3, 5$, and their sum is $\boxed{10}$.",
        "answer": "10",
        "unique_id": "sample/1",
    },
    {
        "problem": r"Write $\frac{6}{8}$ as a fraction in lowest terms.",
        "solution": r"Both are divisible by $2$, so it is $\boxed{\frac{3}{4}}$.",
        "answer": r"\frac{3}{4}",
        "unique_id": "sample/2",
    },
)


def read(record: Record) -> Example:
    """Reads problem, answer, unique_id, solution; or prompt, answer, id."""
    question = record.text("problem", "prompt", "question")
    return Example(
        id=record_id(record, question, "unique_id", "id"),
        question=question,
        gold=record.text("answer").strip(),
        solution=record.text_or_none("solution"),
    )


DATASET = DatasetSpec(
    title="MATH-500",
    kind="math",
    read=read,
    prompt=prompts.MATH,
    samples=SAMPLES,
    data="HuggingFaceH4/MATH-500",
)
