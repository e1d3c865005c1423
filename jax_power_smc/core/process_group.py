"""The processes of one job: which one this is, and what they tell each other.

``cli.distributed`` forms the group; this is what a job does with it.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np
from jax.experimental import multihost_utils

from jax_power_smc.core.key_value_store import KeyValueStore

_T = TypeVar("_T")
# How soon JAX's runtime ends a process after it has found another one lost.
_SECONDS_TO_BE_ENDED = 10.0
# Seconds between two calls of ``meanwhile`` at a barrier.
_POLL_SECONDS = 1.0
_STOP, _FAILED = "stop", "failed"


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """One process among the ``count`` of the job; process 0 is the primary one.

    The store is what they share, unused if there is only one.
    """

    index: int = 0
    count: int = 1
    store: KeyValueStore = dataclasses.field(default_factory=KeyValueStore, compare=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the primary process."""
        return self.index == 0

    def shard(self, items: Sequence[_T]) -> list[_T]:
        """This process's share of a list that all processes have; the shares are disjoint."""
        return list(items[self.index :: self.count])

    def broadcast(self, name: str, value: str) -> str:
        """The value that process 0 has under this name, whatever this process has."""
        if self.is_first:
            self.store.set(name, value)
        self._wait([name])
        return self.store.get(name)

    def gather(self, name: str, value: str) -> list[str]:
        """The values of all processes under this name, in the order of the processes."""
        keys = self._keys(name)
        self.store.set(keys[self.index], value)
        self._wait(keys)
        return [self.store.get(key) for key in keys]

    def barrier(self, name: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Waits until all processes have reached the point of this name, if need be for hours.

        A collective on the devices would time out. If a process is lost, JAX's runtime ends the
        wait together with this process. The name is used at one point only; ``meanwhile`` is called
        about once a second.
        """
        keys = self._keys(f"barrier/{name}")
        self.store.set(keys[self.index], "reached")
        while not self._wait(keys, _POLL_SECONDS):
            meanwhile()

    def all_fail(self, seconds: float) -> bool:
        """Tells the others that this process has failed; whether all of them do so in time."""
        keys = self._keys(_FAILED)
        self.store.set(keys[self.index], "yes")
        try:
            return self._wait(keys, seconds)
        except ConnectionError:
            return False

    def _keys(self, name: str) -> list[str]:
        return [f"{name}/{index}" for index in range(self.count)]

    def _wait(self, keys: Collection[str], seconds: float | None = None) -> bool:
        try:
            return self.store.wait(keys, seconds)
        except ConnectionError:
            # JAX's runtime is about to end this process, and says why.
            time.sleep(_SECONDS_TO_BE_ENDED)
            raise


SINGLE_PROCESS = ProcessGroup()


class Stop:
    """Whether the job should stop, because any of its processes was asked to.

    ``asked`` says whether this process was. Processes ``in_step`` run one program together, look at
    the same points of it, and must decide alike.
    """

    def __init__(self, processes: ProcessGroup, asked: Callable[[], bool], in_step: bool) -> None:
        self._processes, self._asked, self._in_step = processes, asked, in_step
        self._stopping = False

    def __call__(self) -> bool:
        """Once True, always True."""
        self._stopping = self._stopping or self._look()
        return self._stopping

    def pass_on(self) -> None:
        """For a process that has nothing left to do: tells the others if it is asked to stop."""
        if not self._in_step:
            self()

    def _look(self) -> bool:
        if self._processes.count == 1:
            return self._asked()
        if self._in_step:
            return bool(multihost_utils.process_allgather(np.array(self._asked())).any())
        if self._asked():
            self._processes.store.set(f"{_STOP}/{self._processes.index}", "yes")
            return True
        return bool(self._processes.store.keys(f"{_STOP}/"))
