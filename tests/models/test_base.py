"""The protocol: its docstring is enough to write a model from, and our own models follow it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import PowerSMC, PowerTarget, StreamRequest
from jax_power_smc.models.base import OptionalMembers
from tests.models import small

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB = 5
CAP = 6


@dataclasses.dataclass(frozen=True)
class AsDocumented:
    """Logits are a sum of the tokens' vectors, weighted by their positions."""

    vocab_size: int = VOCAB

    def init(self, seed):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=(VOCAB, VOCAB)), jnp.float32)

    def prefill(self, params, prompt, length):
        at = jnp.arange(prompt.shape[0], dtype=jnp.int32)
        weight = jnp.where(at < length, jnp.cos(at.astype(jnp.float32)), 0.0)
        total = weight @ params[prompt]
        return total, (total, length)

    def init_cache(self, params, num_particles, capacity):
        return jnp.zeros((num_particles, capacity), jnp.int32)

    def decode(self, params, context, cache, token, step, clock):
        total, length = context
        capacity = cache.shape[1]
        cache = cache.at[:, clock].set(token)
        age = (clock - jnp.arange(capacity, dtype=jnp.int32)) % jnp.int32(capacity)
        mine = age <= step
        position = length + step - age
        weight = jnp.where(mine, jnp.cos(position.astype(jnp.float32)), 0.0)
        return total[None] + jnp.einsum("t,ntv->nv", weight, params[cache]), cache


class Growing(AsDocumented):
    """The same with a cache that grows."""

    def grow(self, cache, capacity, clock):
        old = cache.shape[1]
        age = (clock - jnp.arange(capacity, dtype=jnp.int32)) % jnp.int32(capacity)
        return cache[:, (clock - age) % jnp.int32(old)]


def teacher_forced(params, prompt, tokens):
    """log p of the tokens, one after the other."""
    params, sequence, total = np.asarray(params, np.float64), list(prompt), 0.0
    for token in tokens:
        logits = np.cos(np.arange(len(sequence))) @ params[sequence]
        total += logits[token] - np.logaddexp.reduce(logits)
        sequence.append(token)
    return total


@pytest.mark.parametrize(("model", "cap"), [(AsDocumented(), CAP), (Growing(), 20)])
def test_a_model_written_from_the_docstring_is_right_in_refilled_slots(monkeypatch, model, cap):
    # Capacity 6 (and 8, 16, 21): two slots are used by many prompts, whose lengths differ.
    monkeypatch.setattr("jax_power_smc.engine.slot_plan.CHUNK", 3)
    monkeypatch.setattr("jax_power_smc.engine.buckets.SMALLEST_CACHE_BUCKET", 8)
    params = model.init(3)
    asked = [
        StreamRequest([i % VOCAB] * (1 + i % 3), PowerTarget(1.5), 1 + (5 * i) % cap)
        for i in range(14)
    ]
    made = psmc.Engine(
        model,
        params,
        sampler=PowerSMC(4, ess_threshold=0.9),
        max_prompt_tokens=4,
        max_new_tokens=cap,
        slots=2,
    )
    steps = 0
    for done in made.stream(asked, key=jax.random.key(0)):
        result = done.result
        for row, log_prob in enumerate(result.log_probs[0]):
            tokens = result.tokens[0, row, : result.lengths[0, row]].tolist()
            expected = teacher_forced(params, done.request.prompt, tokens)
            np.testing.assert_allclose(log_prob, expected, atol=1e-4, rtol=0)
        steps += int(result.lengths.max())
    assert steps / 2 > 2 * cap, "the clock has gone around more than once"


MODELS = {
    "table": psmc.TableLM(VOCAB),
    "transformer": psmc.TransformerLM(small.CONFIGS["llama-grouped-tied"]),
    "plain": psmc.adapters.PlainLM(len, VOCAB),
    "cached": psmc.adapters.CachedLM(len, len, vocab_size=VOCAB, max_positions=9, position="index"),
}


@pytest.mark.parametrize("protocol", [psmc.LanguageModel, OptionalMembers])
@pytest.mark.parametrize("name", MODELS)
def test_our_models_have_the_members_as_documented(name, protocol):
    model = MODELS[name]
    found = 0
    for member, declared in vars(protocol).items():
        if member.startswith("_") or not hasattr(model, member):
            assert protocol is OptionalMembers or member.startswith("_"), member
            continue
        found += 1
        if not isinstance(declared, property):
            wanted = list(inspect.signature(declared).parameters)[1:]
            assert list(inspect.signature(getattr(model, member)).parameters) == wanted, member
    assert found > 0
