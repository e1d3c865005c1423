"""``sample``: reproducible, independent of neighbours and padding, compiled once, checked first.

Most of it is in float64: neighbors change the number of rows, and with it the rounding, which would
show in float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import Ancestral, PowerSMC, PowerTarget, TableLM
from jax_power_smc.engine import buckets, executables, programs, slot_plan
from jax_power_smc.engine.device_rows import DeviceRows
from jax_power_smc.engine.program_specs import SPECS

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = TableLM(vocab_size=5, order=2)
with jax.enable_x64(True):
    PARAMS = MODEL.init(jax.random.key(4), scale=1.0, dtype=jnp.float64)
    # Ends are made rarer, so that lengths vary up to the cap.
    PARAMS = PARAMS._replace(logits=PARAMS.logits.at[..., 1].add(-1.0))
PROMPTS = [[0], [2, 3], [4, 4, 4], [1, 0]]
PIECES = [b"a", b"", b"b", b"c", b"d"]
TARGET = PowerTarget(2.0, (1,))
SAMPLER = PowerSMC(4, ess_threshold=0.9, ramp_tokens=3)
CAP = 8
ARRAYS = ("tokens", "lengths", "finished", "log_probs", "log_weights", "log_evidence", "choice")
INFO = ("ess", "resampled", "forks", "parent", "drawn_tokens", "model_tokens", "num_rows", "copies")


def sample(prompts=PROMPTS, *, model=MODEL, params=PARAMS, seed=0, **options):
    """In float64."""
    with jax.enable_x64(True):
        return psmc.sample(
            model,
            params,
            prompts,
            **{
                "key": jax.random.key(seed),
                "target": TARGET,
                "sampler": SAMPLER,
                "max_new_tokens": CAP,
                **options,
            },
        )


def pinned(sampler=SAMPLER, *, model=MODEL, params=PARAMS, **options):
    """An engine whose shapes do not depend on the load."""
    sizes = {"slots": 4, "rows": 16, "capacity": 64, "prompt_bucket": 64, "tokenizer": PIECES}
    return psmc.Engine(
        model,
        params,
        **{"sampler": sampler, "max_prompt_tokens": 8, "max_new_tokens": CAP, **sizes, **options},
    )


def assert_same(one, two, prompts=None, other_prompts=None, atol=1e-12):
    """Prompt ``prompts[k]`` of one against ``other_prompts[k]`` of the other."""
    prompts = range(one.tokens.shape[0]) if prompts is None else prompts
    other_prompts = prompts if other_prompts is None else other_prompts
    for names, left, right in ((ARRAYS, one, two), (INFO, one.info, two.info)):
        for name in names:
            x = np.asarray(getattr(left, name))[list(prompts)]
            y = np.asarray(getattr(right, name))[list(other_prompts)]
            assert x.dtype == y.dtype
            atol_ = atol if np.issubdtype(x.dtype, np.floating) else 0
            np.testing.assert_allclose(x, y, rtol=0, atol=atol_, err_msg=name)


@pytest.fixture(scope="module")
def four():
    """With a table that grows, unlike most other runs here."""
    result = sample()
    # What follows would prove little of a run in which nothing happens.
    assert result.info.forks.sum() > 3 and len(set(np.asarray(result.lengths).ravel())) > 2
    return result


def test_shapes_and_dtypes(four):
    assert four.tokens.shape == (4, 4, CAP) and four.tokens.dtype == jnp.int32
    assert four.info.parent.shape == (4, CAP, 4)
    for name in ("lengths", "finished", "log_probs", "log_weights"):
        assert getattr(four, name).shape == (4, 4)
    assert four.log_evidence.shape == four.choice.shape == (4,)
    for name in ("ess", "resampled", "forks"):
        assert getattr(four.info, name).shape == (4, CAP)
    assert four.info.num_rows.shape == (4, CAP)
    assert four.info.copies.shape == four.info.preempted.shape == (4,)
    for name in ("model_tokens", "drawn_tokens"):
        assert getattr(four.info, name).shape == (4,)
    assert set(four.info.seconds) == {"compile", "prefill", "decode"}
    assert min(four.info.seconds.values()) >= 0 and four.target == TARGET


def test_the_same_key_gives_the_same_result_and_another_one_does_not(four):
    assert_same(four, sample())
    other = sample(seed=1)
    assert not np.array_equal(four.tokens, other.tokens)
    assert not np.array_equal(four.log_evidence, other.log_evidence)


@pytest.mark.parametrize("index", range(4))
def test_a_prompt_alone_gives_what_it_gives_with_neighbours(four, index):
    alone = sample([PROMPTS[index]], prompt_ids=[index])
    assert_same(alone, four, [0], [index])


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 3, 1, 0]])
def test_order_and_slot_do_not_matter(four, order):
    shuffled = sample([PROMPTS[i] for i in order], prompt_ids=order)
    assert_same(shuffled, four, range(4), order)


@pytest.mark.parametrize("width", [1, 2])
def test_the_size_of_batches_does_not_matter(growing, four, width):
    assert_same(four, sample(prompts_per_batch=width))


def test_idle_slots_change_nothing_and_are_dropped(four):
    three = sample(PROMPTS[:3])
    assert three.tokens.shape[0] == 3
    assert_same(three, four, range(3))


def test_another_neighbour_changes_nothing(four):
    others = [[3, 3], [2, 3], [0, 0, 0, 0, 0], [4]]
    assert_same(sample(others), four, [1])


def test_equal_prompts_differ_by_their_ids_only():
    result = sample([[2]] * 4, prompt_ids=[0, 7, 7, 2**40])
    assert_same(result, result, [1], [2])
    evidence = np.asarray(result.log_evidence)
    assert len({float(evidence[i]) for i in (0, 1, 3)}) == 3


def test_the_length_of_chunks_does_not_matter(four, monkeypatch):
    monkeypatch.setattr(slot_plan, "CHUNK_ON_CPU", 3)
    assert_same(four, sample())


def test_the_padding_of_prompts_does_not_matter(four, monkeypatch):
    monkeypatch.setattr(buckets, "SMALLEST_PROMPT_BUCKET", 4)
    assert_same(four, sample())


def test_prompts_of_several_buckets_come_back_in_order(four):
    long = [3, 0] * 40
    prompts = [long, *PROMPTS[:2], [0, *long], *PROMPTS[2:]]
    mixed = sample(prompts, prompt_ids=[10, 0, 1, 11, 2, 3])
    assert_same(mixed, four, [1, 2, 4, 5], range(4))
    # Only the last two tokens matter to this model.
    alone = sample([[3, 0]], prompt_ids=[10])
    assert_same(mixed, alone, [0], [0])


def test_an_early_end_stops_the_chunks_and_fills_in_idle_steps(monkeypatch):
    calls = []
    original = DeviceRows._call

    def counted(self, function, static, *args):
        calls.append(function)
        return original(self, function, static, *args)

    sure = PARAMS._replace(logits=np.asarray(PARAMS.logits) + 31.0 * (np.arange(5) == 1))
    monkeypatch.setattr(slot_plan, "CHUNK_ON_CPU", 3)
    monkeypatch.setattr(DeviceRows, "_call", counted)
    result = sample(params=sure, max_new_tokens=30)
    assert calls.count(programs.decode_chunk) <= 2
    assert np.asarray(result.lengths).tolist() == [[1] * 4] * 4
    assert result.info.ess.shape == (4, 30) and result.info.parent.shape == (4, 30, 4)
    np.testing.assert_array_equal(result.info.ess[:, 1:], 4.0)
    assert np.all(result.info.parent[:, 1:] == np.arange(4))


def test_a_larger_cap_only_continues():
    idle = dataclasses.replace(SAMPLER, ess_threshold=0.0)
    short, long = sample(sampler=idle, max_new_tokens=4), sample(sampler=idle)
    np.testing.assert_array_equal(short.tokens, long.tokens[:, :, :4])
    assert np.asarray(long.lengths).max() > 4


def test_a_cap_of_one_token(four):
    one = sample(max_new_tokens=1)
    assert one.tokens.shape == (4, 4, 1) and np.asarray(one.lengths).tolist() == [[1] * 4] * 4


def test_log_p_is_the_teacher_forced_one(four, x64):
    tokens, lengths = np.asarray(four.tokens), np.asarray(four.lengths)
    for i, prompt in enumerate(PROMPTS):
        scores = psmc.exact.score(MODEL, PARAMS, prompt, tokens[i])
        kept = np.where(np.arange(CAP) < lengths[i][:, None], scores, 0.0).sum(axis=1)
        np.testing.assert_allclose(four.log_probs[i], kept, atol=1e-12)
        np.testing.assert_allclose(np.sum(four.token_log_probs[i], axis=1), kept, atol=1e-12)


def test_what_the_tokens_cost():
    # Nobody resamples, so the prefixes of all steps are those of the final sequences.
    idle = dataclasses.replace(SAMPLER, ess_threshold=0.0)
    result = sample(sampler=idle)
    tokens, lengths = np.asarray(result.tokens), np.asarray(result.lengths)
    ended = np.asarray(result.finished)
    np.testing.assert_array_equal(result.info.drawn_tokens, lengths.sum(axis=1))
    for i in range(4):
        # After step t: prefixes of t + 1 tokens that go on.
        running = [
            {
                tuple(row[: t + 1])
                for row, length, end in zip(tokens[i], lengths[i], ended[i], strict=True)
                if length > t + 1 or (length == t + 1 and not end)
            }
            for t in range(CAP - 1)
        ]
        counts = [len(prefixes) for prefixes in running]
        assert result.info.num_rows[i].tolist() == [*counts, 0]
        assert result.info.model_tokens[i] == 1 + sum(counts)
        # A prefix whose row another one took over needs a copy.
        children = [{} for _ in range(CAP - 1)]
        for t in range(1, CAP - 1):
            for prefix in running[t]:
                children[t].setdefault(prefix[:-1], []).append(prefix)
        extra = sum(len(x) - 1 for step in children for x in step.values())
        assert result.info.copies[i] == len(running[0]) - 1 + extra
    assert (result.info.model_tokens < result.info.drawn_tokens).all()
    assert result.info.preempted.tolist() == [0] * 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weights_have_the_dtype_of_the_model(four, pinned_four, dtype):
    result = four if dtype == jnp.float64 else pinned_four[0]
    for name in ("log_weights", "log_probs", "log_evidence", "token_log_probs"):
        assert getattr(result, name).dtype == dtype
    with jax.enable_x64(dtype == jnp.float64):
        params = PARAMS if dtype == jnp.float64 else FLOAT32
        score = psmc.exact.score(MODEL, params, PROMPTS[0], np.asarray(result.tokens[0]))
    length = int(result.lengths[0, 0])
    accuracy = 1e-12 if dtype == jnp.float64 else 1e-5
    assert float(result.log_probs[0, 0]) == pytest.approx(score[0, :length].sum(), abs=accuracy)


def run(engine, prompts=PROMPTS, *, seed=0, target=TARGET, cap=CAP, prompt_ids=None):
    """The results of a stream in the order of the prompts."""
    ids = range(len(prompts)) if prompt_ids is None else prompt_ids
    asked = [
        psmc.StreamRequest(prompt, target, cap, prompt_id=i)
        for prompt, i in zip(prompts, ids, strict=True)
    ]
    done = sorted(engine.stream(asked, key=jax.random.key(seed)), key=lambda one: one.index)
    assert [one.error for one in done] == [None] * len(prompts)
    return [one.result for one in done]


FLOAT32 = PARAMS._replace(logits=np.asarray(PARAMS.logits, np.float32))


@pytest.fixture(scope="module")
def pinned_four():
    return run(pinned(params=FLOAT32))


def test_pinned_shapes_give_the_same_bits_in_any_company(pinned_four):
    engine = pinned(params=FLOAT32)
    order = [3, 1, 0, 2]
    shuffled = run(engine, [PROMPTS[i] for i in order], prompt_ids=order)
    # Neighbors that have many rows, enter earlier and later, and are more than there are slots.
    crowd = [[0, 1, 2, 3]] * 5
    among = run(
        engine, [*crowd, *PROMPTS, *crowd], prompt_ids=[*range(90, 95), *range(4), *range(95, 100)]
    )
    for i, expected in enumerate(pinned_four):
        for found in (
            run(engine, [PROMPTS[i]], prompt_ids=[i])[0],
            shuffled[order.index(i)],
            among[len(crowd) + i],
        ):
            assert_same(found, expected, atol=0)
            assert found.log_weights.dtype == np.float32


@pytest.mark.parametrize(
    "change",
    [
        {"target": PowerTarget(3.5, (1,))},
        {"target": PowerTarget(2.0, (0, 2))},
        {"target": PowerTarget(2.0)},
        {"sampler": PowerSMC(4, ess_threshold=0.1, ramp_tokens=0, check_every=4)},
        {"seed": 11},
        {"cap": 3},
        {"prompt_ids": [9, 8, 7, 6]},
        {"prompts": [[1], [2], [3]]},
    ],
    ids=str,
)
def test_other_numbers_compile_nothing(pinned_four, change):
    before = executables.compiled_count()
    sampler = {"sampler": change.pop("sampler")} if "sampler" in change else {}
    found = run(pinned(params=FLOAT32, **sampler), **change)
    assert executables.compiled_count() == before
    evidence = [float(one.log_evidence[0]) for one in found]
    assert evidence != [float(one.log_evidence[0]) for one in pinned_four]


@pytest.mark.parametrize(
    "restricted",
    [
        lambda n: {"top_k": n},
        lambda n: {"length": "forced_eos", "min_new_tokens": n},
    ],
    ids=["top_k", "forced_eos"],
)
def test_other_values_of_a_restriction_compile_nothing(restricted):
    engine = pinned(params=FLOAT32)
    one, two = (PowerTarget(2.0, (1,), **restricted(n)) for n in (2, 3))
    first = run(engine, target=one)
    before = executables.compiled_count()
    second = run(engine, target=two)
    assert executables.compiled_count() == before
    assert [x.log_evidence[0] for x in first] != [x.log_evidence[0] for x in second]


def test_a_program_is_compiled_once_for_each_bucket():
    model = psmc.TransformerLM(
        psmc.TransformerConfig(
            vocab_size=11,
            hidden_size=4,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            head_dim=2,
            mlp_size=4,
        )
    )
    params = model.init(jax.random.key(0))
    made = psmc.Engine(
        model, params, sampler=SAMPLER, max_prompt_tokens=128, max_new_tokens=300, rows=4
    )

    def compiled(prompt_tokens, new_tokens, **target):
        """How many programs of each kind requests of these lengths make necessary."""
        names = ("start", "prefill", "decode_chunk", "resize", "finalize", "insert")
        kinds = {program.__name__: program for program in SPECS}
        before = {name: executables.compiled_count(kinds[name]) for name in names}
        target = PowerTarget(**{"alpha": 2.0, **target})
        requests = [psmc.StreamRequest([3] * prompt_tokens, target, new_tokens)]
        (done,) = made.stream(requests, key=jax.random.key(0))
        assert done.error is None
        now = (executables.compiled_count(kinds[name]) for name in names)
        return [count - before[name] for name, count in zip(names, now, strict=True)]

    assert compiled(3, 20) == [1, 1, 1, 0, 1, 1]
    # Other lengths in the same buckets, and other numbers.
    assert compiled(64, 32, alpha=3.0, eos_ids=(1,)) == [0, 0, 0, 0, 0, 0]
    # Rows of more than 128 and 256 tokens; a prompt of more than 64.
    assert compiled(5, 300) == [0, 0, 2, 2, 0, 0]
    assert compiled(65, 20) == [0, 1, 0, 0, 0, 1]
    # Both at once begin with larger rows, for which tables are made and filled anew.
    assert compiled(128, 300) == [1, 0, 0, 0, 0, 1]
    assert compiled(128, 300) == [0, 0, 0, 0, 0, 0]
    assert compiled(100, 290, alpha=1.5) == [0, 0, 0, 0, 0, 0]


# --- Checks of the arguments ---


@dataclasses.dataclass(frozen=True)
class ShortTable(TableLM):
    """A table that takes 16 positions at most."""

    max_positions: int = 16

    def init_cache(self, params, num_rows, capacity):
        assert capacity <= self.max_positions  # padding included
        return super().init_cache(params, num_rows, capacity)


def refused(message, *args, **options):
    before = executables.compiled_count()
    with pytest.raises(ValueError, match=message) as error:
        sample(*args, **options)
    assert executables.compiled_count() == before
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 300


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts is empty"),
        ([[1], []], "prompt 1 is empty"),
        ([[1], [0, 5]], r"prompt 1 has token id 5; ids must lie in \[0, 5\)"),
        ([[-1]], "prompt 0 has token id -1"),
        ([[1.0, 2.0]], r"prompt 0 is \[1\.0, 2\.0\]"),
        ([[True, False]], "prompt 0 is "),
        ([[[1, 2]]], r"prompt 0 is \[\[1, 2\]\]"),
        ([[[1, 2], [3]]], "prompt 0 is "),
        (["text"], "prompt 0 is a string"),
        ("text", "it must be a list of lists of token ids"),
        ([1, 2, 3], "prompt 0 is 1"),
        (None, "prompts is None"),
    ],
    ids=str,
)
def test_bad_prompts_are_refused(prompts, message):
    refused(message, prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; .*at least 1"),
        ({"max_new_tokens": 2.0}, r"max_new_tokens is 2\.0; .*integer"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"prompts_per_batch": 0}, "prompts_per_batch is 0; .*at least 1"),
        ({"prompts_per_batch": True}, "prompts_per_batch is True"),
        ({"prompts_per_batch": 1.5}, r"prompts_per_batch is 1\.5"),
        ({"target": 4.0}, r"target is 4\.0; .*PowerTarget"),
        ({"target": PowerTarget(2.0, (7,))}, r"eos_ids has \[7\]; .*\[0, 5\)"),
        ({"target": PowerTarget(2.0, (1,), min_new_tokens=9)}, "min_new_tokens is 9; .*which is 8"),
        (
            {"target": PowerTarget(2.0, (1,), length="forced_eos", min_new_tokens=8)},
            "min_new_tokens equals max_new_tokens",
        ),
        (
            {"sampler": "smc"},
            "sampler is 'smc'; allowed are WithoutReplacement, PowerSMC, Metro",
        ),
        ({"sampler": None}, "sampler is None"),
        ({"sampler": PowerSMC}, "sampler is <class"),
        ({"key": 0}, "key is 0; .*jax.random.key"),
        ({"prompt_ids": [1]}, "prompt_ids has 1 entries for 4 prompts"),
        ({"prompt_ids": [0, 1, 2, -1]}, r"prompt_ids has -1; .*\[0, 2\^63\)"),
        ({"prompt_ids": [0, 1, 2, 2**63]}, "prompt_ids has 9223372036854775808"),
        ({"prompt_ids": [0, 1, 2, 0.5]}, r"prompt_ids has 0\.5"),
        ({"prompt_ids": [0, 1, 2, True]}, "prompt_ids has True"),
        ({"prompt_ids": [0, 1, 2, "a"]}, "prompt_ids has 'a'"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_bad_options_are_refused(options, message):
    refused(message, **options)


def test_several_keys_at_once_are_refused():
    refused("it must be a single key", key=jax.random.split(jax.random.key(0), 2))


def test_a_prompt_beyond_the_context_is_refused():
    model = ShortTable(5, 2)
    refused(
        "prompt 1 has 9 tokens and max_new_tokens is 8; .*16 positions",
        [[0], [1] * 9],
        model=model,
    )


def test_a_prompt_that_just_fits_the_context_is_served(four):
    result = sample([[0] * 7 + [1]], model=ShortTable(5, 2), max_new_tokens=8)
    assert np.isfinite(result.log_evidence).all()


def test_ancestral_fills_the_same_shapes():
    result = sample(sampler=Ancestral(1.0, 3))
    assert result.tokens.shape == (4, 3, CAP) and len(result.draw()) == 4
    assert result.info.parent.shape == (4, CAP, 3)
    np.testing.assert_allclose(result.log_weights, -np.log(3), rtol=1e-5)


def test_published_genealogy_counts_the_token_that_was_copied():
    # All proposals are uniform and one of the eight tokens has nearly all of p: the particle
    # that drew it is copied to every slot, and its first token with it.
    model = TableLM(vocab_size=8, order=1)
    params = model.init(jax.random.key(0), scale=0.0)
    params = params._replace(logits=params.logits.at[..., 3].add(12.0))
    sampler = PowerSMC(8, order="published", proposal_temperature=100.0)
    result = sample(
        [[i] for i in range(8)],
        model=model,
        params=params,
        sampler=sampler,
        target=PowerTarget(4.0),
        max_new_tokens=2,
        prompts_per_batch=8,
    )
    from_one = [len(set(parent[1].tolist())) == 1 for parent in result.info.parent]
    assert any(from_one)
    for i in np.flatnonzero(from_one):
        assert result.info.distinct_roots[i] == 1
        assert result.info.coalescence[i] >= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "sampler",
    [
        PowerSMC(4),
        psmc.WithoutReplacement(4),
        psmc.MetropolisHastings(2, 1, num_chains=2),
        psmc.Ancestral(1.0, 4),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_logits_that_are_no_numbers_are_reported_for_their_prompt(sampler, bad):
    model = psmc.TableLM(3, 1)
    params = model.init(jax.random.key(0))
    # After token 2 every particle comes to the broken row, after token 1 to none.
    logits = params.logits.at[0, :, 2].add(50.0).at[0, 1].set(jnp.asarray([-np.inf, 0.0, -np.inf]))
    params = type(params)(logits.at[0, 2, 0].set(bad))
    result = psmc.sample(
        model,
        params,
        [[0], [1]],
        key=jax.random.key(0),
        target=PowerTarget(1.0),
        sampler=sampler,
        max_new_tokens=4,
    )
    assert result.info.bad_logits.tolist() == [True, False]
    first, second = result.failures()
    assert "invalid logits" in first and second is None


@pytest.mark.parametrize(
    "sampler",
    [SAMPLER, psmc.MetropolisHastings(num_blocks=2, moves_per_block=3)],
    ids=["smc", "mh"],
)
@pytest.mark.parametrize("asked", [0, 2])
def test_a_call_is_given_up_when_until_says_so(sampler, asked):
    looks = []

    def until():
        looks.append(None)
        return len(looks) > asked

    with pytest.raises(psmc.Stopped):
        sample(sampler=sampler, prompts=PROMPTS * 2, prompts_per_batch=2, until=until)
    assert len(looks) == asked + 1
    whole = sample(sampler=sampler, until=lambda: False)
    assert_same(whole, sample(sampler=sampler))
