"""HumanEval: Python functions to complete, graded by running their tests."""

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.base import CODE_FIELDS
from jax_power_smc.tasks.dataset import DatasetSpec, Example, record_id
from jax_power_smc.tasks.records import Record

SAMPLES = (
    {
        "task_id": "Sample/0",
        "prompt": 'def double(n: int) -> int:\n    """Twice n."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * n\n",
        "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    },
    {
        "task_id": "Sample/1",
        "prompt": 'def last(items: list) -> object:\n    """The last of some items."""\n',
        "entry_point": "last",
        "canonical_solution": "    return items[-1]\n",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 2\n",
    },
)


def read(record: Record) -> Example:
    """Reads task_id, prompt, test, entry_point, canonical_solution."""
    prompt = record.text("prompt")
    return Example(
        id=record_id(record, prompt, "task_id", "id"),
        question=prompt,
        gold={name: record.text(name) for name in CODE_FIELDS},
        solution=record.text_or_none("canonical_solution"),
    )


DATASET = DatasetSpec(
    title="HumanEval",
    kind="code",
    read=read,
    # A base model continues where the prompt ends.
    prompt=prompts.QUESTION,
    chat_prompt=prompts.CODE_CHAT,
    samples=SAMPLES,
    data="openai/openai_humaneval",
)
