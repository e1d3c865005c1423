"""A tokenizer with a time limit for each text. Imported late: ``transformers`` takes a second.

The regular expressions of a tokenizer come from whoever made the checkpoint. Some take hours for
some texts, and for others the tokenizers library panics, with an error that is no ``Exception``.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerFast

from jax_power_smc.core.deadline import LateError, within
from jax_power_smc.models.transformer.config import CheckpointError

_T = TypeVar("_T")


class GuardedTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of ``transformers``; ``encode`` and ``decode`` are limited in time."""

    seconds = 60.0

    def encode(self, text: Any, *args: Any, **options: Any) -> list[int]:
        """Token ids of a text."""
        encode = super().encode
        return self._guarded(lambda: list(encode(text, *args, **options)))

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> Any:
        """The text of token ids."""
        decode = super().decode
        return self._guarded(lambda: decode(token_ids, skip_special_tokens, **options))

    def _guarded(self, call: Callable[[], _T]) -> _T:
        return guarded(self.seconds, f"the tokenizer in {self.name_or_path}", call)


def guarded(seconds: float, who: str, call: Callable[[], _T]) -> _T:
    """As ``within``; CheckpointError if the call is late, or the library panics."""
    try:
        return within(seconds, who, call)
    except LateError as error:
        raise CheckpointError(str(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # which cannot be imported
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{who} panicked ({reason}).") from error
