"""Streams: every request gets what ``sample`` gives, whatever its neighbours are."""

import array
import dataclasses
import itertools
import math
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import PowerSMC, PowerTarget, StreamRequest, TableLM
from jax_power_smc.engine import executables, slot_plan
from jax_power_smc.engine.program_specs import SPECS
from jax_power_smc.engine.target_batch import TargetBatch
from jax_power_smc.engine.timing import ReadyTimes
from tests.paths import ROOT

# Of every scheduler, after every round.
pytestmark = pytest.mark.usefixtures("quick_compilation", "integrity")

MODEL = TableLM(vocab_size=5, order=2)
PARAMS = MODEL.init(jax.random.key(4), scale=1.0)
PARAMS = PARAMS._replace(logits=PARAMS.logits.at[..., 1].add(-1.0))
SAMPLER = PowerSMC(4, ess_threshold=0.9)
KEY = jax.random.key(3)
PIECES = [b"a", b"", b"b", b"c", b"d"]
TARGETS = [
    PowerTarget(2.0, (1,)),
    PowerTarget(3.0, (0, 1), min_new_tokens=2),
    PowerTarget(2.0, (1,), top_k=2),
    PowerTarget(1.5, (1,), top_p=0.8),
    PowerTarget(2.0, (1,), stop=psmc.StopString("bc")),
    PowerTarget(2.0, (1,), stop=psmc.StopString("ddd")),
]
ARRAYS = ("tokens", "lengths", "finished", "log_probs", "log_weights", "log_evidence", "choice")


@pytest.fixture(scope="module", autouse=True)
def short_chunks():
    """Many rounds within few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slot_plan, "CHUNK_ON_CPU", 3)
        yield


def request(i, **changes):
    fields = {
        "prompt": [i % 5, (2 * i + 1) % 5][: 1 + i % 2],
        "target": TARGETS[i % len(TARGETS)],
        "max_new_tokens": 3 + (4 * i) % 9,
        "tag": f"tag {i}",
    }
    return StreamRequest(**{**fields, **changes})


def make(**options):
    # A fixed number of rows: each one is another set of programs.
    sizes = {"max_prompt_tokens": 4, "max_new_tokens": 12, "slots": 3, "rows": 12}
    sizes["tokenizer"] = PIECES
    return psmc.Engine(MODEL, PARAMS, sampler=SAMPLER, **{**sizes, **options})


def alone(index, asked):
    """The same request through ``sample``."""
    return psmc.sample(
        MODEL,
        PARAMS,
        [asked.prompt],
        key=KEY,
        target=asked.target,
        sampler=SAMPLER,
        max_new_tokens=asked.max_new_tokens,
        prompt_ids=[index],
        tokenizer=PIECES,
    )


def assert_as_alone(done):
    expected = alone(done.index, done.request)
    for name in ARRAYS:
        np.testing.assert_allclose(
            getattr(done.result, name), getattr(expected, name), atol=1e-5, err_msg=name
        )
    np.testing.assert_array_equal(done.result.info.parent, expected.info.parent)
    assert done.result.target == done.request.target


def test_prompts_with_different_targets_get_what_they_get_alone():
    asked = [request(i) for i in range(14)]
    done = list(make().stream(iter(asked), key=KEY))
    assert sorted(one.index for one in done) == list(range(14))
    assert [one.index for one in done] != list(range(14))  # as they finish
    for one in done:
        assert one.error is None and one.request is asked[one.index]
    # One without, one with each kind of restriction, after neighbours of all kinds.
    for one in done:
        if one.index in (6, 8, 9, 10):
            assert_as_alone(one)


def test_with_too_few_rows_for_all_prompts_they_get_what_they_get_alone(integrity):
    asked = [request(i) for i in (4, 2, 3, 1, 0, 4, 5, 0, 2)]
    made = make(rows=5)
    done = list(made.stream(iter(asked), key=KEY))
    assert sorted(one.index for one in done) == list(range(9))
    for one in done:
        assert one.error is None
        if one.index in (0, 3, 4, 7):
            assert_as_alone(one)
    assert made.stats.rows_used <= made.stats.rows_there == 5
    assert made.stats.stalls > 0 and len(integrity) > 5


def test_rows_come_and_go_with_the_prompts(growing, integrity):
    asked = [request(0, prompt=[i % 5], max_new_tokens=12) for i in range(12)]
    made = make(rows=None)
    done = list(made.stream(iter(asked), key=KEY))
    for one in done[::4]:
        assert_as_alone(one)
    stats = made.stats
    assert 4 < stats.rows_used <= stats.rows_there <= 12 == made.plan.rows
    # The table was smaller for most of the time.
    assert stats.row_steps < stats.table_steps < stats.rows_there * stats.steps


def test_a_long_prompt_enters_among_short_ones(integrity):
    # The rows have room for it also while only what ran before it has been seen.
    asked = [request(0, prompt=[i % 5], max_new_tokens=20) for i in range(6)]
    asked.insert(3, request(0, prompt=[2, 3] * 140, max_new_tokens=20))
    made = make(max_prompt_tokens=300, max_new_tokens=20, slots=2)
    done = list(made.stream(iter(asked), key=KEY))
    for one in done:
        assert_as_alone(one)


def test_invalid_requests_are_refused_one_by_one():
    asked = [
        request(0),
        request(1, prompt=[9]),
        "text",
        request(3, max_new_tokens=99),
        request(4, prompt=[0] * 5),
        request(5, target=4.0),
        request(6, prompt_id=-1),
        request(7),
    ]
    done = sorted(psmc.stream(asked, MODEL, PARAMS, key=KEY, sampler=SAMPLER, slots=2,
                              max_prompt_tokens=4, max_new_tokens=12, tokenizer=PIECES),
                  key=lambda one: one.index)  # fmt: skip
    sentences = [
        None,
        "prompt 1 has token id 9",
        "request 2 is 'text'; it must be a StreamRequest.",
        "max_new_tokens is 99; this engine was made for at most 12.",
        "prompt 4 has 5 tokens; this engine was made for at most 4 (max_prompt_tokens).",
        "target is 4.0; it must be a PowerTarget.",
        "prompt_ids has -1",
        None,
    ]
    for one, sentence in zip(done, sentences, strict=True):
        assert (one.error is None) == (sentence is None) == (one.result is not None)
        assert sentence is None or one.error.startswith(sentence)


def test_a_stop_rule_needs_a_tokenizer():
    asked = [request(4), request(0)]
    done = {one.index: one for one in make(tokenizer=None).stream(asked, key=KEY)}
    assert "pass tokenizer=" in done[0].error and done[1].error is None


def test_requests_may_have_keys_of_their_own():
    seeds = [None, 7, 7, None, 8]
    asked = [
        request(0, prompt_id=5, key=None if seed is None else jax.random.key(seed))
        for seed in seeds
    ]
    done = sorted(make().stream(asked, key=KEY), key=lambda each: each.index)
    for each, seed in zip(done, seeds, strict=True):
        key = KEY if seed is None else jax.random.key(seed)
        expected = psmc.sample(
            MODEL,
            PARAMS,
            [each.request.prompt],
            key=key,
            target=each.request.target,
            sampler=SAMPLER,
            max_new_tokens=each.request.max_new_tokens,
            prompt_ids=[5],
        )
        np.testing.assert_array_equal(each.result.tokens, expected.tokens)
    drawn = {np.asarray(each.result.tokens).tobytes() for each in done}
    assert len(drawn) > 1, "equal outputs would show no mix-up of keys"


def test_a_faulty_request_fails_alone():
    class Odd:
        def __len__(self):
            raise RuntimeError("no length")

    odd = [
        {"key": jax.random.PRNGKey(0)},
        {"key": 3},
        {"key": jax.random.key(0, impl="rbg")},
        {"key": jax.random.split(KEY)},
        {"key": np.zeros(2, np.uint32)},
        {"prompt": Odd()},
        {"prompt": [[1], [2, 3]]},
        {"prompt": [2**70]},
        {"prompt_id": 1.5},
        {"max_new_tokens": "9"},
        {"max_new_tokens": np.True_},
    ]
    asked = [request(0), *[request(1 + i, **fields) for i, fields in enumerate(odd)], request(6)]
    done = sorted(make().stream(asked, key=KEY), key=lambda each: each.index)
    assert [each.error is None for each in done] == [True, *[False] * len(odd), True]
    assert all(" must be a single key" in done[i].error for i in (1, 2, 4, 5))
    assert "implementation rbg" in done[3].error


def test_keys_on_other_devices_mix():
    keys = [None, *[jax.device_put(jax.random.key(7), d) for d in jax.devices()[:2]]]
    asked = [request(0, prompt_id=5, key=key) for key in keys]
    done = sorted(make().stream(asked, key=KEY), key=lambda each: each.index)
    np.testing.assert_array_equal(done[1].result.tokens, done[2].result.tokens)
    assert done[0].error is None


def test_numbers_and_prompts_of_numpy_and_jax_are_served():
    asked = [
        request(
            0,
            prompt=prompt,
            max_new_tokens=number(7),
            prompt_id=number(3),
            target=PowerTarget(jnp.float32(2), np.array([1], np.uint8)),
        )
        for prompt, number in [
            ([1, 2], int),
            (np.array([1, 2], np.uint8), np.uint8),
            (jnp.array([1, 2], jnp.uint8), jnp.int32),
            ([np.int64(1), jnp.int32(2)], np.array),
        ]
    ]
    streams = [
        make(slots=np.int64(3), max_new_tokens=jnp.int32(12)).stream(asked, key=KEY),
        psmc.stream(asked[1:], MODEL, PARAMS, key=KEY, sampler=SAMPLER),
    ]
    for stream in streams:
        for done in stream:
            assert_as_alone_with(done, prompt_ids=np.array([3], np.uint8))


def assert_as_alone_with(done, **options):
    assert done.error is None
    expected = psmc.sample(
        MODEL, PARAMS, np.array([[1, 2]], np.uint8), key=KEY, target=PowerTarget(2.0, (1,)),
        sampler=SAMPLER, max_new_tokens=np.uint8(7), **options,
    )  # fmt: skip
    np.testing.assert_array_equal(done.result.tokens, expected.tokens)


@pytest.mark.parametrize("make_buffer", [list, np.array, lambda ids: array.array("i", ids)])
def test_any_buffer_is_copied_when_the_request_is_made(make_buffer):
    buffer = make_buffer([1, 2])
    asked = [request(0, prompt=buffer), request(0, prompt=memoryview(array.array("i", [1, 2])))]
    buffer[0], buffer[1] = 3, 3
    for done in make().stream(asked, key=KEY):
        expected = alone(done.index, request(0, prompt=[1, 2]))
        np.testing.assert_array_equal(done.result.tokens, expected.tokens)


def test_a_buffer_may_be_used_again():
    buffer = np.zeros(2, np.int64)

    def requests():
        for i in range(4):
            buffer[:] = i, 4 - i
            yield request(0, prompt=buffer)
        buffer[:] = 99

    asked = [[i, 4 - i] for i in range(4)]
    for requested in (requests(), list(requests())):
        for done in make().stream(requested, key=KEY):
            expected = alone(done.index, request(0, prompt=asked[done.index]))
            np.testing.assert_array_equal(done.result.tokens, expected.tokens)
    prompts = np.array(asked[:2])

    def until():
        prompts[:] = 99
        return False

    options = {"target": TARGETS[0], "sampler": SAMPLER, "max_new_tokens": 7}
    for sampler in (SAMPLER, psmc.MetropolisHastings(2, 1, num_chains=2)):
        options["sampler"] = sampler
        prompts[:] = asked[:2]
        changed = psmc.sample(MODEL, PARAMS, prompts, key=KEY, until=until, **options)
        expected = psmc.sample(MODEL, PARAMS, asked[:2], key=KEY, **options)
        np.testing.assert_array_equal(changed.tokens, expected.tokens)


@pytest.mark.parametrize("ready", [math.inf, -math.inf])
def test_time_between_results_counts_while_the_device_decodes(monkeypatch, ready):
    monkeypatch.setattr(ReadyTimes, "last", lambda self: ready)
    pause, count = 0.2, 4
    stream = make(slots=1).stream([request(i) for i in range(count)], key=KEY)
    for _ in stream:
        time.sleep(pause)
    counted = stream.seconds["decode"] >= (count - 1) * pause
    assert counted == (ready == math.inf)


def test_results_are_in_host_memory():
    for done in make().stream([request(0)], key=KEY):
        for name in ("tokens", "lengths", "log_probs", "log_weights", "log_evidence", "choice"):
            assert isinstance(getattr(done.result, name), np.ndarray), name
            assert isinstance(getattr(done.result.on_device(), name), jax.Array), name


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_a_stream_ends_when_it_is_told_to(rounds):
    asked, seen = [], []

    def requests():
        for i in range(100):
            asked.append(i)
            yield request(i)

    def until():
        seen.append(len(asked))
        return len(seen) > rounds

    sample = make()
    done = list(sample.stream(requests(), key=KEY, until=until))
    # It is asked before every round, and then nothing more is read or decoded.
    assert len(seen) == rounds + 1 and len(asked) == seen[-1] and len(done) < 100
    for each in done:
        assert_as_alone(each)
    assert len(list(sample.stream([request(0)], key=KEY))) == 1, "the engine is free again"


def test_the_time_that_until_takes_is_decoding():
    # Processes that ask each other wait there for what their devices decode.
    asked = []

    def until():
        asked.append(None)
        time.sleep(0.05)
        return False

    stream = make().stream([request(0)], key=KEY, until=until)
    assert len(list(stream)) == 1
    assert stream.seconds["decode"] >= 0.05 * len(asked)


def test_there_are_no_more_slots_than_requests():
    assert make(slots=None, num_requests=3).plan.slots == 4
    assert make(slots=None).plan.slots > 4
    assert make(slots=3, num_requests=1).plan.slots == 3


def test_a_cancelled_request_does_not_stop_the_others():
    stream = make(slots=2).stream([request(0, max_new_tokens=12) for _ in range(6)], key=KEY)
    stream.cancel(4)
    done = [next(stream)]
    running = min({0, 1, 2, 3, 5} - {one.index for one in done} - {4})
    stream.cancel(running)
    done += list(stream)
    assert sorted(one.index for one in done) == list(range(6))
    errors = {one.index: one.error for one in done}
    assert errors[4] == "cancelled." and set(errors.values()) <= {None, "cancelled."}
    assert sum(error is None for error in errors.values()) >= 4
    for one in done:
        if one.error is None:
            assert_as_alone(one)


def test_requests_that_raise_leave_what_was_read_and_a_usable_engine():
    def broken():
        yield from (request(i) for i in range(5))
        raise OSError("the queue is gone")

    made = make()
    stream, done = made.stream(broken(), key=KEY), []
    with pytest.raises(OSError, match="the queue is gone"):
        for one in stream:
            done.append(one)
    assert sorted(one.index for one in done) == list(range(5))
    assert all(one.error is None for one in done)
    again = list(made.stream([request(0)], key=KEY))
    assert_as_alone(again[0])


def test_a_request_may_say_that_nothing_waits():
    asked = [request(0), None, None, request(1), None]
    done = list(make().stream(iter(asked), key=KEY))
    assert sorted(one.index for one in done) == [0, 1]


def test_a_later_stream_ends_an_earlier_one_which_says_so():
    made = make()
    stream = made.stream([request(i) for i in range(6)], key=KEY)
    next(stream)
    later = made.stream([request(0)], key=KEY)
    with pytest.raises(ValueError, match="this stream was ended by a later one of its engine"):
        next(stream)
    stream.close()  # does not end the later one
    assert_as_alone(next(later))
    with pytest.raises(StopIteration):
        next(later)


def test_an_engine_serves_whoever_handles_the_exception_that_left_its_stream():
    made = make()

    def fails():
        stream = made.stream((request(i) for i in range(9)), key=KEY)  # held by the traceback
        for _ in stream:
            raise KeyError("in the body")

    try:
        fails()
    except KeyError:
        assert_as_alone(next(made.stream([request(0)], key=KEY)))


def test_a_stream_at_work_is_not_ended():
    made = make()

    def nested():
        yield request(0)
        made.stream([request(1)], key=KEY)

    stream = made.stream(nested(), key=KEY)
    assert_as_alone(next(stream))
    with pytest.raises(ValueError, match="another stream of this engine is at work"):
        list(stream)


def test_an_engine_is_free_when_its_stream_is_dropped():
    made = make()
    for _ in made.stream((request(i) for i in range(9)), key=KEY):
        break
    assert len(list(made.stream([request(0)], key=KEY))) == 1

    def fails():
        for _ in made.stream((request(i) for i in range(9)), key=KEY):
            raise KeyError("in the body")

    with pytest.raises(KeyError):
        fails()
    assert len(list(made.stream([request(0)], key=KEY))) == 1
    made.stream([request(0)], key=KEY)  # not even begun
    with make() as sample:
        stream = sample.stream([request(i) for i in range(9)], key=KEY)
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    assert len(list(sample.stream([request(0)], key=KEY))) == 1


FORKED = """
import os, signal, warnings

warnings.simplefilter("ignore")
import jax
import jax_power_smc as psmc
from tests.engine import test_engine as tests

lm = psmc.load("tiny-reasoner")
engine, key = tests.make(), jax.random.key(0)
begun = engine.stream([tests.request(i) for i in range(6)], key=key)
next(begun)
options = {"target": tests.TARGETS[0], "sampler": tests.SAMPLER, "max_new_tokens": 3}
calls = {
    "next": lambda: next(begun),
    "stream": lambda: engine.stream([tests.request(0)], key=key),
    "warmup": engine.warmup,
    "engine": tests.make,
    "sample": lambda: psmc.sample(tests.MODEL, tests.PARAMS, [[1]], key=key, **options),
    "plain": lambda: psmc.plain.sample(tests.MODEL, tests.PARAMS, [[1]], key=key, **options),
    "load": lambda: psmc.load("tiny-reasoner"),
}
child = os.fork()
if not child:
    signal.alarm(60)  # it hung before it was refused
    for name, call in calls.items():
        try:
            call()
        except RuntimeError as error:
            print(name, error, flush=True)
    engine.close()
    os._exit(7)  # as children of multiprocessing end; JAX does not survive more
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print("parent", sum(1 for _ in begun))
"""


def test_a_forked_child_is_told_instead_of_waiting_forever():
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    *refused, child, parent = done.stdout.splitlines()
    names = ["next", "stream", "warmup", "engine", "sample", "plain", "load"]
    assert [line.split()[0] for line in refused] == names, done.stderr
    for line in refused:
        assert "was forked from one in which JAX was in use" in line
        assert "spawn" in line
    assert (child, parent) == ("child 7", "parent 5")


def test_stop_rules_of_their_own_leave_the_table_with_their_requests(monkeypatch):
    tables = []
    place = TargetBatch.place

    def watched(self, target, in_use):
        placed = place(self, target, in_use)
        tables.append(self.table.shape[0])
        return placed

    monkeypatch.setattr(TargetBatch, "place", watched)
    texts = ["".join(x) for x in itertools.product("abcd", repeat=4)][:120]
    asked = [
        request(
            i,
            prompt=[0],
            max_new_tokens=6,
            target=PowerTarget(1.5 + i / 100, stop=psmc.StopString(text)),
        )
        for i, text in enumerate(texts)
    ]
    done = {one.index: one for one in make().stream(asked, key=KEY)}
    assert len(done) == len(asked) and all(one.error is None for one in done.values())
    assert max(tables) == 32  # three slots with 8 states each
    for index in (0, 50, 119):
        assert_as_alone(done[index])


def test_stop_rules_wait_until_the_table_has_room(monkeypatch):
    # Room for one rule of 8 states at a time, although there are three slots.
    made = make()
    made._sizes = dataclasses.replace(made._sizes, stop_states=9)
    rule = psmc.StopString
    texts = ["ab", "ba", "ab", "cd", "dddd", "ab" * 9, "ca"]
    asked = [
        request(i, target=PowerTarget(2.0, (1,), stop=rule(text)), max_new_tokens=8)
        for i, text in enumerate(texts)
    ]
    done = {one.index: one for one in made.stream(asked, key=KEY)}
    assert sorted(done) == list(range(len(texts)))
    for index, one in done.items():
        if index == 5:
            assert "has 19 states, and the memory has room for" in one.error
        else:
            assert_as_alone(one)


def test_stop_rules_are_in_the_memory_plan():
    with_rules, without = make().plan, make(tokenizer=None).plan
    assert with_rules.total - without.total == with_rules.stop_rules == 512 * 3 * 5
    assert "stop rules" in str(with_rules) and "stop rules" not in str(without)


class Failing(TableLM):
    """A table that fails on the device while it is told to."""

    broken = False

    def extend(self, params, cache, tokens, position, count):
        def check(tokens):
            if Failing.broken:
                raise RuntimeError("the device has failed")
            return tokens

        tokens = jax.pure_callback(check, tokens, tokens, vmap_method="expand_dims")
        return super().extend(params, cache, tokens, position, count)


def test_a_failure_of_the_device_is_reported_and_the_next_ones_are_served():
    model = Failing(5, 2)
    made = psmc.Engine(
        model, PARAMS, sampler=SAMPLER, max_prompt_tokens=4, max_new_tokens=12, slots=2
    )
    plain = PowerTarget(2.0)

    def asked():
        Failing.broken = True
        yield request(0, target=plain, max_new_tokens=12)
        yield request(1, target=plain, max_new_tokens=12)
        Failing.broken = False
        yield request(2, target=plain, max_new_tokens=12)

    done = {one.index: one for one in made.stream(asked(), key=KEY)}
    assert sorted(done) == [0, 1, 2]
    assert "the device has failed" in done[0].error and done[1].error is not None
    assert done[2].error is None and jnp.isfinite(done[2].result.log_evidence).all()


def test_requests_that_wait_for_the_table_survive_a_failure_of_the_device():
    made = psmc.Engine(
        Failing(5, 2),
        PARAMS,
        sampler=SAMPLER,
        max_prompt_tokens=4,
        max_new_tokens=12,
        slots=2,
        tokenizer=PIECES,
    )
    made._sizes = dataclasses.replace(made._sizes, stop_states=9)  # room for one rule at a time
    targets = [PowerTarget(2.0, stop=psmc.StopString(text)) for text in ("ab", "ba")]
    asked = [request(i, target=target, max_new_tokens=12) for i, target in enumerate(targets)]
    Failing.broken, done = True, {}
    for one in made.stream(asked, key=KEY):
        Failing.broken = False
        done[one.index] = one
    assert "the device has failed" in done[0].error and done[1].error is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"num_requests": 0}, "num_requests is 0"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"memory_limit": 10}, "10 bytes"),
        ({"memory_limit": 200_000, "slots": 512}, "512 prompts at a time are too many"),
    ],
)
def test_invalid_engines_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_metropolis_hastings_and_wrong_keys_are_refused():
    with pytest.raises(ValueError, match=r"use psmc\.sample"):
        psmc.Engine(
            MODEL,
            PARAMS,
            sampler=psmc.MetropolisHastings(2, 1),
            max_prompt_tokens=4,
            max_new_tokens=4,
        )
    with pytest.raises(ValueError, match="key is 0"):
        make().stream([], key=0)
    with pytest.raises(ValueError, match="pass max_prompt_tokens and max_new_tokens"):
        psmc.stream(iter([]), MODEL, PARAMS, key=KEY, sampler=SAMPLER)


@pytest.mark.parametrize("rows", [7, None])
def test_warmup_compiles_everything_for_plain_targets(growing, rows):
    made = make(slots=2, rows=rows, max_prompt_tokens=100, max_new_tokens=200)
    assert made.warmup() > 0
    names = ["start", "prefill", "decode_chunk", "finalize", "suspend", "cancel"]
    # While the number of rows follows the load, these small programs are compiled as they come:
    # there is one for every pair of sizes, and of a size and a prompt's bucket.
    names += ["resize", "insert"] if rows else []
    kinds = [program for program in SPECS if program.__name__ in names]
    assert len(kinds) == len(names)
    compiled = [executables.compiled_count(kind) for kind in kinds]
    targets = [TARGETS[0], PowerTarget(3.0, (1,)), PowerTarget(1.5, (1,))]
    asked = [request(i, target=targets[i % 3], max_new_tokens=20) for i in range(6)]
    asked.append(request(6, prompt=[1] * 90, target=targets[0], max_new_tokens=200))
    stream = made.stream(asked, key=KEY)
    assert all(one.error is None for one in stream)
    assert [executables.compiled_count(kind) for kind in kinds] == compiled
