"""The run's folder: who holds it, what it was made of, and its parts by name."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from kdsearch.errors import UserError
from kdsearch.runs import config_file
from kdsearch.runs.config import RunConfig

PACKAGES = ("kdsearch", "torch", "torchvision", "timm", "optuna", "ray", "nni", "numpy", "torch-pruning")


class RunFolder:
    """A directory that holds one run. Opening it takes a lock that the operating system frees when the process ends."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._lock: TextIO | None = None

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def best(self) -> Path:
        return self.path / "best.yaml"

    @property
    def student(self) -> Path:
        return self.path / "student.safetensors"

    def create(self, config: RunConfig) -> None:
        """Claim a new folder and write what the run is made of.

        Raises:
            UserError: the folder holds another run already, or is in use.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--run-dir: cannot make {str(self.path)!r}: {error.strerror}") from None
        self.lock()
        if self.config.exists():
            raise UserError(
                f"--run-dir: {str(self.path)!r} holds a run already; `kdsearch resume {self.path}` goes on with it, "
                "or name another folder"
            )
        (self.path / "environment.json").write_text(json.dumps(environment(config), indent=1))
        self.write(config)

    def write(self, config: RunConfig) -> None:
        """Keep the config; the file changes as a whole or not at all."""
        partial = self.config.with_suffix(".partial")
        config_file.write(config, partial)
        partial.replace(self.config)

    def open(self) -> RunConfig:
        """Claim an existing folder and read its config.

        Raises:
            UserError: no run there, a damaged config, or a folder in use.
        """
        config = self.read()
        self.lock()
        return config

    def read(self) -> RunConfig:
        """The run's config, without claiming the folder."""
        if not self.config.is_file():
            near = [p.parent.name for p in self.path.parent.glob("*/config.yaml")] if self.path.parent.is_dir() else []
            hint = f"; runs beside it: {', '.join(sorted(near)[:5])}" if near else ""
            raise UserError(f"there is no run in {str(self.path)!r} (no config.yaml){hint}")
        return config_file.read(self.config)

    def lock(self) -> None:
        """Raises UserError when another process works in this folder."""
        handle = open(self.path / "lock", "a+")  # noqa: SIM115 (held until the process ends)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise UserError(f"{str(self.path)!r} is in use by another process (pid {holder})") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        self._lock = handle

    def abandon(self) -> None:
        """Let go of a folder in which nothing has been measured, so that a corrected config may use it."""
        self.config.unlink(missing_ok=True)
        (self.path / "environment.json").unlink(missing_ok=True)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def environment(config: RunConfig) -> dict[str, Any]:
    """Package versions, seed and hardware, as they are now."""
    import torch

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "packages": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "seed": config.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def fresh(parent: Path = Path("runs")) -> Path:
    """A folder name for a run that was given none: the time, and a number where that is taken."""
    name = time.strftime("%Y%m%d-%H%M%S")
    path, k = parent / name, 1
    while path.exists():
        path, k = parent / f"{name}-{k}", k + 1
    return path
