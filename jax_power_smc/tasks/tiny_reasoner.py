"""Word problems of the embedded model, made as they are asked for."""

from jax_power_smc.tasks import prompts
from jax_power_smc.tasks.base import Problem
from jax_power_smc.tiny_reasoner import problems

SPLITS = problems.SPLITS
# If the config does not say how many.
NUM_PROBLEMS = 400


def tiny_problems(split: str, limit: int | None, seed: int, form: str) -> list[Problem]:
    """Problems of one split; see ``tiny_reasoner.problems.problems``.

    Args:
      split: "train", "valid" or "test"; the model has seen the first.
      limit: how many, None for ``NUM_PROBLEMS``.
      seed: which ones.
      form: a prompt's format; see ``prompts``.
    """
    made = problems.problems(split, NUM_PROBLEMS if limit is None else limit, seed)
    return [Problem(p.key, prompts.write_prompt(form, p.question), p.answer) for p in made]
