"""GPQA Diamond: questions of science with four options.

The options' order follows from the id of the record, so that it is the same everywhere.
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


def read(row: Record) -> Example:
    """Reads Question, Correct Answer, Incorrect Answer 1 to 3, Record ID, Explanation.

    Or prompt, answer, id, where the prompt has the options in it and the answer is the letter.
    """
    if row.has("Question"):
        return _from_options(row)
    question = row.text("question", "prompt")
    letter = row.text("answer").strip().strip("()")
    if letter not in tuple(prompts.OPTIONS):
        raise ValueError(
            f"{row.place} has answer {letter!r}; it must be one of {', '.join(prompts.OPTIONS)}."
        )
    return Example(record_id(row, question, "id"), question, letter, row.text_or_none("solution"))


def _from_options(row: Record) -> Example:
    asked = row.text("Question")
    names = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    texts = [row.text(name).strip() for name in names]
    key = record_id(row, asked, "Record ID", "id")
    order = prompts.shuffled(len(texts), key)
    letter = prompts.OPTIONS[order.index(0)]
    solution = row.text_or_none("Explanation")
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
    # All of it is for testing; the hub has it under the only name there is.
    splits={"test": "train"},
)
