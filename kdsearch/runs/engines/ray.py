"""Trials on Ray Tune: this machine's cores and GPUs, or a cluster's.

Tune carries, the driver decides. A searcher asks the desk for jobs, workers that are built once run them rung by rung,
and a scheduler hands each result to the desk and the desk's answer back; Tune's own pruning is not used. Tune's loop
runs in a thread of this process, and what it asks is answered in the thread that serves: the study keeps its one
writer, Ctrl-C stays the driver's, and workers never see the database. Between two desks Tune stands still and its
workers stay warm.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import torch

# Read by Ray when it is imported: that a worker died is told by the driver, not printed amid its output.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")

import ray
from ray import cloudpickle, tune
from ray._private import ray_constants
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdsearch.errors import UserError
from kdsearch.runs.config import EngineConfig
from kdsearch.runs.engines import Desk
from kdsearch.runs.engines.relay import Relay
from kdsearch.runs.jobs import RungResult
from kdsearch.runs.trial import Runner, failure

Build = Callable[[str], Runner]
OBJECT_STORE = 100 * 2**20  # bytes; jobs and results are a few kilobytes, and Ray takes no less than 75 MB
SOCKET_ROOM = 30  # longest temporary folder that leaves room for the names of Ray's sockets (107 characters in all)
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # the study is what a run resumes from
}


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
        self.build, self.config = build, config
        self._ours: Path | None = None
        self._joined = False
        self._session: tuple[Thread, Relay, Attendance] | None = None
        with _settings():
            self._connect()
        try:
            self.device = self._device()
            self.workers = config.workers or self._room()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        address = self.config.address
        if address is not None and address.startswith("ray://"):
            raise UserError(
                f"engine.address: {address!r} is a Ray client address, under which the search would run elsewhere; "
                "start kdsearch on a machine of the cluster, with engine.address=auto"
            )
        if ray.is_initialized():
            return
        if address is None:
            self._start()
            return
        try:
            if address != "auto":
                _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"engine.address: cannot join a Ray at {address!r}: {line}") from None
        self._joined = True

    def _start(self) -> None:
        """A Ray of our own: this machine's cores, no dashboard, on loopback, gone at the end."""
        cores = len(os.sched_getaffinity(0))
        wanted = math.ceil((self.config.workers or 0) * self.config.cpus_per_trial)
        parent = tempfile.gettempdir() if len(tempfile.gettempdir()) < SOCKET_ROOM else "/tmp"
        self._ours = Path(tempfile.mkdtemp(prefix="kdsearch-", dir=parent))
        with _loopback():
            ray.init(
                "local",
                num_cpus=max(cores, wanted),
                num_gpus=0 if self.config.device == "cpu" else torch.cuda.device_count(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(self._ours),
            )

    def _device(self) -> str:
        """What `build` is given: Ray shows each worker its own GPUs, so that `cuda` is the right one everywhere."""
        wanted = self.config.device
        found = ray.cluster_resources().get("GPU", 0) > 0
        if wanted == "auto":
            return "cuda" if found else "cpu"
        if wanted == "cuda" and not found:
            raise UserError("engine.device: 'cuda' is not available: this Ray has no GPU")
        if wanted.startswith("cuda:"):
            raise UserError(f"engine.device: {wanted!r} with engine.name=ray: Ray chooses the GPU; write cuda")
        return wanted

    @property
    def resources(self) -> dict[str, float]:
        """What one trial asks of Ray."""
        found = {"cpu": self.config.cpus_per_trial}
        if self.device == "cuda":
            found["gpu"] = self.config.gpus_per_trial
        return found

    def _room(self) -> int:
        """How many trials the machines can run side by side.

        Raises:
            UserError: none.
        """
        room = 0
        for node in ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            room += min(int(has.get(name.upper(), 0) / amount + 1e-9) for name, amount in self.resources.items())
        if not room:
            asked = " and ".join(f"{amount:g} {name.upper()}" for name, amount in self.resources.items())
            raise UserError(
                f"engine: no machine of this Ray has the {asked} that a trial asks for; lower engine.cpus_per_trial "
                "or engine.gpus_per_trial, or set engine.workers if machines are still to join"
            )
        return room

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
        nap = max(0.1, self.workers / 100)  # a hundred idle messages a second at most
        error: Exception | None = None
        try:
            with _settings():
                tune.run(
                    tune.with_parameters(Worker, build=self.build, device=self.device, folder=os.getcwd(), nap=nap),
                    search_alg=Proposals(relay),
                    scheduler=Decisions(relay),
                    stop=Closing(relay),
                    callbacks=[attendance],
                    num_samples=-1,
                    max_concurrent_trials=self.workers,
                    resources_per_trial=self.resources,
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
        if self._ours is not None or self._joined:
            ray.shutdown()
        if self._ours is not None:
            shutil.rmtree(self._ours, ignore_errors=True)
        self._ours, self._joined = None, False


def _knock(address: str) -> None:
    """Raises OSError or ValueError where nobody listens. Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("write auto or host:port")
    # Ray takes loopback for this machine's address, where alone its servers may listen.
    own = [ray.util.get_node_ip_address()] if host in ("localhost", "127.0.0.1") else []
    for name in [*own, host]:
        try:
            socket.create_connection((name, int(port)), timeout=5).close()
            return
        except OSError as error:
            last = error
    raise last


def _name(trial: Trial) -> str:
    return str(trial.trial_id)


def _error(trial: Trial) -> BaseException | None:
    """What ended a trial, from the file where Tune puts it."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    found: BaseException = cloudpickle.loads(Path(path).read_bytes())
    return found


@contextmanager
def _loopback() -> Iterator[None]:
    """Without clusters Ray's servers listen on loopback; on Linux a node address of 127.0.0.1 alone is replaced."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _settings() -> Iterator[None]:
    """Ray's settings for a while: no statistics sent, no console output, workers stay in the driver's folder."""
    log = logging.getLogger("ray")
    level, before = log.level, {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
