"""``LoadedModel``: a model with its parameters and tokenizer, and how it encodes prompts."""

import dataclasses
import datetime
import functools
import hashlib
import pathlib
from typing import Any

from flax import nnx

from jax_power_smc.models.checkpoints import chat_template
from jax_power_smc.models.checkpoints.fingerprint import file_digests, hub_commit, of_digests
from jax_power_smc.models.checkpoints.tokenizer import HfTokenizer, begins_with_bos, special_tokens
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A language model ready to sample from.

    Attributes:
      model: implements the ``LanguageModel`` protocol.
      params: its parameters, a pytree.
      tokenizer: a ``transformers`` tokenizer, built from tokenizer.json.
      eos_ids: the ids that end a sequence: those of generation_config.json, else of config.json,
        else of the tokenizer; empty if none of them names any.
      config: the architecture and its sizes.
      directory: where the files were read from.
      random_weights: whether the parameters are random and ``directory`` holds only the tokenizer.
      template_seconds: time limit for rendering one prompt by the chat template, which is a program
        that came with the model; it runs in a process of its own.
      template_characters: the longest text that it may write.
    """

    model: TransformerLM
    params: nnx.State
    tokenizer: HfTokenizer
    eos_ids: tuple[int, ...]
    config: TransformerConfig
    directory: pathlib.Path
    random_weights: bool = False
    template_seconds: float = chat_template.TEMPLATE_SECONDS
    template_characters: int = 2**22

    @functools.cached_property
    def file_digests(self) -> dict[str, str]:
        """A digest of each file of the model as it is on disk now, by name.

        The first use reads every file; see ``fingerprint.file_digests``. With random weights, a
        digest of the config stands in for that of the weights.
        """
        if not self.random_weights:
            return file_digests(self.directory)
        own = hashlib.blake2b(repr(self.config).encode(), digest_size=16).hexdigest()
        return file_digests(self.directory, weights=False) | {"random weights": own}

    @property
    def fingerprint(self) -> str:
        """One digest of all files, 32 hexadecimal digits: equal digests mean the same model."""
        return of_digests(self.file_digests)

    @property
    def commit(self) -> str | None:
        """The commit of a model from the hub; None for other models."""
        return hub_commit(self.directory)

    @functools.cached_property
    def is_chat(self) -> bool:
        """Whether prompts go through the tokenizer's chat template.

        Base models of some families carry the template of their chat siblings, which they were
        never trained on: the token with which that template ends an answer is then not one of
        their eos ids. A template that does not show how answers end is taken to be meant for use.
        """
        if self.tokenizer.chat_template is None:
            return False
        answer = "An answer"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            text = self._render(turns)
        except ValueError:  # it takes no answers; encoding a prompt will show if it takes those
            return True
        _, found, rest = text.rpartition(answer)
        after = self.tokenizer.encode(rest if found else "", add_special_tokens=False)
        ends = set(after) & special_tokens(self.tokenizer).keys()
        return not ends or not ends.isdisjoint(self.eos_ids)

    def describe(self, chat: bool | None = None) -> str:
        """How prompts begin and answers end, in one sentence; ``chat`` as for ``encode``."""
        chat = self.is_chat if chat is None else chat
        kind = "chat model" if chat else "base model"
        bos = self.tokenizer.bos_token
        has_bos = begins_with_bos(self.tokenizer, self.encode("?", chat=chat))
        start = f"prompts begin with {bos}" if has_bos else "no BOS"
        names = self.tokenizer.convert_ids_to_tokens(list(self.eos_ids))
        ends = ", ".join(f"{name} ({i})" for name, i in zip(names, self.eos_ids, strict=True))
        return f"{kind}, {start}, " + (
            f"answers end at {ends}" if ends else "no token ends answers"
        )

    def encode(
        self, prompt: str, *, chat: bool | None = None, date: datetime.date | None = None
    ) -> list[int]:
        """The token ids of a prompt.

        Args:
          prompt: not blank.
          chat: whether it goes through the chat template; None for ``is_chat``.
          date: the date shown to a template that asks for today's (``strftime_now``); None for the
            current date and time.

        Raises:
          ValueError: for a blank prompt, one with a token that has no embedding, or one that the
            chat template cannot render; or if ``chat`` is true and there is no template.
        """
        if not prompt.strip():
            raise ValueError(f"the prompt is {prompt!r}; it must hold some text.")
        if chat and self.tokenizer.chat_template is None:
            raise ValueError(f"chat is {chat!r}; the tokenizer has no chat template.")
        if self.is_chat if chat is None else chat:
            turns = [{"role": "user", "content": prompt}]
            text = self._render(turns, date, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self.tokenizer.encode(prompt)
        for i in ids:
            if i >= self.config.vocab_size:
                raise ValueError(
                    f"the prompt holds {self.tokenizer.convert_ids_to_tokens(i)!r}, token {i}; the "
                    f"model has embeddings only for ids below {self.config.vocab_size}."
                )
        return list(ids)

    def _render(
        self,
        turns: list[dict[str, str]],
        date: datetime.date | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """The turns in the format of the chat template; ValueError if it cannot render them."""
        special: dict[str, Any] = {
            name: [str(each) for each in value] if isinstance(value, list) else str(value)
            for name, value in self.tokenizer.special_tokens_map.items()
        }
        try:
            return chat_template.render(
                self.tokenizer.get_chat_template(),
                turns,
                special | {"add_generation_prompt": add_generation_prompt},
                date=date,
                seconds=self.template_seconds,
                characters=self.template_characters,
            )
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"the chat template in {self.directory} cannot render a prompt ({reason}); "
                "chat=False bypasses it."
            ) from error
