"""The plain loop: the samplers as the paper states them, with a model row for every particle.

    forward                  the model's log p of every particle's next token (docs/math.md, eq. 2)
    weigh, resample, draw    the sampler's own work and order (``samplers``; eqs. 11 to 24)
    reorder                  cache and tokens follow each particle's parent
    record                   the drawn tokens are written

It is the specification of the engine, which computes the same with one row for each distinct prefix
(``step``), and the oracle of the engine's tests. Both use the same samplers, target and uniform
numbers; how sequences are stored and copied is not shared. The step is a pure function of one
prompt, scanned over steps and vmapped over prompts.

Letters: P prompts, N particles, M the population (N of it running, ``samplers.base.Particles``), S
padded prompt length, T the cap, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jax_power_smc.core import prng
from jax_power_smc.core.forks import refuse_forked
from jax_power_smc.core.mesh import (
    DATA,
    DATA_SHARDED,
    MODEL,
    REPLICATED,
    check_mesh,
    mesh_of,
    no_ambient_mesh,
)
from jax_power_smc.core.prng import StepUniforms
from jax_power_smc.core.types import Cache, Params, TokenIds
from jax_power_smc.core.vocab_sharding import Logits
from jax_power_smc.engine.batching import AnyPrompt, over_prompts
from jax_power_smc.engine.buckets import pad_prompts
from jax_power_smc.engine.state import PAD_ID, is_running, vocab_sharding, with_dtype
from jax_power_smc.engine.timing import PhaseTimer
from jax_power_smc.engine.validation import check_request
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.results.assemble import Steps, assemble
from jax_power_smc.results.result import SampleResult
from jax_power_smc.samplers.base import FinalWeights, Kernel, Particles, Sampler, StepResult
from jax_power_smc.samplers.proposal import normalise
from jax_power_smc.smc.weights import weight_dtype
from jax_power_smc.targets.power import PowerTarget, TargetArrays
from jax_power_smc.targets.stop_arrays import (
    StopArrays,
    ending_tokens,
    next_stop_state,
    stop_arrays,
)


class LoopInputs(NamedTuple):
    """What stays the same over the steps.

    Attributes:
      sampler: the sampler, with its numbers traced.
      target: what it samples from.
      stop: the target's stop rule, or None.
    """

    sampler: Kernel
    target: TargetArrays
    stop: StopArrays | None = None


class LoopState(NamedTuple):
    """What evolves over the steps of one prompt.

    Attributes:
      particles: weights, log p, flags; leaves [M] or [].
      tokens: [M, T] int32, pad where nothing was drawn.
      token_log_probs: [M, T], log p of each at temperature 1; 0 where nothing was drawn.
      last: [N] int32, each running particle's last token, which the cache does not hold yet.
      position: [] int32, where it stands.
      cache: the model's cache of N rows.
      stop_state: [M] int32, of the stop rule's automaton.
    """

    particles: Particles
    tokens: jax.Array
    token_log_probs: jax.Array
    last: jax.Array
    position: jax.Array
    cache: Cache
    stop_state: jax.Array


class StepInfo(NamedTuple):
    """What was observed in one step of one prompt.

    Attributes:
      ess: [], effective sample size; N if the prompt had finished.
      resampled: [] bool.
      parent: [M] int32.
      token: [N] int32, what the running particles drew.
      live: [N] bool, those that have another token to draw.
      bad_logits: [] bool, the model returned a NaN, +inf or only -inf.
    """

    ess: jax.Array
    resampled: jax.Array
    parent: jax.Array
    token: jax.Array
    live: jax.Array
    bad_logits: jax.Array


# --- The algorithm ----------------------------------------------------------------------------


def begin(
    model: LanguageModel,
    params: Params,
    inputs: LoopInputs,
    prompt: jax.Array,
    length: jax.Array,
    capacity: int,
) -> LoopState:
    """N particles after a prompt [S] of ``length`` [] tokens, all but the last one read."""
    num, size = inputs.sampler.num_particles, inputs.sampler.population_size
    cache = model.init_cache(params, 1, prompt.shape[0] + capacity)
    none = jnp.zeros((1,), jnp.int32)
    logits, cache = model.extend(params, cache, prompt[None], none, (length - 1)[None])
    start = none[0] if inputs.stop is None else inputs.stop.states.start
    dtype = weight_dtype(logits)
    return LoopState(
        particles=inputs.sampler.start(dtype),
        tokens=jnp.full((size, capacity), PAD_ID, jnp.int32),
        token_log_probs=jnp.zeros((size, capacity), dtype),
        last=jnp.broadcast_to(prompt[length - 1], (num,)),
        position=length - 1,
        cache=jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), cache),
        stop_state=jnp.broadcast_to(start, (size,)),
    )


def decode_step(
    model: LanguageModel,
    params: Params,
    inputs: LoopInputs,
    state: LoopState,
    uniforms: StepUniforms,
    step: jax.Array,
    any_prompt: AnyPrompt,
) -> tuple[LoopState, StepInfo]:
    """One step of one prompt.

    Args:
      model: static.
      params: the model's parameters.
      inputs: what stays the same.
      state: what evolves.
      uniforms: all the randomness of this step.
      step: [] int32, t.
      any_prompt: see ``batching.AnyPrompt``.
    """
    particles, stop = state.particles, inputs.stop
    dtype = particles.log_weight.dtype
    sampler: Kernel = with_dtype(inputs.sampler, dtype)
    target: TargetArrays = with_dtype(inputs.target, dtype)
    num, own = sampler.num_particles, jnp.arange(sampler.population_size, dtype=jnp.int32)
    # A finished prompt is frozen: steps that its neighbors still need must not change it.
    running = is_running(particles, target, step)
    live = running & _has_more(particles, num)

    # Forward.
    position = jnp.broadcast_to(state.position, (num,))
    logits, cache = model.extend(
        params, state.cache, state.last[:, None], position, live.astype(jnp.int32)
    )
    chex.assert_shape(logits, (num, 1, None))
    scores = Logits(logits[:, 0].astype(dtype), vocab_sharding(model))

    # Weigh, resample, draw.
    ends = ending_tokens(target, stop, state.stop_state[:num], scores.sharding)
    if stop is None:
        ends = ends[:1]  # the same for all particles
    result = sampler.step(target, particles, scores, ends, uniforms, step)
    frozen = _frozen(result, particles, num)
    result = jax.tree.map(lambda a, b: jnp.where(running, a, b), result, frozen)

    # Reorder, if any particle of any prompt continues another one's past.
    moves = result.parent != own
    written = state.tokens, state.token_log_probs
    cache, (tokens, log_probs) = jax.lax.cond(
        any_prompt(jnp.any(moves)),
        lambda: (_take(cache, result.parent[:num]), _take(written, result.parent)),
        lambda: (cache, written),
    )
    stop_state = state.stop_state[result.parent]

    # Record.
    active, particles = result.active, result.particles
    token = jnp.where(active, result.token, jnp.int32(PAD_ID))
    log_prob = jnp.where(active, result.log_prob, jnp.zeros_like(result.log_prob))
    state = LoopState(
        particles=particles,
        tokens=tokens.at[:, step].set(token),
        token_log_probs=log_probs.at[:, step].set(log_prob),
        last=token[:num],
        position=state.position + 1,
        cache=cache,
        stop_state=next_stop_state(stop, stop_state, token, active),
    )
    info = StepInfo(
        ess=result.ess,
        resampled=result.resampled,
        parent=result.parent,
        token=token[:num],
        live=running & (step + 1 < target.cap) & _has_more(particles, num),
        bad_logits=jnp.any(live & normalise(scores).is_bad),
    )
    return state, info


def finish(inputs: LoopInputs, particles: Particles, uniforms: jax.Array) -> FinalWeights:
    """Final weights of one prompt, and the particle drawn with ``uniforms`` [2]."""
    dtype = particles.log_weight.dtype
    sampler: Kernel = with_dtype(inputs.sampler, dtype)
    return sampler.finish(with_dtype(inputs.target, dtype), particles, uniforms)


def run(
    any_prompt: AnyPrompt,
    params: Params,
    inputs: LoopInputs,
    prompt: jax.Array,
    length: jax.Array,
    key: jax.Array,
    *,
    model: LanguageModel,
    capacity: int,
) -> tuple[LoopState, StepInfo, FinalWeights]:
    """One prompt from its beginning to its end, T = ``capacity`` steps.

    Returns:
      The last state, without its cache; what was observed at each step, leaves [T, ...]; and the
      final weights.
    """
    state = begin(model, params, inputs, prompt, length, capacity)
    dtype, size = state.particles.log_weight.dtype, inputs.sampler.population_size

    def body(state: LoopState, step: jax.Array) -> tuple[LoopState, StepInfo]:
        uniforms = prng.step_uniforms(key, step, size, dtype)
        return decode_step(model, params, inputs, state, uniforms, step, any_prompt)

    state, infos = jax.lax.scan(body, state, jnp.arange(capacity, dtype=jnp.int32))
    final = finish(inputs, state.particles, prng.final_uniforms(key, dtype))
    return state._replace(cache=None), infos, final


def _has_more(particles: Particles, num: int) -> jax.Array:
    """[N] bool: the running particles that have not ended, and that count."""
    return ~particles.ended[:num] & (particles.log_weight[:num] > -jnp.inf)


def _take(tree: Any, parent: jax.Array) -> Any:
    """Row i becomes a copy of row ``parent[i]``."""
    return jax.tree.map(lambda x: jnp.take(x, parent, axis=0), tree)


def _frozen(result: StepResult, particles: Particles, num: int) -> StepResult:
    """A step of N = ``num`` particles in which nothing happens, in the form of ``result``."""
    return StepResult(
        particles=particles,
        parent=jnp.arange(result.parent.shape[0], dtype=jnp.int32),
        token=jnp.full_like(result.token, PAD_ID),
        log_prob=jnp.zeros_like(result.log_prob),
        active=jnp.zeros_like(result.active),
        ess=jnp.full_like(result.ess, num),
        resampled=jnp.zeros_like(result.resampled),
    )


# --- On a list of prompts ---------------------------------------------------------------------


@no_ambient_mesh()
def sample(
    model: LanguageModel,
    params: Params,
    prompts: Sequence[TokenIds],
    *,
    key: jax.Array,
    target: PowerTarget,
    sampler: Sampler,
    max_new_tokens: int,
    prompt_ids: Sequence[int] | None = None,
    tokenizer: Any = None,
    mesh: Mesh | None = None,
) -> SampleResult:
    """``psmc.sample`` by the plain loop: every particle has a row in the model's cache.

    All prompts are decoded together for ``max_new_tokens`` steps, whatever memory that takes.
    Arguments and result are those of ``psmc.sample``. What is compiled is kept by ``jax.jit``.

    Args:
      model, params, prompts, key, target, max_new_tokens, prompt_ids, tokenizer: as in
        ``psmc.sample``.
      sampler: any but ``MetropolisHastings``.
      mesh: devices over whose axis "data" the prompts are sharded; its axis "model" has size 1.

    Raises:
      ValueError: naming the argument, its value and what is allowed, before any work starts.
    """
    refuse_forked()
    asked = check_request(
        model, prompts, prompt_ids, key, target, sampler, max_new_tokens, prompts_per_batch=None
    )
    if not isinstance(sampler, Kernel):
        raise ValueError(
            f"sampler is {type(sampler).__name__}, which the plain loop does not run; allowed are "
            "WithoutReplacement, PowerSMC and Ancestral."
        )
    mesh = _data_mesh(mesh_of(params) if mesh is None else mesh)
    cap, vocab = asked.max_new_tokens, model.vocab_size
    stop = stop_arrays(target.stop, tokenizer, vocab)
    timer = PhaseTimer()
    count = len(asked.prompts)
    # Every shard has the same number of prompts: the first one is repeated, and then dropped.
    missing = 0 if mesh is None else -count % mesh.shape[DATA]
    padded = asked.prompts + asked.prompts[:1] * missing
    ids = asked.prompt_ids + asked.prompt_ids[:1] * missing
    tokens, lengths = pad_prompts(padded, len(padded), max(map(len, padded)))
    args = (
        LoopInputs(sampler.traced(), target.arrays(vocab, cap), stop),
        *(jnp.asarray(tokens), jnp.asarray(lengths), prng.prompt_keys(asked.key, ids)),
    )
    if mesh is not None:
        params = jax.device_put(params, NamedSharding(mesh, REPLICATED))
    outcome = _run_batch(params, *args, model=model, capacity=cap, mesh=mesh)
    state, infos, final = jax.tree.map(lambda x: x[:count], jax.device_get(outcome))
    timer.book("decode")
    return _result(sampler, target, state, infos, final, timer.seconds).on_device()


@functools.partial(jax.jit, static_argnames=("model", "capacity", "mesh"))
def _run_batch(
    params: Params,
    inputs: LoopInputs,
    prompts: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    *,
    model: LanguageModel,
    capacity: int,
    mesh: Mesh | None,
) -> tuple[LoopState, StepInfo, FinalWeights]:
    """``run`` for prompts [P, S], sharded over a mesh if there is one."""
    one = functools.partial(run, model=model, capacity=capacity)
    batch = over_prompts(one, (None, None, 0, 0, 0))
    if mesh is not None:
        batch = jax.shard_map(
            batch,
            mesh=mesh,
            in_specs=(REPLICATED, REPLICATED, DATA_SHARDED, DATA_SHARDED, DATA_SHARDED),
            out_specs=DATA_SHARDED,
            check_vma=False,  # it does not know the axis of the vmap
        )
    return batch(params, inputs, prompts, lengths, keys)


def _data_mesh(mesh: Mesh | None) -> Mesh | None:
    if mesh is None:
        return None
    check_mesh(mesh)
    if mesh.shape[MODEL] > 1 or mesh.is_multi_process:
        raise ValueError(
            f"mesh is {mesh!r}; the plain loop needs one of size 1 on its axis {MODEL!r}, within "
            "one process."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def _result(
    sampler: Kernel,
    target: PowerTarget,
    state: LoopState,
    infos: StepInfo,
    final: FinalWeights,
    seconds: dict[str, float],
) -> SampleResult:
    """The result of P prompts, from leaves [P, ...] in host memory."""
    index: Any = np.maximum(final.particle_index, 0)[:, :, None]
    num_rows, copies = _distinct_prefixes(infos)
    return assemble(
        sampler,
        target,
        final,
        state.particles,
        Steps(
            parent=np.asarray(infos.parent),
            ess=np.asarray(infos.ess),
            resampled=np.asarray(infos.resampled),
            bad_logits=np.asarray(infos.bad_logits),
            num_rows=num_rows,
            copies=copies,
        ),
        tokens=np.take_along_axis(np.asarray(state.tokens), index, axis=1),
        token_log_probs=np.take_along_axis(np.asarray(state.token_log_probs), index, axis=1),
        seconds=seconds,
    )


def _distinct_prefixes(infos: StepInfo) -> tuple[np.ndarray, np.ndarray]:
    """What a model would need that has one row for each distinct prefix, from leaves [P, T, ...].

    Returns:
      [P, T] int32 each: distinct prefixes that run on after each step; and how many of them need a
      row besides the one that their parent had.
    """
    num_prompts, cap, num = infos.token.shape
    num_rows, copies = (np.zeros((num_prompts, cap), np.int32) for _ in range(2))
    for p in range(num_prompts):
        prefix = np.zeros((num,), np.int64)  # equal numbers: equal sequences
        for t, live in enumerate(infos.live[p]):
            parent = prefix[infos.parent[p, t, :num]]
            pairs = np.stack([parent, infos.token[p, t]], axis=1)
            prefix = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
            num_rows[p, t] = len(np.unique(prefix[live]))
            copies[p, t] = num_rows[p, t] - len(np.unique(parent[live]))
    return num_rows, copies
