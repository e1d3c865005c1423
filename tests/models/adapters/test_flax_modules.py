"""Flax modules that are in training mode or need more than tokens are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jax_power_smc.models import adapters

pytestmark = pytest.mark.usefixtures("quick_compilation")

V, D = 5, 8


class Training(nnx.Module):
    """A module that drops or normalises by the batch unless it is in evaluation mode."""

    def __init__(self, *, drop=0.0, norm=False):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.inner = nnx.Dict(drop=nnx.Dropout(drop, rngs=rngs))
        self.norm = nnx.BatchNorm(D, rngs=rngs) if norm else None
        self.head = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, tokens):
        x = self.inner["drop"](self.embed(tokens))
        return self.head(x if self.norm is None else self.norm(x))


class LinenTraining(nn.Module):
    """The same in Linen."""

    train: bool
    drop: float = 0.0

    @nn.compact
    def __call__(self, tokens):
        x = nn.Dropout(self.drop, deterministic=not self.train)(nn.Embed(V, D)(tokens))
        return nn.Dense(V)(nn.BatchNorm(use_running_average=not self.train)(x))


def read(model, params):
    """Logits of one token."""
    cache, one = model.init_cache(params, 1, 4), jnp.ones((1,), jnp.int32)
    return jax.jit(model.extend)(params, cache, one[:, None], 0 * one, one)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 0.5}, r"training mode: inner\.drop has deterministic=False; call module.eval"),
        ({"norm": True}, "training mode: norm has use_running_average=False; call module.eval"),
    ],
)
def test_an_nnx_module_in_training_mode_is_refused(options, message):
    module = Training(**options)
    with pytest.raises(ValueError, match=message):
        adapters.from_nnx(module, vocab_size=V)
    module.eval()
    read(*adapters.from_nnx(module, vocab_size=V))
    plain = Training()  # drops nothing
    adapters.from_nnx(plain, vocab_size=V)


def drawing(module, tokens):
    return module.inner["drop"](module(tokens), deterministic=False)


def averaging(module, tokens):
    return module.head(module.norm(module.embed(tokens), use_running_average=False))


@pytest.mark.parametrize("call", [drawing, averaging])
def test_an_nnx_module_that_draws_or_averages_is_one_sentence(call):
    module = Training(drop=0.5, norm=True)
    module.eval()
    with pytest.raises(ValueError, match="use it in evaluation mode, with"):
        read(*adapters.from_nnx(module, vocab_size=V, call=call))


@pytest.mark.parametrize("drop", [0.5, 0.0])
def test_a_linen_module_in_training_mode_is_one_sentence(drop):
    tokens = jnp.zeros((1, 2), jnp.int32)
    variables = LinenTraining(train=False).init(jax.random.key(0), tokens)
    read(*adapters.from_linen(LinenTraining(train=False), variables, vocab_size=V))
    model, params = adapters.from_linen(LinenTraining(True, drop), variables, vocab_size=V)
    with pytest.raises(ValueError, match="use it in evaluation mode, with"):
        read(model, params)


def test_a_module_that_needs_more_than_tokens_is_refused():
    with pytest.raises(ValueError, match="call cannot be called with the module and tokens alone"):
        adapters.from_nnx(Training(), vocab_size=V, call=lambda module, tokens, train: None)
