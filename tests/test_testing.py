"""The checks of language models: what obeys the protocol passes, and every fault is named."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.models import cache_moves
from jax_power_smc.testing import check_language_model
from tests.models import small
from tests.models.test_base import VOCAB, AsDocumented, Recurrent
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMS = AsDocumented().init(0)


def forward(params, tokens):
    """``AsDocumented`` on whole sequences."""
    weight = jnp.cos(jnp.arange(tokens.shape[1], dtype=jnp.float32))
    return jnp.cumsum(weight[None, :, None] * params[tokens], axis=1)


class Paged(AsDocumented):
    """The same, whose rows lie elsewhere: a table of places, and members of its own.

    Rows that are released exchange their places.
    """

    def init_cache(self, params, num_rows, capacity):
        entries = super().init_cache(params, num_rows, capacity)
        return {"entries": entries, "place": jnp.arange(num_rows, dtype=jnp.int32)[::-1]}

    def extend(self, params, cache, tokens, position, count):
        rows = cache["entries"][cache["place"]]
        logits, rows = super().extend(params, rows, tokens, position, count)
        return logits, {**cache, "entries": cache["entries"].at[cache["place"]].set(rows)}

    def move(self, cache, source, destination, length, count):
        place, entries = cache["place"], cache["entries"]
        counted = jnp.arange(source.shape[0], dtype=jnp.int32) < count
        to = jnp.where(counted, place[destination], place.shape[0])
        return {**cache, "entries": entries.at[to].set(entries[place[source]], mode="drop")}

    def insert(self, cache, rows, prefilled):
        place, entries = cache["place"], cache["entries"]
        to = jnp.where(rows < place.shape[0], place[rows % place.shape[0]], place.shape[0])
        new = prefilled["entries"][prefilled["place"]]
        entries = entries.at[to, : new.shape[1]].set(new, mode="drop")
        return {**cache, "entries": entries}

    def resize(self, params, cache, num_rows, capacity):
        new, old = self.init_cache(params, num_rows, capacity), cache["entries"][cache["place"]]
        rows, entries = (
            min(a, b) for a, b in zip(new["entries"].shape[:2], old.shape[:2], strict=True)
        )
        to = new["place"][:rows]
        return {**new, "entries": new["entries"].at[to, :entries].set(old[:rows, :entries])}

    def release(self, cache, free):
        num, index = (
            free.shape[0],
            jnp.nonzero(free, size=free.shape[0], fill_value=free.shape[0])[0],
        )
        backwards = index[(jnp.sum(free) - 1 - jnp.arange(num)) % num]
        place = cache["place"].at[index].set(cache["place"][backwards], mode="drop")
        return {**cache, "place": place}


GOOD = {
    "as documented": (AsDocumented(), PARAMS, forward),
    "recurrent": (Recurrent(), PARAMS, forward),
    "with members of its own": (Paged(), PARAMS, forward),
    "table": (psmc.TableLM(3, 3), psmc.TableLM(3, 3).init(jax.random.key(0), steps=5), None),
    "few positions": (psmc.adapters.PlainLM(forward, VOCAB, max_positions=9), PARAMS, forward),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_model_that_obeys_the_protocol_passes(name):
    model, params, whole = GOOD[name]
    check_language_model(model, params, forward=whole, seed=1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_models_of_other_precisions_pass(x64, dtype):
    model = psmc.TableLM(3, 2)
    check_language_model(model, model.init(jax.random.key(0), dtype=dtype), capacity=8)


def test_tokens_that_are_impossible_pass():
    model = psmc.TableLM(3, 2)
    params = model.init(jax.random.key(0))
    params = params._replace(logits=params.logits.at[:, ::2, 1].set(-jnp.inf))
    check_language_model(model, params, capacity=8)


def test_the_example_of_the_documentation_passes():
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (code,) = [block for block in blocks if "def extend" in block]
    names = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp}
    exec(code, names)
    rng = np.random.default_rng(0)
    shapes = {"embed": (VOCAB, 8), "keys": (8, 8), "values": (8, 8), "head": (8, VOCAB)}
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    check_language_model(names["Attention"](VOCAB, 8), params)


# --- Faults: each is one change of a model that passes ---


def broken(base=AsDocumented, **members):
    """A model with other members."""
    return type("Broken", (base,), members)()


def extend_with(change):
    """``extend``, whose arguments or results are changed."""

    def extend(self, params, cache, tokens, position, count):
        return change(AsDocumented().extend, params, cache, tokens, position, count)

    return extend


def logits_only(extend, *args):
    return extend(*args)[0]


def last_logits_only(extend, *args):
    logits, cache = extend(*args)
    return logits[:, -1], cache


def integer_logits(extend, *args):
    logits, cache = extend(*args)
    return logits.astype(jnp.int32), cache


def narrower_cache(extend, *args):
    logits, cache = extend(*args)
    return logits, cache.astype(jnp.bfloat16)


def other_cache(extend, *args):
    logits, cache = extend(*args)
    return logits, (cache, cache)


def one_position_for_the_block(extend, params, cache, tokens, position, count):
    logits, after = extend(params, cache, tokens, position, count)
    first = extend(params, cache, tokens[:, :1], position, jnp.minimum(count, 1))[0]
    return jnp.broadcast_to(first, logits.shape), after


def sees_the_future(extend, params, cache, tokens, position, count):
    logits, after = extend(params, cache, tokens, position, count)
    return jnp.where(position[:, None, None] == 0, logits[:, ::-1], logits), after


def forgets_all_but_the_first_of_a_block(extend, params, cache, tokens, position, count):
    logits, _ = extend(params, cache, tokens, position, count)
    return logits, extend(params, cache, tokens[:, :1], position, jnp.minimum(count, 1))[1]


def knows_the_last_block(extend, params, cache, tokens, position, count):
    """As a table by steps since the prompt would."""
    logits, after = extend(params, cache, tokens, position, count)
    return logits * (1.0 if tokens.shape[1] > 1 else 0.5), after


def forgets_earlier_blocks(extend, params, cache, tokens, position, count):
    seen = jnp.zeros_like(cache) if tokens.shape[1] > 1 else cache
    logits, _ = extend(params, seen, tokens, position, count)
    return logits, extend(params, cache, tokens, position, count)[1]


def reads_padding(extend, params, cache, tokens, position, count):
    all_of_them = jnp.where(count > 0, tokens.shape[1], 0).astype(jnp.int32)
    logits, after = extend(params, cache, tokens, position, all_of_them)
    return logits, after


def one_position_for_all_rows(extend, params, cache, tokens, position, count):
    same = jnp.broadcast_to(jnp.max(position), position.shape)
    return extend(params, cache, tokens, same, count)


def mixes_rows(extend, *args):
    logits, cache = extend(*args)
    return logits + 0.1 * jnp.mean(logits, axis=0, keepdims=True), cache


def writes_rows_of_count_0(extend, params, cache, tokens, position, count):
    logits, _ = extend(params, cache, tokens, position, count)
    return logits, extend(params, cache, tokens, position, jnp.maximum(count, 1))[1]


def slides_back_at_the_end(extend, params, cache, tokens, position, count):
    """As ``dynamic_update_slice`` does."""
    position = jnp.minimum(position, jnp.int32(cache.shape[1] - tokens.shape[1]))
    return extend(params, cache, tokens, position, count)


def reads_stale_entries(extend, params, cache, tokens, position, count):
    end = jnp.full_like(position, cache.shape[1] - 1)
    logits, after = extend(params, cache, tokens, position, count)
    total = extend(params, after, tokens[:, :1], end, jnp.zeros_like(count))[0]
    return jnp.where(tokens.shape[1] == 1, total, logits), after


def depends_on_capacity(extend, params, cache, tokens, position, count):
    logits, after = extend(params, cache, tokens, position, count)
    return logits * (1 + 1 / cache.shape[1]), after


def writes_nan(extend, params, cache, tokens, position, count):
    logits, after = extend(params, cache, tokens, position, count)
    index = jnp.arange(cache.shape[1], dtype=jnp.int32)[None]
    padding = (index >= (position + count)[:, None]) & (index == 7)
    return logits, jnp.where(padding[:, :, None], jnp.nan, after)


def hides_nan(extend, params, cache, tokens, position, count):
    return writes_nan(extend, params, jnp.nan_to_num(cache), tokens, position, count)


def fails_under_vmap(extend, params, cache, tokens, position, count):
    jax.pure_callback(lambda x: x, position, position)
    return extend(params, cache, tokens, position, count)


@jax.custom_batching.custom_vmap
def double(x):
    return x + x


@double.def_vmap
def _(size, batched, x):
    return x, batched[0]


def differs_under_vmap(extend, *args):
    logits, cache = extend(*args)
    return double(logits), cache


class AdvancesOnPadding(Recurrent):
    def extend(self, params, cache, tokens, position, count):
        count = jnp.where(count > 0, tokens.shape[1], 0).astype(jnp.int32)
        return super().extend(params, cache, tokens, position, count)


class AdvancesAlways(Recurrent):
    def extend(self, params, cache, tokens, position, count):
        return super().extend(params, cache, tokens, position, jnp.maximum(count, 1))


def move_nothing(self, cache, source, destination, length, count):
    return cache


def move_all(self, cache, source, destination, length, count):
    return cache_moves.move_rows(None, cache, source, destination, length, jnp.int32(2))


def move_one(self, cache, source, destination, length, count):
    return cache_moves.move_rows(None, cache, source, destination, length, jnp.minimum(count, 1))


def move_too_little(self, cache, source, destination, length, count):
    index = jnp.arange(cache.shape[1], dtype=jnp.int32)[:, None]

    def copy(i, cache):
        row = jnp.where(index < length[i] - 1, cache[source[i]], cache[destination[i]])
        return cache.at[destination[i]].set(row)

    return jax.lax.fori_loop(0, count, copy, cache)


def swap(self, cache, source, destination, length, count):
    def one(i, cache):
        a, b = source[i], destination[i]
        return cache.at[a].set(cache[b]).at[b].set(cache[a])

    return jax.lax.fori_loop(0, count, one, cache)


def insert_nothing(self, cache, rows, prefilled):
    return cache


def insert_clamped(self, cache, rows, prefilled):
    rows = jnp.minimum(rows, cache.shape[0] - 1)
    return cache.at[rows, : prefilled.shape[1]].set(prefilled)


def insert_what_is_not_zero(self, cache, rows, prefilled):
    """Leaves a row as it was if its prompt has read nothing."""
    empty = jnp.all(prefilled == 0, axis=1)
    return cache_moves.insert_rows(None, cache, jnp.where(empty, 99, rows), prefilled)


def resize_to_new(self, params, cache, num_rows, capacity):
    return self.init_cache(params, num_rows, capacity)


def resize_at_the_end(self, params, cache, num_rows, capacity):
    new = self.init_cache(params, num_rows, capacity)
    rows, entries = (min(a, b) for a, b in zip(new.shape[:2], cache.shape[:2], strict=True))
    return new.at[:rows, -entries:].set(cache[:rows, -entries:])


def release_all(self, cache, free):
    return jnp.zeros_like(cache)


def init_nan(self, params, num_rows, capacity):
    return jnp.full((num_rows, capacity, VOCAB), jnp.nan)


def init_capacity_first(self, params, num_rows, capacity):
    return jnp.zeros((capacity, num_rows, VOCAB))


BLOCK = "a block of several tokens must give what single tokens give"
ROWS = "rows of different lengths must not depend on each other"
IDLE = "a row of count 0 must be left as it was"
END = "a block whose padding goes over the capacity must be read at its own position"
INSERTED = "an inserted row must hold its own sequence, whatever the row held before"
MOVED = "a moved row must continue the sequence of its source"
RESIZED = "a cache of another size must hold the same rows"

FAULTS = {
    "unhashable": (broken(__hash__=None), "the model must be hashable"),
    "no vocabulary": (AsDocumented(0), "vocab_size is 0"),
    "not by rows": (broken(init_cache=init_capacity_first), "must lead with its 3 rows"),
    "nan at first": (broken(init_cache=init_nan), "init_cache must give finite values"),
    "no cache": (logits_only, "extend must return a tuple (logits, cache)"),
    "no axis of blocks": (last_logits_only, "logits [3, 1, 5] for tokens [3, 1]"),
    "integers": (integer_logits, "they are int32[3, 1, 5]"),
    "narrower cache": (narrower_cache, "float32[3, 16, 5]'] came back as [' bfloat16"),
    "other cache": (other_cache, "the same structure, shapes and dtypes"),
    "one position for a block": (one_position_for_the_block, BLOCK),
    "future": (sees_the_future, BLOCK),
    "part of a block": (forgets_all_but_the_first_of_a_block, "must see the whole block"),
    "steps since the block": (knows_the_last_block, BLOCK),
    "earlier blocks": (forgets_earlier_blocks, "a block at a position above 0 must see"),
    "padding": (broken(AdvancesOnPadding), "tokens at or beyond count must have no influence"),
    "one position": (one_position_for_all_rows, ROWS),
    "mixed rows": (mixes_rows, ROWS),
    "count 0": (writes_rows_of_count_0, IDLE),
    "count 0, recurrent": (broken(AdvancesAlways), IDLE),
    "over the end": (slides_back_at_the_end, END),
    "capacity": (depends_on_capacity, "the capacity of a cache must have no influence"),
    "stale": (reads_stale_entries, INSERTED),
    "nan in stale entries": (hides_nan, "entries of a cache must be finite, stale ones too"),
    "inserts nothing": (broken(insert=insert_nothing), INSERTED),
    "inserts padding": (broken(insert=insert_clamped), "padding of an inserted group"),
    "inserts no empty row": (
        broken(Recurrent, insert=insert_what_is_not_zero),
        "an inserted row that has read nothing must be like new",
    ),
    "releases all": (broken(release=release_all), "padding of an inserted group"),
    "moves nothing": (broken(move=move_nothing), MOVED),
    "moves everything": (broken(move=move_all), "moves at or beyond count must not be made"),
    "moves one": (broken(move=move_one), "all moves below count must be made"),
    "moves too little": (broken(move=move_too_little), MOVED),
    "swaps": (broken(move=swap), "the source of a move must be left as it was"),
    "resizes to new": (broken(resize=resize_to_new), RESIZED),
    "resizes at the end": (broken(resize=resize_at_the_end), RESIZED),
    "rewinds": (
        broken(Recurrent, can_rewind=True),
        "a row must not see what it read before a rewind",
    ),
    "vmap raises": (fails_under_vmap, "extend must work under jax.vmap over prompts"),
    "vmap differs": (differs_under_vmap, "must give the same under jax.vmap"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_in_one_sentence(name):
    model, part = FAULTS[name]
    if not hasattr(model, "vocab_size"):
        model = broken(extend=extend_with(model))
    with pytest.raises(AssertionError) as error:
        check_language_model(model, PARAMS)
    small.assert_one_sentence(error, part)


def test_a_model_that_is_wrong_everywhere_is_found_by_its_forward():
    shifted = broken(
        extend=extend_with(lambda extend, p, c, t, position, n: extend(p[::-1], c, t, position, n))
    )
    check_language_model(shifted, PARAMS)
    with pytest.raises(AssertionError) as error:
        check_language_model(shifted, PARAMS, forward=forward)
    small.assert_one_sentence(error, "forward and extend must give the same", "at position 0")


def test_the_tolerance_can_be_set():
    rough = broken(
        extend=extend_with(
            lambda extend, *args: (
                extend(*args)[0].at[..., 0].add(0.01 * (args[2].shape[1] > 1)),
                extend(*args)[1],
            )
        )
    )
    with pytest.raises(AssertionError, match=BLOCK):
        check_language_model(rough, PARAMS)
    check_language_model(rough, PARAMS, tolerance=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 7}, "capacity is 7"),
        ({"tolerance": 0}, "tolerance is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_language_model(AsDocumented(), PARAMS, **options)
    few = psmc.adapters.PlainLM(forward, VOCAB, max_positions=7)
    with pytest.raises(ValueError, match="max_positions is 7"):
        check_language_model(few, PARAMS)
