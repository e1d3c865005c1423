"""Runs of the engine and of the plain loop that tests compare, in float64."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jax_power_smc as psmc
from jax_power_smc import TableLM
from jax_power_smc.engine import slot_plan

V, CAP, SLOTS = 6, 12, 3
MODEL = TableLM(V, 2)
# The last token ends sequences in most tests.
PIECES = [b"a", b"b", b"c", b"ab", b"", b""]
PROMPTS = [[1, 2], [3], [4, 0, 2, 1], [1, 2], [0, 0, 0]]
# More than any run takes here.
MOST_ROUNDS = 500
KEY = jax.random.key(7)
with jax.enable_x64(True):
    PARAMS = MODEL.init(jax.random.key(1), dtype=jnp.float64, scale=1.0)
    # Ends are made rarer.
    PARAMS = PARAMS._replace(logits=PARAMS.logits.at[..., 5].add(-2.0))

EXACT = ("tokens", "lengths", "finished", "choice")
REALS = ("log_probs", "token_log_probs", "log_weights", "log_evidence")
INFO = ("parent", "forks", "resampled", "particle_index", "bad_logits", "num_rows", "copies")
INFO += ("model_tokens", "drawn_tokens", "distinct_roots", "coalescence")
INFO_REALS = ("ess", "dropped_mass")


@contextlib.contextmanager
def chunks_of(steps):
    """Many rounds within few steps."""
    before = slot_plan.CHUNK_ON_CPU
    slot_plan.CHUNK_ON_CPU = steps
    try:
        yield
    finally:
        slot_plan.CHUNK_ON_CPU = before


def make(sampler, *, rows, slots=SLOTS, model=MODEL, params=PARAMS, cap=CAP, chunk=4, **options):
    """An engine with a fixed number of rows."""
    sizes = {"max_prompt_tokens": 4, "max_new_tokens": cap, "slots": slots, "rows": rows}
    pinned = {"capacity": 32, "prompt_bucket": 4, "tokenizer": PIECES}
    given = {"sampler": sampler, **sizes, **pinned, **options}
    with chunks_of(chunk):
        return psmc.Engine(model, params, **given)


def run(engine, target, *, prompts=PROMPTS, order=None, cap=CAP):
    """The results by prompt; ``order`` is that of their arrival."""
    order = range(len(prompts)) if order is None else order
    asked = [psmc.StreamRequest(prompts[i], target, cap, prompt_id=i, tag=i) for i in order]
    rounds = itertools.count()
    with jax.enable_x64(True):
        stream = engine.stream(asked, key=KEY, until=lambda: next(rounds) > MOST_ROUNDS)
        done = {one.request.tag: one for one in stream}
    assert len(done) == len(prompts), "no result of prompts that go round in circles"
    assert [done[i].error for i in sorted(done)] == [None] * len(prompts)
    return [done[i].result for i in sorted(done)]


@functools.cache
def plain(sampler, target, model=MODEL, cap=CAP):
    """The same prompts in the plain loop."""
    assert model is MODEL
    return plain_of(MODEL, PARAMS, sampler, target, cap)


def plain_of(model, params, sampler, target, cap=CAP, prompts=PROMPTS):
    with jax.enable_x64(True):
        return psmc.plain.sample(
            model,
            params,
            prompts,
            key=KEY,
            target=target,
            sampler=sampler,
            max_new_tokens=cap,
            tokenizer=PIECES,
        )


def assert_same(found, expected, atol=1e-10):
    """Results of single prompts against one of all: equal decisions, weights up to rounding."""
    for i, one in enumerate(found):
        pairs = [(name, getattr(one, name), getattr(expected, name)) for name in (*EXACT, *REALS)]
        pairs += [
            (name, getattr(one.info, name), getattr(expected.info, name))
            for name in (*INFO, *INFO_REALS)
        ]
        for name, x, y in pairs:
            x, y = np.asarray(x)[0], np.asarray(y)[i]
            assert x.shape == y.shape and x.dtype == y.dtype, name
            tolerance = atol if name in (*REALS, *INFO_REALS) else 0
            np.testing.assert_allclose(
                x, y, rtol=0, atol=tolerance, err_msg=f"{name} of prompt {i}"
            )
