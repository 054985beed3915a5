"""Trials in warm worker processes: started once, one thread each, one GPU each where there are several.

A worker builds its world from the run's folder and then waits for jobs on a pipe. A worker that dies takes down its
job alone: the job is reported as a failure of the machine and a fresh worker takes its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from kdsearch.errors import UserError
from kdsearch.runs.engines import Desk
from kdsearch.runs.jobs import Failure, Job, RungResult
from kdsearch.runs.trial import Runner, failure

Build = Callable[[str], Runner]
START_TIMEOUT = 300.0


@dataclass
class Worker:
    process: BaseProcess
    pipe: Connection
    device: str
    job: Job | None = None


class PoolEngine:
    """N processes that run jobs side by side.

    Args:
        build: makes a worker's runner on a device; importable, with picklable arguments bound.
        devices: one entry per worker.
    """

    def __init__(self, build: Build, devices: list[str]) -> None:
        self.build = build
        self.context = mp.get_context("spawn")
        self.workers = [self._start(device) for device in devices]

    def _start(self, device: str) -> Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.build, device), daemon=True)
        # One thread a worker: two workers of two threads on two cores run below the speed of one.
        before = {key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        try:
            process.start()
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
        theirs.close()
        return Worker(process, ours, device)

    def serve(self, desk: Desk) -> None:
        for worker in self.workers:
            self._assign(worker, desk)
        while any(worker.job is not None for worker in self.workers):
            busy = {worker.pipe: worker for worker in self.workers if worker.job is not None}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace(worker, desk)
                    continue
                self._handle(worker, message, desk)
            # A result can free the desk to propose again for workers that found it empty.
            for worker in self.workers:
                if worker.job is None:
                    self._assign(worker, desk)

    def _assign(self, worker: Worker, desk: Desk) -> None:
        job = desk.propose()
        if job is None:
            return
        worker.job = job
        self._send(worker, ("job", job), desk)

    def _send(self, worker: Worker, message: tuple[str, Job | None], desk: Desk) -> None:
        try:
            worker.pipe.send(message)
        except OSError:
            self._replace(worker, desk)

    def _handle(self, worker: Worker, message: Any, desk: Desk) -> None:
        assert worker.job is not None
        job, (kind, body) = worker.job, message
        if kind == "result":
            assert isinstance(body, RungResult)
            go_on = desk.record(job, body)
            if not go_on:
                worker.job = None
            self._send(worker, ("next" if go_on else "stop", None), desk)
        elif kind == "failure":
            worker.job = None
            desk.finish(job, body)
        elif kind == "done":
            worker.job = None
        else:
            raise UserError(body)

    def _replace(self, worker: Worker, desk: Desk) -> None:
        """The worker's process is gone; its job failed for the machine's sake."""
        job, worker.job = worker.job, None
        worker.process.join(5)
        code = worker.process.exitcode
        worker.pipe.close()
        fresh = self._start(worker.device)
        worker.process, worker.pipe = fresh.process, fresh.pipe
        if job is not None:
            desk.finish(job, Failure("worker lost", f"the worker process ended with code {code}", deterministic=False))

    def close(self) -> None:
        """End the workers this engine started, and only those."""
        for worker in self.workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(("end", None))
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join(5)


def _work(pipe: Connection, build: Build, device: str) -> None:
    """A worker's life: build once, then jobs until told to end or until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    import torch

    torch.set_num_threads(1)
    try:
        runner = build(device)
    except Exception as error:
        if pipe.poll(START_TIMEOUT):
            pipe.recv()
            pipe.send(("fatal", f"a worker could not start: {error}"))
        return
    while True:
        try:
            kind, job = pipe.recv()
        except (EOFError, OSError):
            return
        if kind != "job":
            if kind == "end":
                return
            continue
        try:
            _run(pipe, runner, job)
        except (EOFError, OSError, BrokenPipeError):
            return


def _run(pipe: Connection, runner: Runner, job: Job) -> None:
    rungs = runner.run(job)
    try:
        for result in rungs:
            pipe.send(("result", result))
            kind, _ = pipe.recv()
            if kind != "next":
                return
        pipe.send(("done", None))
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        pipe.send(("failure", failure(error)))
    finally:
        rungs.close()
