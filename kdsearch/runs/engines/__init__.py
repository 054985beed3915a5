"""Where jobs run: in this process, in warm worker processes, or on Ray."""

from __future__ import annotations

from typing import Protocol

from kdsearch.runs.jobs import Failure, Job, RungResult


class Desk(Protocol):
    """What an engine sees of the driver: where jobs come from and where their results go."""

    def propose(self) -> Job | None:
        """The next job. None means: ask again while jobs are under way; once none are, there is no more."""

    def record(self, job: Job, result: RungResult) -> bool:
        """Keep a result; True when the job is to go on with its next rung."""

    def finish(self, job: Job, failure: Failure) -> None:
        """Keep why a job ended early."""


class Engine(Protocol):
    """Carries jobs to runners and results back until the desk has no more."""

    def serve(self, desk: Desk) -> None: ...

    def close(self) -> None: ...
