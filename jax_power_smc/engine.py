"""The engine: prompts in, results out, around the jitted decode step.

Prompts are put into batches of P rows of equal padded length S. A batch is prefilled once, then
runs in chunks of steps on the device; the host looks at "done" one chunk late, so that it never
waits for the device before it has given it more work.

Every executable is compiled once per bucket (model, sampler rule, N, P, S, T) and kept for the
life of the process; all real numbers of target and sampler are traced.
"""

import functools
import time
from collections.abc import Callable, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_power_smc import decode, randomness
from jax_power_smc.decode import Carry, Observed, Request, StopArrays
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.result import PHASES, SampleInfo, SampleResult, concatenate
from jax_power_smc.samplers import Outcome, Rule, Sampler
from jax_power_smc.target import PowerTarget, TargetArrays

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
      sampler: ``WithoutReplacement``, ``PowerSMC`` or ``Ancestral``.
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
    ids = _check(
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
            run = _Batch(
                model=model,
                rule=sampler.rule(),
                capacity=capacity,
                width=width,
                bucket=bucket,
                stop=stop,
            )
            results.append(
                run(
                    params,
                    [prompts[i] for i in batch],
                    [ids[i] for i in batch],
                    key,
                    target,
                    sampler.numbers(),
                    max_new_tokens,
                )
            )
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
            _start,
            {**static, "capacity": self.capacity},
            (params, jnp.asarray(tokens), jnp.asarray(lengths), targets, numbers, keys, self.stop),
        )
        jax.block_until_ready(carry)
        began = self._book("prefill", began)
        history = [jax.tree.map(lambda x: x[None], observed)]
        earlier_running = None
        for first in range(1, max_new_tokens, CHUNK):
            carry, observed, running = self._call(
                _run_chunk,
                {**static, "num_steps": CHUNK},
                (params, request, carry, jnp.asarray(first, jnp.int32)),
            )
            history.append(observed)
            if earlier_running is not None and not bool(earlier_running):
                break
            earlier_running = running
        outcome = self._call(_finish, {"rule": self.rule}, (request, carry))
        result = self._collect(count, target, max_new_tokens, carry, outcome, history)
        self._book("decode", began)
        # Dataclass fields are frozen, the dict of seconds is not: the last phase ends here.
        result.info.seconds.update(self.seconds)
        return result

    def _call(self, function: Any, static: dict[str, Any], args: tuple[Any, ...]) -> Any:
        """Calls an executable; the seconds of compiling it are kept apart."""
        executable, compile_seconds = _executable(function, static, args)
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
        # [steps, P, ...] -> [P, T, ...]; steps that never ran count as idle ones.
        seen = jax.tree.map(lambda *parts: np.concatenate(parts).swapaxes(0, 1), *history)
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
        )
        seen = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), seen, idle)
        rows = np.asarray(outcome.rows[:count])

        def returned(x: np.ndarray, nothing: Any) -> jax.Array:
            """The rows [P, N, ...] of the returned particles, out of all rows [P, M, ...]."""
            there = rows.reshape(*rows.shape, *(1,) * (x.ndim - 2))
            taken = np.take_along_axis(x[:count], np.maximum(there, 0), axis=1)
            return jnp.asarray(np.where(there >= 0, taken, np.asarray(nothing, x.dtype)))

        info = SampleInfo(
            ess=seen.ess,
            resampled=seen.resampled,
            forks=seen.forks,
            parent=seen.parent,
            rows=rows,
            dropped_mass=particles.dropped[:count],
            model_tokens=particles.drawn[:count],
            seconds=dict(self.seconds),
        )
        return SampleResult(
            tokens=returned(tokens[:, :, :cap], decode.PAD_ID),
            lengths=returned(particles.length, 0),
            finished=returned(particles.finished, False),
            log_probs=returned(particles.log_prob, 0.0),
            log_weights=jnp.asarray(outcome.log_weight[:count]),
            log_evidence=jnp.asarray(outcome.log_evidence[:count]),
            choice=jnp.asarray(outcome.choice[:count]),
            target=target,
            info=info,
        )


# --- The three executables --------------------------------------------------------------------

_REQUEST_AXES: Any = Request(context=0, target=0, numbers=None, key=0, stop=None)  # type: ignore[arg-type]


def _over_prompts(function: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
    """``function(any_prompt, *args)`` of one prompt, for a batch of prompts.

    A batch of one bypasses vmap: size-1 batch dimensions cost XLA its in-place updates.
    """

    def batched(*args: Any) -> Any:
        size = next(
            jax.tree.leaves(arg.key if isinstance(arg, Request) else arg)[0].shape[0]
            for axis, arg in zip(in_axes, args, strict=True)
            if axis is not None
        )
        if size > 1:
            mapped = functools.partial(function, decode.any_in_batch)
            return jax.vmap(mapped, in_axes=in_axes, axis_name="prompts")(*args)
        return _expand(function(decode.this_prompt, *_squeeze(args, in_axes)))

    return batched


def _squeeze(args: tuple[Any, ...], in_axes: tuple[Any, ...]) -> list[Any]:
    def first(tree: Any) -> Any:
        return jax.tree.map(lambda x: x[0], tree)

    out = []
    for arg, axis in zip(args, in_axes, strict=True):
        if isinstance(arg, Request):
            shared = {"numbers": arg.numbers, "stop": arg.stop}
            out.append(first(arg._replace(numbers=None, stop=None))._replace(**shared))
        else:
            out.append(arg if axis is None else first(arg))
    return out


def _expand(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


@functools.partial(jax.jit, static_argnames=("model", "rule", "capacity"))
def _start(
    params: Any,
    prompts: jax.Array,
    lengths: jax.Array,
    targets: TargetArrays,
    numbers: Any,
    keys: jax.Array,
    stop: StopArrays | None = None,
    *,
    model: LanguageModel,
    rule: Rule,
    capacity: int,
) -> tuple[Request, Carry, Observed]:
    """Prefill and step 0: prompts [P, S], lengths [P]."""

    def one(any_prompt, params, prompt, length, target, numbers, key):  # type: ignore[no-untyped-def]
        logits, context = model.prefill(params, prompt, length)
        request = Request(context, target, numbers, key, stop)
        uniforms = randomness.step_uniforms(
            key, jnp.zeros((), jnp.int32), rule.num_rows, decode.weight_dtype(logits)
        )
        carry, observed = decode.begin(
            model, rule, capacity, params, request, logits, uniforms, any_prompt
        )
        return context, carry, observed

    contexts, carry, observed = _over_prompts(one, (None, 0, 0, 0, None, 0))(
        params, prompts, lengths, targets, numbers, keys
    )
    return Request(contexts, targets, numbers, keys, stop), carry, observed


@functools.partial(
    jax.jit, static_argnames=("model", "rule", "num_steps"), donate_argnames=("carry",)
)
def _run_chunk(
    params: Any,
    request: Request,
    carry: Carry,
    first: jax.Array,
    *,
    model: LanguageModel,
    rule: Rule,
    num_steps: int,
) -> tuple[Carry, Observed, jax.Array]:
    """Steps first .. first + num_steps - 1 of P prompts, or nothing if all are done.

    Returns:
      The carry; what was observed, [steps, P, ...]; and whether any prompt still runs [].
    """

    def one(any_prompt, params, request, carry, clock):  # type: ignore[no-untyped-def]
        uniforms = randomness.step_uniforms(
            request.key, carry.step, rule.num_rows, carry.particles.log_weight.dtype
        )
        return decode.decode_step(model, rule, params, request, carry, uniforms, clock, any_prompt)

    step = _over_prompts(one, (None, _REQUEST_AXES, 0, None))

    def body(carry: Carry, index: jax.Array) -> tuple[Carry, Observed]:
        return step(params, request, carry, index - 1)

    def go(carry: Carry) -> tuple[Carry, Observed]:
        return jax.lax.scan(body, carry, first + jnp.arange(num_steps, dtype=jnp.int32))

    def idle(carry: Carry) -> tuple[Carry, Observed]:
        shape, num = (num_steps, carry.step.shape[0]), rule.num_particles
        return carry, Observed(
            ess=jnp.full(shape, num, carry.particles.log_weight.dtype),
            resampled=jnp.zeros(shape, bool),
            forks=jnp.zeros(shape, jnp.int32),
            parent=jnp.broadcast_to(
                jnp.arange(rule.num_rows, dtype=jnp.int32), (*shape, rule.num_rows)
            ),
        )

    def any_running(carry: Carry) -> jax.Array:
        return jnp.any(jax.vmap(decode.is_running)(carry.particles, request.target, carry.step))

    carry, observed = jax.lax.cond(any_running(carry), go, idle, carry)
    return carry, observed, any_running(carry)


@functools.partial(jax.jit, static_argnames=("rule",))
def _finish(request: Request, carry: Carry, *, rule: Rule) -> Outcome:
    """Final weights and choices of P prompts."""

    def one(request: Request, carry: Carry) -> Outcome:
        uniforms = randomness.final_uniforms(request.key, carry.particles.log_weight.dtype)
        return decode.finish(rule, request, carry, uniforms)

    return jax.vmap(one, in_axes=(_REQUEST_AXES, 0))(request, carry)


# --- Compilation ------------------------------------------------------------------------------

_EXECUTABLES: dict[Any, Any] = {}


def compiled_count() -> int:
    """Number of executables compiled so far in this process."""
    return len(_EXECUTABLES)


def _executable(function: Any, static: dict[str, Any], args: Any) -> tuple[Any, float]:
    """The compiled form of ``function`` for these shapes, and the seconds it took to make."""
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    cache_key = (function, tuple(sorted(static.items(), key=lambda x: x[0])), structure, shapes)
    if cache_key in _EXECUTABLES:
        return _EXECUTABLES[cache_key], 0.0
    began = time.perf_counter()
    executable = function.lower(*args, **static).compile()
    _EXECUTABLES[cache_key] = executable
    return executable, time.perf_counter() - began


# --- Checks at the door -----------------------------------------------------------------------


def _check(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[int] | None,
    key: jax.Array,
    target: PowerTarget,
    sampler: Any,
    max_new_tokens: int,
    prompts_per_batch: int | None,
) -> list[int]:
    """Raises ValueError for what cannot be, and returns the prompts' ids."""
    if not isinstance(target, PowerTarget):
        raise ValueError(f"target is {target!r}; it must be a PowerTarget.")
    if not isinstance(sampler, Sampler):
        raise ValueError(
            f"sampler is {sampler!r}; allowed are WithoutReplacement, PowerSMC and Ancestral."
        )
    for name, value in (
        ("max_new_tokens", max_new_tokens),
        ("prompts_per_batch", 1 if prompts_per_batch is None else prompts_per_batch),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1.")
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_key or key.shape != ():
        got = f"an array {key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else repr(key)
        raise ValueError(f"key is {got}; it must be a single key made by jax.random.key(seed).")
    if isinstance(prompts, str) or not isinstance(prompts, Sized):
        raise ValueError(f"prompts is {prompts!r}; it must be a list of lists of token ids.")
    if len(prompts) == 0:
        raise ValueError("prompts is empty; at least one prompt is needed.")
    target.check(model.vocab_size, max_new_tokens)
    limit = getattr(model, "max_positions", None)
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            raise ValueError(f"prompt {index} is a string; prompts are lists of token ids.")
        if not isinstance(prompt, Sized):
            raise ValueError(f"prompt {index} is {prompt!r}; a prompt is a list of integers.")
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} is empty; at least one token is needed.")
        try:
            ids = np.asarray(prompt)
        except ValueError:  # rows of unequal length
            ids = np.zeros((0, 0))
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"prompt {index} is {prompt!r}; a prompt is a list of integers.")
        if ids.min() < 0 or ids.max() >= model.vocab_size:
            bad = int(ids[(ids < 0) | (ids >= model.vocab_size)][0])
            raise ValueError(
                f"prompt {index} has token id {bad}; ids must lie in [0, {model.vocab_size})."
            )
        if limit is not None and len(prompt) + max_new_tokens > limit:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}; "
                f"together they must not exceed the model's {limit} positions."
            )
    if prompt_ids is None:
        return list(range(len(prompts)))
    prompt_ids = list(prompt_ids)
    if len(prompt_ids) != len(prompts):
        raise ValueError(
            f"prompt_ids has {len(prompt_ids)} entries for {len(prompts)} prompts; give one each."
        )
    for index in prompt_ids:
        is_integer = isinstance(index, int | np.integer) and not isinstance(index, bool)
        if not is_integer or not 0 <= index <= randomness.LARGEST_PROMPT_ID:
            raise ValueError(f"prompt_ids has {index!r}; ids are integers in [0, 2^63).")
    return prompt_ids


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
