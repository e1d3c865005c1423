"""Metropolis-Hastings on whole sequences: the method of arXiv 2510.14901, corrected.

A chain holds a sequence y of at most h tokens, the horizon. One move cuts it at c, draws the
tokens from c on anew from ``q ∝ p^alpha``, and accepts the outcome y' with probability

    min(1, exp(sum_{t >= c} [log S_t(y') - log S_t(y)])),    S_t = sum_v p(v)^alpha,

since ``p^alpha / q`` of a token is S_t, whatever the token; log S is 0 after the end. With h = 6
and c = 2, $ an end token:

    y     a b c $ . .      counts S_2, S_3
    y'    a b d e f g      counts S_2 .. S_5

Two things make the target invariant, and the published code has neither: the cut is uniform over
the *horizon*, so that it says nothing about y (a cut behind the end leaves y as it is); and a
proposal may be as long as the horizon, with every token of both sequences in the ratio. Cuts
within the current length and proposals no longer than it can shorten a sequence but never undo it.

The sequence grows in B blocks, M moves after each. A growth is a move that cuts at the old
horizon and is always accepted. Letters: N chains, T capacity in generated tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc.core import checks, prng
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.samplers.base import FinalWeights, Sampler
from jax_power_smc.samplers.proposal import draw, log_prob, normalise, power_proposal
from jax_power_smc.smc import inverse_cdf, weights
from jax_power_smc.targets.power import TargetArrays, support

EDITS = ("global", "last_block")
# Horizons of more blocks would overflow int32.
LARGEST_NUM_BLOCKS = 2**15


@dataclasses.dataclass(frozen=True)
class MetropolisHastings(Sampler):
    """Chains of sequences that are cut and redrawn.

    Attributes:
      num_blocks: B; block b ends at token b T // B, so B is at most T.
      moves_per_block: M, moves after each growth; 0 leaves plain low-temperature sampling.
      edit: "global" cuts anywhere in the sequence so far. "last_block" cuts in the last block only:
        earlier blocks stay as they are, and the chain converges to the target given them.
      num_chains: chains per prompt (N of the result). They share their cuts and nothing else.

    Raises:
      ValueError: for a value outside its range.
    """

    runs_as_chains = True
    has_evidence = False

    num_blocks: int = 16
    moves_per_block: int = 10
    edit: Literal["global", "last_block"] = "global"
    num_chains: int = 1

    def __post_init__(self) -> None:
        checks.settle(
            self,
            num_blocks=checks.integer("num_blocks", self.num_blocks, at_least=1),
            moves_per_block=checks.integer("moves_per_block", self.moves_per_block, at_least=0),
            num_chains=checks.integer("num_chains", self.num_chains, at_least=1),
        )
        if self.num_blocks > LARGEST_NUM_BLOCKS:
            raise ValueError(
                f"num_blocks is {self.num_blocks!r}; it must be an integer of at most 2^15."
            )
        checks.one_of("edit", self.edit, EDITS)

    @property
    def num_particles(self) -> int:  # type: ignore[override]
        """N."""
        return self.num_chains

    def check(self, max_new_tokens: int) -> None:
        """Raises ValueError if the blocks do not fit the cap T."""
        if self.num_blocks > max_new_tokens:
            raise ValueError(
                f"num_blocks is {self.num_blocks}; it must not exceed max_new_tokens, which is "
                f"{max_new_tokens}."
            )

    def schedule(self, max_new_tokens: int) -> Iterator["Entry"]:
        """All B (M + 1) entries of a run, in order."""
        self.check(max_new_tokens)
        blocks, moves = self.num_blocks, self.moves_per_block
        for block in range(blocks):
            before = block * max_new_tokens // blocks
            horizon = np.int32((block + 1) * max_new_tokens // blocks)
            first = before if self.edit == "last_block" else 0
            index = block * (moves + 1)
            yield Entry(np.int32(index), np.int32(before), horizon, np.bool_(True))
            for move in range(index + 1, index + 1 + moves):
                yield Entry(np.int32(move), np.int32(first), horizon, np.bool_(False))


class Entry(NamedTuple):
    """One entry of the schedule, all []: a move, or the growth that begins a block.

    Attributes:
      index: int32, its place in the schedule, for its randomness.
      first: int32, the smallest cut (0-based); of a growth the only one.
      horizon: int32, h.
      grow: bool.
    """

    index: Any
    first: Any
    horizon: Any
    grow: Any


def draw_cut(key: jax.Array, entry: Entry) -> jax.Array:
    """[] int32, the cut c of an entry, uniform on first .. h - 1 for a move.

    Args:
      key: the key of the whole run. The cut depends on it and on the entry's index alone: not on
        any sequence, or the target would not be invariant; and not on the prompt, so that all
        prompts of a batch decode the same step at the same time.
      entry: the entry.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, jnp.uint32(prng.FOLD_CUTS)), entry.index)
    cut = jax.random.randint(key, (), entry.first, entry.horizon, jnp.int32)
    return jnp.where(entry.grow, jnp.asarray(entry.first, jnp.int32), cut)


class Chains(NamedTuple):
    """N chains of one prompt, each at a sequence; all that a move needs but the model's cache.

    A sequence without a possible continuation stops there and has ``log_s`` -inf at the step
    after its last token. Its density is zero, and the next move that cuts it leaves it for good.

    Attributes:
      tokens: [N, T] int32, pad (0) after the end.
      log_p: [N, T], log p of every token at temperature 1; 0 after the end.
      log_s: [N, T], log S_t of every step; 0 after the end.
      stop_state: [N, T+1] int32, the stop rule's automaton before each token and after the last;
        meaningless behind it.
      length: [N] int32, tokens, the end token included.
      finished: [N] bool, ended by an end token.
    """

    tokens: jax.Array
    log_p: jax.Array
    log_s: jax.Array
    stop_state: jax.Array
    length: jax.Array
    finished: jax.Array


def start(num_chains: int, capacity: int, dtype: jnp.dtype) -> Chains:
    """N chains at the empty sequence."""
    shape = (num_chains, capacity)
    return Chains(
        tokens=jnp.zeros(shape, jnp.int32),
        log_p=jnp.zeros(shape, dtype),
        log_s=jnp.zeros(shape, dtype),
        stop_state=jnp.zeros((num_chains, capacity + 1), jnp.int32),
        length=jnp.zeros((num_chains,), jnp.int32),
        finished=jnp.zeros((num_chains,), bool),
    )


def truncate(chains: Chains, cut: jax.Array) -> tuple[Chains, jax.Array]:
    """Forgets everything from ``cut`` [] on.

    Returns:
      The prefixes, and which chains [N] are to be continued; a cut behind the end changes nothing.
    """
    # Of an unfinished sequence of length c, step c is open (or was found impossible).
    going = (cut < chains.length) | ((cut == chains.length) & ~chains.finished)
    before = jnp.arange(chains.tokens.shape[1], dtype=jnp.int32)[None, :] < cut
    keep = before | ~going[:, None]

    def kept(x: jax.Array) -> jax.Array:
        return jnp.where(keep, x, jnp.zeros_like(x))

    chains = chains._replace(
        tokens=kept(chains.tokens),
        log_p=kept(chains.log_p),
        log_s=kept(chains.log_s),
        length=jnp.where(going, cut, chains.length),
        finished=chains.finished & ~going,
    )
    return chains, going


def extend(
    target: TargetArrays,
    chains: Chains,
    going: jax.Array,
    logits: Logits,
    ends: jax.Array,
    uniforms: jax.Array,
    step: jax.Array,
) -> tuple[Chains, jax.Array, jax.Array]:
    """Draws the token of one step from q ∝ p^alpha for the chains that are going.

    Args:
      target: the prompt's target.
      chains: prefixes of ``step`` tokens where going.
      going: [N] bool.
      logits: [N, V] of the next token at temperature 1, in the dtype of the chains' log p.
      ends: [N, V] bool, tokens that would end each sequence; or [1, V], the same for all.
      uniforms: [N, 2] in [0, 1), for the token.
      step: [] int32, t.

    Returns:
      The chains; their tokens [N] of this step, pad where none was drawn; and who drew one [N].
      Whoever drew one and is not finished goes on.
    """
    own = jnp.arange(going.shape[0], dtype=jnp.int32)
    normaliser = normalise(logits)
    allowed = support(logits, target, ends, step)
    proposal = power_proposal(logits, allowed, target.alpha, normaliser=normaliser)
    drew = going & (proposal.log_sum > -jnp.inf)
    token = jnp.where(drew, draw(proposal, own, uniforms), jnp.int32(0))
    token_log_p = log_prob(logits, normaliser, own, token)
    token_log_p = jnp.where(drew, token_log_p, jnp.zeros_like(proposal.log_sum))
    log_s = jnp.where(going, proposal.log_sum, jnp.zeros_like(proposal.log_sum))
    chains = chains._replace(
        tokens=_write(chains.tokens, going, token, step),
        log_p=_write(chains.log_p, going, token_log_p, step),
        log_s=_write(chains.log_s, going, log_s, step),
        length=chains.length + drew.astype(jnp.int32),
        finished=chains.finished | (drew & logits.sharding.lookup(ends, own, token)),
    )
    return chains, token, drew


def accepts(old: Chains, new: Chains, cut: jax.Array, uniforms: jax.Array) -> jax.Array:
    """[N] bool: which chains go from ``old`` to ``new``.

    Args:
      old, new: equal before the cut.
      cut: [] int32, c.
      uniforms: [N] in [0, 1), one decision each.
    """
    behind = jnp.arange(old.log_s.shape[1], dtype=jnp.int32)[None, :] >= cut
    possible = (old.log_s > -jnp.inf) & (new.log_s > -jnp.inf)
    gain = jnp.where(behind & possible, new.log_s - old.log_s, jnp.zeros_like(old.log_s))
    likely = uniforms < jnp.exp(jnp.minimum(jnp.sum(gain, axis=1), 0))
    # From density zero anything is accepted, and nothing goes there from elsewhere.
    return is_impossible(old) | (likely & ~is_impossible(new))


def is_impossible(chains: Chains) -> jax.Array:
    """[N] bool: the sequence has density zero."""
    return jnp.any(chains.log_s == -jnp.inf, axis=1)


def choose(first: jax.Array, one: Any, other: Any) -> Any:
    """Rows of ``one`` where ``first`` [N], else of ``other``: pytrees whose leaves lead with N."""

    def of_leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(first.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(of_leaf, one, other)


def finish(chains: Chains, uniforms: jax.Array) -> FinalWeights:
    """Equal weights, zero for an impossible sequence; a uniform choice; no evidence."""
    num, dtype = chains.length.shape[0], chains.log_p.dtype
    equal = weights.uniform(num, dtype)
    log_weight = jnp.where(is_impossible(chains), jnp.full_like(equal, -jnp.inf), equal)
    log_weight, _ = weights.renormalize(log_weight, jnp.zeros((), dtype))
    choice = inverse_cdf.invert(jnp.exp(log_weight), uniforms[:1])[0]
    index = jnp.arange(num, dtype=jnp.int32)
    return FinalWeights(log_weight, jnp.zeros((), dtype), choice, index)


def _write(x: jax.Array, where: jax.Array, value: jax.Array, step: jax.Array) -> jax.Array:
    """x [N, T] with value [N] at column ``step`` of the rows where [N]."""
    present = jax.lax.dynamic_slice_in_dim(x, step, 1, axis=1)
    column = jnp.where(where[:, None], value[:, None], present)
    return jax.lax.dynamic_update_slice_in_dim(x, column, step, axis=1)
