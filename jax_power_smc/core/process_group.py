"""The processes of one job, joined by JAX's distributed runtime.

``cli.processes`` joins them; here is what the job does with them.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

_T = TypeVar("_T")
# Processes wait for each other as long as the slowest one works; one that is lost ends the wait.
_FOREVER_MS = 7 * 24 * 3600 * 1000
# Within which the runtime ends a process, when another one is lost.
_SECONDS_TO_BE_ENDED = 10.0
_STOP, _FAILED = "stop", "failed"
# Seconds between two looks whether another process was asked to stop.
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this one is.

    Attributes:
      index: from 0; process 0 speaks for all.
      count: of them.
    """

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that speaks for all."""
        return self.index == 0

    def shard(self, items: Sequence[_T]) -> list[_T]:
        """This process's part of a list that all of them have, every item in one part."""
        return list(items[self.index :: self.count])

    def all_fail(self, seconds: float) -> bool:
        """Says that this process has failed; whether all others do so within these seconds."""
        client: Any = distributed.global_state.client
        deadline = time.monotonic() + seconds
        try:
            client.key_value_set(f"{_FAILED}/{self.index}", "yes")
            while len(client.key_value_dir_get(_FAILED)) < self.count:
                if time.monotonic() > deadline:
                    return False
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except jax.errors.JaxRuntimeError:
            time.sleep(_SECONDS_TO_BE_ENDED)  # see ``barrier``
            return False
        return True

    def broadcast(self, name: str, value: str) -> str:
        """The value that process 0 has for this name, whatever that of this process is."""
        if self.count == 1:
            return value
        client: Any = distributed.global_state.client
        if self.is_first:
            client.key_value_set(name, value)
            return value
        return client.blocking_key_value_get(name, _FOREVER_MS)

    def gather(self, name: str, value: str) -> list[str]:
        """What each process has for this name, in their order, the same list for all of them."""
        if self.count == 1:
            return [value]
        client: Any = distributed.global_state.client
        client.key_value_set(f"{name}/{self.index}", value)
        self.barrier(f"all have said: {name}")
        return [
            client.blocking_key_value_get(f"{name}/{index}", _FOREVER_MS)
            for index in range(self.count)
        ]

    def barrier(self, name: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Waits until all processes have come to the point of this name.

        By the runtime's own barrier: a collective on the devices would time out.

        ``meanwhile`` is called now and then. (The barrier is for a thread: no signal would be
        heard of before it ends.)
        """
        if self.count > 1:
            client: Any = distributed.global_state.client
            pool = futures.ThreadPoolExecutor(1)
            try:
                waiting = pool.submit(client.wait_at_barrier, name, _FOREVER_MS)
                while futures.wait([waiting], _SECONDS_BETWEEN_LOOKS).not_done:
                    meanwhile()
                waiting.result()
            except jax.errors.JaxRuntimeError:
                # Another one is lost. The runtime is about to end this process too and says why; it
                # crashes if the process falls apart meanwhile.
                time.sleep(_SECONDS_TO_BE_ENDED)
                raise
            finally:
                pool.shutdown(wait=False)


SINGLE_PROCESS = ProcessGroup()


class Stop:
    """Whether the job is to stop, because any of its processes was asked to.

    Args:
      processes: of the job.
      asked: whether this process was.
      in_step: whether all processes look at the same moments of one program, and must decide alike.
    """

    def __init__(self, processes: ProcessGroup, asked: Callable[[], bool], in_step: bool) -> None:
        self._processes, self._asked, self._in_step = processes, asked, in_step
        self._stopping, self._looked = False, 0.0

    def __call__(self) -> bool:
        """True from the moment on when it is known."""
        if not self._stopping:
            self._stopping = self._look()
        return self._stopping

    def pass_on(self) -> None:
        """For a process that has nothing more to do: tells the others if it is asked to stop."""
        if not self._in_step:
            self()

    def _look(self) -> bool:
        if self._processes.count == 1:
            return self._asked()
        if self._in_step:
            return bool(multihost_utils.process_allgather(np.array(self._asked())).any())
        client: Any = distributed.global_state.client
        if self._asked():
            client.key_value_set(f"{_STOP}/{self._processes.index}", "yes", allow_overwrite=True)
            return True
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return False
        self._looked = time.monotonic()
        return bool(client.key_value_dir_get(_STOP))
