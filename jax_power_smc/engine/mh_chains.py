"""Metropolis-Hastings chains of many prompts: the programs, and the batches that run them.

All chains of a batch follow one schedule, so a batch begins and ends as a whole. The schedule is
known beforehand: the host hands out all its entries without waiting for the device, unless
``until`` may stop it.

Letters: P prompts, N chains, T capacity in generated tokens, S padded prompt length, V vocabulary.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jax_power_smc.core import prng
from jax_power_smc.core.mesh import (
    DATA,
    DATA_SHARDED,
    MODEL,
    PER_DEVICE,
    REPLICATED,
    no_ambient_mesh,
)
from jax_power_smc.core.types import Params
from jax_power_smc.engine import batching, executables, mh_step, program_specs, programs
from jax_power_smc.engine.buckets import Sizes, pad_prompts
from jax_power_smc.engine.layout import Layout, Specs, layout_of
from jax_power_smc.engine.mh_step import ChainPrompt, MoveState
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.engine.request import ActiveRequest, take_prompt
from jax_power_smc.engine.step import Record
from jax_power_smc.engine.timing import PhaseTimer, preparing
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import metropolis_hastings as mh
from jax_power_smc.samplers.base import FinalWeights, Particles
from jax_power_smc.samplers.metropolis_hastings import Chains, Entry, MetropolisHastings
from jax_power_smc.targets import stop_arrays
from jax_power_smc.targets.power import PowerTarget, TargetArrays
from jax_power_smc.targets.stop_arrays import StopArrays
from jax_power_smc.targets.stop_rules import StopRule

# --- Programs on a batch of prompts ---


def start_batch(
    params: Params,
    prompts: jax.Array,
    lengths: jax.Array,
    targets: TargetArrays,
    keys: jax.Array,
    *,
    model: LanguageModel,
    num_chains: int,
    num_tokens: int,
    capacity: int,
) -> tuple[ChainPrompt, MoveState]:
    """Prefill: prompts [P, S], lengths [P]."""

    def one(any_prompt, params, prompt, length, target, key):  # type: ignore[no-untyped-def]
        state = mh_step.begin(model, params, prompt, length, num_chains, num_tokens, capacity)
        return ChainPrompt(prompt[length - 1], length - 1, target, key), state

    return batching.over_prompts(one, (None, 0, 0, 0, 0))(params, prompts, lengths, targets, keys)


def move_batch(
    params: Params,
    key: jax.Array,
    stop: StopArrays | None,
    prompts: ChainPrompt,
    state: MoveState,
    entry: Entry,
    *,
    model: LanguageModel,
) -> MoveState:
    """One entry of the schedule for P prompts; ``key`` is that of the run."""

    def one(any_prompt, params, stop, prompt, state, entry, cut):  # type: ignore[no-untyped-def]
        num, dtype = state.chains.length.shape[0], state.chains.log_s.dtype
        uniforms = mh_step.move_uniforms(prompt.key, entry, num, dtype)
        return mh_step.move(model, params, stop, prompt, state, entry, cut, uniforms, any_prompt)

    return batching.over_prompts(one, (None, None, 0, 0, None, None))(
        params, stop, prompts, state, entry, mh.draw_cut(key, entry)
    )


def finish_batch(prompts: ChainPrompt, state: MoveState) -> tuple[MoveState, FinalWeights]:
    """Weights and choices of P prompts; the state, without a cache, is returned for the host."""

    def one(key: jax.Array, chains: Chains) -> FinalWeights:
        return mh.finish(chains, prng.final_uniforms(key, chains.log_s.dtype))

    return state, jax.vmap(one)(prompts.key, state.chains)


def _specs(layout: Layout) -> tuple[ChainPrompt, MoveState]:
    """How prompts and states are sharded on a mesh."""
    ends = PartitionSpec(DATA, MODEL) if layout.vocabulary.axis else DATA_SHARDED
    target = TargetArrays(*[DATA_SHARDED] * len(TargetArrays._fields))._replace(ends=ends)  # type: ignore[arg-type]
    prompt = ChainPrompt(*[DATA_SHARDED] * len(ChainPrompt._fields))._replace(target=target)  # type: ignore[arg-type]
    return prompt, MoveState(*[DATA_SHARDED] * len(MoveState._fields))._replace(cache=PER_DEVICE)  # type: ignore[arg-type]


def _start_specs(layout: Layout, args: Any) -> Specs:
    prompt, state = _specs(layout)
    inputs = (layout.params(args[0]), DATA_SHARDED, DATA_SHARDED, prompt.target, DATA_SHARDED)
    return Specs(inputs, (prompt, state), False)


def _move_specs(layout: Layout, args: Any) -> Specs:
    prompt, state = _specs(layout)
    inputs = (layout.params(args[0]), REPLICATED, REPLICATED, prompt, state, REPLICATED)
    return Specs(inputs, state, False, (4,))


def _finish_specs(layout: Layout, args: Any) -> Specs:
    del args
    prompt, state = _specs(layout)
    return Specs((prompt, state), (DATA_SHARDED, DATA_SHARDED), True)


program_specs.SPECS |= {
    start_batch: _start_specs,
    move_batch: _move_specs,
    finish_batch: _finish_specs,
}


# --- Batches ---


class ChainScheduler:
    """Runs the chains of prompts batch by batch; used like ``Scheduler``, whose arguments it has.

    All prompts of a run have the same target and cap.

    Attributes:
      seconds: by phase, since the beginning.
    """

    @no_ambient_mesh()
    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        sampler: MetropolisHastings,
        key: jax.Array,
        sizes: Sizes,
        tokenizer: Any = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.layout = layout = layout_of(model, mesh)
        self.model = layout.model
        self.params = layout.put(params, layout.params(params))
        self.sampler, self.key, self.sizes = sampler, key, sizes
        self._tokenizer = tokenizer
        self._stop: dict[StopRule | None, StopArrays | None] = {}
        self._timer = PhaseTimer()
        self.seconds = self._timer.seconds

    def check(self, target: PowerTarget) -> None:
        """Raises ValueError for a target that cannot be served."""
        self._stop_arrays(target)

    def run(
        self,
        requests: Iterable[ActiveRequest],
        until: Callable[[], bool] | None = None,
        count: int | None = None,
    ) -> Iterator[ActiveRequest]:
        """Yields every request when its batch is finished; how many there are does not matter.

        ``until`` is asked before every move; once it says True, what is not finished is lost.
        """
        del count
        buckets: dict[int, list[ActiveRequest]] = {}
        for request in requests:
            bucket = self.sizes.prompt_bucket(len(request.prompt))
            buckets.setdefault(bucket, []).append(request)
        for bucket, members in sorted(buckets.items()):
            for first in range(0, len(members), self.sizes.slots):
                batch = members[first : first + self.sizes.slots]
                if not self._run_batch(batch, bucket, until):
                    return
                yield from batch

    @no_ambient_mesh()
    def _run_batch(
        self, requests: Sequence[ActiveRequest], bucket: int, until: Callable[[], bool] | None
    ) -> bool:
        """Finishes at most P requests, or returns False because ``until`` said so."""
        target, cap = requests[0].target, requests[0].cap
        self.sampler.check(cap)
        self._timer.start()
        prompt, state = self.start(requests, bucket)
        jax.block_until_ready(state)
        self._timer.book("prefill")
        stop = self._stop_arrays(target)
        for entry in self.sampler.schedule(cap):
            if until is not None:
                jax.block_until_ready(state.drawn)  # otherwise all moves would be handed out by now
                if until():
                    return False
            state = self.move(stop, prompt, state, entry)
        state = state._replace(cache=None)
        state, final = jax.device_get(self._call(finish_batch, {}, prompt, state))
        self._timer.book("decode")
        _finish(requests, state, final)
        return True

    def start(
        self, requests: Sequence[ActiveRequest], bucket: int
    ) -> tuple[ChainPrompt, MoveState]:
        """Prefills prompts of at most ``bucket`` tokens; empty places of the batch have cap 0."""
        sizes = {
            "num_chains": self.sampler.num_chains,
            "num_tokens": self.sizes.new_tokens,
            "capacity": min(bucket + self.sizes.new_tokens, self.sizes.longest),
        }
        batch = self.arrays(requests, bucket)
        return self._call(start_batch, {"model": self.model, **sizes}, self.params, *batch)

    def move(
        self, stop: StopArrays | None, prompt: ChainPrompt, state: MoveState, entry: Entry
    ) -> MoveState:
        """One entry of the schedule; ``state`` is donated."""
        args = self.params, self.key, stop, prompt, state, entry
        return self._call(move_batch, {"model": self.model}, *args)

    @preparing()
    def arrays(
        self, requests: Sequence[ActiveRequest], bucket: int
    ) -> tuple[jax.Array, jax.Array, TargetArrays, jax.Array]:
        """Prompts [P, S], their lengths [P], targets and keys."""
        width, target, cap = self.sizes.slots, requests[0].target, requests[0].cap
        idle = width - len(requests)
        tokens, lengths = pad_prompts([request.prompt for request in requests], width, bucket)
        caps = np.array([cap] * len(requests) + [0] * idle, np.int32)
        targets = jax.tree.map(
            lambda x: jnp.broadcast_to(x[None], (width, *x.shape)),
            target.arrays(self.model.vocab_size, cap),
        )._replace(cap=jnp.asarray(caps))
        ids = [request.prompt_id for request in requests]
        keys = prng.prompt_keys(self.key, [*ids, *itertools.repeat(0, idle)])
        return jnp.asarray(tokens), jnp.asarray(lengths), targets, keys

    def _stop_arrays(self, target: PowerTarget) -> StopArrays | None:
        if target.stop not in self._stop:
            self._stop[target.stop] = stop_arrays.stop_arrays(
                target.stop, self._tokenizer, self.model.vocab_size
            )
        return self._stop[target.stop]

    def _call(self, function: programs.Program, static: dict[str, Any], *args: Any) -> Any:
        return executables.call(function, static, args, self.layout)


def _finish(requests: Sequence[ActiveRequest], state: MoveState, final: FinalWeights) -> None:
    """Gives requests the outcome of their chains in the form that particles have it.

    Chains neither weigh nor resample on the way, so only one step is recorded, for its
    ``bad_logits``.
    """
    chains = state.chains
    count, num = chains.length.shape
    dtype: Any = chains.log_p.dtype
    zeros: Any = np.zeros((count,), dtype)
    particles = Particles(
        log_weight=final.log_weight,
        log_evidence=zeros,
        log_prob=np.sum(chains.log_p, axis=2),
        exponent=zeros,
        ended=chains.finished,
        finished=chains.finished,
        length=chains.length,
        drawn=state.drawn,
        dropped=zeros,
    )
    none = np.zeros((count, 1), np.int32)
    fields: dict[str, Any] = {
        "step": none,
        "parent": np.tile(np.arange(num, dtype=np.int32), (count, 1, 1)),
        "token": chains.tokens[:, :, :1].swapaxes(1, 2),
        "log_prob": chains.log_p[:, :, :1].swapaxes(1, 2),
        "active": np.ones((count, 1, num), bool),
        "ess": np.full((count, 1), num, dtype),
        "resampled": np.zeros((count, 1), bool),
        "bad_logits": np.asarray(state.bad_logits)[:, None],
        "num_rows": none,
        "copies": none,
    }
    steps = Record(**fields)
    rate = np.where(state.proposed > 0, state.accepted / np.maximum(state.proposed, 1), np.nan)
    outcome = FinishedPrompts(final, particles)
    for index, request in enumerate(requests):
        request.outcome = take_prompt(outcome, index)
        request.steps = jax.tree.map(lambda x, index=index: x[index], steps)
        request.tokens = np.asarray(chains.tokens[index, :, : request.cap])
        request.token_log_probs = np.asarray(chains.log_p[index, :, : request.cap])
        request.acceptance_rate = float(rate[index])
