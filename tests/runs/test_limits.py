"""Limits: what a student costs, what is left of a space within them, and that nothing is spent on the rest."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest

import kdsearch
from kdsearch.errors import TrialFailure, UserError
from kdsearch.runs import config_file
from kdsearch.runs import sizes as costs
from kdsearch.runs.config import QUANTITIES
from kdsearch.runs.data import Data
from kdsearch.runs.fitting import Fitting, fitting
from kdsearch.runs.jobs import Ladder
from kdsearch.runs.sizes import Sizes
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace
from kdsearch.search_space.students import measure

from .tiny import TINY, invoke, write_config

CNN = {"cnn": {"channels": {"values": [4, 8, 16, 32]}, "stages": [2, 3]}}
TWO = {"student": {**CNN, "vit": {"depth": [3, 4], "dim": 48, "heads": 3, "patch": 4}}}


def plain(channels: int = 4, **more: Any) -> Recipe:
    return Recipe.from_dict({"student": {"family": "cnn", "channels": channels}, **more}).without_distillation()


def space(**student: Any) -> SearchSpace:
    return SearchSpace.from_dict({"student": student})


# the config


def test_limits_and_objectives_of_a_config() -> None:
    given = {"limits": {"parameters": 5000, "memory_mib": 0.5, "latency_ms": 2}, "minimise": ["memory", "latency"]}
    config = config_file.check(given, "x")
    assert config.limits.given() == {"parameters": 5000, "memory": 0.5, "latency": 2}
    assert config.limits.batch == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"limits": {"memory": 3}}, "x: unknown key 'limits.memory'; did you mean 'memory_mib'?"),
        ({"limits": {"latency_ms": 0}}, "x: limits.latency_ms = 0: "),
        ({"minimise": ["latncy"]}, "x: minimise.0 = 'latncy': did you mean 'latency'?"),
        ({"minimise": ["macs", "macs"]}, "x: minimise: names macs more than once"),
        ({"minimise": ["macs"], "searcher": {"name": "cmaes"}}, "minimise: searcher cmaes takes a single objective"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        config_file.check(given, "x")
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)


# sizes


def test_sizes_are_measured_once_an_architecture(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for name in ("parameters", "macs", "memory", "latency"):
        real = getattr(measure, name)
        monkeypatch.setattr(measure, name, lambda *a, n=name, f=real: calls.update([n]) or f(*a))
    sizes = Sizes(digits, None, tmp_path)
    first = sizes.of(plain(), *QUANTITIES)
    assert sizes.of(plain(logits="kd"), *QUANTITIES) == first
    assert calls == dict.fromkeys(QUANTITIES, 1)
    assert sizes.of(plain(8))["memory"] > first["memory"] > 0
    assert calls["latency"] == 1


def test_a_latency_is_kept_for_everybody(digits: Data, tmp_path: Path) -> None:
    found = Sizes(digits, None, tmp_path).of(plain(), "latency")
    (path,) = tmp_path.glob("latency/*.json")
    about = json.loads(path.read_text())
    assert about["milliseconds"] == found["latency"]
    assert about["device"].endswith("one thread")
    assert path.stat().st_size < 500
    path.write_text(json.dumps({**about, "milliseconds": 123.5}))
    assert Sizes(digits, None, tmp_path).of(plain(), "latency") == {"latency": 123.5}
    assert Sizes(digits, None, tmp_path, batch=4).of(plain(), "latency")["latency"] < 100
    path.write_text("{")
    assert Sizes(digits, None, tmp_path).of(plain(), "latency")["latency"] < 100
    assert not list(tmp_path.glob("latency/*.partial"))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"parameters": 100.0}, r"the student has [\d,]+ parameters; the limit is 100"),
        ({"macs": 100.0}, r"the student has [\d,]+ MACs; the limit is 100"),
        ({"memory": 0.001}, r"the student has 0\.0\d+ MiB of memory at an inference; the limit is 0\.001 MiB"),
        ({"latency": 1e-6}, r"the student has [\d.]+ ms of latency; the limit is 1e-06 ms"),
    ],
)
def test_every_limit_is_checked(digits: Data, tmp_path: Path, limits: dict[str, float], says: str) -> None:
    over = Sizes(digits, None, tmp_path, limits).over(plain())
    assert over is not None
    assert re.fullmatch(says, over)
    assert Sizes(digits, None, tmp_path, dict.fromkeys(limits, 1000000000.0)).over(plain()) is None


def test_rung_zero_checks_what_depends_on_the_architecture(world: World, tmp_path: Path) -> None:
    runner = Runner(world, Ladder(limits={"memory": 0.001}), tmp_path)
    with pytest.raises(TrialFailure, match=r"of memory at an inference; the limit is 0\.001 MiB") as caught:
        runner.check(plain())
    assert caught.value.reason == "invalid"
    assert set(Runner(world, Ladder(), tmp_path).check(plain())) == {"parameters", "macs", "memory"}


# what is left of a space


def fit(whole: SearchSpace, digits: Data, folder: Path, **limits: float) -> Fitting:
    return fitting(whole, Sizes(digits, None, folder, limits))


def test_families_and_values_without_a_student_that_fits_leave(digits: Data, tmp_path: Path) -> None:
    whole = SearchSpace.from_dict(TWO)
    found = fit(whole, digits, tmp_path, parameters=6000)
    left = found.within(whole)
    assert list(left.options["student"]) == ["cnn"]
    channels, stages = left.options["student"]["cnn"].values()
    assert channels.options == (4, 8, 16)  # type: ignore[union-attr]
    assert (stages.low, stages.high) == (2, 3)  # type: ignore[union-attr]
    assert found.whole
    assert found.tried == 10
    assert 0 < found.share < 1  # 16 channels fit with two stages and not with three
    assert Fitting(**json.loads(json.dumps(found.to_dict()))).within(whole).to_dict() == left.to_dict()


def test_the_default_student_is_one_that_fits(digits: Data, tmp_path: Path) -> None:
    whole = SearchSpace.from_dict(TWO)
    sizes = Sizes(digits, None, tmp_path, {"parameters": 6000})
    assert sizes.over(whole.default().without_distillation()) is not None
    left = fitting(whole, sizes).within(whole)
    default = left.default()
    assert sizes.over(default.without_distillation()) is None
    assert dict(default.student.hyper) == {"channels": 16, "stages": 2}  # one departure, and the largest such
    assert left.params_of(default)
    assert all(recipe.student == default.student for recipe in left.published())


def test_a_family_too_large_to_list_is_sampled(digits: Data, tmp_path: Path) -> None:
    whole = space(cnn={}, resnet={})
    found = fit(whole, digits, tmp_path, parameters=20_000)
    assert not found.whole
    left = found.within(whole)
    assert set(left.options["student"]) == {"cnn", "resnet"}
    assert left.options["student"]["resnet"]["width"].low == whole.options["student"]["resnet"]["width"].low  # type: ignore[union-attr]
    for family in left.options["student"]:
        recipe = left.default(student=family).without_distillation()
        assert Sizes(digits, None, tmp_path, {"parameters": 20_000}).over(recipe) is None


def test_no_student_fits(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fit(space(**CNN), digits, tmp_path, macs=1000, parameters=100_000)
    assert str(caught.value).startswith(
        "limits: none of the 8 students that were measured is within them; the closest,"
    )
    assert "cnn(channels=4, stages=2), has" in str(caught.value)
    assert str(caught.value).endswith("MACs; the limit is 1,000")


# runs


def test_a_config_that_no_student_meets_ends_with_one_line(tmp_path: Path) -> None:
    path = write_config(tmp_path, limits={"memory_mib": 0.001})
    for extra in (["--dry-run"], ["--run-dir", tmp_path / "run", "--quiet"]):
        result = invoke("run", path, *extra)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "limits: none of the 2 students that were measured is within them" in result.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()  # a corrected config may use the folder


def test_nothing_is_spent_on_students_beyond_the_limits(tmp_path: Path) -> None:
    """Some of what is left does not fit; the search reaches its budget, every trained student is within the limits."""
    student = {"cnn": {"channels": {"values": [3, 4, 12, 16]}, "stages": [2, 3]}}
    config = {
        **TINY,
        "space": {**TINY["space"], "student": student},
        "limits": {"parameters": 3200},
        "searcher": {"name": "random"},
        "budget": {"trials": 7},
        "proxies": {"names": [], "prune_by": None},
    }
    run = kdsearch.search(config, run_dir=tmp_path / "run")
    charged = [t for t in run.study.trials if not t.user_attrs.get("free")]
    assert len(charged) == 7
    for trial in run.study.trials:
        failure = trial.user_attrs.get("failure", {})
        if failure:
            assert failure["reason"] == "invalid"
            assert failure["message"].endswith("; the limit is 3,200")
            assert not [key for key in trial.user_attrs if key.startswith("rung:")]
    tops = [t.user_attrs["rung:sparse"]["size"]["parameters"] for t in charged if "rung:sparse" in t.user_attrs]
    assert tops
    assert max(tops) <= 3200
    assert [t for t in charged if t.user_attrs["origin"] == "baseline:none" and t.values]
    assert run.space.options["student"]["cnn"]["channels"].options == (3, 4, 12)  # type: ignore[union-attr]


def test_latency_as_an_objective_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured once an architecture, resumed runs included."""
    config = {**TINY, "minimise": ["latency"], "searcher": {"name": "tpe"}, "budget": {"trials": 4}}
    first = kdsearch.search({**config, "limits": {"latency_ms": 1000}}, run_dir=tmp_path / "run")
    before = latencies(first.study)
    assert before
    kept = {path.name for path in (tmp_path / "run" / "cache" / "latency").glob("*.json")}
    assert len(kept) == 2
    monkeypatch.setattr(costs.measure, "latency", lambda *a: pytest.fail("measured again"))
    again = kdsearch.resume(tmp_path / "run", trials=7)
    try:
        again.execute()
    finally:
        again.place.release()
    after = latencies(again.study)
    assert len([t for t in again.study.trials if not t.user_attrs.get("free")]) == 7
    assert before.items() <= after.items()
    assert len({value for _, value in after.values()}) <= 2
    assert "latency, ms" in (tmp_path / "run" / "report.html").read_text()


def latencies(study: optuna.Study) -> dict[int, tuple[str, float]]:
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    return {t.number: (t.user_attrs["recipe"]["student"]["channels"], t.values[1]) for t in complete}
