# %% [markdown]
# # Your own model
#
# Any function from tokens to logits can be sampled from. This notebook wraps a plain JAX function
# and a Flax module, and checks the samples against an exact enumeration. It runs in under a
# minute on two CPU cores: `python docs/notebooks/own_model.py`.

# %%
"""Your own JAX model behind the library's adapters, checked against exact enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jax_power_smc as psmc

# %% [markdown]
# ## A function
#
# `PlainLM` takes a function `(params, tokens [B, S]) -> logits [B, S, V]`. The logits at a
# position may depend on the tokens up to it. Define the function at module level: a model is a
# static argument of compiled programs, and a function made anew would compile anew.

# %%
VOCAB, END, CAP = 4, 0, 3


def second_order(params, tokens):
    """Logits that depend on the last two tokens."""
    previous = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return params["last"][tokens] + params["before"][previous]


keys = jax.random.split(jax.random.key(0))
params = {
    "last": 1.5 * jax.random.normal(keys[0], (VOCAB, VOCAB)),
    "before": 1.5 * jax.random.normal(keys[1], (VOCAB, VOCAB)),
}
model = psmc.adapters.PlainLM(second_order, vocab_size=VOCAB)
target = psmc.PowerTarget(alpha=3.0, eos_ids=(END,))
prompts = [[1, 2], [3]]

result = psmc.sample(
    model,
    params,
    prompts,
    key=jax.random.key(1),
    target=target,
    sampler=psmc.PowerSMC(num_particles=64),
    max_new_tokens=CAP,
)
print("drawn:", result.draw())

# %% [markdown]
# ## Is it right?
#
# With 4 tokens and at most 3 steps there are few enough sequences to list them all.
# `exact.enumerate` gives every sequence with its log p and log gamma (docs/math.md, eq. 3).

# %%
for place, prompt in enumerate(prompts):
    every = psmc.exact.enumerate(model, params, prompt, target, CAP)
    exact = every.log_evidence
    found = float(result.log_evidence[place])
    print(f"prompt {prompt}: log Z {exact:.4f}, log Z_hat of 64 particles {found:.4f}")
    assert abs(found - exact) < 1.0

# %% [markdown]
# Selection without replacement is exact once it has room for every leaf of the tree:

# %%
full = psmc.sample(
    model,
    params,
    prompts[:1],
    key=jax.random.key(2),
    target=target,
    sampler=psmc.WithoutReplacement(num_particles=64, explicit_children=VOCAB, early_stop=0.0),
    max_new_tokens=CAP,
)
every = psmc.exact.enumerate(model, params, prompts[0], target, CAP)
exact = every.log_evidence
print(f"log Z {exact:.6f}, log Z_hat {float(full.log_evidence[0]):.6f}")
assert np.isclose(exact, float(full.log_evidence[0]), atol=1e-4)


# %% [markdown]
# ## A Flax module
#
# `from_nnx` splits a module into a model and its parameters. `from_linen` does the same for
# Linen, and `CachedLM` takes models with a cache of their own.


# %%
class Bigram(nnx.Module):
    """tokens [B, S] -> logits [B, S, V]."""

    def __init__(self, rngs):
        self.table = nnx.Embed(50, 50, rngs=rngs)

    def __call__(self, tokens):
        """Logits of the next token at every position."""
        return 3 * self.table(tokens)


bigram, weights = psmc.adapters.from_nnx(Bigram(nnx.Rngs(0)), vocab_size=50)
result = psmc.sample(
    bigram,
    weights,
    [[3, 1], [7]],
    key=jax.random.key(0),
    target=psmc.PowerTarget(4.0, eos_ids=(0,)),
    sampler=psmc.WithoutReplacement(8),
    max_new_tokens=16,
)
print("lengths:", result.lengths[:, :4].tolist())
print("log Z_hat:", np.round(np.asarray(result.log_evidence), 3))
