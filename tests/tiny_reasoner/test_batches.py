"""Batches of examples."""

import itertools
import threading
import time

import numpy as np
import pytest

from jax_power_smc.tiny_reasoner.batches import (
    BUCKET,
    Batch,
    DataConfig,
    make_pool,
    pad_batch,
    stream_batches,
)
from jax_power_smc.tiny_reasoner.problems import split_of
from jax_power_smc.tiny_reasoner.tokenizer import END_ID
from tests.tiny_reasoner.reading import key_of

CONFIG = DataConfig(seed=5, batch_size=3, max_tokens=320, pool_batches=4)


def take(stream, count):
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def same(one, other):
    return all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def examples(batch):
    """(question, solution, the targets that count, the targets behind them) for each row."""
    for inputs, targets, loss_mask in zip(*batch, strict=True):
        (places,) = np.nonzero(loss_mask)
        first, last = places[0], places[-1]
        assert loss_mask[first : last + 1].all()
        yield inputs[: first + 1], targets[first:last], targets[last:], inputs[first + 1 :]


@pytest.fixture(scope="module")
def stream(tokenizer):
    return take(stream_batches(tokenizer, CONFIG), 11)


def test_padding_by_hand():
    batch = pad_batch([(2, [5, 6, 7, 8, END_ID]), (1, [9, 4, END_ID])])
    rest = [END_ID] * (BUCKET - 4)
    np.testing.assert_array_equal(batch.inputs, [[5, 6, 7, 8, *rest], [9, 4, 0, 0, *rest]])
    np.testing.assert_array_equal(batch.targets, [[6, 7, 8, 0, *rest], [4, 0, 0, 0, *rest]])
    loss_mask = [[0, 1, 1, 1, *rest], [1, 1, 0, 0, *rest]]
    np.testing.assert_array_equal(batch.loss_mask, np.array(loss_mask, np.bool_))
    assert (batch.inputs.dtype, batch.targets.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(("tokens", "length"), [(BUCKET + 1, BUCKET), (BUCKET + 2, 2 * BUCKET)])
def test_the_length_is_the_next_multiple_of_the_bucket(tokens, length):
    batch = pad_batch([(3, list(range(1, tokens + 1)))])
    assert batch.inputs.shape == (1, length)


def test_exactly_the_solution_and_its_end_are_in_the_loss_mask(stream, tokenizer):
    for batch in stream:
        for question, solution, end, rest in examples(batch):
            text = tokenizer.decode(question.tolist())
            assert text.endswith(" is that?\n") and text.count("\n") == 1
            written = tokenizer.decode(solution.tolist())
            assert written.startswith(key_of(text)[:3]) and "answer " in written
            np.testing.assert_array_equal(end, np.full_like(end, END_ID))
            np.testing.assert_array_equal(rest[: len(solution)], solution)
            assert (rest[len(solution) :] == END_ID).all()


def test_a_batch_depends_on_seed_and_number_only(stream, tokenizer):
    assert_equal(stream, take(stream_batches(tokenizer, CONFIG), 11))
    other = DataConfig(seed=6, batch_size=3, max_tokens=320, pool_batches=4)
    assert not any(map(same, stream, take(stream_batches(tokenizer, other), 11)))


@pytest.mark.parametrize("first_step", [1, 3, 4, 6, 8])
def test_a_resumed_stream_continues_as_the_other_would(first_step, stream, tokenizer):
    resumed = take(stream_batches(tokenizer, CONFIG, first_step), 11 - first_step)
    assert_equal(stream[first_step:], resumed)


def test_batches_differ(stream):
    assert not any(same(one, other) for one, other in itertools.combinations(stream, 2))


@pytest.mark.parametrize(("split", "count"), [("train", 100), ("valid", 4)])
def test_examples_come_from_their_split(split, count, tokenizer):
    config = DataConfig(seed=0, batch_size=10, max_tokens=320, pool_batches=count)
    for batch in make_pool(tokenizer, config, pool=0, split=split):
        for question, *_ in examples(batch):
            assert split_of(key_of(tokenizer.decode(question.tolist()))) == split


def test_longer_examples_are_left_out(tokenizer):
    config = DataConfig(seed=0, batch_size=4, max_tokens=120, pool_batches=4)
    batches = make_pool(tokenizer, config, pool=0)
    assert len(batches) == 4
    for batch in batches:
        assert isinstance(batch, Batch)
        for question, solution, *_ in examples(batch):
            assert len(question) + len(solution) + 1 <= 120


def test_a_limit_that_leaves_nothing_is_refused(tokenizer):
    config = DataConfig(seed=0, batch_size=2, max_tokens=20, pool_batches=1)
    with pytest.raises(ValueError, match=r"max_tokens is 20; more than 90%"):
        next(stream_batches(tokenizer, config))


def test_bad_luck_cannot_fail_a_small_pool(tokenizer):
    config = DataConfig(seed=0, batch_size=1, max_tokens=120, pool_batches=1)
    for pool in range(30):
        assert len(make_pool(tokenizer, config, pool)) == 1


@pytest.mark.parametrize("name", ["batch_size", "max_tokens", "pool_batches"])
def test_sizes_below_one_are_refused(name):
    sizes = {"batch_size": 1, "max_tokens": 1, "pool_batches": 1}
    with pytest.raises(ValueError, match=f"{name} is 0; it must be an integer of at least 1"):
        DataConfig(seed=0, **(sizes | {name: 0}))


def test_a_closed_stream_leaves_no_thread_behind(tokenizer):
    def running():
        return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]

    stream = stream_batches(tokenizer, CONFIG)
    next(stream)
    assert running()
    stream.close()
    deadline = time.monotonic() + 10
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()
