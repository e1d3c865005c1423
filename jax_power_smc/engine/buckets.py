"""The shapes that are compiled: lengths are rounded up to buckets, so that there are few."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_power_smc.core.types import TokenIds

SMALLEST_PROMPT_BUCKET = 64
# There are no smaller caches: each size is another program to compile.
SMALLEST_CACHE_BUCKET = 256
# Of all slots together; states are numbered in int16.
MOST_STOP_STATES = 2**15 - 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of a set of slots.

    Attributes:
      slots: P.
      group: R, prompts that enter or leave together, at most P.
      prompt_tokens: S, the length of the longest prompt that may come.
      new_tokens: T, the largest cap that may come.
      chunk: decode steps per call of the device.
      most_positions: the model's limit, beyond which no prompt is padded; None for no limit.
      grows: whether caches start small and grow; otherwise they have their full capacity at once.
      stop_states: the largest number of states of the stop rules of all slots together.
    """

    slots: int
    group: int
    prompt_tokens: int
    new_tokens: int
    chunk: int
    most_positions: int | None = None
    grows: bool = True
    stop_states: int = MOST_STOP_STATES

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
    prompts: Sequence[TokenIds], count: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [count, columns], lengths [count], both int32; missing prompts have one token, 0."""
    tokens = np.zeros((count, columns), np.int32)
    for padded, prompt in zip(tokens, prompts, strict=False):
        ids: Any = prompt
        padded[: len(prompt)] = ids
    lengths = [len(prompt) for prompt in prompts] + [1] * (count - len(prompts))
    return tokens, np.array(lengths, np.int32)


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << (value - 1).bit_length()


def _doubling(first: int, last: int) -> list[int]:
    """first, 2 first, ..., last; the last one need not be a double."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(2 * steps[-1], last))
    return steps


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
