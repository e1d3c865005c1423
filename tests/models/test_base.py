"""The protocol: its docstring is enough to write a model from, and our own models follow it."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.models import base, cache_moves

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, R, T = 5, 4, 9


@dataclasses.dataclass(frozen=True)
class AsDocumented:
    """Logits are a sum of the tokens' vectors, weighted by their positions."""

    vocab_size: int = VOCAB

    def init(self, seed):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.normal(size=(VOCAB, VOCAB)), jnp.float32)

    def init_cache(self, params, num_rows, capacity):
        return jnp.zeros((num_rows, capacity, VOCAB), jnp.float32)

    def extend(self, params, cache, tokens, position, count):
        last = position[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        weight = jnp.cos(last.astype(jnp.float32))
        block = weight[:, :, None] * params[tokens]
        cache = cache_moves.write_entries(cache, block, position, count)
        entry = jnp.arange(cache.shape[1], dtype=jnp.int32)
        seen = entry[None, None, :] <= last[:, :, None]
        return jnp.einsum("rbt,rtv->rbv", seen.astype(jnp.float32), cache), cache


class Recurrent(AsDocumented):
    """The same as a running sum, which has no entries."""

    can_rewind = False

    def init_cache(self, params, num_rows, capacity):
        return jnp.zeros((num_rows, VOCAB), jnp.float32)

    def extend(self, params, cache, tokens, position, count):
        offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        weight = jnp.cos((position[:, None] + offset).astype(jnp.float32))
        weight = jnp.where(offset < count[:, None], weight, 0.0)
        sums = cache[:, None] + jnp.cumsum(weight[:, :, None] * params[tokens], axis=1)
        return sums, sums[:, -1]


def expected(params, sequence):
    return np.cos(np.arange(len(sequence))) @ np.asarray(params, np.float64)[sequence]


@pytest.mark.parametrize("model", [AsDocumented(), Recurrent()], ids=lambda m: type(m).__name__)
def test_a_model_written_from_the_docstring_is_right_in_rows_that_come_and_go(model):
    params, rng = model.init(3), np.random.default_rng(0)
    extend = jax.jit(model.extend)
    cache, rows = model.init_cache(params, R, T), [[] for _ in range(R)]
    checked = 0
    for turn in range(60):
        free = int(rng.integers(R))
        if turn % 5 == 0:  # another prompt enters
            small = model.init_cache(params, 1, T)
            cache = cache_moves.insert_rows(model, cache, jnp.asarray([free], jnp.int32), small)
            rows[free] = []
        elif turn % 5 == 1:  # a row is copied
            source = (free + 1) % R
            pair = jnp.asarray([[source], [free]], jnp.int32)
            length, one = jnp.asarray([len(rows[source])], jnp.int32), jnp.int32(1)
            cache = cache_moves.move_rows(model, cache, *pair, length, one)
            rows[free] = [*rows[source]]
        block = int(rng.choice([1, 3]))
        count = [min(int(rng.integers(block + 1)), T - len(row)) for row in rows]
        tokens = rng.integers(VOCAB, size=(R, block))
        position = [len(row) for row in rows]
        now = (jnp.asarray(x, jnp.int32) for x in (tokens, position, count))
        logits, cache = extend(params, cache, *now)
        for r, num in enumerate(count):
            for b in range(num):
                rows[r].append(int(tokens[r, b]))
                np.testing.assert_allclose(logits[r, b], expected(params, rows[r]), atol=1e-5)
                checked += 1
    assert checked > 50


MODELS = {
    "as documented": AsDocumented(),
    "table": psmc.TableLM(VOCAB),
    "plain": psmc.adapters.PlainLM(len, VOCAB),
    "cached": psmc.adapters.CachedLM(len, len, vocab_size=VOCAB, max_positions=9, position="index"),
}


@pytest.mark.parametrize("protocol", [psmc.LanguageModel, base.OptionalMembers])
@pytest.mark.parametrize("name", MODELS)
def test_our_models_have_the_members_as_documented(name, protocol):
    model = MODELS[name]
    found = 0
    for member, declared in vars(protocol).items():
        if member.startswith("_") or not hasattr(model, member):
            assert protocol is base.OptionalMembers or member.startswith("_"), member
            continue
        found += 1
        if not isinstance(declared, property):
            wanted = list(inspect.signature(declared).parameters)[1:]
            assert list(inspect.signature(getattr(model, member)).parameters) == wanted, member
    assert found > 0 or name == "as documented"


def test_the_defaults_take_what_the_members_take():
    """A default has the arguments of the member it stands for, after the model."""
    for name in ("move_rows", "insert_rows", "resize_cache", "release_rows"):
        member = getattr(base.OptionalMembers, name.split("_")[0])
        wanted = list(inspect.signature(member).parameters)[1:]
        assert list(inspect.signature(getattr(cache_moves, name)).parameters)[1:] == wanted
