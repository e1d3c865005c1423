"""Batches of examples for the tiny reasoner.

Batch i is a function of the config and i alone, so that a resumed run sees what an undisturbed
one sees.

Letters: B batch size, S padded length.
"""

import dataclasses
import random
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jax_power_smc.tiny_reasoner.problems import sample_problem, write_solution
from jax_power_smc.tiny_reasoner.tokenizer import END_ID

# Lengths are padded to a multiple of this: few enough shapes to compile, little enough padding.
BUCKET = 32


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples a run sees.

    Attributes:
      seed: of the problems, their solutions and the order of the batches.
      batch_size: B, examples per step.
      max_tokens: longer examples are left out.
      pool_batches: batches that are generated, sorted by length and shuffled together.
    """

    seed: int
    batch_size: int
    max_tokens: int
    pool_batches: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_tokens", "pool_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")


class Batch(NamedTuple):
    """Examples of similar length, padded with the end token.

        inputs    Q Q Q s s s E .
        targets   Q Q s s s E . .       the inputs one place to the left
        loss_mask   0 0 1 1 1 1 0 0       the solution and its end token

    Attributes:
      inputs: [B, S] int32.
      targets: [B, S] int32.
      loss_mask: [B, S] bool, whether the loss counts the prediction at this place.
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss_mask: np.ndarray


def make_pool(
    tokenizer: Tokenizer, config: DataConfig, pool: int, split: str = "train"
) -> list[Batch]:
    """The batches of one pool, a deterministic function of the arguments.

    Args:
      tokenizer: encodes questions and solutions.
      config: seed and sizes.
      pool: number of the pool, from 0.
      split: which problems to draw from.

    Raises:
      ValueError: if ``config.max_tokens`` leaves hardly any example.
    """
    kind = "" if split == "train" else f"-{split}"
    rng = random.Random(f"{config.seed}-{pool}{kind}")
    wanted = config.pool_batches * config.batch_size
    examples: list[tuple[int, list[int]]] = []
    drawn = 0
    while len(examples) < wanted:
        # At least a thousand, so that a small pool is not refused by bad luck.
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
    """Pads examples, each (tokens of the question, all tokens), to a multiple of ``BUCKET``."""
    longest = max(len(tokens) for _, tokens in examples) - 1
    shape = (len(examples), -(-longest // BUCKET) * BUCKET)
    inputs = np.full(shape, END_ID, np.int32)
    targets = np.full(shape, END_ID, np.int32)
    loss_mask = np.zeros(shape, np.bool_)
    for i, (question, tokens) in enumerate(examples):
        n = len(tokens) - 1
        inputs[i, :n] = tokens[:-1]
        targets[i, :n] = tokens[1:]
        loss_mask[i, question - 1 : n] = True
    return Batch(inputs, targets, loss_mask)


def stream_batches(
    tokenizer: Tokenizer, config: DataConfig, first_step: int = 0
) -> Generator[Batch]:
    """The training batches from ``first_step`` on; the next pool is made in the background."""
    pool, offset = divmod(first_step, config.pool_batches)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    try:
        ahead = executor.submit(make_pool, tokenizer, config, pool)
        while True:
            batches = ahead.result()
            pool += 1
            ahead = executor.submit(make_pool, tokenizer, config, pool)
            yield from batches[offset:]
            offset = 0
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _encode(
    tokenizer: Tokenizer, rng: random.Random, count: int, split: str
) -> list[tuple[int, list[int]]]:
    """Examples as (tokens of the question, all tokens with the end token)."""
    problems = [sample_problem(rng, split) for _ in range(count)]
    solutions = [write_solution(problem, rng) for problem in problems]
    # Encoding the halves apart is encoding the whole: the newline between never merges.
    questions = tokenizer.encode_batch_fast([problem.question for problem in problems])
    answers = tokenizer.encode_batch_fast(solutions)
    return [
        (len(question.ids), [*question.ids, *answer.ids, END_ID])
        for question, answer in zip(questions, answers, strict=True)
    ]
