"""The tokenizer: what is one token, and that nothing is lost."""

import random

import pytest
from transformers import AutoTokenizer

from jax_power_smc.tiny_reasoner import tokenizer as module
from jax_power_smc.tiny_reasoner.problems import sample_problem, write_solution


def examples(count, seed=9):
    rng = random.Random(seed)
    for _ in range(count):
        problem = sample_problem(rng)
        yield problem.question, write_solution(problem, rng)


def test_every_example_is_decoded_to_itself(tokenizer):
    for question, solution in examples(300):
        text = question + solution
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        "  two  spaces ",
        "caf\u00e9 \u6570\u5b66 \U0001f600\x00\x7f",
        "a\tb\r\nc",
        "x = -1.5e3;",
    ],
)
def test_any_text_is_decoded_to_itself(text, tokenizer):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert module.END_ID not in ids


def test_every_byte_has_an_id(tokenizer):
    single = {token for token in tokenizer.get_vocab() if len(token) == 1}
    assert len(single) == 256


def test_arithmetic_is_spelled_out(tokenizer):
    line = "147*20:7*2=14,4*2+1=9>2940\n3381-1294=2087\n"
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(line).ids]
    assert pieces == list(line)


def test_no_token_holds_a_digit_or_operator_and_something_else(tokenizer):
    for i in range(tokenizer.get_vocab_size()):
        piece = tokenizer.decode([i])
        assert len(piece) == 1 or not set(piece) & set("0123456789*+-=:,>\n"), piece


def test_a_common_word_is_one_token_with_its_space(tokenizer):
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("How many coins is that?").ids]
    assert " many" in pieces and " that" in pieces


def test_encoding_the_halves_apart_is_encoding_the_whole(tokenizer):
    for question, solution in examples(300):
        apart = tokenizer.encode(question).ids + tokenizer.encode(solution).ids
        assert apart == tokenizer.encode(question + solution).ids


def test_the_end_is_id_0_and_never_added(tokenizer):
    assert module.END_ID == 0
    assert tokenizer.id_to_token(module.END_ID) == module.END
    assert tokenizer.token_to_id(module.END) == module.END_ID
    for question, solution in examples(20):
        assert module.END_ID not in tokenizer.encode(question + solution).ids


def test_training_is_deterministic():
    def train(seed):
        return module.train_tokenizer(module.corpus(60, seed), vocab_size=320).to_str()

    assert train(1) == train(1)
    assert train(1) != train(2)


def test_the_vocabulary_is_at_most_what_was_asked_for(tokenizer):
    assert tokenizer.get_vocab_size() <= 400
    smallest = module.train_tokenizer(module.corpus(5, 0), module.MIN_VOCAB_SIZE)
    assert smallest.get_vocab_size() == module.MIN_VOCAB_SIZE
    assert smallest.decode(smallest.encode("buys 17 \u00e9\n").ids) == "buys 17 \u00e9\n"


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 256; it must be at least 257"):
        module.train_tokenizer([], 256)


def test_the_saved_tokenizer_is_read_by_transformers(tokenizer, tmp_path):
    module.save_tokenizer(tokenizer, tmp_path / "new")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new", local_files_only=True)
    assert loaded.eos_token_id == loaded.pad_token_id == module.END_ID
    for question, solution in examples(50):
        text = question + solution
        ids = loaded.encode(text)
        assert ids == tokenizer.encode(text).ids
        assert loaded.decode(ids) == text
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
