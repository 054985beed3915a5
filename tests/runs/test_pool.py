"""Worker processes that are gone when the driver has something to say to them."""

from __future__ import annotations

import multiprocessing as mp
from functools import partial

import pytest

from kdsearch.runs.assemble import runner
from kdsearch.runs.engines.pool import PoolEngine, Worker
from kdsearch.runs.jobs import Failure, Job, RungResult


class Dying(PoolEngine):
    """Its workers end at once."""

    def _start(self, device: str) -> Worker:
        ours, theirs = self.context.Pipe()
        theirs.close()
        process = mp.get_context("spawn").Process(target=int)
        process.start()
        return Worker(process, ours, device)


class Notes:
    """A desk that keeps what it is told."""

    def __init__(self, *, go_on: bool) -> None:
        self.go_on = go_on
        self.failures: list[str] = []

    def propose(self) -> Job | None:
        return None

    def record(self, job: Job, result: RungResult) -> bool:
        return self.go_on

    def finish(self, job: Job, failure: Failure) -> None:
        self.failures.append(failure.reason)


@pytest.mark.parametrize(("go_on", "failures"), [(True, ["worker lost"]), (False, [])])
def test_a_worker_that_dies_before_its_answer_takes_down_its_job_alone(go_on: bool, failures: list[str]) -> None:
    """A trial that was to go on is lost with its worker; one that was to stop has ended already."""
    engine, notes = Dying(partial(runner, "nowhere"), ["cpu"]), Notes(go_on=go_on)
    worker = engine.workers[0]
    before = worker.process
    worker.job = Job("search", 1, {}, 0)
    engine._handle(worker, ("result", RungResult("sparse", 0.5, 1.0)), notes)
    assert notes.failures == failures
    assert worker.job is None
    assert worker.process is not before
    worker.process.join(20)
    engine.close()
