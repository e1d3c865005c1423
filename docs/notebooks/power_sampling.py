# %% [markdown]
# # Power sampling with the embedded model
#
# This notebook samples answers to a word problem from `p(y|x)^4`, reads the result, takes a vote,
# and estimates the evidence. It needs no download and runs in under a minute on two CPU cores:
# `python docs/notebooks/power_sampling.py`. Editors that know `# %%` cells open it as a notebook.

# %%
"""Power sampling with the embedded model: sample, read the result, vote, evidence."""

import re

import jax
import numpy as np

import jax_power_smc as psmc

lm = psmc.load("tiny-reasoner")
question = (
    "Mia packs 147 boxes with 23 pens each. Then Mia buys 38 more bags with 64 each. "
    "How many pens is that?"
)
prompts = [lm.encode(question)]
target = psmc.PowerTarget(alpha=4.0, eos_ids=lm.eos_ids)


def sample(sampler, seed=0):
    """The result of one sampler on the question."""
    return psmc.sample(
        lm.model,
        lm.params,
        prompts,
        key=jax.random.key(seed),
        target=target,
        sampler=sampler,
        max_new_tokens=256,
    )


# %% [markdown]
# ## Ordinary decoding fails
#
# Temperature 1/4 sharpens every token on its own. The model then prefers to state the result of a
# product, which it cannot compute in its head.

# %%
cold = sample(psmc.Ancestral(temperature=0.25))
print(cold.texts(lm.tokenizer)[0][0])
print(f"log p {float(cold.log_probs[0, 0]):.2f}")

# %% [markdown]
# ## The power distribution weighs whole answers
#
# Eight particles, selected without replacement: no two of them are equal. `draw()` is one of
# them, drawn by weight. (147 * 23 + 38 * 64 = 5813.)

# %%
result = sample(psmc.WithoutReplacement(num_particles=8))
print(lm.tokenizer.decode(result.draw()[0], skip_special_tokens=True))
print(f"log p {float(result.log_probs[0, int(result.choice[0])]):.2f}")

# %% [markdown]
# ## Everything else is in the result
#
# All particles come back with their weights. Unused places have the weight 0.

# %%
weights = np.exp(np.asarray(result.log_weights[0]))
for i in np.argsort(-weights)[:4]:
    length, log_p = int(result.lengths[0, i]), float(result.log_probs[0, i])
    print(f"weight {weights[i]:.4f}   log p {log_p:7.2f}   {length} tokens")
print("different first tokens:", result.info.distinct_roots[0])
print("mass of unfinished sequences:", float(result.info.unfinished_mass[0]))
print("tokens drawn by all particles:", int(result.info.model_tokens[0]))


# %% [markdown]
# ## A vote
#
# `vote` adds up the weights of particles that give the same answer. Parsing is yours.


# %%
def parse(text):
    """The number after "answer", or None."""
    found = re.search(r"answer (\d+)", text)
    return found and int(found[1])


answers = [[parse(text) for text in texts] for texts in result.texts(lm.tokenizer)]
winner = result.vote(answers)[0]
print("the vote:", winner)
assert winner == 147 * 23 + 38 * 64

# %% [markdown]
# ## Evidence
#
# `log_evidence` estimates log Z, the log of the sum of `p(y|x)^4` over all y. Its estimates are
# unbiased for Z itself, and a higher mean of log Z_hat means a sampler that is closer to the
# target (docs/math.md, eq. 30). Three independent runs of each sampler:

# %%
samplers = {
    "Power-SMC, N = 8": psmc.PowerSMC(num_particles=8),
    "without replacement, N = 8": psmc.WithoutReplacement(num_particles=8, early_stop=0.0),
}
runs = {name: [sample(sampler, seed) for seed in range(1, 4)] for name, sampler in samplers.items()}
for name, results in runs.items():
    log_z = np.array([float(r.log_evidence[0]) for r in results])
    print(f"{name:28} mean log Z_hat {log_z.mean():7.2f}   sd {log_z.std(ddof=1):.3f}")

# %% [markdown]
# Independent runs pool into one population, each counting by its evidence:

# %%
pooled = psmc.pool(runs["Power-SMC, N = 8"], jax.random.key(9))
print(pooled.tokens.shape, f"pooled log Z_hat {float(pooled.log_evidence[0]):.2f}")
