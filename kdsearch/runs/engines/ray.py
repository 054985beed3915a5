"""Trials on Ray Tune: this machine's cores and GPUs, or a cluster's.

Tune carries, the driver decides. A searcher asks the desk for jobs, workers that are built once run them rung by rung,
and a scheduler hands each result to the desk and the desk's answer back; Tune's own pruning is not used. Tune's loop
runs in a thread of this process, and what it asks is answered in the thread that serves: the study keeps its one
writer, Ctrl-C stays the driver's, and workers never see the database. Between two desks Tune stands still and its
workers stay warm.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import torch

# Read by Ray when it is imported: that a worker died is told by the driver, not printed amid its output.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")

import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdsearch.runs.config import EngineConfig
from kdsearch.runs.engines import Desk
from kdsearch.runs.engines.ray_cluster import Cluster, settings
from kdsearch.runs.engines.relay import Relay
from kdsearch.runs.jobs import RungResult
from kdsearch.runs.trial import Runner, failure

Build = Callable[[str], Runner]


class Worker(tune.Trainable):
    """An actor. It builds its runner once and keeps it from job to job; a step is one rung. No exception leaves it.

    A step's message is `("result", RungResult)`, `("failure", Failure)`, `("end", None)` after the last rung,
    `("idle", None)` without a job, or `("unfit", text)` where the runner cannot be built.
    """

    def setup(
        self,
        config: dict[str, Any],
        build: Build | None = None,
        device: str = "cpu",
        folder: str = ".",
        nap: float = 0.1,
    ) -> None:
        assert build is not None
        self._nap = nap
        self._unfit = ""
        self._rungs: Iterator[RungResult] | None = None
        torch.set_num_threads(1)
        if os.path.isdir(folder):
            os.chdir(folder)
        try:
            self._runner = build(device)
        except Exception as error:
            self._unfit = str(error) or type(error).__name__
            return
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        job = new_config["job"]
        self._rungs = None if job is None else self._runner.run(job)
        return True

    def step(self) -> dict[str, Any]:
        return {"message": self._message()}

    def _message(self) -> tuple[str, Any]:
        if self._unfit:
            return "unfit", self._unfit
        if self._rungs is None:
            time.sleep(self._nap)
            return "idle", None
        try:
            return "result", next(self._rungs)
        except StopIteration:
            return "end", None
        except Exception as error:
            return "failure", failure(error)

    def cleanup(self) -> None:
        close = getattr(self._rungs, "close", None)
        if close is not None:
            close()


class Proposals(Searcher):
    """The desk as Tune's searcher."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def suggest(self, trial_id: str) -> Any:
        config = self.relay.room(trial_id)
        return Searcher.FINISHED if self.relay.closing else config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the desk."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the only ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is the only ledger."""


class Decisions(FIFOScheduler):
    """The desk as Tune's scheduler: it goes on or stops as it is told, and has no rule of its own."""

    _supports_buffered_results = False

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        go_on = self.relay.message(trial.trial_id, *result["message"])
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        error = _error(trial)
        unmade = isinstance(error, RayActorError) and error.actor_init_failed
        self.relay.lost(trial.trial_id, str(error or ""), unmade)

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: trials start in their order. A chosen one would take a freed worker from the next, and its own, half
        started, would be thrown away.
        """


class Closing(tune.Stopper):
    """Ends Tune when the engine closes."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.relay.closing


class Attendance(tune.Callback):
    """Keeps the workers at hand by the trials they are at, so that closing need not wait for a long rung."""

    def __init__(self) -> None:
        self.workers: dict[str, Any] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.workers[trial.trial_id] = trial.temporary_state.ray_actor

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.workers.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.workers.pop(trial.trial_id, None)

    def kill(self, trials: Iterable[str]) -> None:
        for worker in [self.workers.get(trial) for trial in trials]:
            if worker is not None:
                ray.kill(worker)


class RayEngine:
    """Ray Tune, on a Ray of its own on this machine or in a cluster.

    Args:
        build: makes a worker's runner on a device; importable by the workers, with picklable arguments bound.
        config: `address` null starts a local Ray, `auto` joins the one that runs here, `host:port` any other.

    Raises:
        UserError: no Ray at that address, or no room in it for a trial.
    """

    def __init__(self, build: Build, config: EngineConfig) -> None:
        self.build = build
        self.cluster = Cluster(config)
        self._session: tuple[Thread, Relay, Attendance] | None = None

    def serve(self, desk: Desk) -> None:
        if self._session is None:
            self._session = self._begin()
        try:
            self._session[1].serve(desk)
        except BaseException:
            self._end()
            raise

    def _begin(self) -> tuple[Thread, Relay, Attendance]:
        relay, attendance = Relay(), Attendance()
        thread = Thread(target=self._run, args=(relay, attendance), name="ray-tune", daemon=True)
        thread.start()
        return thread, relay, attendance

    def _run(self, relay: Relay, attendance: Attendance) -> None:
        """Tune's thread, from the first desk to the last."""
        storage = tempfile.mkdtemp(prefix="kdsearch-tune-")
        error: Exception | None = None
        try:
            with settings():
                tune.run(
                    self._worker(),
                    search_alg=Proposals(relay),
                    scheduler=Decisions(relay),
                    stop=Closing(relay),
                    callbacks=[attendance],
                    num_samples=-1,
                    max_concurrent_trials=self.cluster.workers,
                    resources_per_trial=self.cluster.resources,
                    reuse_actors=True,
                    max_failures=0,
                    raise_on_failed_trial=False,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                    storage_path=storage,
                    verbose=0,
                )
        except Exception as caught:
            error = caught
        finally:
            shutil.rmtree(storage, ignore_errors=True)
            relay.ended(error)

    def _worker(self) -> type[Worker]:
        """The worker class with this engine's arguments. Tune keeps classes by name, so that each needs its own."""
        nap = max(0.1, self.cluster.workers / 100)  # a hundred idle messages a second at most
        own = type(f"Worker_{uuid.uuid4().hex}", (Worker,), {})
        bound: type[Worker] = tune.with_parameters(
            own, build=self.build, device=self.cluster.device, folder=os.getcwd(), nap=nap
        )
        return bound

    def _end(self) -> None:
        """End Tune and its workers; those at a job are not waited for."""
        if self._session is None:
            return
        (thread, relay, attendance), self._session = self._session, None
        relay.closing = True
        attendance.kill(relay.jobs)
        relay.close(thread)

    def close(self) -> None:
        """End the workers, and the Ray this engine started; leave the one it joined."""
        self._end()
        self.cluster.close()


def _name(trial: Trial) -> str:
    return str(trial.trial_id)


def _error(trial: Trial) -> BaseException | None:
    """What ended a trial, from the file where Tune puts it."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    found: BaseException = cloudpickle.loads(Path(path).read_bytes())
    return found
