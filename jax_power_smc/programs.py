"""The engine's three programs on a batch of prompts, and the cache of their compiled forms.

    start       prefill and step 0
    run_chunk   a number of decode steps, or nothing if all prompts are done
    finish      final weights and choices

Letters: P prompts, S padded prompt length.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_power_smc import decode, randomness
from jax_power_smc.decode import Carry, Observed, Request, StopArrays
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.samplers import Outcome, Rule
from jax_power_smc.target import TargetArrays

REQUEST_AXES: Any = Request(context=0, target=0, numbers=None, key=0, stop=None)  # type: ignore[arg-type]


def over_prompts(function: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
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
def start(
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

    contexts, carry, observed = over_prompts(one, (None, 0, 0, 0, None, 0))(
        params, prompts, lengths, targets, numbers, keys
    )
    return Request(contexts, targets, numbers, keys, stop), carry, observed


@functools.partial(
    jax.jit, static_argnames=("model", "rule", "num_steps"), donate_argnames=("carry",)
)
def run_chunk(
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
      The carry; what was observed, [P, steps, ...]; and whether any prompt still runs [].
    """

    # The loop is inside the vmap, so that a batch of one has no axis of size 1 in its carry.
    def one(any_prompt, params, request, carry, first):  # type: ignore[no-untyped-def]
        def body(carry: Carry, index: jax.Array) -> tuple[Carry, Observed]:
            uniforms = randomness.step_uniforms(
                request.key, carry.step, rule.num_rows, carry.particles.log_weight.dtype
            )
            return decode.decode_step(
                model, rule, params, request, carry, uniforms, index - 1, any_prompt
            )

        return jax.lax.scan(body, carry, first + jnp.arange(num_steps, dtype=jnp.int32))

    def go(carry: Carry) -> tuple[Carry, Observed]:
        chunk = over_prompts(one, (None, REQUEST_AXES, 0, None))
        return chunk(params, request, carry, first)

    def idle(carry: Carry) -> tuple[Carry, Observed]:
        shape, num = (carry.step.shape[0], num_steps), rule.num_particles
        return carry, Observed(
            ess=jnp.full(shape, num, carry.particles.log_weight.dtype),
            resampled=jnp.zeros(shape, bool),
            forks=jnp.zeros(shape, jnp.int32),
            parent=jnp.broadcast_to(
                jnp.arange(rule.num_rows, dtype=jnp.int32), (*shape, rule.num_rows)
            ),
            bad_logits=jnp.zeros(shape, bool),
        )

    def any_running(carry: Carry) -> jax.Array:
        return jnp.any(jax.vmap(decode.is_running)(carry.particles, request.target, carry.step))

    carry, observed = jax.lax.cond(any_running(carry), go, idle, carry)
    return carry, observed, any_running(carry)


@functools.partial(jax.jit, static_argnames=("rule",))
def finish(request: Request, carry: Carry, *, rule: Rule) -> Outcome:
    """Final weights and choices of P prompts."""

    def one(request: Request, carry: Carry) -> Outcome:
        uniforms = randomness.final_uniforms(request.key, carry.particles.log_weight.dtype)
        return decode.finish(rule, request, carry, uniforms)

    return jax.vmap(one, in_axes=(REQUEST_AXES, 0))(request, carry)


# --- Compilation ------------------------------------------------------------------------------

_EXECUTABLES: dict[Any, Any] = {}


def compiled_count() -> int:
    """Number of executables compiled so far in this process."""
    return len(_EXECUTABLES)


def forget() -> None:
    """Drops every executable; what is needed again is compiled again."""
    _EXECUTABLES.clear()


def executable(function: Any, static: dict[str, Any], args: Any) -> tuple[Any, float]:
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
