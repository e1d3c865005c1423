"""A tokenizer with a time limit for each text. Imported late: ``transformers`` takes a second.

The regular expressions of a tokenizer come from whoever made the checkpoint. Some take hours for
some texts, and for others the tokenizers library panics, with an error that is no ``Exception``.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerFast

from jax_power_smc.models.transformer.config import CheckpointError

_T = TypeVar("_T")


class GuardedTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of ``transformers``; ``encode`` and ``decode`` are limited in time."""

    seconds = 60.0

    def encode(self, text: Any, *args: Any, **options: Any) -> list[int]:
        """Token ids of a text."""
        encode = super().encode
        return self._limited(lambda: list(encode(text, *args, **options)))

    def decode(self, ids: Any, *args: Any, **options: Any) -> str:
        """The text of token ids."""
        decode = super().decode
        return self._limited(lambda: decode(ids, *args, **options))

    def _limited(self, call: Callable[[], _T]) -> _T:
        return within(self.seconds, f"the tokenizer in {self.name_or_path}", call)


def within(seconds: float, who: str, call: Callable[[], _T]) -> _T:
    """What the call returns or raises, if it does within a time.

    It runs in a thread, which goes on if it is late, until the process ends: the library's code
    cannot be interrupted, but lets other threads run.

    Raises:
      CheckpointError: if it is late, or the library panics; begins with ``who``.
    """
    outcome: list[tuple[_T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # raised again below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise CheckpointError(f"{who} took longer than {seconds:g} s.")
    value, error = outcome[0]
    if error is not None:
        # The library's class cannot be imported.
        if type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split()).rstrip(".")
            raise CheckpointError(f"{who} panicked ({reason}).") from error
        raise error
    return value  # type: ignore[return-value]
