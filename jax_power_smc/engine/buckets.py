"""The shapes that are compiled: lengths are rounded up to buckets, so that there are few."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_power_smc.core.types import TokenIds

SMALLEST_PROMPT_BUCKET = 64
# There are no smaller caches, and no half steps below the second one: each size is another program.
SMALLEST_CACHE_BUCKET, HALF_STEPS = 128, 256
# Programs that are compiled ahead of time; a CPU keeps not many more (``executables``).
MOST_AHEAD = 90
# Of all slots together; states are numbered in int16.
MOST_STOP_STATES = 2**15 - 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shapes of a set of slots and its row table.

    Attributes:
      slots: P, on all devices together.
      group: G, prompts that enter or leave together, at most P.
      prompt_tokens: the length of the longest prompt that may come.
      new_tokens: T, the largest cap that may come.
      chunk: decode steps per call of the device.
      rows: the numbers of rows that the table of each data shard may have, ascending.
      most_positions: the model's limit, beyond which no prompt is padded; None for no limit.
      grows: whether caches start small and grow; otherwise they have their full capacity at once.
      capacity: positions of a row, if that is fixed; None for what the prompts need.
      smallest_bucket: prompts are padded at least to this length.
      stop_states: the largest number of states of the stop rules of all slots together.
    """

    slots: int
    group: int
    prompt_tokens: int
    new_tokens: int
    chunk: int
    rows: tuple[int, ...]
    most_positions: int | None = None
    grows: bool = True
    capacity: int | None = None
    smallest_bucket: int = SMALLEST_PROMPT_BUCKET
    stop_states: int = MOST_STOP_STATES

    @property
    def longest(self) -> int:
        """The largest capacity of a row."""
        if self.capacity is not None:
            return self.capacity
        return max(self._within(self.prompt_tokens + self.new_tokens), self._padded_prompt)

    def prompt_bucket(self, length: int) -> int:
        """The padded length of a prompt, or of a prompt and what was generated after it."""
        bucket = power_of_two(max(length, self.smallest_bucket))
        return min(bucket, max(self.longest, length))

    def prefill_block(self, bucket: int) -> int:
        """Tokens of a sequence of padded length ``bucket`` that are read at a time."""
        return min(bucket, self.prompt_bucket(self.prompt_tokens))

    def prompt_buckets(self) -> list[int]:
        """All padded lengths of prompts."""
        last = self.prompt_bucket(self.prompt_tokens)
        return list(doubling(min(self.smallest_bucket, last), last))

    def cache_buckets(self) -> list[int]:
        """All capacities."""
        if not self.grows or self.capacity is not None:
            return [self.longest]
        least = min(SMALLEST_CACHE_BUCKET, self.longest)
        return list(doubling(least, self.longest, halves_from=HALF_STEPS))

    def ahead(self, most: int) -> tuple[tuple[int, ...], list[int], bool]:
        """What to compile ahead of time, where ``most`` rows are needed as a rule.

        If there would be too many programs, capacities are left out: those that the longest prompts
        never have, and then large ones, where prompts have few rows.

        Returns:
          The numbers of rows, the capacities, and whether the programs that resize a table to the
          next smaller size, or capacity, are not too many besides.
        """
        ladder = self.rows[: len([size for size in self.rows if size < most]) + 1]
        capacities, left = self.cache_buckets(), MOST_AHEAD - len(self.prompt_buckets())
        # For each capacity: chunks, inserts, and what resizes by one step up.
        ladder = ladder[: (left + 1) // 3]
        each = 3 * len(ladder) - 1
        longest = self.prompt_bucket(self.prompt_tokens)
        capacities = sorted(sorted(capacities, key=lambda size: size < longest)[: left // each])
        # Down after a compaction; capacities up and down, for each number of rows.
        count = len(capacities)
        more = 2 * count * (len(ladder) - 1) + (2 * count - 1) * len(ladder)
        return ladder, capacities, count * each + more <= left

    @property
    def _padded_prompt(self) -> int:
        return self._within(power_of_two(max(self.prompt_tokens, self.smallest_bucket)))

    def _within(self, positions: int) -> int:
        return positions if self.most_positions is None else min(positions, self.most_positions)


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


def doubling(least: int, most: int, halves_from: int | None = None) -> tuple[int, ...]:
    """least, 2 least, ..., most, which need not be a double; from some size on with half steps.

    Without those of more than four fifths of ``most``: each is another program to compile.
    """
    sizes, size = [], least
    while size < most:
        sizes.append(size)
        if halves_from is not None and size >= halves_from:
            sizes.append(size + size // 2)
        size *= 2
    return (*(size for size in sizes if 5 * size <= 4 * most), most)
