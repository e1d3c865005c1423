"""Word problems for the embedded model, generated on demand."""

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.base import Problem
from jax_power_smc.tiny_reasoner import problems

SPLITS = problems.SPLITS
# If the config does not say how many.
NUM_PROBLEMS = 400


def tiny_problems(split: str, limit: int | None, seed: int, template: str) -> list[Problem]:
    """Problems of one split; see ``tiny_reasoner.problems.problems``.

    Args:
      split: "train", "valid" or "test"; the model was trained on the first.
      limit: how many, None for ``NUM_PROBLEMS``.
      seed: selects the problems.
      template: the prompt's template; see ``prompts``.
    """
    made = problems.problems(split, NUM_PROBLEMS if limit is None else limit, seed)
    return [Problem(p.key, prompts.write_prompt(template, p.question), p.answer) for p in made]
