"""Between a loop that has a thread of its own and the desk it works for.

The loop asks for jobs and reports what its workers say; each question is answered in the thread that serves the desk,
so that the study has one writer and Ctrl-C and the desk's errors arrive there. While nobody serves, the loop stands
still at its next question.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from typing import Any

from kdsearch.errors import UserError
from kdsearch.runs.engines import Desk
from kdsearch.runs.jobs import Failure, Job

END_TIMEOUT = 30.0  # seconds the loop is given to end


class Relay:
    """The loop's questions, the desk's answers, and who is at which job.

    The loop knows its trials by names. A trial carries one job, or none: an idle trial keeps a worker warm.

    Attributes:
        jobs: those under way, by trial.
        idle: trials without a job.
        closing: the loop is to end; whatever it asks is answered None.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.idle: set[str] = set()
        self.closing = False
        self._questions: Queue[tuple[str, tuple[Any, ...]] | None] = Queue()
        self._answers: Queue[Any] = Queue()
        self._given: deque[Job | None] = deque()  # for workers that have just been freed
        self._dry = False  # the desk had nothing when it was last asked
        self._error: Exception | None = None

    def __reduce__(self) -> tuple[type[Relay], tuple[()]]:
        """Ray Tune pickles into its snapshots what it is given; of a relay there is nothing to keep."""
        return Relay, ()

    # The loop's side.

    def room(self, trial: str) -> dict[str, Any] | None:
        """There is room for a trial: the config it is to have, `{"job": Job | None}`, or None for no trial now."""
        return self._ask("room", trial)

    def message(self, trial: str, kind: str, body: Any) -> bool:
        """What a trial's worker says. True to let it go on; False frees the worker for the next trial."""
        return bool(self._ask("message", trial, kind, body))

    def lost(self, trial: str, text: str, unmade: bool) -> None:
        """A trial's worker is gone; `unmade` if it died while it was made."""
        self._ask("lost", trial, text, unmade)

    def ended(self, error: Exception | None) -> None:
        """The loop is over."""
        self._error = error
        self._questions.put(None)

    def _ask(self, kind: str, *about: Any) -> Any:
        if self.closing:
            return None
        self._questions.put((kind, about))
        return self._answers.get()

    # The desk's side.

    def serve(self, desk: Desk) -> None:
        """Answer until the desk has no more jobs and none is under way.

        Raises:
            UserError: the workers cannot be made.
            RuntimeError: the loop has ended by itself.
        """
        answers: dict[str, Callable[..., Any]] = {"room": self._room, "message": self._message, "lost": self._lost}
        self._dry = False
        while not self._dry or self.jobs or any(self._given):
            question = self._questions.get()
            if question is None:
                raise RuntimeError(f"the engine ended before its time: {self._error}") from self._error
            kind, about = question
            self._answers.put(answers[kind](desk, *about))

    def close(self, thread: Thread) -> None:
        """Answer None to whatever is asked until the loop's thread has ended."""
        self.closing = True
        self._answers.put(None)  # for a question that an error in `serve` left open
        end = time.monotonic() + END_TIMEOUT
        while thread.is_alive() and time.monotonic() < end:
            try:
                if self._questions.get(timeout=0.05) is not None:
                    self._answers.put(None)
            except Empty:
                continue

    def _propose(self, desk: Desk) -> Job | None:
        job = desk.propose()
        self._dry = job is None
        return job

    def _room(self, desk: Desk, trial: str) -> dict[str, Any] | None:
        if self._given:
            job = self._given.popleft() or self._propose(desk)
        elif self.idle or (job := self._propose(desk)) is None:
            return None  # a warm worker will ask by itself
        if job is None:
            self.idle.add(trial)
        else:
            self.jobs[trial] = job
        return {"job": job}

    def _message(self, desk: Desk, trial: str, kind: str, body: Any) -> bool:
        if kind == "unfit":
            raise UserError(f"engine: a worker could not start: {body}")
        if kind == "result" and desk.record(self.jobs[trial], body):
            return True
        job = self.jobs.pop(trial, None)
        if kind == "failure" and job is not None:
            desk.finish(job, body)
        following = self._propose(desk)
        if following is None and trial in self.idle:
            return True
        self.idle.discard(trial)
        self._given.append(following)
        return False

    def _lost(self, desk: Desk, trial: str, text: str, unmade: bool) -> None:
        """What died while it was made would die again; any other worker takes down its job alone."""
        lines = text.strip().splitlines() or ["no reason is known"]
        if unmade:
            raise UserError(f"engine: a worker could not start: {lines[-1]}")
        self.idle.discard(trial)
        self._dry = False
        job = self.jobs.pop(trial, None)
        if job is not None:
            desk.finish(job, Failure("worker lost", lines[0], deterministic=False, trace=text))
