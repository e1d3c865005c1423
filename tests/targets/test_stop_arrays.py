"""Stop rules in the target: where sequences end, and what their evidence is, for every sampler."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jax_power_smc as psmc
from jax_power_smc import (
    Ancestral,
    PowerSMC,
    PowerTarget,
    SampleResult,
    StopBoxed,
    StopRegex,
    StopString,
    TableLM,
    WithoutReplacement,
)
from jax_power_smc.models.table_lm import TableParams

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Two bytes of one character apart and together with text, and a special token without bytes.
PIECES = [b"a", b"b", b"ab", None, b"\xc3", b"\xa9", b"\xa9a"]
SPECIAL = 3
VOCAB, CAP = len(PIECES), 4
MODEL = TableLM(VOCAB, order=2)
PARAMS = MODEL.init(jax.random.key(11), scale=0.8)
PROMPT = [2, 0]  # spells "aba": the prompt is not searched
RULES = {
    "string": (StopString("ab"), b"ab"),
    "regex": (StopRegex("b+a"), b"b+a"),
    "character": (StopString("é"), "é".encode()),
}
FEW = 4
COUNT = 1024  # prompts of every batch: one executable per sampler
LEAVES = VOCAB**CAP
SAMPLERS = {
    "smc": PowerSMC(FEW, ess_threshold=0.8),
    "swor": WithoutReplacement(FEW, early_stop=0.0),
    "ancestral": Ancestral(num_samples=FEW),
}
VARIANTS = {
    "plain": {},
    "special token ends": {"eos_ids": (SPECIAL,)},
    "forced": {"length": "forced_eos"},
    "minimum": {"min_new_tokens": 2, "eos_ids": (SPECIAL,)},
    "all": {"length": "forced_eos", "min_new_tokens": 2, "eos_ids": (SPECIAL,)},
}


@pytest.fixture(scope="module", autouse=True)
def short_chunks():
    """No more steps than are needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_power_smc.engine.slot_plan.CHUNK", CAP)
        yield


def target_of(rule, variant, alpha=2.0):
    return PowerTarget(alpha, stop=RULES[rule][0], **VARIANTS[variant])


def first_match(pattern, tokens):
    """Index of the token that completes the first match, by ``re`` on the bytes so far."""
    text = b""
    for index, token in enumerate(tokens):
        text += PIECES[token] or b""
        if re.search(pattern, text):
            return index
    return None


def ending(pattern, target, tokens):
    """Index of the token that ends the sequence, or None."""
    ends = [i for i, token in enumerate(tokens) if token in target.eos_ids]
    match = first_match(pattern, tokens)
    return min(ends + [match] * (match is not None), default=None)


def brute_force(pattern, target, cap=CAP):
    """log gamma of every sequence of the target, from the table and ``re`` alone."""
    logits = np.asarray(PARAMS.logits[0], np.float64)
    log_table = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    out = {}
    for path in itertools.product(range(VOCAB), repeat=cap):
        end = ending(pattern, target, path)
        y = path if end is None else path[: end + 1]
        if y in out:
            continue
        if end is None and target.length == "forced_eos":
            continue
        if end is not None and end < target.min_new_tokens:
            continue
        history, total = PROMPT, 0.0
        for token in y:
            total += log_table[(VOCAB + 1) * history[-2] + history[-1], token]
            history = [*history, token]
        out[y] = target.alpha * total
    return out


def sample(sampler, target, *, count=COUNT, cap=CAP, pieces=PIECES, seed=1, **options):
    return psmc.sample(
        MODEL,
        PARAMS,
        [PROMPT] * count,
        key=jax.random.key(seed),
        target=target,
        sampler=sampler,
        max_new_tokens=cap,
        prompts_per_batch=count,
        tokenizer=pieces,
        **options,
    )


def particles(result):
    """(tokens, finished, weight) of every particle that was returned."""
    for rows, finished, weights in zip(
        result.sequences(),
        np.asarray(result.finished),
        np.exp(np.asarray(result.log_weights, np.float64)),
        strict=True,
    ):
        yield from (
            (row, bool(done), float(weight))
            for row, done, weight in zip(rows, finished, weights, strict=True)
            if weight > 0
        )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", RULES)
def test_enumeration_lists_what_re_says(rule, variant):
    target = target_of(rule, variant)
    listed = psmc.exact.enumerate(MODEL, PARAMS, PROMPT, target, CAP, tokenizer=PIECES)
    truth = brute_force(RULES[rule][1], target)
    assert set(listed.sequences) == set(truth)
    expected = [truth[y] for y in listed.sequences]
    np.testing.assert_allclose(listed.log_gamma, expected, atol=1e-4)
    assert listed.log_evidence == pytest.approx(np.logaddexp.reduce(expected), abs=1e-5)
    # The rule matters.
    assert any(first_match(RULES[rule][1], y) is not None for y in truth)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("rule", RULES)
def test_every_sequence_ends_where_re_finds_the_first_match(rule, name, variant):
    target, pattern = target_of(rule, variant), RULES[rule][1]
    result = sample(SAMPLERS[name], target)
    matched = 0
    for row, finished, _ in particles(result):
        end = ending(pattern, target, row)
        assert finished == (end is not None)
        assert len(row) == (CAP if end is None else end + 1)
        assert end is None or end >= target.min_new_tokens
        assert finished or target.length == "stopped"
        matched += first_match(pattern, row) is not None
    assert matched > 10
    assert not np.asarray(result.tokens)[
        np.arange(CAP) >= np.asarray(result.lengths)[:, :, None]
    ].any()


@pytest.mark.parametrize("rule", RULES)
def test_as_many_particles_as_leaves_are_exact(rule):
    # A shorter cap: 7^3 leaves at most.
    cap = 3
    for variant in VARIANTS:
        target = target_of(rule, variant)
        result = sample(WithoutReplacement(VOCAB**cap, early_stop=0.0), target, count=1, cap=cap)
        truth = brute_force(RULES[rule][1], target, cap)
        log_z = np.logaddexp.reduce(list(truth.values()))
        assert float(result.log_evidence[0]) == pytest.approx(log_z, abs=1e-5)
        found = {tuple(row): np.log(weight) for row, _, weight in particles(result)}
        assert set(found) == set(truth)
        np.testing.assert_allclose(
            [found[y] for y in truth], list(truth.values()) - log_z, atol=1e-4
        )


@pytest.mark.parametrize("name", ["smc", "swor"])
@pytest.mark.parametrize("rule", RULES)
def test_evidence_is_unbiased(rule, name):

    for variant in ("plain", "all"):
        target = target_of(rule, variant)
        result = sample(SAMPLERS[name], target)
        log_z = np.logaddexp.reduce(list(brute_force(RULES[rule][1], target).values()))
        ratio = np.exp(np.asarray(result.log_evidence, np.float64) - log_z)
        error = ratio.std() / np.sqrt(COUNT)
        assert 0 < error < 0.05
        assert abs(ratio.mean() - 1) < 4.5 * error, variant


def test_ancestral_samples_are_those_of_the_stopped_model():
    target = target_of("string", "special token ends", alpha=1.0)
    result = sample(SAMPLERS["ancestral"], target)
    assert np.isnan(result.log_evidence).all()
    chance = {y: np.exp(v) for y, v in brute_force(rb"ab", target).items()}
    assert sum(chance.values()) == pytest.approx(1.0, abs=1e-5)
    counts = dict.fromkeys(chance, 0)
    for row, _, _ in particles(result):
        counts[tuple(row)] += 1
    total = sum(counts.values())
    common = [y for y in chance if total * chance[y] >= 10]
    observed = [*(counts[y] for y in common), total - sum(counts[y] for y in common)]
    expected = [chance[y] for y in common]
    expected = np.array([*expected, 1 - sum(expected)]) * total
    assert len(common) > 20
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


def test_a_character_cut_across_tokens():
    # C3, then A9 with a letter behind it: the match completes inside the last token.
    logits = np.full((1, MODEL.num_histories, VOCAB), -50.0, np.float32)
    logits[:, :, 0] = 0.0
    at = {(2, 0): 4, (0, 4): SPECIAL, (4, SPECIAL): 6, (SPECIAL, 6): 1, (6, 1): 1}
    for (older, last), token in at.items():
        logits[0, (VOCAB + 1) * older + last, token] = 50.0
    params = TableParams(jnp.asarray(logits))

    def best(stop, pieces):
        target = PowerTarget(1.0, stop=stop)
        return psmc.sample(
            MODEL,
            params,
            [PROMPT],
            key=jax.random.key(0),
            target=target,
            sampler=Ancestral(0.0),
            max_new_tokens=5,
            tokenizer=pieces,
        ).draw()[0]

    assert best(None, None) == [4, SPECIAL, 6, 1, 1]
    assert best(StopString("é"), PIECES) == [4, SPECIAL, 6]
    assert best(StopString("éa"), PIECES) == [4, SPECIAL, 6]
    assert best(StopString("éb"), PIECES) == [4, SPECIAL, 6, 1, 1]
    assert best(StopRegex("ab"), PIECES) == [4, SPECIAL, 6, 1]
    # If the special token spelled something, the character would be broken.
    broken = [*PIECES[:SPECIAL], b"x", *PIECES[SPECIAL + 1 :]]
    assert best(StopString("é"), broken) == [4, SPECIAL, 6, 1, 1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_rule_needs_token_bytes(name):
    target = target_of("string", "plain")
    with pytest.raises(ValueError, match=r"stop=StopString.*tokenizer= .*\.$"):
        sample(SAMPLERS[name], target, pieces=None)
    with pytest.raises(ValueError, match="6 tokens; the model has 7"):
        sample(SAMPLERS[name], target, pieces=PIECES[:-1])


def test_enumeration_needs_token_bytes():
    with pytest.raises(ValueError, match="tokenizer="):
        psmc.exact.enumerate(MODEL, PARAMS, PROMPT, target_of("string", "plain"), CAP)


def test_a_rule_that_no_token_completes_changes_nothing():
    plain = PowerTarget(2.0, (SPECIAL,))
    never = dataclasses.replace(plain, stop=StopString("zz"))
    one = sample(SAMPLERS["smc"], plain, pieces=None)
    two = sample(SAMPLERS["smc"], never)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)


@pytest.mark.parametrize(
    "rule", [StopString("é\n"), StopRegex(r"(?i)answer: \d+\."), StopBoxed()], ids=str
)
def test_a_saved_result_keeps_the_rule(tmp_path, rule):
    result = sample(SAMPLERS["smc"], target_of("string", "all"))
    result = dataclasses.replace(result, target=dataclasses.replace(result.target, stop=rule))
    result.save(tmp_path / "one.npz")
    loaded = SampleResult.load(tmp_path / "one.npz")
    assert loaded.target == result.target and loaded.target.stop == rule
    np.testing.assert_array_equal(loaded.tokens, result.tokens)
    assert loaded.target != dataclasses.replace(result.target, stop=StopString("other"))
