"""Batches of training examples for the tiny reasoner.

Batch i depends only on the config and i, so a resumed run sees the same batches as an
uninterrupted one.

Shapes: B batch size, S padded length.
"""

import dataclasses
import random
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jax_power_smc.core import checks
from jax_power_smc.tiny_reasoner.problems import sample_problem, write_solution
from jax_power_smc.tiny_reasoner.tokenizer import END_ID

# Lengths are padded to a multiple of this, a compromise between shapes to compile and padding.
BUCKET = 32


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples a run sees.

    Attributes:
      seed: determines the problems, their solutions and the order of the batches.
      batch_size: B, examples per step.
      max_tokens: longer examples are left out.
      pool_batches: how many batches form a pool; its examples are generated and sorted by length
        together, and then its batches are shuffled.
    """

    seed: int
    batch_size: int
    max_tokens: int
    pool_batches: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_tokens", "pool_batches"):
            checks.integer(name, getattr(self, name), at_least=1)


class Batch(NamedTuple):
    """Examples of similar length, padded with the end token.

        inputs      Q Q Q s s s E .
        targets     Q Q s s s E . .     the inputs shifted left by one
        loss_mask   0 0 1 1 1 1 0 0     the solution and its end token

    Attributes:
      inputs: [B, S] int32.
      targets: [B, S] int32.
      loss_mask: [B, S] bool, whether the prediction at this position enters the loss.
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray


def make_pool(
    tokenizer: Tokenizer, config: DataConfig, pool: int, split: str = "train"
) -> list[Batch]:
    """The batches of one pool, numbered from 0: a deterministic function of the arguments.

    Raises:
      ValueError: if ``config.max_tokens`` excludes almost all examples.
    """
    kind = "" if split == "train" else f"-{split}"
    rng = random.Random(f"{config.seed}-{pool}{kind}")
    wanted = config.pool_batches * config.batch_size
    examples: list[tuple[int, list[int]]] = []
    drawn = 0
    while len(examples) < wanted:
        # At least a thousand, so that bad luck cannot fail a small pool.
        if drawn > max(10 * wanted, 1000):
            raise ValueError(
                f"max_tokens is {config.max_tokens}; more than 90% of the examples are longer."
            )
        missing = wanted - len(examples)
        drawn += missing
        drafts = _encode(tokenizer, rng, missing, split)
        examples += [draft for draft in drafts if len(draft[1]) <= config.max_tokens]
    examples.sort(key=lambda example: len(example[1]))
    size = config.batch_size
    batches = [pad_batch(examples[i : i + size]) for i in range(0, wanted, size)]
    rng.shuffle(batches)
    return batches


def pad_batch(examples: Sequence[tuple[int, list[int]]]) -> Batch:
    """Pads examples, each (length of the question, all tokens), to a multiple of ``BUCKET``."""
    longest = max(len(tokens) for _, tokens in examples) - 1
    shape = (len(examples), -(-longest // BUCKET) * BUCKET)
    inputs = np.full(shape, END_ID, np.int32)
    targets = np.full(shape, END_ID, np.int32)
    loss_mask = np.zeros(shape, np.bool_)
    for i, (question_length, tokens) in enumerate(examples):
        n = len(tokens) - 1
        inputs[i, :n] = tokens[:-1]
        targets[i, :n] = tokens[1:]
        loss_mask[i, question_length - 1 : n] = True
    return Batch(inputs, targets, loss_mask)


def stream_batches(
    tokenizer: Tokenizer, config: DataConfig, first_step: int = 0
) -> Generator[Batch]:
    """Yields training batches from ``first_step`` on; a thread prepares the next pool."""
    pool, offset = divmod(first_step, config.pool_batches)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        prefetched = executor.submit(make_pool, tokenizer, config, pool)
        while True:
            batches = prefetched.result()
            pool += 1
            prefetched = executor.submit(make_pool, tokenizer, config, pool)
            yield from batches[offset:]
            offset = 0
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _encode(
    tokenizer: Tokenizer, rng: random.Random, count: int, split: str
) -> list[tuple[int, list[int]]]:
    """Random examples as (length of the question, all tokens including the end token)."""
    problems = [sample_problem(rng, split) for _ in range(count)]
    solutions = [write_solution(problem, rng) for problem in problems]
    # Encoding the halves separately is exact, because the newline between them never merges.
    questions = tokenizer.encode_batch_fast([problem.question for problem in problems])
    answers = tokenizer.encode_batch_fast(solutions)
    return [
        (len(question.ids), [*question.ids, *answer.ids, END_ID])
        for question, answer in zip(questions, answers, strict=True)
    ]
