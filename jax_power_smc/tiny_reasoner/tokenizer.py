"""The tokenizer of the tiny reasoner: byte-level BPE in which arithmetic is spelled out.

Each digit, each operator and each newline is a token of its own, and each common word is one
token together with the space before it:

    " buys 17 more pens.\\n" -> " buys", " ", "1", "7", " more", " pens", ".", "\\n"

The 256 bytes are in the vocabulary, so every text can be encoded and is decoded to itself.
"""

import os
import pathlib
import random
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jax_power_smc.core.files import write_json
from jax_power_smc.tiny_reasoner.problems import sample_problem, write_solution

END = "<|end|>"
END_ID = 0
TOKENIZER_FILE = "tokenizer.json"
# Byte 0 to 255 and the end token; a vocabulary cannot be smaller.
SMALLEST_VOCABULARY = 257

_ALONE = r"[*+\-=:,>\n]"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 640) -> Tokenizer:
    """Learns the merges from ``texts``; the result is a deterministic function of both arguments.

    Args:
      texts: what to learn from.
      vocab_size: number of ids, at least 257. With few texts there may be fewer merges, so the
        tokenizer may end up smaller, never larger.

    Returns:
      A tokenizer with ``<|end|>`` at id 0, which encoding never adds.

    Raises:
      ValueError: if ``vocab_size`` cannot hold the bytes and the end token.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must be at least {SMALLEST_VOCABULARY}, "
            "the 256 bytes and the end token."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ALONE), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        # Sorted: the library returns them in an order that changes from process to process.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def corpus(num_problems: int, seed: int) -> Iterator[str]:
    """Questions with solutions from the train split, the same for the same arguments."""
    rng = random.Random(f"tokenizer-{seed}")
    for _ in range(num_problems):
        problem = sample_problem(rng, "train")
        yield problem.question + write_solution(problem, rng)


def save_tokenizer(tokenizer: Tokenizer, directory: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json and tokenizer_config.json, which ``AutoTokenizer`` reads."""
    root = pathlib.Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        # A question ends with a newline, whether or not its writer thought of it.
        "chat_template": "{{ messages[0]['content'] | trim + '\\n' }}",
    }
    write_json(root / "tokenizer_config.json", settings)
    # Last and by renaming: whoever finds tokenizer.json finds all of it.
    partial = root / f"{TOKENIZER_FILE}.tmp"
    tokenizer.save(str(partial))
    partial.replace(root / TOKENIZER_FILE)
