"""What the students of a run cost, each architecture measured once, and whether that is within the limits."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn

from kdsearch.kd_methods import ModelSpec
from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.runs import deploy, models
from kdsearch.runs.data import Data
from kdsearch.search_space.recipe import Recipe, content_hash
from kdsearch.search_space.students import measure

MIB = 2**20
PLAIN = ("parameters", "macs", "memory")
"""What depends on the architecture alone; latency depends on the machine, too."""

UNITS = {"parameters": "", "macs": "", "memory": " MiB", "latency": " ms"}
WORDS = {"parameters": "parameters", "macs": "MACs", "memory": "of memory at an inference", "latency": "of latency"}


def amount(name: str, value: float) -> str:
    """A quantity with its unit: `12,345 parameters`, `1.27 MiB of memory at an inference`."""
    return f"{number(name, value)} {WORDS[name]}"


def number(name: str, value: float) -> str:
    """The same without its name. Four digits of what is no count."""
    if UNITS[name]:
        return (f"{value:,.0f}" if value >= 1000 else f"{value:.4g}") + UNITS[name]
    return f"{value:,.0f}"


def architecture(recipe: Recipe) -> str:
    """Names what of a recipe decides on the network that is handed out."""
    nodes = {**recipe.terms, **recipe.policies}
    asked = sorted(models.branches(recipe))
    kept = {slot: nodes[slot].to_dict() for slot in deploy.exporting(recipe)}
    return content_hash([recipe.student.to_dict(), recipe.transform.to_dict(), asked, kept, models.shown(recipe)])


class Sizes:
    """Measures the students of recipes.

    Args:
        teacher: what methods may join a student to; None for plain students alone.
        cache: the run's folder of things made once; latencies are kept there, so that a resumed run and every other
            process of this machine see the same number.
        limits: by quantity; memory in MiB and latency in milliseconds.
        batch: images of an inference, for memory and latency.
    """

    def __init__(
        self,
        data: Data,
        teacher: ModelSpec | None,
        cache: Path,
        limits: Mapping[str, float] | None = None,
        batch: int = 1,
    ) -> None:
        self.data, self.teacher, self.cache = data, teacher, cache
        self.limits, self.batch = dict(limits or {}), batch
        self._known: dict[str, dict[str, float]] = {}

    def of(self, recipe: Recipe, *names: str) -> dict[str, float]:
        """These quantities of the recipe's student; without names, what depends on the architecture alone.

        Raises:
            TrialFailure: the student cannot be built ("invalid").
        """
        key = architecture(recipe)
        known = self._known.setdefault(key, {})
        wanted = names or PLAIN
        missing = [name for name in wanted if name not in known]
        if missing:
            shape = models.input_shape(recipe, self.data)
            joined = deploy.Joined({} if self.teacher is None else {TEACHER: self.teacher})
            with torch.random.fork_rng(devices=[]):  # weights are drawn: nobody else's draws may depend on that
                module = models.student(recipe, self.data)
                module = deploy.deployed(recipe, module, shape, self.data.classes, joined)
            for name in missing:
                known[name] = self._measure(name, module, shape, key, joined=bool(deploy.exporting(recipe)))
        return {name: known[name] for name in wanted}

    def over(self, recipe: Recipe) -> str | None:
        """Which limit the recipe's student breaks, in words; None where it breaks none.

        Cheap quantities come first, and what follows a broken limit is not measured.

        Raises:
            TrialFailure: the student cannot be built ("invalid").
        """
        for name in (*PLAIN, "latency"):
            limit = self.limits.get(name)
            if limit is None:
                continue
            found = self.of(recipe, name)[name]
            if found > limit:
                return f"the student has {amount(name, found)}; the limit is {number(name, limit)}"
        return None

    def _measure(self, name: str, module: nn.Module, shape: tuple[int, int, int], key: str, *, joined: bool) -> float:
        if name == "parameters":
            return float(measure.parameters(module))
        if name == "macs":
            return float(measure.macs(module, shape))
        if name == "memory":
            return measure.memory(module, shape, self.batch) / MIB
        device = self.data.device
        about = {
            "architecture": key,
            "input": list(shape),
            "classes": self.data.classes,
            "joined": repr(self.teacher) if joined else None,
            "batch": self.batch,
            "device": device_name(device),
            "torch": torch.__version__,
        }
        path = self.cache / "latency" / f"{content_hash(about)}.json"
        return kept(path, about, lambda: measure.latency(module, shape, self.batch, device))


def kept(path: Path, about: Mapping[str, object], measured: Callable[[], float]) -> float:
    """A measured number that is kept in a small JSON file beside what it is of.

    One process of a machine measures at a time: neither do two keep different numbers, nor does one disturb another.
    """
    found = _read(path)
    if found is not None:
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent / "lock"):
        found = _read(path)
        if found is None:
            found = measured()
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            partial.write_text(json.dumps({**about, "milliseconds": found}))
            partial.replace(path)
    return found


def _read(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text())["milliseconds"])
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged: measured again
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@cache
def device_name(device: torch.device) -> str:
    """What a latency was measured on: the model of the processor or of the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    processor = model or platform.processor() or platform.machine()
    return f"{processor}, one thread" if device.type == "cpu" else f"{device.type} of {processor}"
