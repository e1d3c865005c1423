"""The compiled chunk of steps of a transformer: its cache is written in place, whatever is 1.

On a mesh nothing of the size of a cache or of the logits goes from device to device.
"""

import functools
import re
from collections import Counter

import jax
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.core.mesh import make_mesh
from jax_power_smc.engine import programs
from jax_power_smc.engine.memory_plan import tree_bytes
from jax_power_smc.samplers import Ancestral, PowerSMC, WithoutReplacement
from tests.engine.collectives import collectives, lower_chunk

pytestmark = pytest.mark.usefixtures("full_optimization")

KEY = jax.random.key(1)
CAPACITY = 96  # a size that nothing else has


def transformer(num_kv_heads=1):
    config = psmc.TransformerConfig(
        vocab_size=40,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        mlp_size=32,
        tied_embeddings=True,
        max_positions=256,
    )
    return psmc.TransformerLM(config)


def compiled_chunk(sampler, num_prompts, num_rows, num_kv_heads):
    lowered, cache = lower_chunk(
        transformer(num_kv_heads),
        None,
        sampler,
        prompts=num_prompts,
        rows=num_rows,
        capacity=CAPACITY,
    )
    return lowered.compile(), jax.tree.leaves(cache)


@pytest.mark.parametrize(
    ("num_prompts", "num_rows", "num_kv_heads"), [(1, 1, 2), (1, 4, 1), (2, 8, 2), (3, 6, 1)]
)
@pytest.mark.parametrize(
    "sampler",
    [Ancestral(1.0), PowerSMC(4), WithoutReplacement(4)],
    ids=["ancestral-1", "smc-4", "swor-4"],
)
def test_no_step_copies_the_cache(sampler, num_prompts, num_rows, num_kv_heads):
    compiled, cache = compiled_chunk(sampler, num_prompts, num_rows, num_kv_heads)
    text = compiled.as_text()
    copies = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in copies]
    assert cache[0].size not in sizes
    cache_bytes = sum(leaf.size * 4 for leaf in cache)
    logits = 6 * 4 * num_rows * 40
    assert compiled.memory_analysis().temp_size_in_bytes < cache_bytes + logits
    assert not _conditionals_with(text, cache[0])


def _conditionals_with(text, leaf):
    """Conditionals that carry an array of the cache: a GPU would copy it in every branch."""
    shape = ",".join(map(str, leaf.shape))
    return [line for line in text.splitlines() if " conditional(" in line and shape in line]


# --- on a mesh ---

LAYERS, HIDDEN, VOCAB, PARTICLES = 2, 48, 256, 4
MESH_SAMPLERS = {
    "ancestral": Ancestral(1.0, PARTICLES),
    "smc": PowerSMC(PARTICLES),
    "swor": WithoutReplacement(PARTICLES),
}


@functools.cache
def compiled_on(size, sampler, slots_per_shard, num_kv_heads):
    """The chunk on a mesh with so many "model" devices (None for one device), and its caches."""
    config = psmc.TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=8,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        mlp_size=32,
        max_positions=256,
    )
    where = None if size is None else make_mesh(size)
    shards = 1 if size is None else 8 // size
    lowered, caches = lower_chunk(
        psmc.TransformerLM(config),
        where,
        MESH_SAMPLERS[sampler],
        prompts=slots_per_shard * shards,
        rows=PARTICLES * slots_per_shard,
        capacity=CAPACITY,
    )
    return lowered.compile(), jax.tree.leaves(caches)


@pytest.mark.parametrize(
    ("size", "slots_per_shard", "num_kv_heads", "sampler"),
    [
        (2, 2, 8, "smc"),
        (4, 1, 4, "smc"),  # one slot and one head on each device
        pytest.param(4, 2, 8, "swor", marks=pytest.mark.slow),
        pytest.param(2, 1, 2, "swor", marks=pytest.mark.slow),
        pytest.param(4, 1, 8, "swor", marks=pytest.mark.slow),
        pytest.param(8, 3, 8, "smc", marks=pytest.mark.slow),
        pytest.param(8, 1, 8, "ancestral", marks=pytest.mark.slow),
        pytest.param(4, 2, 4, "ancestral", marks=pytest.mark.slow),
    ],
)
def test_devices_exchange_two_streams_a_layer_and_small_things(
    size, slots_per_shard, num_kv_heads, sampler
):
    compiled, caches = compiled_on(size, sampler, slots_per_shard, num_kv_heads)
    found = Counter(collectives(compiled.as_text()))
    rows = slots_per_shard * PARTICLES
    stream = rows * HIDDEN

    def elements(each):
        return sum(int(np.prod(shape)) for _, shape in each.arrays)

    # All of it at every step, within the groups of the axis "model".
    assert {(each.loops, each.group) for each in found} == {(1, size)}
    assert {each.kind for each in found} <= {"all-reduce", "all-gather"}
    streams = [each for each in found if elements(each) == stream]
    # Attention and MLP of every layer, and the embedding, whose rows are cut.
    assert sum(found[each] for each in streams) == 2 * LAYERS + 1
    assert {each.kind for each in streams} == {"all-reduce"}
    # The masses of blocks (swor: of two tails), K tokens of each part and their logits, and then
    # a few numbers per particle.
    blocks = 16
    largest = max(blocks, size * PARTICLES) if sampler == "swor" else blocks
    rest = [each for each in found if each not in streams]
    assert max(elements(each) for each in rest) <= rows * largest
    # Ancestral: with both ways of drawing.
    count = sum(found[each] for each in rest)
    assert count == {"ancestral": 8, "smc": 6, "swor": 10}[sampler]
    # And nothing that has as much as the part of the logits, or of a cache, of one device.
    least = min(rows * VOCAB // size, *(leaf.size for leaf in caches))
    if least > stream:
        assert all(elements(each) < least for each in found)
    assert all(elements(each) < leaf.size for each in found for leaf in caches)


@pytest.mark.slow
def test_prompts_on_devices_of_their_own_exchange_nothing():
    compiled, _ = compiled_on(1, "smc", 1, 8)
    assert collectives(compiled.as_text()) == []


@pytest.mark.parametrize(
    ("size", "slots_per_shard", "num_kv_heads", "sampler"),
    [
        (2, 2, 8, "smc"),
        (4, 1, 4, "smc"),
        pytest.param(4, 2, 8, "swor", marks=pytest.mark.slow),
        pytest.param(1, 1, 8, "smc", marks=pytest.mark.slow),
    ],
)
def test_no_step_on_a_mesh_copies_the_cache(size, slots_per_shard, num_kv_heads, sampler):
    compiled, caches = compiled_on(size, sampler, slots_per_shard, num_kv_heads)
    text = compiled.as_text()
    copies = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in copies]
    assert len(sizes) > 0 and not {leaf.size for leaf in caches} & set(sizes)
    assert compiled.memory_analysis().temp_size_in_bytes < sum(4 * leaf.size for leaf in caches)
    assert not _conditionals_with(text, caches[0])


@pytest.mark.parametrize("block", [4, 5, 8])
def test_a_sequence_in_blocks_leaves_the_cache_of_the_whole(block):
    model = transformer()
    params, tokens = model.init(jax.random.key(0)), jax.random.randint(KEY, (4, 11), 0, 40)
    lengths = np.array([11, 1, 6, 5], np.int32)
    prefill = functools.partial(programs.prefill, model=model, capacity=16)
    whole = jax.jit(prefill)(params, tokens, lengths)
    found = jax.jit(functools.partial(prefill, block=block))(params, tokens, lengths)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        assert np.asarray(x).any()


def test_blocks_of_a_long_sequence_need_no_more_memory_than_one():
    model = transformer()
    params = jax.eval_shape(model.init, KEY)
    length = jax.ShapeDtypeStruct((4,), np.int32)

    def temporaries(columns, block):
        prefill = functools.partial(programs.prefill, model=model, capacity=256, block=block)
        tokens = jax.ShapeDtypeStruct((4, columns), np.int32)
        compiled = jax.jit(prefill).lower(params, tokens, length).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one = temporaries(32, 32)
    cache = 4 * tree_bytes(jax.eval_shape(lambda: model.init_cache(params, 1, 256)))
    # The loop may hold its cache beside the result.
    assert temporaries(256, 32) < one + cache + 2**14 < temporaries(256, 256)
