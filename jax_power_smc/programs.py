"""The engine's programs on its prompt slots, and the cache of their compiled forms.

    enter       prefill and step 0 of a group of prompts
    insert      puts them into free slots
    write_rows  puts the states of a stop rule into the table
    run_chunk   a number of decode steps of all slots, or nothing if all are done
    harvest     final weights and choices of a group of slots
    retire      ends prompts that are not wanted any more

Each is written for the prompts of one device; on a mesh every "data" row runs it for its own.

Letters: P slots, R prompts that enter or leave together, S padded prompt length.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_power_smc import decode, randomness
from jax_power_smc.decode import Carry, Observed, Request, StopArrays
from jax_power_smc.language_model import LanguageModel
from jax_power_smc.mesh import EACH, GROUP, ONE_DEVICE, SAME, Layout, Specs, default_place
from jax_power_smc.phase_clock import preparing
from jax_power_smc.samplers import Outcome, Particles, Rule
from jax_power_smc.target import TargetArrays


class Harvest(NamedTuple):
    """What R prompts leave behind.

    Attributes:
      outcome: final weights and choices, [R, N].
      particles: the populations, [R, M].
      tokens: [R, M, T] int32.
    """

    outcome: Outcome
    particles: Particles
    tokens: jax.Array


def request_axes(stop: StopArrays | None) -> Any:
    """Which parts of a ``Request`` belong to a prompt (0) and which to all (None)."""
    shared_table = None if stop is None else StopArrays(next_state=None, start=0, final=0)  # type: ignore[arg-type]
    return Request(context=0, target=0, numbers=None, key=0, stop=shared_table)  # type: ignore[arg-type]


def over_prompts(function: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
    """``function(any_prompt, *args)`` of one prompt, for a batch of prompts.

    A batch of one bypasses vmap: size-1 batch dimensions cost XLA its in-place updates.
    """

    def batched(*args: Any) -> Any:
        sizes: list[int] = []
        _per_prompt(lambda x: sizes.append(x.shape[0]), args, in_axes)
        if sizes[0] > 1:
            mapped = functools.partial(function, decode.any_in_batch)
            return jax.vmap(mapped, in_axes=in_axes, axis_name="prompts")(*args)
        alone = _per_prompt(lambda x: x[0], args, in_axes)
        return jax.tree.map(lambda x: x[None], function(decode.this_prompt, *alone))

    return batched


def _per_prompt(function: Callable[[jax.Array], Any], args: Any, axes: Any) -> Any:
    """The function applied to the arrays that have an axis of prompts."""

    def below(axis: int | None, tree: Any) -> Any:
        return tree if axis is None else jax.tree.map(function, tree)

    return jax.tree.map(below, axes, args, is_leaf=lambda x: x is None)


def own_part(request: Request) -> Request:
    """The part of a request that each prompt has of its own."""
    return without_table(request)._replace(numbers=None)


def without_table(request: Request) -> Request:
    """A request without the table of stop rules, which all prompts share."""
    return with_table(request, None)


def with_table(request: Request, table: jax.Array | None) -> Request:
    """A request with this table of stop rules, if it has a rule."""
    stop = None if request.stop is None else request.stop._replace(next_state=table)  # type: ignore[arg-type]
    return request._replace(stop=stop)


def idle(entered: Any, slots: int) -> jax.Array:
    """[P, ...] that nobody is in: all zero, so that no token may be drawn (cap 0)."""
    if jnp.issubdtype(entered.dtype, jax.dtypes.prng_key):
        data = idle(jax.eval_shape(jax.random.key_data, entered), slots)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(entered))
    return jnp.zeros((slots, *entered.shape[1:]), entered.dtype)


def fit(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x [rows, ...] with zeros appended up to [rows, *shape]."""
    if x.shape[1:] == shape:
        return x
    missing = [(0, 0), *((0, want - have) for want, have in zip(shape, x.shape[1:], strict=True))]
    return jnp.pad(x, missing)


@functools.partial(jax.jit, static_argnames=("model", "rule", "capacity"))
def enter(
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
    """Prefill and step 0: prompts [R, S], lengths [R]; the carries have no cache yet.

    The table of stop rules is not returned: that would be a copy. ``capacity`` is that of the token
    buffers.
    """

    def one(any_prompt, params, request, prompt, length):  # type: ignore[no-untyped-def]
        logits, context = model.prefill(params, prompt, length)
        request = request._replace(context=context)
        uniforms = randomness.step_uniforms(
            request.key, jnp.zeros((), jnp.int32), rule.num_rows, decode.weight_dtype(logits)
        )
        carry, observed = decode.begin(
            model, rule, capacity, params, request, logits, uniforms, any_prompt
        )
        return context, carry._replace(cache=None), observed

    request = Request(None, targets, numbers, keys, stop)
    axes = request_axes(stop)._replace(context=None)
    contexts, carry, observed = over_prompts(one, (None, axes, 0, 0))(
        params, request, prompts, lengths
    )
    return without_table(request)._replace(context=contexts), carry, observed


def empty_cache(
    model: LanguageModel, params: Any, num_prompts: int, num_particles: int, capacity: int
) -> Any:
    """The caches of P prompts before the first token, leaves [P, N, ...]."""
    shapes = jax.eval_shape(
        functools.partial(model.init_cache, num_particles=num_particles, capacity=capacity), params
    )
    return jax.tree.map(lambda x: jnp.zeros((num_prompts, *x.shape), x.dtype), shapes)


@functools.partial(jax.jit, donate_argnames=("slots",))
def insert(slots: Any, entered: Any, index: jax.Array) -> Any:
    """The slots [P, ...] with those of ``index`` [R] int32 replaced; P and beyond is nobody."""
    return jax.tree.map(lambda x, y: x.at[index].set(y, mode="drop"), slots, entered)


@functools.partial(jax.jit, static_argnames=("model", "rule"), donate_argnames=("carry",))
def run_chunk(
    params: Any,
    request: Request,
    carry: Carry,
    clocks: jax.Array,
    *,
    model: LanguageModel,
    rule: Rule,
) -> tuple[Carry, Observed, jax.Array]:
    """A step of P prompts at each of ``clocks`` [steps] int32; nothing if all are done.

    Returns:
      The carry; what was observed, [P, steps, ...]; and whether each prompt still runs [P].
    """

    # The loop is inside the vmap, so that a batch of one has no axis of size 1 in its carry.
    def one(any_prompt, params, request, carry, clocks):  # type: ignore[no-untyped-def]
        def body(carry: Carry, clock: jax.Array) -> tuple[Carry, Observed]:
            uniforms = randomness.step_uniforms(
                request.key, carry.step, rule.num_rows, carry.particles.log_weight.dtype
            )
            return decode.decode_step(
                model, rule, params, request, carry, uniforms, clock, any_prompt
            )

        return jax.lax.scan(body, carry, clocks)

    def go(carry: Carry) -> tuple[Carry, Observed]:
        chunk = over_prompts(one, (None, request_axes(request.stop), 0, None))
        return chunk(params, request, carry, clocks)

    def idle(carry: Carry) -> tuple[Carry, Observed]:
        shape, num = (carry.step.shape[0], clocks.shape[0]), rule.num_particles
        return carry, Observed(
            ess=jnp.full(shape, num, carry.particles.log_weight.dtype),
            resampled=jnp.zeros(shape, bool),
            forks=jnp.zeros(shape, jnp.int32),
            parent=jnp.broadcast_to(
                jnp.arange(rule.num_rows, dtype=jnp.int32), (*shape, rule.num_rows)
            ),
            bad_logits=jnp.zeros(shape, bool),
        )

    def running(carry: Carry) -> jax.Array:
        return jax.vmap(decode.is_running)(carry.particles, request.target, carry.step)

    carry, observed = jax.lax.cond(jnp.any(running(carry)), go, idle, carry)
    return carry, observed, running(carry)


@functools.partial(jax.jit, donate_argnames=("table",))
def write_rows(table: jax.Array, rows: jax.Array, first: jax.Array) -> jax.Array:
    """A table [states, V] with ``rows`` [n, V] from row ``first`` [] on, in its own memory."""
    return jax.lax.dynamic_update_slice_in_dim(table, rows, first, axis=0)


@functools.partial(jax.jit, static_argnames=("rule",))
def harvest(request: Request, carry: Carry, index: jax.Array, *, rule: Rule) -> Harvest:
    """Final weights, choices and sequences of the slots ``index`` [R] int32; no cache is read."""
    axes = request_axes(request.stop)._replace(context=None)
    carry = jax.tree.map(lambda x: x[index], carry._replace(cache=None))
    chosen = _per_prompt(lambda x: x[index], request._replace(context=None), axes)

    def one(request: Request, carry: Carry) -> Outcome:
        uniforms = randomness.final_uniforms(request.key, carry.particles.log_weight.dtype)
        return decode.finish(rule, request, carry, uniforms)

    outcome = jax.vmap(one, in_axes=(axes, 0))(chosen, carry)
    return Harvest(outcome, carry.particles, carry.tokens)


@jax.jit
def retire(cap: jax.Array, unwanted: jax.Array) -> jax.Array:
    """The caps [P] with those of unwanted prompts [P] bool at 0: they take no further step."""
    return jnp.where(unwanted, jnp.zeros_like(cap), cap)


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def grow(cache: Any, clock: jax.Array, *, model: Any, capacity: int) -> Any:
    """The caches of P prompts with another capacity; ``clock`` [] is that of the last step."""
    return jax.vmap(lambda cache: model.grow(cache, capacity, clock))(cache)


# --- On a mesh --------------------------------------------------------------------------------


def _enter_specs(layout: Layout, args: Any) -> Specs:
    params, *_, stop = args
    request = layout.request(stop)
    inputs = (layout.params(params), EACH, EACH, request.target, SAME, EACH, request.stop)
    return Specs(inputs, (without_table(request), layout.carry(), EACH), (False, False, True))


def _insert_specs(layout: Layout, args: Any) -> Specs:
    (own, _), _, _ = args
    slots = without_table(layout.request(own.stop)), layout.carry()
    return Specs((slots, slots, EACH), slots, False, (0,))


def _run_chunk_specs(layout: Layout, args: Any) -> Specs:
    params, request, _, _ = args
    carry = layout.carry()
    inputs = (layout.params(params), layout.request(request.stop), carry, SAME)
    return Specs(inputs, (carry, EACH, EACH), (False, True, True), (2,))


def _harvest_specs(layout: Layout, args: Any) -> Specs:
    request, _, _ = args
    return Specs((without_table(layout.request(request.stop)), layout.carry(), EACH), EACH, True)


# How arguments and results of each program lie; ``chains`` adds its own.
SPECS: dict[Any, Callable[[Layout, Any], Specs]] = {
    enter: _enter_specs,
    insert: _insert_specs,
    run_chunk: _run_chunk_specs,
    write_rows: lambda layout, args: Specs((SAME, SAME, SAME), SAME, False, (0,)),
    harvest: _harvest_specs,
    retire: lambda layout, args: Specs((EACH, EACH), EACH, False),
    grow: lambda layout, args: Specs((GROUP, SAME), GROUP, False),
}


# --- Compilation ------------------------------------------------------------------------------

_EXECUTABLES: dict[Any, Any] = {}
# A program on a CPU is some 400 maps of memory (Linux, tiny-reasoner with swor); a process may have
# 65530 of them, and the compiler aborts at the next.
MOST_ON_CPU = 120


def compiled_count(function: Any = None) -> int:
    """Number of executables compiled so far in this process: of one program, or of all."""
    return sum(function in (None, key[0]) for key in _EXECUTABLES)


def forget() -> None:
    """Drops every executable, and JAX's own caches, which would keep them alive.

    What is needed again is compiled again, or found in the persistent compilation cache.
    """
    _EXECUTABLES.clear()
    jax.clear_caches()


def results(function: Any, static: dict[str, Any], args: Any, layout: Layout) -> Any:
    """The shapes of what a program returns."""
    if layout.mesh is None:
        return jax.eval_shape(functools.partial(function, **static), *args)
    return layout.lower(function, static, args, SPECS[function](layout, args)).out_info


def executable(
    function: Any, static: dict[str, Any], args: Any, layout: Layout = ONE_DEVICE
) -> Any:
    """The compiled form of ``function`` for these shapes and places and JAX's present settings."""
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    named = tuple(sorted(static.items(), key=lambda x: x[0]))
    settings = tuple(jax.config.values.items())
    places = _places(leaves) if layout.mesh is None else ()
    cache_key = (function, named, structure, shapes, layout.mesh, places, settings)
    if cache_key in _EXECUTABLES:
        return _EXECUTABLES[cache_key]
    if len(_EXECUTABLES) >= MOST_ON_CPU and jax.default_backend() == "cpu":
        forget()
    with preparing():
        executable = layout.lower(function, static, args, SPECS[function](layout, args)).compile()
    _EXECUTABLES[cache_key] = executable
    return executable


def call(function: Any, static: dict[str, Any], args: tuple[Any, ...], layout: Layout) -> Any:
    """Calls the compiled form of ``function`` with arrays, wherever they lie."""
    if layout.mesh is not None:
        args = layout.put(args, SPECS[function](layout, args).inputs)
    return executable(function, static, args, layout)(*args)


def _places(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Where arrays lie that are not simply on the default device."""
    usual = default_place()
    found = ((i, getattr(leaf, "sharding", None)) for i, leaf in enumerate(leaves))
    return tuple((i, where) for i, where in found if where is not None and where != usual)
