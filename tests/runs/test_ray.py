"""The Ray engine on a Ray of its own: one for all tests here, three cores, loopback."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from kdsearch.errors import TrialFailure, UserError
from kdsearch.runs import assemble, config_file
from kdsearch.runs.config import EngineConfig
from kdsearch.runs.engines.local import LocalEngine
from kdsearch.runs.jobs import SEARCH, Failure, Job, RungResult
from kdsearch.runs.run import Run
from kdsearch.runs.trial import Runner

if find_spec("ray") is None:
    pytest.skip("needs ray: pip install 'kdsearch[ray]'", allow_module_level=True)

import ray

from kdsearch.runs.engines.ray import RayEngine
from kdsearch.runs.engines.ray_cluster import AUTHENTICATION, Cluster

pytestmark = pytest.mark.ray

RUNGS = ("short", "long", "full")
SETTINGS = (
    "data.samples=600",
    "teacher.epochs=1",
    "fidelity.epochs=2",
    "searcher.name=random",
    "budget.trials=3",
    "finals.recipes=1",
    "finals.seeds=1",
    "engine.name=ray",
    "engine.workers=1",
)


class Scripted:
    """A runner whose jobs do what their recipe says; each result tells which process it came from."""

    def __init__(self) -> None:
        self.jobs = 0

    def run(self, job: Job) -> Iterator[RungResult]:
        self.jobs += 1
        for name in RUNGS:
            yield RungResult(name, float(job.number), 0.0, metrics=self.facts())
            self.act(**job.recipe)

    def facts(self) -> dict[str, float]:
        return {"pid": os.getpid(), "threads": torch.get_num_threads(), "jobs": self.jobs}

    def act(self, do: str = "", flag: str = "") -> None:
        if do == "raise":
            raise ValueError("a bad recipe\nsecond line")
        if do == "reject":
            raise TrialFailure("rejected", "no gradient")
        if do == "die" and not os.path.exists(flag):
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "sleep":
            time.sleep(600)


def scripted_runner(data: Path, device: str) -> Any:
    assert device == "cpu"
    data.read_text()
    return Scripted()


class Listing:
    """A desk over a list of jobs. It notes what it is told, and tries again what the machine is to blame for."""

    def __init__(self, *recipes: dict[str, str], stop_at: str = "full") -> None:
        self.jobs = [Job(SEARCH, k, recipe, 0) for k, recipe in enumerate(recipes)]
        self.results: dict[int, list[RungResult]] = {}
        self.failures: dict[int, Failure] = {}
        self.stop_at = stop_at
        self.callers: set[int] = set()

    def propose(self) -> Job | None:
        self.callers.add(threading.get_ident())
        return self.jobs.pop(0) if self.jobs else None

    def record(self, job: Job, result: RungResult) -> bool:
        self.callers.add(threading.get_ident())
        self.results.setdefault(job.number, []).append(result)
        return result.name != self.stop_at

    def finish(self, job: Job, failure: Failure) -> None:
        self.callers.add(threading.get_ident())
        self.failures[job.number] = failure
        if not failure.deterministic:
            self.jobs.append(job)

    def names(self) -> dict[int, list[str]]:
        return {number: [result.name for result in results] for number, results in self.results.items()}

    def facts(self, name: str) -> set[float]:
        return {result.metrics[name] for results in self.results.values() for result in results}

    def jobs_of_processes(self) -> dict[float, float]:
        """How many jobs each worker had run in its life when it was last heard of."""
        facts = [result.metrics for results in self.results.values() for result in results]
        return {pid: max(f["jobs"] for f in facts if f["pid"] == pid) for pid in self.facts("pid")}


def test_an_address_that_cannot_be_joined_is_one_clear_line(tmp_path: Path) -> None:
    assert not ray.is_initialized()
    for address, says in (
        ("ray://head:10001", "Ray client"),
        ("head", "write auto or host:port"),
        ("127.0.0.1:1", "refused"),
    ):
        with pytest.raises(UserError, match=f"engine.address: .*{says}"):
            RayEngine(partial(scripted_runner, tmp_path), EngineConfig(name="ray", address=address))
    assert not ray.is_initialized()


def test_without_ray_the_engine_is_a_users_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray", "ray_cluster"):
        monkeypatch.delitem(sys.modules, f"kdsearch.runs.engines.{name}")
    config = config_file.read(overrides=["engine.name=ray"])
    with pytest.raises(UserError, match=r"ray is not installed; pip install 'kdsearch\[ray\]'"):
        assemble.engine(config, Run(tmp_path, config).place, None)  # type: ignore[arg-type]


def test_nothing_else_imports_ray() -> None:
    package = Path(assemble.__file__).parents[1]
    importing = re.compile(r"^\s*(import ray\b|from ray\b)", re.MULTILINE)
    found = {path.name for path in package.rglob("*.py") if importing.search(path.read_text())}
    assert found == {"ray.py", "ray_cluster.py"}


@pytest.fixture(scope="module")
def own_ray() -> Iterator[Cluster]:
    """The one Ray of these tests; engines that find it use it and leave it."""
    from ray import cloudpickle

    # By value: a worker need not be able to import this file.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    before = {name: os.environ.get(name) for name in AUTHENTICATION}
    cluster = Cluster(EngineConfig(name="ray", workers=3, device="cpu"))
    folder = cluster._ours
    assert folder is not None
    assert folder.is_dir()
    yield cluster
    cluster.close()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert not ray.is_initialized()
    assert not folder.exists()
    assert {name: os.environ.get(name) for name in AUTHENTICATION} == before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a scripted worker needs to start."""
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text("all there")
    return path


@pytest.fixture(scope="module")
def engine(own_ray: Cluster, data: Path) -> Iterator[RayEngine]:
    """Two scripted workers."""
    engine = RayEngine(partial(scripted_runner, data), EngineConfig(name="ray", workers=2, device="cpu"))
    yield engine
    engine.close()
    assert ray.is_initialized()


def test_an_own_ray_is_on_loopback_and_claims_what_it_was_told(own_ray: Cluster) -> None:
    (node,) = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    assert node["Resources"]["CPU"] == max(3, len(os.sched_getaffinity(0)))
    assert "GPU" not in node["Resources"]
    assert node["Resources"]["object_store_memory"] <= 100 * 2**20
    assert (own_ray.device, own_ray.resources) == ("cpu", {"cpu": 1})


def test_a_trial_that_fits_no_machine_is_one_clear_line(own_ray: Cluster) -> None:
    with pytest.raises(UserError, match="no machine of this Ray has the 9999 CPU"):
        Cluster(EngineConfig(name="ray", cpus_per_trial=9999, device="cpu"))
    with pytest.raises(UserError, match="this Ray has no GPU"):
        Cluster(EngineConfig(name="ray", device="cuda"))
    assert Cluster(EngineConfig(name="ray", cpus_per_trial=0.5, device="cpu")).workers >= 6


def test_jobs_go_rung_by_rung_until_the_desk_stops_them(engine: RayEngine) -> None:
    desk = Listing(*({} for _ in range(7)), stop_at="long")
    engine.serve(desk)
    assert desk.names() == {number: ["short", "long"] for number in range(7)}
    assert not desk.failures
    assert desk.facts("threads") == {1}
    assert os.getpid() not in desk.facts("pid")
    assert desk.callers == {threading.get_ident()}


def test_workers_stay_warm_from_job_to_job_and_from_desk_to_desk(engine: RayEngine) -> None:
    first, second = Listing({}, {}, {}, {}, stop_at=""), Listing({}, {}, {})
    engine.serve(first)
    began = time.perf_counter()
    engine.serve(second)
    assert time.perf_counter() - began < 1.5
    before, after = first.jobs_of_processes(), second.jobs_of_processes()
    assert len(before | after) <= 2
    assert all(jobs > before.get(process, 0) for process, jobs in after.items())
    assert max((before | after).values()) >= 4


def test_a_failing_job_ends_alone_and_says_why(engine: RayEngine) -> None:
    desk = Listing({}, {"do": "raise"}, {"do": "reject"}, {})
    engine.serve(desk)
    assert desk.names() == {0: list(RUNGS), 1: ["short"], 2: ["short"], 3: list(RUNGS)}
    raised, rejected = desk.failures[1], desk.failures[2]
    assert (raised.reason, raised.message, raised.deterministic) == ("raised", "ValueError: a bad recipe", True)
    assert "in act" in raised.trace
    assert (rejected.reason, rejected.message, rejected.deterministic) == ("rejected", "no gradient", True)


def test_a_killed_worker_costs_its_job_alone_and_the_job_is_tried_again(engine: RayEngine, tmp_path: Path) -> None:
    desk = Listing({}, {"do": "die", "flag": str(tmp_path / "died")}, {}, {})
    engine.serve(desk)
    assert set(desk.failures) == {1}
    failure = desk.failures[1]
    assert (failure.reason, failure.deterministic) == ("worker lost", False)
    names = desk.names()
    assert names.pop(1) == ["short", *RUNGS]
    assert names == {number: list(RUNGS) for number in (0, 2, 3)}
    lost, again = desk.results[1][0], desk.results[1][-1]
    assert lost.metrics["pid"] != again.metrics["pid"]


def test_a_run_on_ray_finds_what_the_local_engine_finds(own_ray: Cluster, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config_file.read(overrides=SETTINGS)).claim(new=True)
    run.execute()
    run.place.release()
    assert run.place.report.is_file()
    assert len(run.standings) >= 3
    assert not list(run.path.glob("work/*"))
    trials = {t.number: t for t in run.search_ledger.trials() if not t.user_attrs.get("free")}
    assert len(trials) == 3
    desk = Listing()
    protected = {number: t.user_attrs["origin"] != "search" for number, t in trials.items()}
    desk.jobs = [
        Job(SEARCH, number, t.user_attrs["recipe"], run.config.seed, protected[number]) for number, t in trials.items()
    ]
    world = assemble.world(run.config, run.path, "cpu")
    LocalEngine(Runner(world, assemble.ladder(run.config), tmp_path / "local")).serve(desk)
    compared = 0
    for number, trial in trials.items():
        for here in desk.results.get(number, []):
            there = trial.user_attrs.get(f"rung:{here.name}")
            if there is None or here.name == "rejection":
                continue  # pruned there before this rung, or a rung without a score
            assert there["score"] == here.score
            assert (there["metrics"], there["losses"]) == (here.metrics, here.losses)
            assert there["curve"] == [list(point) for point in here.curve]
            compared += here.trained
    assert compared >= 6


class Broken(Listing):
    """A desk that fails at its first result, as a full disk would make it."""

    def record(self, job: Job, result: RungResult) -> bool:
        if job.recipe:
            return True
        raise OSError("the study cannot be written")


def test_an_error_of_the_desk_comes_out_as_it_is_and_busy_workers_are_not_waited_for(engine: RayEngine) -> None:
    engine.serve(Listing({}, {}))
    began = time.perf_counter()
    with pytest.raises(OSError, match="the study cannot be written"):
        engine.serve(Broken({"do": "sleep"}, {}))
    assert time.perf_counter() - began < 30


def test_a_worker_that_cannot_start_ends_the_run_with_its_reason(engine: RayEngine, data: Path) -> None:
    data.unlink()
    engine._end()
    with pytest.raises(UserError, match=r"a worker could not start: .*No such file"):
        engine.serve(Listing({}))
    data.write_text("all there")
