"""The host's loop that keeps P prompt slots full and the row table as large as it has to be.

In each round waiting prompts are prefilled into free slots, a chunk of steps runs for all slots,
and prompts that are done are finalized and leave.

The host never waits for the chunk that it has just handed to the device: it looks at the one
before, while this one runs. So a prompt leaves its slot at most one chunk late, and the device
always has work. What is decided about rows is in ``row_policy``.
"""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jax_power_smc.core.mesh import no_ambient_mesh
from jax_power_smc.core.types import Params
from jax_power_smc.engine import records, row_policy, timing
from jax_power_smc.engine.buckets import Sizes
from jax_power_smc.engine.chunk import Chunk
from jax_power_smc.engine.device_rows import DeviceRows, Prefix
from jax_power_smc.engine.known_rows import KnownRows
from jax_power_smc.engine.programs import FinishedPrompts, Snapshot
from jax_power_smc.engine.records import PendingRecords, copy_to_host_async
from jax_power_smc.engine.request import ActiveRequest, Suspended, take_prompt
from jax_power_smc.engine.stats import EngineStats
from jax_power_smc.engine.timing import PhaseTimer, ReadyTimes
from jax_power_smc.models.base import LanguageModel
from jax_power_smc.samplers import Kernel
from jax_power_smc.targets.power import PowerTarget

_END: Any = object()
# Seconds until an idle engine asks for prompts again.
_IDLE_SECONDS = 1e-3


class _Resumable(NamedTuple):
    """A suspended request that can resume, and the slot in which it will."""

    request: ActiveRequest
    suspended: Suspended
    slot: int


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
      stats: what the rows were used for.
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
        self.rows = DeviceRows(model, params, sampler, key, sizes, tokenizer, mesh)
        self.sizes, self.lookahead = sizes, lookahead
        slots = self.rows.allocator.slots_per_shard
        # All that one prompt may need, or those of all prompts.
        self._typical_rows = max(sampler.num_particles, math.ceil(slots * sampler.typical_rows))
        self._timer, self._ready = PhaseTimer(), ReadyTimes()
        self.seconds = self._timer.seconds
        self.stats = EngineStats()
        self._arrived = 0
        # Requests that have been read and have no slot yet: no rows, or no room for a stop rule.
        self._held: list[ActiveRequest] = []
        self._clear()

    def _clear(self) -> None:
        self.rows.clear()
        self._occupants: list[ActiveRequest | None] = [None] * self.sizes.slots
        # Finalized groups on their way to the host.
        self._leaving: collections.deque[tuple[dict[int, ActiveRequest], FinishedPrompts]] = (
            collections.deque()
        )
        self._known = KnownRows(self.rows.layout.data_shards)

    def check(self, target: PowerTarget) -> None:
        """Raises ValueError for a target that cannot be served, see ``TargetBatch``."""
        self.rows.targets.check(target)

    @no_ambient_mesh()
    def warmup(self) -> float:
        """Compiles what prompts of all sizes need as a rule, if no target restricts anything.

        Returns:
          Seconds of compiling.
        """
        before = timing.compile_seconds()
        self.rows.warmup(self._typical_rows)
        compiling = timing.compile_seconds() - before
        self.seconds["compile"] += compiling
        return compiling

    def run(
        self,
        waiting: Iterable[ActiveRequest | None],
        until: Callable[[], bool] | None = None,
        count: int | None = None,
    ) -> Generator[ActiveRequest]:
        """Yields every request when it is finished, has failed or was cancelled.

        ``until`` is asked before every round. Once it says True everything ends: what is still
        running is lost.

        ``waiting`` is read while slots are free; a None in it means that nothing is waiting at the
        moment. If reading it raises, everything that has entered is finished and yielded before
        the error is raised again. ``count`` says how many it has, if that is known: rows are
        reserved for those that may still come.
        """
        queue: Iterator[ActiveRequest | None] = iter(waiting)
        failure: Exception | None = None
        is_open, read = count != 0, 0
        while (is_open or self._held or self._is_busy) and not self._is_told_to_stop(until):
            arrivals, self._held = self._held, []
            try:
                while is_open and len(arrivals) < self._occupants.count(None):
                    request = next(queue, _END)
                    read += 1
                    is_open = request is not _END and read != count
                    if request is _END or request is None:
                        break
                    arrivals.append(request)
            except Exception as error:
                failure, is_open = error, False
            if is_open and not arrivals and not self._is_busy:
                time.sleep(_IDLE_SECONDS)
            yield from self._round(arrivals, is_open)
        if failure is not None:
            raise failure

    @property
    def _is_busy(self) -> bool:
        return any(self._occupants) or bool(self._leaving)

    def _useful(self, entering: list[int]) -> int:
        """As many rows as the fullest device's prompts can have, also those that enter."""
        runs = np.array([r is not None and not r.suspended for r in self._occupants])
        runs[entering] = True
        by_device = runs.reshape(self.rows.layout.data_shards, -1).sum(axis=1)
        return int(by_device.max()) * self.rows.sampler.num_particles

    @property
    def _idle_shards(self) -> np.ndarray:
        """[D] bool: devices without prompts, also in the chunks that run."""
        slots: list[Any] = [self._occupants, *(chunk.occupants for chunk in self._known.unseen)]
        runs = [
            any(r is not None and (r in self._occupants or r.cancelled) for r in requests)
            for requests in zip(*slots, strict=True)
        ]
        by_device = np.reshape(runs, (self.rows.layout.data_shards, -1))
        return np.logical_not(by_device.any(axis=1))

    @property
    def _must_wait(self) -> bool:
        """Whether the chunks that run must be seen before anything else is handed out."""
        return self._known.load.stuck or not self._active

    @property
    def _active(self) -> list[ActiveRequest]:
        """The requests that have rows."""
        return [r for r in self._occupants if r is not None and not r.suspended]

    def _is_told_to_stop(self, until: Callable[[], bool] | None) -> bool:
        if until is None:
            return False
        # Where processes agree in ``until``, they wait there for their devices: that is decoding.
        self._resume_clock()
        stops = until()
        self._timer.book("decode")
        return stops

    def _resume_clock(self) -> None:
        """Resumes the clock; the time in which the device was still decoding counts."""
        self._timer.resume("decode", until=self._ready.last())

    # --- One round ---

    @no_ambient_mesh()
    def _round(self, arrivals: list[ActiveRequest], is_open: bool) -> list[ActiveRequest]:
        """Enters prompts, hands out a chunk, looks at an earlier one; returns what is finished."""
        self._resume_clock()
        done = [request for request in arrivals if not request.needs_decoding]
        entering = [request for request in arrivals if request.needs_decoding]
        try:
            done += self._drop_cancelled()
            # Only what is seen tells how many rows are free for a request that resumes.
            while self._known.unseen and self._resumable(self._known.in_use) is not None:
                done += self._look(self._known.unseen.popleft())
            row_limit = self._enter(entering, is_open)
            if self._active:
                self._hand_out_chunk(row_limit)
            # What was finalized a round ago was ready before the chunk of this round began.
            ready = len(self._leaving)
            while self._known.unseen and (
                len(self._known.unseen) > self.lookahead or self._must_wait
            ):
                done += self._look(self._known.unseen.popleft())
            for _ in range(ready if self.lookahead else len(self._leaving)):
                done += self._receive(*self._leaving[0])
                self._leaving.popleft()
        except jax.errors.JaxRuntimeError as error:
            self._fail(error, entering, done)
        self._timer.book("decode")
        return done

    def _enter(self, requests: list[ActiveRequest], is_open: bool) -> int:
        """Plans the rows, resumes suspended requests and prefills new ones; returns the limit.

        Requests beyond the rows, or the table of stop rules, are held.
        """
        was_idle = not any(self._occupants)
        shards = self.rows.layout.data_shards
        suspended = any(r is not None and r.suspended for r in self._occupants)
        # No prompt enters while another one waits for the rows that it had.
        new, self._held = ([], requests) if suspended else self._place_targets(requests)
        free = [slot for slot, occupant in enumerate(self._occupants) if occupant is None]
        allocator = self.rows.allocator
        at_most, most = self._known.at_most(self._idle_shards), self.sizes.rows[-1]
        entering, kept = np.zeros_like(at_most), {}
        resumed = self._resumable(at_most)
        if resumed is not None:
            entering[resumed.slot // allocator.slots_per_shard] += resumed.suspended.needs
        known = self._known.expected
        for request in new:
            room = most - at_most - entering
            slot = allocator.place(free, known + entering, room)
            if slot is None:
                break
            free.remove(slot)
            kept[slot] = request
            request.order, self._arrived = self._arrived, self._arrived + 1
            entering[slot // allocator.slots_per_shard] += 1
        runs = sum(r is not None for r in self._occupants) + len(kept)
        # A prompt alone may have all rows: there is no other one that asks for any.
        more = bool(self._held) or len(new) > len(kept) or (is_open and runs > 1)
        plan = row_policy.plan_rows(
            self.sizes.rows,
            self.rows.num_rows,
            int((at_most + entering).max()),
            self._known.load._replace(in_use=int((self._known.in_use + entering).max())),
            useful=self._useful([*kept, *([resumed.slot] if resumed else [])]),
            reserve=-(-self.sizes.group // shards) if more and not suspended else 0,
            alone=runs == 1,
        )
        self._held = [r for r in new if r not in kept.values()] + self._held
        lengths = [len(request.prompt) for request in kept.values()]
        lengths += [len(ids) for _, ids, _ in resumed.suspended.prefixes] if resumed else []
        if any(self._occupants) or kept:
            self._resize(plan.num_rows, lengths)
        if resumed is not None:
            self._resume(resumed)
        for group in allocator.groups(list(kept)):
            members = {place: kept[slot] for place, slot in group.items()}
            for place, slot in group.items():
                self._occupants[slot] = members[place]
            ids = {place: np.asarray(request.prompt) for place, request in members.items()}
            prefixes = [
                Prefix(place, tokens, self.rows.targets.start_state(members[place].target))
                for place, tokens in ids.items()
            ]
            self.rows.enter(members, prefixes, group)
        self._known.entered = entering
        if was_idle and kept:
            self.rows.block_until_ready()
            self._timer.book("prefill")
        return plan.row_limit

    def _resize(self, num_rows: int, lengths: list[int]) -> None:
        """Gives the table a size that suits rows of these lengths too, which are put in next."""
        bucket = max((self.sizes.prompt_bucket(length) for length in lengths), default=0)
        self._known.entered_longest = max(lengths, default=0)
        ladder = self.sizes.cache_buckets()
        needed = max(min(self._known.longest(self.sizes.chunk), ladder[-1]), bucket)
        capacity = row_policy.plan_capacity(ladder, self.rows.capacity, needed)
        self.rows.resize(num_rows, capacity)

    def _place_targets(
        self, requests: list[ActiveRequest]
    ) -> tuple[list[ActiveRequest], list[ActiveRequest]]:
        """Those whose targets can be placed now; and the others, held until requests leave."""
        in_use = {occupant.target for occupant in self._occupants if occupant is not None}
        for number, request in enumerate(requests):
            if not self.rows.targets.place(request.target, in_use):
                return requests[:number], requests[number:]
            in_use.add(request.target)
        return requests, []

    def _drop_cancelled(self) -> list[ActiveRequest]:
        unwanted = np.array([r is not None and r.cancelled for r in self._occupants])
        if not unwanted.any():
            return []
        if self.rows.num_rows:
            self.rows.cancel(unwanted)
        dropped = [r for r in self._occupants if r is not None and r.cancelled]
        self._occupants = [None if r is None or r.cancelled else r for r in self._occupants]
        return dropped

    def _hand_out_chunk(self, row_limit: int) -> None:
        recorded, snapshot = self.rows.decode_chunk(row_limit)
        self._ready.watch(snapshot.running)
        copy_to_host_async(snapshot)
        pending = PendingRecords(recorded)
        active = [None if r is None or r.suspended else r for r in self._occupants]
        self._known.hand_out(active, pending, snapshot, self.rows.num_rows, row_limit)
        for slot, request in enumerate(active):
            if request is not None:
                request.pieces.append((pending, slot))

    # --- What a chunk showed ---

    def _look(self, chunk: Chunk) -> list[ActiveRequest]:
        """Learns from a chunk: who is done, how full the tables are, whether any prompt moves."""
        on_device = chunk.snapshot.prompts
        snapshot: Snapshot = records.to_host(chunk.snapshot)
        chunk.records.fetch()
        chunk = chunk._replace(snapshot=snapshot)
        self.stats.add(snapshot, chunk.records.copies, chunk.num_rows)
        running = snapshot.running.tolist()
        stuck = chunk.stuck(self.rows.allocator.slots_per_shard)
        self._known.see(chunk, bool(stuck))
        done = {
            slot: request
            for slot, request in enumerate(chunk.occupants)
            if request is not None and request is self._occupants[slot] and not running[slot]
        }
        for group in self.rows.allocator.groups(sorted(done)):
            self._finalize({place: done[slot] for place, slot in group.items()}, on_device, group)
            for slot in group.values():
                self._occupants[slot] = None
        if snapshot.spoiled.any():
            self.rows.reset()
        # With fewer rows, or some of them reserved, the next chunk has more.
        least = min(chunk.num_rows, chunk.row_limit)
        if stuck and not self._known.unseen and least == self.sizes.rows[-1]:
            return self._make_room(chunk, stuck)
        return []

    def _finalize(self, requests: dict[int, ActiveRequest], prompts: Any, group: Any) -> None:
        outcome = self.rows.finalize(prompts, group)
        copy_to_host_async(outcome)
        self._leaving.append((requests, outcome))

    def _make_room(self, chunk: Chunk, stuck: list[list[int]]) -> list[ActiveRequest]:
        """The youngest prompt with rows gives them back, on each device where all have stalled.

        ``chunk`` is the last one that was handed out, and the table has its largest size.
        """
        failed = []
        unwanted = np.zeros((self.sizes.slots,), bool)
        for holding in stuck:
            youngest = max(holding, key=lambda s: self._occupants[s].order)  # type: ignore[union-attr]
            request = self._occupants[youngest]
            assert request is not None
            unwanted[youngest] = True
            if len(holding) > 1:
                self._suspend(request, youngest, chunk)
                self.stats.preemptions += 1
                continue
            request.error = ValueError(
                f"a prompt alone needs {chunk.rows_needed(youngest)} rows of the model, "
                f"and there are {chunk.num_rows}; raise rows= or lower num_particles."
            )
            self._occupants[youngest] = None
            failed.append(request)
        if failed:
            self.rows.cancel(unwanted & np.array([o is None for o in self._occupants]))
        self.rows.suspend(unwanted)
        self._known.give_back(chunk.rows_in_use(unwanted, self.rows.allocator.slots_per_shard))
        return failed

    def _suspend(self, request: ActiveRequest, slot: int, chunk: Chunk) -> None:
        """Notes what the request will resume from."""
        request.suspended = chunk.suspended(request, slot)
        request.num_preempted += 1

    def _resumable(self, in_use: np.ndarray) -> _Resumable | None:
        """The earliest suspended request, if it can resume on any device: that with the most rows.

        It waits for a chunk in which no other one stalled: by then earlier prompts have got the
        rows that they asked for and have taken steps, so that resuming leads to progress.
        """
        waiting = [request for request in self._occupants if request and request.suspended]
        if not waiting or (self._active and self._known.load.stalled):
            return None
        first = min(waiting, key=lambda request: request.order)
        assert first.suspended is not None
        own = self._occupants.index(first)
        free = [own, *(slot for slot, other in enumerate(self._occupants) if other is None)]
        room, needs = self.sizes.rows[-1] - in_use, first.suspended.needs
        slot = self.rows.allocator.place(free, in_use, room, needs)
        return None if slot is None else _Resumable(first, first.suspended, slot)

    def _resume(self, resumable: _Resumable) -> None:
        request, suspended, slot = resumable
        self._occupants[self._occupants.index(request)] = None
        self._occupants[slot] = request
        (group,) = self.rows.allocator.groups([slot])
        ((place, _),) = group.items()
        stalled = bool(suspended.state.stalled)
        prefixes = [
            Prefix(place, tokens, stop_state, stalled, members)
            for members, tokens, stop_state in suspended.prefixes
        ]
        self.rows.enter({place: request}, prefixes, group)
        self.stats.resumed += 1
        self.stats.recomputed += sum(len(prefix.tokens) for prefix in prefixes)
        request.suspended = None

    def _receive(
        self, requests: dict[int, ActiveRequest], outcome: FinishedPrompts
    ) -> list[ActiveRequest]:
        """Waits for the outcome of a group; requests are given by their place in it."""
        outcome = records.to_host(outcome)
        for place, request in requests.items():
            request.outcome = take_prompt(outcome, place)
            pieces = [pending.of(slot) for pending, slot in request.pieces]
            request.steps, request.pieces = records.concatenate(pieces), []
            index = np.maximum(request.outcome.final.particle_index[0], 0)
            request.tokens, request.token_log_probs = records.trace(
                request.steps, index, request.cap
            )
        return list(requests.values())

    def _fail(
        self, error: Exception, entering: list[ActiveRequest], done: list[ActiveRequest]
    ) -> None:
        """After a program has failed: what ran resumes with fewer rows, if memory was the reason.

        Adds to ``done`` the requests that are lost: all in slots or leaving them, but none that
        waits.
        """
        # What is finished does not depend on the program that failed.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while self._leaving:
                rescued = self._receive(*self._leaving[0])
                self._leaving.popleft()
                done += rescued
        occupants = [r for r in self._occupants if r is not None]
        leaving = [request for group, _ in self._leaving for request in group.values()]
        safe, held = {*done, *self._held}, self._held
        unfinished = [r for r in dict.fromkeys([*leaving, *occupants, *entering]) if r not in safe]
        tried, least = self.rows.num_rows, self.rows.sampler.num_particles
        fewer = [size for size in self.sizes.rows if size < tried] or [tried // 2]
        if "RESOURCE_EXHAUSTED" in str(error):
            if fewer[-1] >= least:
                self.sizes = self.rows.sizes = dataclasses.replace(self.sizes, rows=tuple(fewer))
                self._recover(unfinished, held)
                return
            error = jax.errors.JaxRuntimeError(
                f"the device's memory does not suffice for {tried} rows, and with fewer a prompt "
                f"of {least} particles may fail; lower num_particles, max_new_tokens or the number "
                f"of prompts at a time ({str(error).splitlines()[0].rstrip('.')})."
            )
        for request in unfinished:
            request.error = error
        self._clear()
        self._held = held
        done += unfinished

    def _recover(self, requests: list[ActiveRequest], held: list[ActiveRequest]) -> None:
        """Resumes what ran from the last chunk seen; what entered since begins again.

        Nothing is decided twice with other numbers, so no result changes.
        """
        seen, before = self._known.seen, self._occupants
        self._clear()
        anew = []
        for request in requests:
            slot = before.index(request) if request in before else None
            if slot is not None and seen is not None and request in seen.occupants:
                last = [pending for pending, _ in request.pieces].index(seen.records)
                request.pieces = request.pieces[: last + 1]
                self._suspend(request, seen.occupants.index(request), seen)
            elif slot is None or request.suspended is None:
                request.pieces = []
                anew.append(request)
                continue
            self.rows.targets.place(request.target, [r.target for r in self._occupants if r])
            self._occupants[slot] = request
        self._held = [*sorted(anew, key=lambda r: r.order), *held]
