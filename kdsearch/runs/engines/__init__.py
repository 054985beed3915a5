"""Where jobs run: in this process, in warm worker processes, or on Ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kdsearch.runs.jobs import Failure, Job, RungResult


class Desk(Protocol):
    """What an engine sees of the driver: where jobs come from and where their results go."""

    def propose(self) -> Job | None:
        """The next job; None when there is none at present (`waiting`) or any more."""

    def record(self, job: Job, result: RungResult) -> bool:
        """Keep a result; True when the job is to go on with its next rung."""

    def finish(self, job: Job, failure: Failure) -> None:
        """Keep why a job ended early."""


class Engine(Protocol):
    """Carries jobs to runners and results back until the desk has no more."""

    def serve(self, desk: Desk) -> None: ...

    def close(self) -> None: ...


class Queue:
    """A desk over a fixed list of jobs: the finalists."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = list(jobs)

    def propose(self) -> Job | None:
        return self.jobs.pop(0) if self.jobs else None
