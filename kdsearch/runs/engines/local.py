"""Trials in this process, one after another."""

from __future__ import annotations

from kdsearch.runs.engines import Desk
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
                for result in rungs:
                    if not desk.record(job, result):
                        break
            except Exception as error:
                desk.finish(job, failure(error))
            finally:
                rungs.close()

    def close(self) -> None:
        """Nothing to end."""
