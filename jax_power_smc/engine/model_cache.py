"""A bounded cache of what was computed for a model, which does not keep the model alive."""

import collections
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ModelCache(Generic[T]):
    """Values by model and key, of which the least recently used are dropped.

    Equal models share their entries. A model is referenced weakly, and its entries are dropped
    when it is deleted (an equal one that is still in use then has them computed again). A model
    that does not support weak references is kept alive until its entries are evicted.

    Args:
      limit: the largest number of entries; called whenever one is added.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._entries: collections.OrderedDict[tuple[Any, Hashable], T] = collections.OrderedDict()
        # Reentrant, because the garbage collector may delete a model at any point.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, model: Any, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of a model (or None, for what depends on no model), computed if it is new."""
        found = (_reference(model), key)
        with self._lock:
            if found in self._entries:
                self._entries.move_to_end(found)
                return self._entries[found]
        value = compute()
        entry = (_reference(model, lambda reference: self._drop((reference, key))), key)
        with self._lock:
            self._entries[entry] = value
            while len(self._entries) > self._limit():
                self._entries.popitem(last=False)
        return value

    def clear(self) -> None:
        """Drops all entries."""
        with self._lock:
            self._entries.clear()

    def _drop(self, entry: tuple[Any, Hashable]) -> None:
        with self._lock:
            self._entries.pop(entry, None)


def _reference(model: Any, callback: Callable[[Any], None] | None = None) -> Any:
    """Compares and hashes like the model; a weak reference where that is possible."""
    try:
        reference = weakref.ref(model, callback)
    except TypeError:
        return model
    hash(reference)  # is remembered, and asked for when the model is gone
    return reference
