"""The processes of one job, joined by JAX's distributed runtime.

``launchers.processes`` joins them; here is what the job does with them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from jax._src import distributed

_T = TypeVar("_T")
# Processes wait for each other as long as the slowest one works; one that is lost ends the wait.
_FOREVER_MS = 7 * 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True)
class Processes:
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

    def share(self, items: Sequence[_T]) -> list[_T]:
        """This process's part of a list that all of them have, every item in one part."""
        return list(items[self.index :: self.count])

    def wait(self, name: str) -> None:
        """Waits until all processes have come to the point of this name.

        By the runtime's own barrier: a collective on the devices would time out.
        """
        if self.count > 1:
            client: Any = distributed.global_state.client
            client.wait_at_barrier(name, _FOREVER_MS)


ALONE = Processes()
