"""A grader that judges in other processes, each response with a deadline of its own.

The thread of the caller, which may be running an accelerator, never waits unless it asks to. Each
worker has a thread here, and that waits:

    submit -> jobs, one per different response -> [thread <-> worker] ... -> finished

The thread that brings the last verdict of a submission also puts equal answers together.
"""

import collections
import contextlib
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from jax_power_smc.grading import string_rule
from jax_power_smc.grading.base import Verdict
from jax_power_smc.grading.references import read_gold
from jax_power_smc.grading.subprocesses import NotJudged


class Worker(Protocol):
    """What judges one response at a time; all but ``close`` is called by one thread."""

    def ask(self, do: str, **arguments: Any) -> Any:
        """The result of a function, or ``NotJudged``."""

    def close(self) -> None:
        """Ends what is going on, from any thread."""

    def end(self) -> None:
        """Called by the asking thread when nothing more will be asked."""


class _Submission:
    """One submission; its threads write, under the lock of the grader."""

    def __init__(self, tag: Hashable, gold: dict[str, Any], responses: Sequence[str]) -> None:
        self.tag = tag
        self.gold = gold
        self.responses = list(responses)
        self.different = list(dict.fromkeys(responses))
        self.verdicts: dict[str, Verdict] = {}


class PooledGrader:
    """A ``Grader`` over workers; ``submit`` and ``finished`` are for one thread.

    Args:
      kind: of the answers.
      make_worker: makes a worker that judges answers of this kind.
      processes: how many workers there are; each is made when there is something for it to do.
      merges: whether workers can find equal answers (``math_answer.merge``).
    """

    def __init__(
        self, kind: str, make_worker: Callable[[], Worker], processes: int, merges: bool = False
    ) -> None:
        self.pending = 0
        self._kind = kind
        self._make_worker = make_worker
        self._processes = processes
        self._merges = merges
        self._lock = threading.Lock()
        self._closed = False
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._jobs: queue.SimpleQueue[tuple[_Submission, str] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Submission | Exception] = queue.SimpleQueue()

    def submit(self, tag: Hashable, gold: Any, responses: Sequence[str]) -> None:
        """As in ``Grader``; never blocks.

        Raises:
          ValueError: for a gold answer that cannot be, or after ``close``.
        """
        if self._closed:
            raise ValueError("the grader is closed; nothing can be submitted.")
        submission = _Submission(tag, read_gold(self._kind, gold), responses)
        self.pending += 1
        if not submission.different:
            self._done.put(submission)
        for response in submission.different:
            self._jobs.put((submission, response))
            if len(self._threads) < self._processes:
                self._add_worker()

    def finished(self, wait: bool = False) -> list[tuple[Hashable, list[Verdict]]]:
        """As in ``Grader``.

        Raises:
          OSError: no worker can be started.
        """
        done: list[_Submission | Exception] = []
        with contextlib.suppress(queue.Empty):
            while self.pending > len(done):
                done.append(self._done.get(block=wait and not done))
        for each in done:
            if isinstance(each, Exception):
                self.close()
                raise each
        self.pending -= len(done)
        return [(each.tag, _in_order(each)) for each in done if isinstance(each, _Submission)]

    def close(self) -> None:
        """As in ``Grader``; kills what is being judged."""
        with self._lock:
            self._closed = True
            workers, threads = list(self._workers), list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for worker in workers:
            worker.close()
        for thread in threads:
            thread.join()
        self.pending = 0

    def __enter__(self) -> "PooledGrader":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _add_worker(self) -> None:
        worker = self._make_worker()
        thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
        with self._lock:
            self._workers.append(worker)
            self._threads.append(thread)
        thread.start()

    def _serve(self, worker: Worker) -> None:
        """The life of a thread: judges until it is told to stop."""
        try:
            while (job := self._jobs.get()) is not None and not self._closed:
                self._judge(worker, *job)
        except Exception as error:
            # The caller finds it in ``finished``; nobody looks into a thread.
            self._done.put(error)
        finally:
            worker.end()

    def _judge(self, worker: Worker, submission: _Submission, response: str) -> None:
        try:
            verdict = Verdict(**worker.ask("judge", response=response, **submission.gold))
        except NotJudged as reason:
            verdict = Verdict(None, False, False, str(reason))
        with self._lock:
            submission.verdicts[response] = verdict
            last = len(submission.verdicts) == len(submission.different)
        if last:
            if self._merges:
                _put_together(worker, submission)
            self._done.put(submission)


def default_processes(cpus: int | None) -> int:
    """As many workers as there are processors, but for the one that runs the caller; at most 8."""
    return max(1, min(8, (cpus or 1) - 1))


def _in_order(submission: _Submission) -> list[Verdict]:
    return [submission.verdicts[response] for response in submission.responses]


def _put_together(worker: Worker, submission: _Submission) -> None:
    """Gives equal answers equal texts: right ones that of the gold answer, wrong ones a common one.

    Where the worker cannot tell which wrong ones are equal, they keep their own texts.
    """
    verdicts = submission.verdicts
    gold = string_rule.normalise(string_rule.gold_answer(submission.gold["gold"]))
    counts = collections.Counter(
        verdicts[response].parsed
        for response in submission.responses
        if not verdicts[response].correct
    )
    wrong = [(answer, count) for answer, count in counts.items() if answer is not None]
    merged: dict[str, str] = {}
    if len(wrong) > 1:
        with contextlib.suppress(NotJudged):
            merged = worker.ask("merge", answers=wrong)
    for response, verdict in verdicts.items():
        if verdict.correct:
            verdicts[response] = verdict._replace(parsed=gold or verdict.parsed)
        elif verdict.parsed is not None:
            verdicts[response] = verdict._replace(parsed=merged.get(verdict.parsed, verdict.parsed))
