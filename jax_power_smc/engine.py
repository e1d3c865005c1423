"""The engine: prompts in, results out, around the jitted decode step.

Prompts are put into batches of P rows of equal padded length S. A batch is prefilled once, then
runs in chunks of steps on the device; the host looks at "done" one chunk late, so that it never
waits for the device before it has given it more work.

Every executable is compiled once per bucket (model, sampler rule, N, P, S, T) and kept for the
life of the process; all real numbers of target and sampler are traced.
"""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc import decode, programs, randomness
from jax_power_smc.admission import check_request
from jax_power_smc.chains import run_chains
from jax_power_smc.decode import Carry, Observed, StopArrays
from jax_power_smc.diagnostics import diagnose
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.result import PHASES, SampleInfo, SampleResult, concatenate
from jax_power_smc.samplers import MetropolisHastings, Outcome, Rule, Sampler
from jax_power_smc.target import PowerTarget

# Prompt lengths are padded to 64 or a power of two above, outputs to a multiple of the chunk.
SMALLEST_PROMPT_BUCKET = 64
CHUNK = 32
# Particles of all prompts of a batch together; more fill the machine no better and cost memory.
MAX_ROWS = 512


def sample(
    model: LanguageModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: jax.Array,
    target: PowerTarget,
    sampler: Sampler,
    max_new_tokens: int,
    prompt_ids: Sequence[int] | None = None,
    prompts_per_batch: int | None = None,
    tokenizer: Any = None,
) -> SampleResult:
    """Samples from a target, for every prompt.

    Args:
      model: a language model (``LanguageModel``).
      params: its parameters.
      prompts: P lists of token ids, ragged, none empty.
      key: a key of ``jax.random.key``.
      target: what to sample from.
      sampler: ``WithoutReplacement``, ``PowerSMC``, ``MetropolisHastings`` or ``Ancestral``.
      max_new_tokens: T, the cap.
      prompt_ids: one non-negative integer per prompt for its randomness; default the list index.
        Equal ids of equal prompts give equal results.
      prompts_per_batch: prompts decoded together, the last batch filled up with idle ones;
        default as many as ``MAX_ROWS`` particles.
      tokenizer: needed if the target has a stop rule: a fast tokenizer, or a list of the bytes of
        every token.

    Returns:
      The particles of every prompt with their weights, see ``SampleResult``.

    Raises:
      ValueError: naming the argument, its value and what is allowed, before any work starts.
    """
    ids = check_request(
        model, prompts, prompt_ids, key, target, sampler, max_new_tokens, prompts_per_batch
    )
    stop = decode.stop_arrays(target.stop, tokenizer, model.vocab_size)
    width = prompts_per_batch or min(
        max(1, MAX_ROWS // sampler.num_particles), _power_of_two(len(prompts))
    )
    capacity = -(-max_new_tokens // CHUNK) * CHUNK

    buckets: dict[int, list[int]] = {}
    # Short prompts together: a batch runs as long as its longest answer.
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        prompt = prompts[index]
        bucket = _power_of_two(max(len(prompt), SMALLEST_PROMPT_BUCKET))
        limit = getattr(model, "max_positions", None)
        bucket = bucket if limit is None else max(len(prompt), min(bucket, limit))
        buckets.setdefault(bucket, []).append(index)
    order: list[int] = []
    results = []
    for bucket, indices in sorted(buckets.items()):
        for first in range(0, len(indices), width):
            batch = indices[first : first + width]
            asked = [prompts[i] for i in batch], [ids[i] for i in batch]
            if isinstance(sampler, MetropolisHastings):
                sizes = (max_new_tokens, width, bucket, capacity)
                result = run_chains(model, params, *asked, key, target, sampler, *sizes, stop)
            else:
                run = _Batch(model, sampler.rule(), capacity, width, bucket, stop)
                result = run(params, *asked, key, target, sampler.numbers(), max_new_tokens)
            results.append(result)
            order += batch
    return concatenate(results, np.argsort(np.array(order)))


class _Batch:
    """Runs up to ``width`` prompts, padded to ``bucket`` tokens, in one set of executables."""

    def __init__(
        self,
        model: LanguageModel,
        rule: Rule,
        capacity: int,
        width: int,
        bucket: int,
        stop: StopArrays | None,
    ) -> None:
        self.model, self.rule, self.capacity = model, rule, capacity
        self.width, self.bucket, self.stop = width, bucket, stop
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._compiling = 0.0

    def __call__(
        self,
        params: Any,
        prompts: list[Sequence[int]],
        prompt_ids: list[int],
        key: jax.Array,
        target: PowerTarget,
        numbers: Any,
        max_new_tokens: int,
    ) -> SampleResult:
        """Decodes the prompts; see ``sample``."""
        count = len(prompts)
        tokens = np.zeros((self.width, self.bucket), np.int32)
        lengths = np.ones((self.width,), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        # Rows without a prompt have cap 0: they are done before the first step.
        caps = np.where(np.arange(self.width) < count, max_new_tokens, 0).astype(np.int32)
        arrays = target.arrays(self.model.vocab_size, max_new_tokens)
        targets = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (self.width, *x.shape)), arrays
        )._replace(cap=jnp.asarray(caps))
        padded_ids = prompt_ids + [0] * (self.width - count)
        keys = randomness.prompt_keys(key, padded_ids)

        static = {"model": self.model, "rule": self.rule}
        began = time.perf_counter()
        request, carry, observed = self._call(
            programs.start,
            {**static, "capacity": self.capacity},
            (params, jnp.asarray(tokens), jnp.asarray(lengths), targets, numbers, keys, self.stop),
        )
        jax.block_until_ready(carry)
        began = self._book("prefill", began)
        history = [jax.tree.map(lambda x: x[:, None], observed)]
        earlier_running = None
        for first in range(1, max_new_tokens, CHUNK):
            carry, observed, running = self._call(
                programs.run_chunk,
                {**static, "num_steps": CHUNK},
                (params, request, carry, jnp.asarray(first, jnp.int32)),
            )
            history.append(observed)
            if earlier_running is not None and not bool(earlier_running):
                break
            earlier_running = running
        outcome = self._call(programs.finish, {"rule": self.rule}, (request, carry))
        result = self._collect(count, target, max_new_tokens, carry, outcome, history)
        self._book("decode", began)
        # Dataclass fields are frozen, the dict of seconds is not: the last phase ends here.
        result.info.seconds.update(self.seconds)
        return result

    def _call(self, function: Any, static: dict[str, Any], args: tuple[Any, ...]) -> Any:
        """Calls an executable; the seconds of compiling it are kept apart."""
        executable, compile_seconds = programs.executable(function, static, args)
        self.seconds["compile"] += compile_seconds
        self._compiling += compile_seconds
        return executable(*args)

    def _book(self, phase: str, began: float) -> float:
        """Books the time since ``began``, less that of compiling, and returns the time now."""
        now = time.perf_counter()
        self.seconds[phase] += now - began - self._compiling
        self._compiling = 0.0
        return now

    def _collect(
        self,
        count: int,
        target: PowerTarget,
        cap: int,
        carry: Carry,
        outcome: Outcome,
        history: list[Observed],
    ) -> SampleResult:
        """Brings a batch to the host and drops the padding rows."""
        particles, tokens, outcome, history = jax.device_get(
            (carry.particles, carry.tokens, outcome, history)
        )
        num = self.rule.num_particles
        # [P, T, ...]; steps that never ran count as idle ones.
        seen = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *history)
        own = np.arange(self.rule.num_rows, dtype=np.int32)
        if self.rule.draws_first:
            # The parents of step t were chosen after its token: they say whose tokens 0..t a slot
            # holds, which in the genealogy is the parent at t + 1.
            first = np.broadcast_to(own, seen.parent[:, :1].shape)
            seen = seen._replace(parent=np.concatenate([first, seen.parent[:, :-1]], axis=1))
        seen = jax.tree.map(lambda x: x[:count, :cap], seen)
        missing = cap - seen.ess.shape[1]
        idle = seen._replace(
            ess=np.full((count, missing), num, seen.ess.dtype),
            resampled=np.zeros((count, missing), bool),
            forks=np.zeros((count, missing), np.int32),
            parent=np.broadcast_to(own, (count, missing, len(own))),
            bad_logits=np.zeros((count, missing), bool),
        )
        seen = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), seen, idle)
        rows = np.asarray(outcome.rows[:count])

        def returned(x: np.ndarray, nothing: Any) -> np.ndarray:
            """The rows [P, N, ...] of the returned particles, out of all rows [P, M, ...]."""
            there = rows.reshape(*rows.shape, *(1,) * (x.ndim - 2))
            taken = np.take_along_axis(x[:count], np.maximum(there, 0), axis=1)
            return np.where(there >= 0, taken, np.asarray(nothing, x.dtype))

        sequences = {
            "tokens": returned(tokens[:, :, :cap], decode.PAD_ID),
            "lengths": returned(particles.length, 0),
            "finished": returned(particles.finished, False),
        }
        log_weights = np.asarray(outcome.log_weight[:count])
        info = SampleInfo(
            ess=seen.ess,
            resampled=seen.resampled,
            forks=seen.forks,
            parent=seen.parent,
            rows=rows,
            **diagnose(
                **sequences, log_weights=log_weights, parent=seen.parent, rows=rows
            )._asdict(),
            bad_logits=np.any(seen.bad_logits, axis=1),
            dropped_mass=particles.dropped[:count],
            acceptance_rate=np.full((count,), np.nan),
            model_tokens=particles.drawn[:count],
            seconds=dict(self.seconds),
        )
        return SampleResult(
            **{name: jnp.asarray(x) for name, x in sequences.items()},
            log_probs=jnp.asarray(returned(particles.log_prob, 0.0)),
            log_weights=jnp.asarray(log_weights),
            log_evidence=jnp.asarray(outcome.log_evidence[:count]),
            choice=jnp.asarray(outcome.choice[:count]),
            target=target,
            info=info,
        )


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
