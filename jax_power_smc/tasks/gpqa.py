"""GPQA Diamond: science questions with four options.

The order of the options follows from the record's id, so that it is the same everywhere.
"""

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

SAMPLES = (
    {
        "Record ID": "sample1",
        "Question": "Which of these particles has no electric charge?",
        "Correct Answer": "The neutron",
        "Incorrect Answer 1": "The proton",
        "Incorrect Answer 2": "The electron",
        "Incorrect Answer 3": "The positron",
        "Explanation": "The other three carry one elementary charge each.",
    },
    {
        "Record ID": "sample2",
        "Question": "How many hydrogen atoms does a molecule of methane have?",
        "Correct Answer": "4",
        "Incorrect Answer 1": "2",
        "Incorrect Answer 2": "3",
        "Incorrect Answer 3": "6",
        "Explanation": "Its formula is CH4.",
    },
)


def read(record: Record) -> Example:
    """Reads Question, Correct Answer, Incorrect Answer 1 to 3, Record ID and Explanation.

    Or else prompt, answer and id, where the prompt includes the options and the answer is a letter.
    """
    if record.has("Question"):
        return _from_options(record)
    question = record.text("question", "prompt")
    letter = record.text("answer").strip().strip("()")
    if letter not in tuple(prompts.OPTIONS):
        raise ValueError(
            f"{record.location} has answer {letter!r}; it must be one of "
            f"{', '.join(prompts.OPTIONS)}."
        )
    return Example(
        record_id(record, question, "id"), question, letter, record.text_or_none("solution")
    )


def _from_options(record: Record) -> Example:
    asked = record.text("Question")
    names = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    texts = [record.text(name).strip() for name in names]
    key = record_id(record, asked, "Record ID", "id")
    order = prompts.shuffled(len(texts), key)
    letter = prompts.OPTIONS[order.index(0)]
    solution = record.text_or_none("Explanation")
    if solution is not None:
        solution = f"{solution.strip()}\n" rf"The answer is \boxed{{{letter}}}."
    question = prompts.write_options(asked, [texts[i] for i in order])
    return Example(key, question, letter, solution)


DATASET = DatasetSpec(
    title="GPQA Diamond",
    kind="choice",
    read=read,
    prompt=prompts.CHOICE,
    samples=SAMPLES,
    data="Idavidrein/gpqa",
    data_name="gpqa_diamond",
    # The hub calls its only split "train", although it is a test set.
    splits={"test": "train"},
)
