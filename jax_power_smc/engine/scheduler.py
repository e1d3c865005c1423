"""The host's loop that keeps P prompt slots full.

In each round waiting prompts are prefilled into free slots, a chunk of steps runs for all slots,
and prompts that are done are finalized and leave.

The host never waits for the chunk that it has just handed to the device: it looks at the one
before, while this one runs. So a prompt leaves its slot at most one chunk late, and the device
always has work.
"""

import collections
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core.mesh import no_ambient_mesh
from jax_power_smc.core.types import Params
from jax_power_smc.engine import timing
from jax_power_smc.engine.buckets import Sizes
from jax_power_smc.engine.device_slots import DeviceSlots
from jax_power_smc.engine.programs import FinishedPrompts
from jax_power_smc.engine.request import (
    ActiveRequest,
    PendingSteps,
    copy_to_host_async,
    take_prompt,
)
from jax_power_smc.engine.timing import PhaseTimer, ReadyTimes
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget

_END: Any = object()
# Seconds until an idle engine asks for prompts again.
_IDLE_SECONDS = 1e-3


class Scheduler:
    """Decodes prompts as they come; see the module's docstring.

    Args:
      model, params: the language model.
      sampler: how the particles take their steps.
      key: the key of the run.
      sizes: shapes; slots and group are multiples of the mesh's data shards.
      tokenizer: for stop rules.
      lookahead: how many chunks are handed out beyond the one whose outcome is looked at.
      mesh: devices, of which each data shard has an equal part of the slots; None for one device.

    Attributes:
      seconds: by phase, since the beginning. Prefills while other prompts run count as decoding.
    """

    @no_ambient_mesh()
    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        sampler: Kernel,
        key: jax.Array,
        sizes: Sizes,
        tokenizer: Any = None,
        lookahead: int = 1,
        mesh: Mesh | None = None,
    ) -> None:
        self.slots = DeviceSlots(model, params, sampler, key, sizes, tokenizer, mesh)
        self.sizes, self.lookahead = sizes, lookahead
        self._timer, self._ready = PhaseTimer(), ReadyTimes()
        self.seconds = self._timer.seconds
        self._clear()

    def _clear(self) -> None:
        self.slots.clear()
        self._occupants: list[ActiveRequest | None] = [None] * self.sizes.slots
        # Requests whose stop rules the table has no room for yet.
        self._held: list[ActiveRequest] = []
        # Chunks that were handed out and not looked at: who ran in them, and who still runs.
        self._unseen: collections.deque[tuple[list[ActiveRequest | None], jax.Array]] = (
            collections.deque()
        )
        # Finalized groups on their way to the host.
        self._leaving: collections.deque[tuple[dict[int, ActiveRequest], FinishedPrompts]] = (
            collections.deque()
        )

    def check(self, target: PowerTarget) -> None:
        """Raises ValueError for a target that cannot be served, see ``TargetBatch``."""
        self.slots.targets.check(target)

    @no_ambient_mesh()
    def warmup(self) -> float:
        """Compiles what prompts of all sizes need, if no target has a truncation or a stop rule.

        Returns:
          Seconds of compiling.
        """
        before = timing.compile_seconds()
        self.slots.warmup()
        compiling = timing.compile_seconds() - before
        self.seconds["compile"] += compiling
        return compiling

    def run(
        self,
        waiting: Iterable[ActiveRequest | None],
        until: Callable[[], bool] | None = None,
    ) -> Generator[ActiveRequest]:
        """Yields every request when it is finished, has failed or was cancelled.

        ``until`` is asked before every round. Once it says True everything ends: what is still
        running is lost.

        ``waiting`` is read while slots are free; a None in it means that nothing is waiting at the
        moment. If reading it raises, everything that has entered is finished and yielded before
        the error is raised again.
        """
        queue: Iterator[ActiveRequest | None] = iter(waiting)
        failure: Exception | None = None
        is_open = True
        while (is_open or self._held or self._is_busy) and not self._is_told_to_stop(until):
            arrivals, self._held = self._held, []
            try:
                while is_open and len(arrivals) < self._occupants.count(None):
                    request = next(queue, _END)
                    is_open = request is not _END
                    if request is _END or request is None:
                        break
                    arrivals.append(request)
            except Exception as error:
                failure, is_open = error, False
            if is_open and not arrivals and not self._is_busy:
                time.sleep(_IDLE_SECONDS)
            yield from self._round(arrivals)
        if failure is not None:
            raise failure

    @property
    def _is_busy(self) -> bool:
        return any(self._occupants) or bool(self._leaving)

    def _is_told_to_stop(self, until: Callable[[], bool] | None) -> bool:
        if until is None:
            return False
        # Where processes agree in ``until``, they wait there for their devices: that is decoding.
        self._resume()
        stops = until()
        self._timer.book("decode")
        return stops

    def _resume(self) -> None:
        """Resumes the clock; the time in which the device was still decoding counts."""
        self._timer.resume("decode", until=self._ready.last())

    # --- One round ---

    @no_ambient_mesh()
    def _round(self, arrivals: list[ActiveRequest]) -> list[ActiveRequest]:
        """Enters prompts, hands out a chunk, looks at an earlier one; returns what is finished."""
        self._resume()
        done = [request for request in arrivals if not request.needs_decoding]
        entering = [request for request in arrivals if request.needs_decoding]
        try:
            self._enter(entering)
            done += self._drop_cancelled()
            if any(self._occupants):
                self._hand_out_chunk()
            # What was finalized a round ago was ready before the chunk of this round began.
            ready = len(self._leaving)
            self._finalize_done()
            for _ in range(ready if self.lookahead else len(self._leaving)):
                done += self._receive(*self._leaving[0])
                self._leaving.popleft()
        except jax.errors.JaxRuntimeError as error:
            done += self._fail(error, entering, done)
        self._timer.book("decode")
        return done

    def _enter(self, requests: list[ActiveRequest]) -> None:
        """Prefills requests into free slots, as many as the table of stop rules has room for."""
        was_idle = not any(self._occupants)
        placed = self._place_targets(requests)
        free = [slot for slot, occupant in enumerate(self._occupants) if occupant is None]
        allocator = self.slots.allocator
        chosen = dict(zip(allocator.round_robin(free), placed, strict=False))
        for group in allocator.groups(list(chosen)):
            members = {place: chosen[slot] for place, slot in group.items()}
            first = PendingSteps(self.slots.prefill(members, group))
            for place, request in members.items():
                self._occupants[group[place]] = request
                request.start_clock, request.pieces = self.slots.clock, [(first, place)]
        if was_idle and placed:
            self.slots.block_until_ready()
            self._timer.book("prefill")

    def _place_targets(self, requests: list[ActiveRequest]) -> list[ActiveRequest]:
        """Those whose targets can be placed now; the others are held until requests leave."""
        in_use = {occupant.target.stop for occupant in self._occupants if occupant is not None}
        for number, request in enumerate(requests):
            if not self.slots.targets.place(request.target, in_use):
                requests, self._held = requests[:number], requests[number:]
                break
            in_use.add(request.target.stop)
        return requests

    def _drop_cancelled(self) -> list[ActiveRequest]:
        unwanted = np.array([r is not None and r.cancelled for r in self._occupants])
        if not unwanted.any():
            return []
        self.slots.cancel(unwanted)
        dropped = [r for r in self._occupants if r is not None and r.cancelled]
        self._occupants = [None if r is None or r.cancelled else r for r in self._occupants]
        return dropped

    def _hand_out_chunk(self) -> None:
        end = self.slots.clock + self.sizes.chunk
        # Of the oldest sequence; at the cap no further token is decoded.
        entries = max(
            min(end - request.start_clock, request.cap - 1)
            for request in self._occupants
            if request is not None
        )
        info, running = self.slots.decode_chunk(entries)
        self._ready.watch(running)
        copy_to_host_async(running)
        self._unseen.append((list(self._occupants), running))
        steps = PendingSteps(info)
        for slot, request in enumerate(self._occupants):
            if request is not None:
                request.pieces.append((steps, slot))

    def _finalize_done(self) -> None:
        """Empties the slots whose prompts are known to be done."""
        done: dict[int, ActiveRequest] = {}
        while len(self._unseen) > self.lookahead:
            occupants, running = self._unseen.popleft()
            for slot, is_running in enumerate(np.asarray(running).tolist()):
                request = occupants[slot]
                if request is not None and request is self._occupants[slot] and not is_running:
                    done[slot] = request
        # The cap is known without looking: the chunk that reaches it has been handed out.
        for slot, request in enumerate(self._occupants):
            if request is not None and self.slots.clock - request.start_clock >= request.cap - 1:
                done[slot] = request
        for group in self.slots.allocator.groups(sorted(done)):
            outcome = self.slots.finalize(group)
            copy_to_host_async(outcome)
            self._leaving.append(({place: done[slot] for place, slot in group.items()}, outcome))
            for slot in group.values():
                self._occupants[slot] = None

    def _receive(
        self, requests: dict[int, ActiveRequest], outcome: FinishedPrompts
    ) -> list[ActiveRequest]:
        """Waits for the outcome of a group; requests are given by their place in it."""
        outcome = jax.device_get(outcome)
        for place, request in requests.items():
            request.outcome = take_prompt(outcome, place)
            pieces = [steps.of(index) for steps, index in request.pieces]
            request.steps = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *pieces)
            request.pieces = []
        return list(requests.values())

    def _fail(
        self, error: Exception, entering: list[ActiveRequest], done: list[ActiveRequest]
    ) -> list[ActiveRequest]:
        """The requests that are lost with the program that failed: all in slots or leaving them.

        Those that are waiting are not lost: they enter empty slots.
        """
        occupants = filter(None, self._occupants)
        leaving = (request for group, _ in self._leaving for request in group.values())
        safe, held = {*done, *self._held}, self._held
        lost = [r for r in dict.fromkeys([*occupants, *leaving, *entering]) if r not in safe]
        for request in lost:
            request.error = error
        self._clear()
        self._held = held
        return lost

    # --- For tests ---

    def check_integrity(self) -> None:
        """Asserts what holds between rounds: every request is in one place, and counts agree."""
        occupants = [request for request in self._occupants if request is not None]
        leaving = [request for group, _ in self._leaving for request in group.values()]
        everywhere = [*occupants, *leaving, *self._held]
        assert len(set(everywhere)) == len(everywhere), "a request is in two places"
        assert len(self._occupants) == self.sizes.slots
        assert len(self._unseen) <= self.lookahead
        for request in [*occupants, *leaving]:
            assert request.error is None and request.outcome is None and request.pieces
        for request in occupants:
            steps = self.slots.clock - request.start_clock
            assert len(request.pieces) == 1 + steps // self.sizes.chunk, "a chunk was not recorded"
            assert steps < max(request.cap - 1, 1), "a request stayed beyond its cap"
            assert self.slots.targets.has(request.target), "the stop rule of a request was evicted"
