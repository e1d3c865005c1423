"""Token distributions by teacher forcing, and what is measured on them."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.benchmarks import scoring, theorem
from jax_power_smc.models.table_lm import TableLM, TableParams
from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM
from jax_power_smc.theory import weight_variance

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, CAP = 6, 9
TABLE = TableLM(VOCAB, order=2)
TABLE_PARAMS = TABLE.init(jax.random.key(1), steps=CAP, scale=1.5)


def table_row(history, step):
    """log p of the table after the last two tokens, looked up by hand."""
    first, second = [VOCAB, VOCAB, *history][-2:]
    row = TABLE_PARAMS.logits[min(step, CAP - 1), first * (VOCAB + 1) + second]
    return np.asarray(jax.nn.log_softmax(row))


# --- Token distributions ---


@pytest.mark.parametrize("prompt", [[4], [1, 5, 2]])
@pytest.mark.parametrize("tokens", [[3], [0, 5, 3, 3, 1, 0, 2, 4, 2, 1]])
def test_a_table_gives_its_own_rows(prompt, tokens):
    got = scoring.token_distributions(TABLE, TABLE_PARAMS, prompt, tokens)
    assert got.shape == (len(tokens), VOCAB) and got.dtype == np.float32
    rows = [table_row(prompt + tokens[:t], t) for t in range(len(tokens))]
    np.testing.assert_array_equal(got, rows)


def test_logits_in_half_precision_are_normalised_in_float32():
    params = TableParams(TABLE_PARAMS.logits.astype(jnp.bfloat16))
    got = scoring.token_distributions(TABLE, params, [1], [2, 3])
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.exp(got.astype(np.float64)).sum(axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_a_transformers_tokens_sum_to_the_log_probs_of_sampling():
    config = TransformerConfig(
        family="llama",
        vocab_size=23,
        hidden_size=16,
        num_layers=2,
        mlp_size=20,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
    )
    model = TransformerLM(config)
    params = jax.tree.map(lambda x: 4 * x, model.init(jax.random.key(0)))  # decided, not uniform
    prompts = [[3, 1, 4], list(range(1, 20))]
    result = psmc.sample(
        model,
        params,
        prompts,
        key=jax.random.key(2),
        target=psmc.PowerTarget(2.0, (0, 7, 9)),
        sampler=psmc.PowerSMC(4),
        max_new_tokens=40,
    )
    lengths = set()
    for i, rows in enumerate(result.sequences()):
        for n, tokens in enumerate(rows):
            log_p = scoring.token_distributions(model, params, prompts[i], tokens)
            total = log_p[np.arange(len(tokens)), tokens].sum()
            assert total == pytest.approx(float(result.log_probs[i, n]), abs=1e-3)
            lengths.add(len(tokens))
    assert len(lengths) > 1 and max(lengths) > 5


def test_it_is_compiled_once_per_padded_length():
    def compiled(prompt, tokens):
        before = scoring._teacher_forced._cache_size()
        scoring.token_distributions(model, params, prompt, tokens)
        return scoring._teacher_forced._cache_size() - before

    model = TableLM(5)
    params = model.init(jax.random.key(0))
    assert compiled([1], [2] * 10) == 1
    assert compiled([1, 2, 3], [4] * 64) == 0
    assert compiled([1], [2] * 65) == 1
    assert compiled([1] * 65, [2]) == 1


@pytest.mark.parametrize(("prompt", "tokens", "name"), [([], [1], "prompt"), ([1], [], "tokens")])
def test_nothing_cannot_be_scored(prompt, tokens, name):
    with pytest.raises(ValueError, match=f"{name} is empty; at least one"):
        scoring.token_distributions(TABLE, TABLE_PARAMS, prompt, tokens)


# --- The measurement, on the table as a language model ---


class Letters:
    """Decodes ids to letters."""

    def decode(self, ids, **options):
        return "".join("abcdef"[i] for i in ids)


ALPHA, PROMPTS = 3.0, [[4], [1, 5, 2], [0, 0]]


def measured(temperatures, num_costliest=5):
    lines = []

    def write(metric, value, unit, **settings):
        lines.append({"metric": metric, "value": float(value), "unit": unit, **settings})

    lm = types.SimpleNamespace(model=TABLE, params=TABLE_PARAMS, tokenizer=Letters(), eos_ids=(0,))
    theorem.measure(
        lm,
        PROMPTS,
        alpha=ALPHA,
        num_particles=4,
        max_new_tokens=CAP,
        temperatures=temperatures,
        num_costliest=num_costliest,
        write=write,
        progress=lambda title, done, total: None,
    )
    return lines


@pytest.fixture(scope="module")
def lines():
    return measured((0.2, 0.3, 0.36, 2.0))


def drawn(lines):
    """prompt -> its tokens, from the lines of its steps."""
    steps = [x for x in lines if x["metric"] == "step_cost"]
    return {
        i: ["abcdef".index(x["token"]) for x in group]
        for i, group in itertools.groupby(steps, key=lambda x: x["prompt"])
    }


def test_figures_of_a_temperature_are_those_of_plain_sums(lines):
    log_p = [
        table_row(PROMPTS[i] + tokens[:t], t).astype(np.float64)
        for i, tokens in drawn(lines).items()
        for t in range(len(tokens))
    ]
    for temperature in (0.2, 2.0):
        relative = []
        for row in log_p:
            p = np.exp(row)
            q = p ** (1 / temperature)
            q /= q.sum()
            w = p**ALPHA / q
            relative.append((q * w**2).sum() / (q * w).sum() ** 2 - 1)
        got = {x["metric"]: x for x in lines if x.get("temperature") == temperature}
        want = {
            "mean_relative_variance": np.mean(relative),
            "max_relative_variance": np.max(relative),
            "share_above_one": np.mean(np.array(relative) > 1),
            "log_second_moment": np.log1p(relative).sum() / len(PROMPTS),
        }
        assert {name: x["value"] for name, x in got.items()} == pytest.approx(want, rel=1e-4)
        assert {x["steps"] for x in got.values()} == {len(log_p)}


def test_the_variance_vanishes_at_one_over_alpha_alone(lines):
    of = {x["temperature"]: x["value"] for x in lines if x["metric"] == "mean_relative_variance"}
    assert list(of) == [0.2, 0.3, 1 / ALPHA, 0.36, 1.0, 2.0]
    least = of.pop(1 / ALPHA)
    assert least < 1e-12 and min(of.values()) > 1e-4
    assert of[0.2] > of[0.3] and of[0.36] < of[1.0] < of[2.0], "it grows away from 1/alpha"


def test_costs_are_renyi_entropies_and_add_up(lines):
    for i, tokens in drawn(lines).items():
        rows = jnp.asarray([table_row(PROMPTS[i] + tokens[:t], t) for t in range(len(tokens))])
        entropies = (ALPHA - 1) * np.asarray(weight_variance.renyi_entropy(rows, ALPHA))
        steps = [x for x in lines if x["metric"] == "step_cost" and x["prompt"] == i]
        assert [x["step"] for x in steps] == list(range(len(tokens)))
        np.testing.assert_allclose([x["value"] for x in steps], entropies, atol=1e-5)
        probs = [float(rows[t, token]) for t, token in enumerate(tokens)]
        np.testing.assert_allclose([x["log_prob"] for x in steps], probs, atol=1e-5)
        (total,) = (x for x in lines if x["metric"] == "sequence_cost" and x["prompt"] == i)
        assert total["value"] == pytest.approx(entropies.sum(), abs=1e-4)


def test_the_costliest_are_the_costliest_of_all_sequences(lines):
    steps = [x for x in lines if x["metric"] == "step_cost"]
    top = sorted(steps, key=lambda x: -x["value"])[:5]
    costliest = [x for x in lines if x["metric"] == "costliest"]
    assert [(x["prompt"], x["step"], x["value"]) for x in costliest] == [
        (x["prompt"], x["step"], x["value"]) for x in top
    ]
    for x in costliest:
        text = Letters().decode(drawn(lines)[x["prompt"]])
        assert (x["before"], x["token"]) == (text[: x["step"]], text[x["step"]])


def test_the_share_of_the_costliest_steps():
    log_sum = -np.arange(30.0)  # 29 + 28 + 27 of 435
    assert theorem.costliest_share(log_sum) == pytest.approx(84 / 435)
    assert theorem.costliest_share(np.array([-1.0, -3.0])) == 0.75, "one of two steps at least"
    assert theorem.costliest_share(np.full(20, -2.0)) == pytest.approx(0.1)
    assert np.isnan(theorem.costliest_share(np.zeros(3)))


def test_a_token_is_what_it_adds_to_the_text():
    class Words:
        """As sentence-piece tokenizers do it: no space before the first word."""

        def decode(self, ids, **options):
            return " ".join(("one", "two", "three")[i] for i in ids)

    assert theorem.text_at(Words(), [2, 0, 1], 0) == ("", "three")
    assert theorem.text_at(Words(), [2, 0, 1], 2) == ("three one", " two")
