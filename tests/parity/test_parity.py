"""Our transformer gives the logits of the reference implementation, family by family.

What the reference gave is kept in ``golden`` with the versions that made it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_power_smc as psmc
from jax_power_smc.models.checkpoints.hf_config import read_config
from jax_power_smc.models.checkpoints.safetensors_io import load_params
from jax_power_smc.models.transformer.families import FAMILIES
from tests.parity import cases

PREFILLED = 560  # of the long prompt; the rest is decoded step by step
BUCKET = 576  # to which a prompt is padded
CAPACITY = 640


def build(directory, length):
    """The model as it is used for sequences of this length."""
    longrope = read_config(directory).rope_scaling
    longest = 1024 if longrope is not None and length > 512 else None
    model = psmc.TransformerLM(read_config(directory, longest))
    return model, load_params(directory, model.config)


def forward(model, params, tokens):
    """Logits [S, V] of all positions at once."""
    return np.asarray(model._module(params)(jnp.asarray(tokens, jnp.int32)[None])[0])


@pytest.fixture(scope="module", params=cases.CASES)
def case(request, tmp_path_factory):
    """(name, directory, logits by prompt length, what is known about them)"""
    directory = tmp_path_factory.mktemp(request.param)
    logits, about = cases.read(request.param)
    cases.write_checkpoint(directory, about)
    return request.param, directory, {int(key): x for key, x in logits.items()}, about


def test_every_family_has_a_case():
    assert {settings["model_type"] for settings in cases.CASES.values()} == set(FAMILIES)


@pytest.mark.parametrize("length", [cases.SHORT, cases.LONG])
def test_logits_at_every_position(case, length):
    _, directory, expected, _ = case
    got = forward(*build(directory, length), cases.prompt(length))
    assert np.abs(expected[length]).max() > 0.5
    np.testing.assert_allclose(got, expected[length], atol=cases.TOLERANCE)


def test_prefill_of_a_ragged_batch(case):
    _, directory, expected, _ = case
    model, params = build(directory, cases.LONG)
    long = cases.prompt(cases.LONG)
    lengths = [PREFILLED, 7, 333]
    batch = np.stack([np.where(np.arange(BUCKET) < n, long[:BUCKET], 5) for n in lengths])
    logits, _ = jax.jit(model.extend)(
        params,
        model.init_cache(params, 3, BUCKET),
        jnp.asarray(batch, jnp.int32),
        jnp.zeros((3,), jnp.int32),
        jnp.asarray(lengths, jnp.int32),
    )
    for got, length in zip(logits, lengths, strict=True):
        wanted = expected[cases.LONG][:length]
        np.testing.assert_allclose(got[:length], wanted, atol=cases.TOLERANCE)


@pytest.mark.parametrize("layout", ["flat", "by_head"])
def test_steps_after_a_prefill_and_after_a_move(case, layout):
    """Row 1 alone reads the prompt's own tokens; halfway the others take over its past."""
    _, directory, expected, _ = case
    model, params = build(directory, cases.LONG)
    model = psmc.TransformerLM(model.config, layout=layout)
    tokens = cases.prompt(cases.LONG)
    prompt = np.where(np.arange(BUCKET) < PREFILLED, tokens[:BUCKET], 5)
    extend, move = jax.jit(model.extend), jax.jit(model.move)
    # In a cache that other prompts used before.
    cache = jax.tree.map(lambda x: jnp.full_like(x, 7), model.init_cache(params, 3, CAPACITY))
    position, count = jnp.zeros((3,), jnp.int32), jnp.full((3,), PREFILLED, jnp.int32)
    _, cache = extend(params, cache, jnp.asarray([prompt] * 3, jnp.int32), position, count)
    moved = 20
    for step, token in enumerate(tokens[PREFILLED:].tolist()):
        mine = token if step >= moved else (token + 3) % cases.VOCAB
        rows = jnp.asarray([[mine], [token], [mine]], jnp.int32)
        position = jnp.full((3,), PREFILLED + step, jnp.int32)
        logits, cache = extend(params, cache, rows, position, jnp.ones((3,), jnp.int32))
        wanted = expected[cases.LONG][PREFILLED + step]
        np.testing.assert_allclose(logits[1, 0], wanted, atol=cases.TOLERANCE)
        if step < moved:
            assert np.abs(logits[0, 0] - wanted).max() > 10 * cases.TOLERANCE
        else:
            np.testing.assert_allclose(logits[0, 0], wanted, atol=cases.TOLERANCE)
            np.testing.assert_allclose(logits[2, 0], wanted, atol=cases.TOLERANCE)
        if step == moved - 1:
            source, destination = jnp.asarray([1, 1], jnp.int32), jnp.asarray([0, 2], jnp.int32)
            cache = move(cache, source, destination, position[:2] + 1, jnp.int32(2))


def test_any_perturbed_tensor_shows(case, tmp_path):
    _, directory, expected, about = case
    model, params = build(directory, cases.LONG)
    run = jax.jit(lambda params, tokens: model._module(params)(tokens[None])[0])
    tokens = jnp.asarray(cases.prompt(cases.LONG)[:80], jnp.int32)
    wanted = expected[cases.LONG][:80]
    longrope = read_config(directory).rope_scaling
    if longrope is None or longrope.kind != "longrope":  # else 80 tokens have other frequencies
        np.testing.assert_allclose(run(params, tokens), wanted, atol=cases.TOLERANCE)
    reference = np.asarray(run(params, tokens))
    tensors = cases.random_tensors(about["shapes"])
    for name, tensor in tensors.items():
        if ".layers." in name and ".layers.1." not in name:
            continue  # one layer of each kind of tensor is enough
        # As if the file's rows were in another order: what a wrong transposition does.
        wrong = tensors | {name: np.roll(tensor, 1, axis=0)}
        cases.write_checkpoint(tmp_path, about, wrong)
        got = run(load_params(tmp_path, model.config), tokens)
        assert np.abs(got - reference).max() > 10 * cases.TOLERANCE, name
