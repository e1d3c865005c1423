"""The transition kernel of one Metropolis-Hastings move, exactly.

The production move is piecewise constant in its uniform numbers, and for a tiny model we know
where every piece can end. The move is run at the midpoint of each piece; the lengths of the
pieces are probabilities. Listing too many end points costs time and changes nothing; missing one
would show as a broken balance.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.engine import batching, mh_step
from jax_power_smc.samplers import metropolis_hastings as mh
from jax_power_smc.samplers.metropolis_hastings import Entry
from jax_power_smc.targets import stop_arrays

# Chains per call; one size, so that every program is compiled once.
BATCH = 1 << 14
# Pieces below this length are rounding.
SLIVER = 1e-14


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def _begin(model, params, target, prompt, capacity):
    length = jnp.int32(len(prompt))
    state = mh_step.begin(model, params, prompt, length, BATCH, capacity, len(prompt) + capacity)
    return mh_step.ChainPrompt(prompt[-1], length - 1, target, jax.random.key(0)), state


@functools.partial(jax.jit, static_argnames=("model",))
def _move(model, params, stop, prompt, state, entry, token, accept):
    """The production move with the uniform numbers token [T, N] and accept [N]."""
    uniforms = mh_step.MoveUniforms(lambda t: jnp.stack([token[t]] * 2, axis=1), accept)
    return mh_step.move(
        model, params, stop, prompt, state, entry, entry.first, uniforms, batching.this_prompt
    )


class Kernel:
    """``kernel(cut)`` is K [M, M], K[y, y'], on the M ``sequences`` of positive density.

    Args:
      model, params: a ``TableLM`` with one table for all steps, in float64.
      prompt: its token ids.
      target: what the move is to leave invariant.
      cap: T.
      horizon: h of the move.
      tokenizer: the bytes of every token, for a stop rule.
    """

    def __init__(self, model, params, prompt, target, cap, horizon, tokenizer=None):
        self.model, self.params, self.cap, self.horizon = model, params, cap, horizon
        self.stop = stop_arrays.stop_arrays(target.stop, tokenizer, model.vocab_size)
        self.prompt, empty = _begin(
            model, params, target.arrays(model.vocab_size, cap), jnp.asarray(prompt, jnp.int32), cap
        )
        self._list_draws(prompt, target)
        num = len(self.tokens)
        first = jax.tree.map(lambda x: np.asarray(x)[[0] * num], (empty.chains, empty.cache))
        starts = self._run(first, self.tokens, np.zeros(num), 0, grow=True)
        found, dead = _sequences(starts[0]), np.asarray(mh.is_impossible(starts[0])).tolist()
        self.sequences = sorted({y for y, out in zip(found, dead, strict=True) if not out})
        index = [found.index(y) for y in self.sequences]
        self.starts = jax.tree.map(lambda x: x[index], starts)

    def __call__(self, cut):
        """K of the move with this cut."""
        count, num = len(self.sequences), len(self.tokens)
        # Where each piece of the token numbers leads, found by accepting everything.
        origin, piece = np.repeat(np.arange(count), num), np.tile(np.arange(num), count)
        drawn = _sequences(self._from(origin, piece, np.zeros(len(origin)), cut, grow=True)[0])
        pairs = {}
        for y, k, proposal in zip(origin.tolist(), piece.tolist(), drawn, strict=True):
            example = pairs.setdefault((y, proposal), [k, 0.0])
            example[1] += self.chance[k]
        # The points at which a decision may change.
        log_s = np.sum(self.starts[0].log_s * (np.arange(self.cap) >= cut), axis=1)
        points, lengths = _pieces(np.exp(np.minimum(log_s[None, :] - log_s[:, None], 0)).ravel())
        origin = np.repeat([y for y, _ in pairs], len(points))
        piece = np.repeat([k for k, _ in pairs.values()], len(points))
        accept = np.tile(points, len(pairs))
        chance = np.outer([c for _, c in pairs.values()], lengths).ravel()
        after = _sequences(self._from(origin, piece, accept, cut, grow=False)[0])
        kernel = np.zeros((count, count))
        for y, z, c in zip(origin.tolist(), after, chance.tolist(), strict=True):
            kernel[y, self.sequences.index(z)] += c
        return kernel

    def _list_draws(self, prompt, target):
        """Token numbers ``tokens`` [n, T] and the ``chance`` [n] of the box around each.

        The end points are those of p^alpha cut down to any set of tokens, which is more than any
        support needs.
        """
        table = np.asarray(self.params.logits[0], np.float64)
        mass = np.exp(target.alpha * (table - table.max(axis=1, keepdims=True)))
        vocab, parts = self.model.vocab_size, []
        for t in range(self.cap):
            ends = []
            for past in np.ndindex(*(vocab,) * t) if t < self.horizon else ():
                if set(past) & set(target.eos_ids):
                    continue
                digits = [*(vocab,) * self.model.order, *prompt, *past][-self.model.order :]
                row = mass[int("".join(map(str, digits)), vocab + 1)]
                for subset in range(1, 2**vocab):
                    inside = np.cumsum([row[v] * (subset >> v & 1) for v in range(vocab)])
                    ends += (inside / inside[-1]).tolist()
            parts.append(_pieces(ends))
        grid = np.meshgrid(*[points for points, _ in parts], indexing="ij")
        self.tokens = np.stack(grid, axis=-1).reshape(-1, self.cap)
        self.chance = functools.reduce(np.multiply.outer, [x for _, x in parts]).ravel()

    def _from(self, origin, piece, accept, cut, *, grow):
        starts = jax.tree.map(lambda x: x[origin], self.starts)
        return self._run(starts, self.tokens[piece], accept, cut, grow=grow)

    def _run(self, starts, token, accept, cut, *, grow):
        """The production move on n of (chains, cache), with token [n, T] and accept [n]."""
        entry = Entry(np.int32(1), np.int32(cut), np.int32(self.horizon), np.bool_(grow))
        zero, done = jnp.int32(0), []
        for first in range(0, len(token), BATCH):
            part = jax.tree.map(
                lambda x, first=first: jnp.asarray(
                    np.resize(x[first : first + BATCH], (BATCH, *x.shape[1:]))
                ),
                (starts, token, accept),
            )
            state = mh_step.MoveState(*part[0], zero, zero, zero, jnp.zeros((), bool))
            state = _move(
                self.model, self.params, self.stop, self.prompt, state, entry, part[1].T, part[2]
            )
            done.append(jax.device_get((state.chains, state.cache)))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(token)], *done)


def _pieces(ends):
    """Midpoints and lengths of the intervals into which points divide [0, 1)."""
    points = np.unique(np.concatenate([[0.0, 1.0], ends]))
    lengths = np.diff(points)
    keep = (lengths > SLIVER) & (points[:-1] < 1)
    return (points[:-1] + lengths / 2)[keep], lengths[keep]


def _sequences(starts):
    """The tokens of every chain."""
    lengths = starts.length.tolist()
    return [tuple(y[:n]) for y, n in zip(starts.tokens.tolist(), lengths, strict=True)]
