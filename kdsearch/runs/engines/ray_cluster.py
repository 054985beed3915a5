"""Which Ray trials run on: one of our own on this machine, or a cluster that is joined."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray._private import ray_constants

from kdsearch.errors import UserError
from kdsearch.runs.config import EngineConfig

OBJECT_STORE = 100 * 2**20  # bytes; jobs and results are a few kilobytes, and Ray takes no less than 75 MB
SOCKET_ROOM = 30  # longest temporary folder that leaves room for the names of Ray's sockets (107 characters in all)
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN = secrets.token_hex(32)  # for a Ray of our own; left to itself, Ray writes one into the home folder
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # the study is what a run resumes from
}


class Cluster:
    """A connection to Ray. What this process is connected to already is used as it is, and left so.

    Attributes:
        device: what a worker's runner is built on. Ray shows each worker its own GPUs, so that `cuda` is the right one
            everywhere.
        resources: what one trial asks of Ray.
        workers: how many trials run side by side.

    Raises:
        UserError: no Ray at that address, or no room in it for a trial.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._ours: Path | None = None
        self._joined = False
        self._before: dict[str, str | None] = {}
        with settings():
            self._connect()
        try:
            self.device = self._device()
            self.resources = {"cpu": config.cpus_per_trial}
            if self.device == "cuda":
                self.resources["gpu"] = config.gpus_per_trial
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
            raise UserError(
                f"engine.address: cannot join a Ray at {address!r}: {line}; one that asks for a token is joined with "
                "RAY_AUTH_MODE=token in the environment"
            ) from None
        self._joined = True

    def _start(self) -> None:
        """A Ray of our own: this machine's cores, no dashboard, on loopback, gone at the end."""
        cores = len(os.sched_getaffinity(0))
        wanted = math.ceil((self.config.workers or 0) * self.config.cpus_per_trial)
        parent = tempfile.gettempdir() if len(tempfile.gettempdir()) < SOCKET_ROOM else "/tmp"
        self._ours = Path(tempfile.mkdtemp(prefix="kdsearch-", dir=parent))
        self._before = {name: os.environ.get(name) for name in AUTHENTICATION}
        if not any(self._before.values()):
            os.environ["RAY_AUTH_TOKEN"] = TOKEN
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
        wanted = self.config.device
        found = ray.cluster_resources().get("GPU", 0) > 0
        if wanted == "auto":
            return "cuda" if found else "cpu"
        if wanted == "cuda" and not found:
            raise UserError("engine.device: 'cuda' is not available: this Ray has no GPU")
        if wanted.startswith("cuda:"):
            raise UserError(f"engine.device: {wanted!r} with engine.name=ray: Ray chooses the GPU; write cuda")
        return wanted

    def _room(self) -> int:
        """How many trials the machines hold side by side; each trial must fit into one of them."""
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

    def close(self) -> None:
        """End the Ray that was started here; leave one that was joined."""
        if self._ours is not None or self._joined:
            ray.shutdown()
        if self._ours is not None:
            shutil.rmtree(self._ours, ignore_errors=True)
            _restore(self._before)
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
def settings() -> Iterator[None]:
    """Ray's settings for a while: no statistics sent, no console output, workers stay in the driver's folder."""
    log = logging.getLogger("ray")
    level, before = log.level, {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        _restore(before)


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
