"""Trials in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator

from kdsearch.runs.engines import Desk
from kdsearch.runs.jobs import Job, RungResult
from kdsearch.runs.settings import threads
from kdsearch.runs.trial import Runner, failure


class LocalEngine:
    """Runs each job's generator here. An exception of a job ends that job alone."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def serve(self, desk: Desk) -> None:
        data = self.runner.world.data
        with threads(data.device, data.input_shape[-1]):
            self._serve(desk)

    def _serve(self, desk: Desk) -> None:
        while (job := desk.propose()) is not None:
            rungs = self.runner.run(job)
            try:
                while (result := self._next(job, rungs, desk)) is not None and desk.record(job, result):
                    pass
            finally:
                rungs.close()

    @staticmethod
    def _next(job: Job, rungs: Iterator[RungResult], desk: Desk) -> RungResult | None:
        """The job's next result. Only the job's own exceptions end the job; the desk's are the run's."""
        try:
            return next(rungs, None)
        except Exception as error:
            desk.finish(job, failure(error))
            return None

    def close(self) -> None:
        """Nothing to end."""
