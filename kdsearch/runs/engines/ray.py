"""Trials on Ray Tune: this machine's cores and GPUs, or a cluster's.

Tune carries, the driver decides. A searcher asks the desk for jobs, actors that are built once run them rung by rung,
and a scheduler passes each result to the desk and the desk's answer back. All three meet in Tune's control loop, which
runs in the process that calls `serve`: the study keeps its one writer, and the workers never see the database.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import torch
from ray import cloudpickle, tune
from ray._private import ray_constants
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kdsearch.errors import UserError
from kdsearch.runs.config import EngineConfig
from kdsearch.runs.engines import Desk
from kdsearch.runs.jobs import Failure, Job, RungResult
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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # the study is what a run resumes from; Tune's own snapshots would be waste
}


class Worker(tune.Trainable):
    """An actor. It builds its runner once and keeps it from trial to trial; a step is one rung of its job.

    Each step's message is one of `("result", RungResult)`, `("failure", Failure)`, `("end", None)` and
    `("unfit", text)`: an exception never leaves the actor.
    """

    def setup(self, config: dict[str, Any], build: Build | None = None, device: str = "cpu", folder: str = ".") -> None:
        assert build is not None
        torch.set_num_threads(1)
        if os.path.isdir(folder):
            os.chdir(folder)
        self._unfit = ""
        self._rungs: Iterator[RungResult] = iter(())
        try:
            self._runner = build(device)
        except Exception as error:
            self._unfit = f"a worker could not start: {error}"
            return
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._rungs = self._runner.run(new_config["job"])
        return True

    def step(self) -> dict[str, Any]:
        if self._unfit:
            return {"message": ("unfit", self._unfit)}
        try:
            return {"message": ("result", next(self._rungs))}
        except StopIteration:
            return {"message": ("end", None)}
        except Exception as error:
            return {"message": ("failure", failure(error))}

    def cleanup(self) -> None:
        close = getattr(self._rungs, "close", None)
        if close is not None:
            close()


class Relay:
    """What Tune's searcher and scheduler share: the desk, and the jobs under way by the names Tune gave them."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.jobs: dict[str, Job] = {}
        self.error: BaseException | None = None

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Tune wraps what is raised inside its loop; the caller of `serve` is to see the error itself."""
        try:
            yield
        except BaseException as error:
            self.error = error
            raise

    def propose(self, name: str) -> Job | None:
        with self.keeping_errors():
            job = self.desk.propose()
        if job is not None:
            self.jobs[name] = job
        return job

    def take(self, name: str, kind: str, body: Any) -> bool:
        """Pass an actor's message on; True when its job is to go on."""
        with self.keeping_errors():
            if kind == "unfit":
                raise UserError(body)
            if kind == "result" and self.desk.record(self.jobs[name], body):
                return True
            job = self.jobs.pop(name)
            if kind == "failure":
                self.desk.finish(job, body)
        return False

    def lose(self, name: str, error: BaseException | None) -> None:
        """An actor is gone. One that died while it was made would die again; any other took down its job alone."""
        with self.keeping_errors():
            lines = str(error).strip().splitlines() or ["no reason is known"]
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise UserError(f"engine: a worker could not start: {lines[-1]}")
            job = self.jobs.pop(name, None)
            if job is not None:
                text = f"the worker process ended: {lines[-1]}"
                self.desk.finish(job, Failure("worker lost", text, deterministic=False, trace=str(error)))


class Proposals(Searcher):
    """The desk as Tune's searcher."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self.relay.propose(trial_id)
        if job is not None:
            return {"job": job}
        # A job under way may yet come back to be tried again.
        return None if self.relay.jobs else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the desk already."""

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
        kind, body = result["message"]
        go_on = self.relay.take(trial.trial_id, kind, body)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.relay.lose(trial.trial_id, _error(trial))


def _error(trial: Trial) -> BaseException | None:
    """What ended a trial, from the file where Tune puts it."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    return cloudpickle.loads(Path(path).read_bytes())  # type: ignore[no-any-return]


class RayEngine:
    """Ray Tune. Starts a Ray on this machine, or joins a cluster.

    Args:
        build: makes an actor's runner on a device; importable by the workers, with picklable arguments bound.
        config: `address` null starts a local Ray, `auto` joins the one that runs here, `host:port` any other.

    Raises:
        UserError: no Ray at that address, or no room in it for a trial.
    """

    def __init__(self, build: Build, config: EngineConfig) -> None:
        self.build, self.config = build, config
        self._ours: Path | None = None
        self._joined = False
        with _environment():
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
                "start kdsearch on a machine of the cluster with engine.address=auto"
            )
        if ray.is_initialized():
            return
        if address is None:
            self._start()
            return
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"engine.address: cannot join Ray at {address!r}: {line}") from None
        self._joined = True

    def _start(self) -> None:
        """A Ray of our own: this machine's cores, no dashboard, open to this machine alone, gone at the end."""
        cores = len(os.sched_getaffinity(0))
        wanted = math.ceil((self.config.workers or 0) * self.config.cpus_per_trial)
        gpus = 0 if self.config.device == "cpu" else torch.cuda.device_count()
        root = tempfile.gettempdir() if len(tempfile.gettempdir()) <= SOCKET_ROOM else "/tmp"
        self._ours = Path(tempfile.mkdtemp(prefix="kdsearch-", dir=root))
        # Without clusters Ray's servers listen on loopback; a node address of 127.0.0.1 alone is replaced on Linux.
        with mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
            ray.init(
                "local",
                num_cpus=max(cores, wanted),
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(self._ours),
            )

    def _device(self) -> str:
        """What `build` is given: Ray shows each actor its own GPUs, so that `cuda` is the right one everywhere."""
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
        """How many trials the cluster can run side by side.

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
                f"engine: no machine of this Ray has the {asked} that one trial asks for; lower engine.cpus_per_trial "
                "or engine.gpus_per_trial, or set engine.workers if machines are still to join"
            )
        return room

    def serve(self, desk: Desk) -> None:
        relay = Relay(desk)
        storage = tempfile.mkdtemp(prefix="kdsearch-tune-")
        try:
            with _environment():
                tune.run(
                    tune.with_parameters(Worker, build=self.build, device=self.device, folder=os.getcwd()),
                    search_alg=Proposals(relay),
                    scheduler=Decisions(relay),
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
        except Exception:
            if relay.error is not None:
                raise relay.error from None
            raise
        finally:
            shutil.rmtree(storage, ignore_errors=True)

    def close(self) -> None:
        """End the Ray this engine started, or leave the one it joined."""
        if self._ours is not None or self._joined:
            ray.shutdown()
        if self._ours is not None:
            shutil.rmtree(self._ours, ignore_errors=True)
        self._ours, self._joined = None, False


def _name(trial: Trial) -> str:
    return str(trial.trial_id)


@contextmanager
def _environment() -> Iterator[None]:
    """Ray's settings for the time of a call: silence, no statistics sent, Ctrl-C left to the driver."""
    log, handlers = logging.getLogger("ray"), {}
    level = log.level
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            handlers[name] = signal.getsignal(getattr(signal, name))
    try:
        with mock.patch.dict(os.environ, SETTINGS):
            log.setLevel(logging.CRITICAL)
            yield
    finally:
        log.setLevel(level)
        for name, handler in handlers.items():
            try:
                signal.signal(getattr(signal, name), handler)
            except (ValueError, TypeError):
                continue  # not the main thread: Tune has set none either
