"""Loss, optimiser and step of the tiny reasoner."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_power_smc.models.transformer.config import TransformerConfig
from jax_power_smc.models.transformer.transformer import Transformer
from jax_power_smc.tiny_reasoner import training
from jax_power_smc.tiny_reasoner.batches import Batch, pad_batch

TINY = TransformerConfig(
    vocab_size=12,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=32,
)


@pytest.fixture
def optax_promotion():
    """Allows promotion: optax raises a float to its integer count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def counting_batch():
    """Four sequences that count upwards after a question of one token."""
    return pad_batch([(1, [*range(start, start + 6), 0]) for start in (1, 2, 3, 4)])


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def named(tree):
    return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


# --- Loss -------------------------------------------------------------------------------------


def test_the_held_out_loss_is_the_mean_over_all_loss_tokens():
    params = nnx.state(Transformer(TINY, rngs=nnx.Rngs(0)))
    graph = nnx.graphdef(nnx.eval_shape(lambda: Transformer(TINY, rngs=nnx.Rngs(0))))
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(nnx.merge(graph, params)(tokens), axis=-1))
    rest = [(2, [5, 6, 7, 0]), (1, [3, 2, 1, 8, 0]), (1, [4, 0]), (1, [5, 0])]
    batches = [counting_batch(), pad_batch(rest)]
    losses = []
    for batch in batches:
        log_probs = np.asarray(forward(batch.inputs))
        for row, place in zip(*np.nonzero(batch.loss_mask), strict=True):
            losses.append(-float(log_probs[row, place, batch.targets[row, place]]))
    assert len(losses) == 4 * 6 + 2 + 4 + 1 + 1
    evaluate = training.make_evaluate(TINY, "float32")
    assert evaluate(params, batches) == pytest.approx(np.mean(losses), rel=1e-5)


def test_positions_outside_the_loss_mask_change_nothing():
    params = nnx.state(Transformer(TINY, rngs=nnx.Rngs(0)))
    evaluate = training.make_evaluate(TINY, "float32")
    batch = counting_batch()
    other_targets = np.where(batch.loss_mask, batch.targets, 11).astype(np.int32)
    # Positions after the last loss token are not seen by any of them.
    other_inputs = batch.inputs.copy()
    other_inputs[:, 6:] = 11
    changed = Batch(other_inputs, other_targets, batch.loss_mask)
    assert evaluate(params, [changed]) == pytest.approx(evaluate(params, [batch]), rel=1e-6)
    seen = Batch(np.where(batch.inputs == 3, 11, batch.inputs), batch.targets, batch.loss_mask)
    assert evaluate(params, [seen]) != pytest.approx(evaluate(params, [batch]), rel=1e-3)


# --- Step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tiny_run_learns(dtype, optax_promotion):
    config = training.OptimizerConfig(steps=60, learning_rate=1e-2, warmup_steps=5)
    optimizer = training.make_optimizer(config)
    state = training.init_state(TINY, optimizer, seed=0)
    step = training.make_train_step(TINY, optimizer, dtype)
    losses = []
    for _ in range(config.steps):
        state, loss = step(state, counting_batch())
        losses.append(float(loss))
    assert losses[0] > 1.5
    assert losses[-1] < 0.3
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_the_step_applies_the_gradient_of_the_loss_of_all_tokens_alike():
    optimizer = optax.sgd(0.5)
    before = training.init_state(TINY, optimizer, seed=1)
    batch = counting_batch()
    evaluate = training.make_evaluate(TINY, "float32")
    start = evaluate(before.params, [batch])
    kept = copy(before.params)
    after, loss = training.make_train_step(TINY, optimizer, "float32")(before, batch)
    assert float(loss) == pytest.approx(start, rel=1e-5)

    # The derivative along the step taken, by differences, against its squared length.
    move = jax.tree.map(lambda a, b: a - b, after.params, kept)
    squared = sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(move))
    h = 0.02
    ahead, back = (
        evaluate(jax.tree.map(lambda a, m, s=s: a + jnp.float32(s) * m, kept, move), [batch])
        for s in (h, -h)
    )
    # The gradient is that of the sum over a constant, the loss above that of the mean.
    ratio = batch.inputs.shape[0] * training.TYPICAL_TOKENS / batch.loss_mask.sum()
    assert (ahead - back) / (2 * h) == pytest.approx(-squared / 0.5 * ratio, rel=2e-2)


def test_the_same_seed_gives_the_same_start():
    optimizer = optax.sgd(0.1)
    one, same, other = (
        named(training.init_state(TINY, optimizer, seed).params) for seed in (0, 0, 1)
    )
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, same[name])
    assert any(not np.array_equal(leaf, other[name]) for name, leaf in one.items())


@pytest.mark.parametrize("make", ["step", "evaluate"])
def test_an_unknown_compute_dtype_is_refused(make):
    with pytest.raises(ValueError, match="compute_dtype is 'float16'; allowed are float32, bf"):
        if make == "step":
            training.make_train_step(TINY, optax.sgd(0.1), "float16")
        else:
            training.make_evaluate(TINY, "float16")


# --- Optimiser --------------------------------------------------------------------------------


def test_only_matrices_decay(optax_promotion):
    config = TransformerConfig(
        vocab_size=12,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_size=32,
        family="qwen2",
    )
    # One is added so that no parameter is zero, where decay could not be seen.
    params = nnx.state(Transformer(config, rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x + jnp.float32(1.0), params)
    optimizer = training.make_optimizer(
        training.OptimizerConfig(steps=10, learning_rate=0.1, warmup_steps=0, weight_decay=0.3)
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = named(jax.jit(optimizer.update)(zeros, optimizer.init(params), params)[0])
    decayed = set()
    for name, leaf in named(params).items():
        if np.any(updates[name]):
            decayed.add(name)
            np.testing.assert_allclose(updates[name], -0.1 * 0.3 * leaf, rtol=1e-5)
    kept = set(named(params)) - decayed
    assert len(kept) == 3 + 3 and all("scale" in name or "_bias" in name for name in kept)
    assert len(decayed) == 1 + 4 + 3


def test_the_learning_rate_rises_and_falls(optax_promotion):
    steps, warmup, peak = 12, 4, 0.1
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            steps=steps, learning_rate=peak, warmup_steps=warmup, weight_decay=1.0, final_share=0.5
        )
    )
    params, zeros = {"x": jnp.ones((1, 1))}, {"x": jnp.zeros((1, 1))}
    opt_state = optimizer.init(params)
    rates, update = [], jax.jit(optimizer.update)
    for _ in range(steps + 1):
        updates, opt_state = update(zeros, opt_state, params)
        rates.append(-float(updates["x"][0, 0]))  # the decay of a one is the learning rate
    np.testing.assert_allclose(rates[: warmup + 1], peak * np.arange(5) / 4, rtol=1e-5)
    assert all(np.diff(rates[warmup:]) < 0)
    assert rates[-1] == pytest.approx(0.5 * peak, rel=1e-5)


def test_a_large_gradient_is_clipped(optax_promotion):
    config = training.OptimizerConfig(steps=10, warmup_steps=0, clip_norm=0.5)
    optimizer = training.make_optimizer(config)
    params = {"x": jnp.zeros((2, 2))}

    def first_moment(scale):
        gradient = {"x": jnp.full((2, 2), scale)}
        state = optimizer.update(gradient, optimizer.init(params), params)[1]
        return np.max([np.max(x) for n, x in named(state).items() if ".mu" in n])

    assert first_moment(100.0) == pytest.approx(0.1 * 0.25, rel=1e-5)
    assert first_moment(0.01) == pytest.approx(0.1 * 0.01, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("warmup_steps", -1),
        ("warmup_steps", 10),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", float("nan")),
        ("clip_norm", 0.0),
        ("final_share", -0.1),
        ("weight_decay", -1.0),
        ("b2", 1.0),
        ("b2", 0.0),
    ],
)
def test_invalid_values_are_refused_by_name(field, value):
    values = {"steps": 10, "warmup_steps": 2} | {field: value}
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        training.OptimizerConfig(**values)
