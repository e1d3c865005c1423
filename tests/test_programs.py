"""The compiled chunk of steps of a transformer: its cache is written in place, whatever is 1."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc import programs, randomness
from jax_power_smc.samplers import Ancestral, PowerSMC, WithoutReplacement

CAPACITY = 96  # a size that nothing else has


def compiled_chunk(sampler, num_prompts, num_kv_heads):
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
    model = psmc.TransformerLM(config)
    params = model.init(jax.random.key(0))
    target = psmc.PowerTarget(4.0, (1,)).arrays(40, CAPACITY)
    targets = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (num_prompts, *x.shape)), target)
    rule, numbers = sampler.rule(), sampler.numbers()
    request, carry, _ = jax.eval_shape(
        lambda params, keys: programs.enter(
            params,
            jnp.ones((num_prompts, 16), jnp.int32),
            jnp.full((num_prompts,), 5, jnp.int32),
            targets,
            numbers,
            keys,
            model=model,
            rule=rule,
            capacity=CAPACITY,
        ),
        params,
        randomness.prompt_keys(jax.random.key(0), range(num_prompts)),
    )
    carry = carry._replace(
        cache=jax.eval_shape(
            lambda: programs.empty_cache(model, params, num_prompts, rule.num_particles, CAPACITY)
        )
    )
    first = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = programs.run_chunk.lower(
        params, request, carry, first, model=model, rule=rule, num_steps=4
    )
    cache = jax.tree.leaves(carry.cache)
    return lowered.compile(), cache[0].size, sum(leaf.size * 4 for leaf in cache)


@pytest.mark.parametrize(("num_prompts", "num_kv_heads"), [(1, 2), (2, 2), (3, 1)])
@pytest.mark.parametrize(
    "sampler",
    [Ancestral(1.0), PowerSMC(4), WithoutReplacement(4)],
    ids=["ancestral-1", "smc-4", "swor-4"],
)
def test_no_step_copies_the_cache(sampler, num_prompts, num_kv_heads):
    compiled, leaf, cache_bytes = compiled_chunk(sampler, num_prompts, num_kv_heads)
    text = compiled.as_text()
    copies = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in copies]
    assert len(sizes) > 0 and leaf not in sizes
    assert compiled.memory_analysis().temp_size_in_bytes < cache_bytes
    # Whether anyone runs, and whether anyone moves: both are branches, not selects of both sides.
    if not isinstance(sampler, Ancestral):
        assert len(re.findall(r" conditional\(", text)) == 2


def test_a_cpu_process_does_not_keep_more_programs_than_it_may_map(monkeypatch):
    monkeypatch.setattr(programs, "MOST_ON_CPU", 3)
    programs.forget()
    model = psmc.TableLM(vocab_size=3)
    params = model.init(jax.random.key(0))

    def draw(num):
        result = psmc.sample(
            model,
            params,
            [[1]],
            key=jax.random.key(0),
            target=psmc.PowerTarget(2.0),
            sampler=Ancestral(1.0, num),
            max_new_tokens=2,
        )
        assert programs.compiled_count() <= 3
        return np.asarray(result.tokens)

    first = draw(2)
    for num in (3, 4, 5):
        draw(num)
    np.testing.assert_array_equal(draw(2), first)
