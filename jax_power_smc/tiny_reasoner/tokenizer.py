"""The tokenizer of the tiny reasoner: byte-level BPE that spells out arithmetic.

Every digit, operator and newline is a token of its own, and every common word is one token
together with the space before it:

    " buys 17 more pens.\\n" -> " buys", " ", "1", "7", " more", " pens", ".", "\\n"

All 256 bytes are in the vocabulary, so every text can be encoded and decodes to itself.
"""

import os
import pathlib
import random
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jax_power_smc.core.files import write_bytes_whole, write_json
from jax_power_smc.tiny_reasoner.problems import sample_problem, write_solution

END = "<|end|>"
END_ID = 0
TOKENIZER_FILE = "tokenizer.json"
# Bytes 0 to 255 and the end token.
MIN_VOCAB_SIZE = 257

_ISOLATED = r"[*+\-=:,>\n]"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 640) -> Tokenizer:
    """Learns merges from ``texts``; the result is a deterministic function of both arguments.

    ``vocab_size`` is the largest number of ids, at least 257. Few texts may allow fewer merges, and
    the tokenizer is then smaller. Its id 0 is ``<|end|>``, which encoding never adds.

    Raises:
      ValueError: if ``vocab_size`` cannot hold the bytes and the end token.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}, "
            "for the 256 bytes and the end token."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_ISOLATED), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        # Sorted, because the library returns them in a different order in every process.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def corpus(num_problems: int, seed: int) -> Iterator[str]:
    """Yields questions with solutions from the train split, the same for the same arguments."""
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
        # A question must end with a newline, whether or not the user's message does.
        "chat_template": "{{ messages[0]['content'] | trim + '\\n' }}",
    }
    write_json(root / "tokenizer_config.json", settings)
    # Last, and whole: a directory with tokenizer.json is complete.
    write_bytes_whole(root / TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode())
