"""The compiled programs of steps: no array of a leaf's size but the leaves themselves.

Copies of the cache cost more than everything else in a step and change no result, so that nothing
but the program shows them.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import TransformerLM

pytestmark = pytest.mark.usefixtures("full_optimization")

STEPS, CAPACITY = 8, 1024


def model_of(heads, windows=()):
    return TransformerLM(
        TransformerConfig(
            vocab_size=64,
            hidden_size=48,
            num_layers=2,
            num_heads=2 * heads,
            num_kv_heads=heads,
            head_dim=32,
            mlp_size=96,
            windows=windows,
        )
    )


def steps(model, moves, params, cache, token, position, source, destination):
    """Greedy steps; whether a row moves depends on the tokens, as in the engine."""

    def step(state, _):
        cache, token, position = state
        logits, cache = model.extend(
            params, cache, token[:, None], position, (token < 60).astype(jnp.int32)
        )
        token = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
        if moves:
            count = jnp.sum(token < 30, dtype=jnp.int32)
            cache = model.move(cache, source, destination, position + 1, count)
        return (cache, token, position + 1), None

    return jax.lax.scan(step, (cache, token, position), None, length=STEPS)[0]


def shapes(model, rows, prompts=()):
    params = jax.eval_shape(model.init, jax.random.key(0))
    cache = jax.eval_shape(lambda: model.init_cache(None, rows, CAPACITY))
    cache, number = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((*prompts, *x.shape), x.dtype), tree)
        for tree in (cache, jax.ShapeDtypeStruct((rows,), jnp.int32))
    )
    return (params, cache, *[number] * 4)


def of_leaf_size(compiled, cache):
    """Names of instructions that give a new array with as many elements as a leaf."""
    sizes = {leaf.size for leaf in jax.tree.leaves(cache)}
    free = {"parameter", "get-tuple-element", "bitcast"}
    # In place, as the bound on temporaries shows.
    updates = {"dynamic-update-slice", "scatter", "fusion", "while"}
    found = []
    for line in compiled.as_text().splitlines():
        match = re.match(r"\s*(?:ROOT )?%?(\S+) = \w+\[([\d,]+)\]\S* ([\w-]+)\(", line)
        if not match or math.prod(map(int, match[2].split(","))) not in sizes:
            continue
        if match[3] not in free | updates or "copy" in match[1] or "transpose" in match[1]:
            found.append(match[1])
    return found


def compile_steps(function, arguments):
    return jax.jit(function, donate_argnums=1).lower(*arguments).compile()


def check(compiled, arguments):
    cache = arguments[1]
    leaf = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert of_leaf_size(compiled, cache) == []
    assert " conditional(" not in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes / leaf


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_steps_write_in_place_and_moves_copy_blocks(rows, heads, moves):
    model = model_of(heads)
    arguments = shapes(model, rows)
    compiled = compile_steps(lambda *args: steps(model, moves, *args), arguments)
    # A move holds a block, an eighth of a row, of each of the four leaves.
    assert check(compiled, arguments) < (0.5 / rows if moves else 0.0) + 0.2


def test_layers_with_windows_too():
    model = model_of(2, windows=(7, 0))
    arguments = shapes(model, 4)
    assert check(compile_steps(lambda *args: steps(model, True, *args), arguments), arguments) < 0.4


@pytest.mark.parametrize("rows", [1, 4])
def test_steps_of_several_prompts_under_vmap(rows):
    model = model_of(2)
    arguments = shapes(model, rows, prompts=(3,))
    mapped = jax.vmap(lambda *args: steps(model, False, *args), in_axes=(None, *[0] * 5))
    assert check(compile_steps(mapped, arguments), arguments) < 0.2


def test_a_copy_would_be_seen():
    model = model_of(2)
    arguments = shapes(model, 4)

    def with_a_copy(params, cache, *numbers):
        taken = jax.tree.map(lambda x: jnp.take(x, numbers[2], axis=0, mode="clip"), cache)
        return steps(model, False, params, taken, *numbers)

    def in_a_conditional(params, cache, *numbers):
        def moved(cache):
            return steps(model, True, params, cache, *numbers)[0]

        cache = jax.lax.cond(numbers[0][0] > 3, moved, lambda cache: cache, cache)
        return steps(model, False, params, cache, *numbers)

    for function in (with_a_copy, in_a_conditional):
        compiled = compile_steps(function, arguments)
        with pytest.raises(AssertionError):
            assert check(compiled, arguments) < 0.4


# --- the memory plan ---


@pytest.mark.parametrize("windows", [(), (9, 0)])
@pytest.mark.parametrize(
    ("rows", "block", "capacity"),
    [(64, 1, 512), (16, 1, 2048), (4, 128, 128), (4, 512, 512), (2, 2048, 4096), (3, 100, 700)],
)
def test_temporaries_are_what_the_compiler_plans(rows, block, capacity, windows):
    model = model_of(2, windows)
    params = jax.eval_shape(model.init, jax.random.key(0))
    cache = jax.eval_shape(lambda: model.init_cache(None, rows, capacity))
    number = jax.ShapeDtypeStruct((rows,), jnp.int32)
    tokens = jax.ShapeDtypeStruct((rows, block), jnp.int32)

    def prefill(*args):
        logits, cache = model.extend(*args)
        return (logits if block == 1 else None), cache

    compiled = jax.jit(prefill, donate_argnums=1).lower(params, cache, tokens, number, number)
    planned = compiled.compile().memory_analysis().temp_size_in_bytes
    estimate = model.temporaries(rows, block, capacity)
    assert planned <= estimate <= 3 * planned
