"""The shapes that are compiled: lengths rounded up to buckets, so that there are few."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

# Token ids.
TokenIds = Sequence[int] | np.ndarray | jax.Array

SMALLEST_PROMPT_BUCKET = 64
# Shorter caches are not grown: each size is another program to compile.
SMALLEST_CACHE_BUCKET = 256
# States of the stop rules of all slots together; they are counted in int16.
LARGEST_TABLE = 2**15 - 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of a set of slots.

    Attributes:
      slots: P.
      group: R, prompts that enter or leave together, at most P.
      prompt_tokens: S, of the longest prompt that may come.
      new_tokens: T, the largest cap that may come.
      chunk: steps between two looks of the host.
      most_positions: no prompt is padded beyond them, if the model has a limit.
      grows: whether caches begin small; else they have the capacity of the longest at once.
      stop_states: the most states that the stop rules of all slots together may have.
    """

    slots: int
    group: int
    prompt_tokens: int
    new_tokens: int
    chunk: int
    most_positions: int | None = None
    grows: bool = True
    stop_states: int = LARGEST_TABLE

    @property
    def token_capacity(self) -> int:
        """Columns of the token buffers."""
        return _round_up(self.new_tokens, self.chunk)

    def prompt_bucket(self, length: int) -> int:
        """The padded length of a prompt."""
        bucket = power_of_two(max(length, SMALLEST_PROMPT_BUCKET))
        return bucket if self.most_positions is None else min(bucket, self.most_positions)

    @property
    def longest(self) -> int:
        """The padded length of the longest prompt."""
        return self.prompt_bucket(self.prompt_tokens)

    def cache_bucket(self, entries: int) -> int:
        """The capacity of a cache that holds this many tokens."""
        if not self.grows:
            return self.token_capacity
        return min(power_of_two(max(entries, SMALLEST_CACHE_BUCKET)), self.token_capacity)

    def prompt_buckets(self) -> list[int]:
        """All padded lengths."""
        return _doubling(min(SMALLEST_PROMPT_BUCKET, self.longest), self.longest)

    def cache_buckets(self) -> list[int]:
        """All capacities."""
        if not self.grows:
            return [self.token_capacity]
        return _doubling(min(SMALLEST_CACHE_BUCKET, self.token_capacity), self.token_capacity)


def pad_prompts(
    prompts: Sequence[TokenIds], rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [rows, columns] and lengths [rows], both int32; missing prompts have one token 0."""
    tokens = np.zeros((rows, columns), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        own: Any = prompt
        row[: len(prompt)] = own
    lengths = [len(prompt) for prompt in prompts] + [1] * (rows - len(prompts))
    return tokens, np.array(lengths, np.int32)


def power_of_two(value: int) -> int:
    """The smallest one that is not below ``value``."""
    return 1 << (value - 1).bit_length()


def _doubling(first: int, last: int) -> list[int]:
    """first, 2 first, ... up to last, which is always there."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(2 * steps[-1], last))
    return steps


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
