"""A grader that works in other processes, with a time limit for each response.

The caller's thread, which may be driving an accelerator, never waits unless it asks to. Each
worker has a thread of its own in this process, and that thread does the waiting:

    submit -> jobs, one per distinct response -> [thread <-> worker] ... -> finished

The thread that brings the last verdict of a submission also merges equal answers.

Why not ``pebble.ProcessPool`` (5.2.3 was tried)? Its workers import the caller's ``__main__`` and
with it JAX, SIGTERM to the job fails the response being graded, a worker whose parent is killed
lives on until its task ends, there is no memory limit, and children of a worker survive it. What
it would replace is ``WorkerProcess``; HumanEval's sandbox would still need ``KillableProcess``.
"""

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from jax_power_smc.core.subprocesses import WorkerError
from jax_power_smc.grading import string_rule
from jax_power_smc.grading.base import LONGEST, Grader, Verdict, too_long
from jax_power_smc.grading.references import parse_reference


class Worker(Protocol):
    """Grades one response at a time; everything but ``kill`` is called by one thread."""

    def call(self, function: str, **arguments: Any) -> Any:
        """Returns the function's result, or raises ``WorkerError``."""

    def kill(self) -> None:
        """Aborts the current call and refuses further ones; can be called from any thread."""

    def close(self) -> None:
        """Called by the worker's thread when there will be no further calls."""


@dataclasses.dataclass
class _Submission:
    """One submission; worker threads add verdicts to it under the grader's lock."""

    tag: Hashable
    reference: dict[str, Any]
    responses: list[str]
    distinct: list[str]
    verdicts: dict[str, Verdict] = dataclasses.field(default_factory=dict)


class PooledGrader(Grader):
    """A ``Grader`` over workers; ``submit`` and ``finished`` must be called from one thread.

    Args:
      kind: the kind of answers.
      make_worker: makes a worker that grades answers of this kind.
      processes: the largest number of workers; each is made when there is work for it.
      merges: whether workers can find equal answers (``math_answer.merge``).
      longest: characters of a response; longer ones are not graded.
    """

    def __init__(
        self,
        kind: str,
        make_worker: Callable[[], Worker],
        processes: int,
        merges: bool = False,
        longest: int = LONGEST,
    ) -> None:
        self.pending = 0
        self._kind, self._make_worker = kind, make_worker
        self._processes, self._merges, self._longest = processes, merges, longest
        self._lock, self._closed = threading.Lock(), False
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[tuple[_Submission, str] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[_Submission | Exception] = queue.SimpleQueue()

    def submit(self, tag: Hashable, gold: Any, responses: Sequence[str]) -> None:
        """As in ``Grader``; never blocks."""
        if self._closed:
            raise ValueError("the grader is closed; nothing can be submitted.")
        reference, distinct = parse_reference(self._kind, gold), list(dict.fromkeys(responses))
        submission = _Submission(tag, reference, list(responses), distinct)
        self.pending += 1
        if not distinct:
            self._finished.put(submission)
        for response in distinct:
            self._jobs.put((submission, response))
            if len(self._threads) < self._processes:
                self._add_worker()

    def finished(self, wait: bool = False) -> list[tuple[Hashable, list[Verdict]]]:
        """As in ``Grader``; OSError if no worker can be started."""
        finished: list[_Submission | Exception] = []
        with contextlib.suppress(queue.Empty):
            while self.pending > len(finished):
                finished.append(self._finished.get(block=wait and not finished))
        for each in finished:
            if isinstance(each, Exception):
                self.close()
                raise each
        self.pending -= len(finished)
        return [
            (each.tag, [each.verdicts[response] for response in each.responses])
            for each in finished
            if isinstance(each, _Submission)
        ]

    def close(self) -> None:
        """As in ``Grader``; kills whatever is being graded."""
        with self._lock:
            self._closed = True
            workers, threads = list(self._workers), list(self._threads)
        for worker in workers:
            self._jobs.put(None)
            worker.kill()
        for thread in threads:
            thread.join()
        self.pending = 0

    def _add_worker(self) -> None:
        worker = self._make_worker()
        thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
        with self._lock:
            self._workers.append(worker)
            self._threads.append(thread)
        thread.start()

    def _serve(self, worker: Worker) -> None:
        """Runs in a worker's thread until it is told to stop."""
        try:
            while (job := self._jobs.get()) is not None and not self._closed:
                self._judge(worker, *job)
        except Exception as error:
            # ``finished`` raises it; an exception in a thread would go unnoticed.
            self._finished.put(error)
        finally:
            worker.close()

    def _judge(self, worker: Worker, submission: _Submission, response: str) -> None:
        try:
            verdict = too_long(response, self._longest) or Verdict(
                **worker.call("judge", response=response, **submission.reference)
            )
        except WorkerError as reason:
            verdict = Verdict(None, False, False, str(reason))
        with self._lock:
            submission.verdicts[response] = verdict
            last = len(submission.verdicts) == len(submission.distinct)
        if last:
            if self._merges:
                _merge_equal_answers(worker, submission)
            self._finished.put(submission)


def default_processes(cpus: int | None) -> int:
    """One worker per CPU, less one for the caller; at least 1 and at most 8."""
    return max(1, min(8, (cpus or 1) - 1))


def _merge_equal_answers(worker: Worker, submission: _Submission) -> None:
    """Gives equal answers one text: that of the reference if right, else the commonest among them.

    If the worker cannot tell which wrong answers are equal, they keep their own texts.
    """
    verdicts = submission.verdicts
    reference = string_rule.normalise(string_rule.reference_answer(submission.reference["gold"]))
    counts = collections.Counter(
        verdicts[response].parsed
        for response in submission.responses
        if not verdicts[response].correct
    )
    wrong = [(answer, count) for answer, count in counts.items() if answer is not None]
    merged: dict[str, str] = {}
    if len(wrong) > 1:
        with contextlib.suppress(WorkerError):
            merged = worker.call("merge", answers=wrong)
    for response, verdict in verdicts.items():
        if verdict.correct:
            verdicts[response] = verdict._replace(parsed=reference or verdict.parsed)
        elif verdict.parsed is not None:
            verdicts[response] = verdict._replace(parsed=merged.get(verdict.parsed, verdict.parsed))
