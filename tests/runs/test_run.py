"""A whole run through the public API and the command line: search, finals, test, files, resume, retrain."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
import torch
import yaml

import kdsearch
from kdsearch.errors import UserError
from kdsearch.runs import config_file
from kdsearch.runs.run import Run

from .tiny import TINY, environment, write_config
from .tiny import kdsearch as command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished tiny run, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("runs")
    kdsearch.search(TINY, run_dir=folder / "run")
    return folder / "run"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def study(folder: Path, name: str = "search") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'study.db'}")


def test_the_study_is_readable_from_plain_optuna(finished: Path) -> None:
    found = study(finished)
    charged = [t for t in found.trials if not t.user_attrs.get("free")]
    assert len(charged) == 5
    for trial in charged:
        assert {"recipe", "hash", "equation", "origin"} <= set(trial.user_attrs)
    complete = [t for t in charged if t.state == optuna.trial.TrialState.COMPLETE]
    assert complete
    for trial in complete:
        assert trial.value == trial.user_attrs["rung:full"]["score"]
        assert trial.user_attrs["rung:sparse"]["seconds"] > 0
        assert trial.user_attrs["rung:full"]["curve"]
    assert 0.5 < found.user_attrs["teacher_accuracy"] <= 1


def test_baselines_are_trials_and_always_complete(finished: Path) -> None:
    origins = {t.user_attrs["origin"]: t for t in study(finished).trials}
    for name in ("baseline:none", "baseline:kd"):
        assert origins[name].state == optuna.trial.TrialState.COMPLETE
    assert origins["baseline:none"].params["logits"] == "none"
    assert origins["baseline:kd"].params["logits"] == "kd"


def test_finals_hold_every_seed_of_finalists_and_baselines(finished: Path) -> None:
    run = Run(finished)
    standings = run.standings
    assert {"finalist", "baseline:none", "baseline:kd"} <= {s.role for s in standings}
    assert all(len(s.validation) == 2 for s in standings)
    winner = run.finals.winner()
    assert winner is not None
    assert winner.recipe == run.best
    assert len(winner.test) == 2
    assert run.finals_ledger.study.user_attrs["test_seen"] == 1


def test_best_recipe_and_student_lie_beside_each_other(finished: Path) -> None:
    run = Run(finished)
    data = yaml.safe_load((finished / "best.yaml").read_text())
    assert kdsearch.load_recipe(finished / "best.yaml") == run.best
    winner = run.finals.winner()
    assert winner is not None
    assert data["provenance"]["validation"]["seeds"] == dict(enumerate(winner.validation))
    student = kdsearch.load_student(finished)
    card = json.loads((finished / "student.json").read_text())
    logits = student(torch.zeros(2, *card["input_shape"]))
    assert logits.shape == (2, 10)
    assert not student.training
    assert (finished / "report.html").stat().st_size > 10_000


def test_the_exported_student_scores_what_is_reported(finished: Path) -> None:
    from kdsearch.runs import assemble, models
    from kdsearch.runs.metrics import evaluate

    run = Run(finished)
    data = assemble.data(run.config, torch.device("cpu"))
    network = models.network(kdsearch.load_student(finished), data, assemble.settings(run.config))
    winner = run.finals.winner()
    assert winner is not None
    assert evaluate(network, data.validation)["accuracy"] == pytest.approx(winner.validation[0])
    assert evaluate(network, data.test)["accuracy"] == pytest.approx(winner.test[0])


def test_environment_and_resolved_config_are_kept(finished: Path) -> None:
    packages = json.loads((finished / "environment.json").read_text())["packages"]
    assert packages["torch"].split("+")[0] == torch.__version__.split("+")[0]
    resolved = yaml.safe_load((finished / "config.yaml").read_text())
    assert resolved["space"]["logits"]["kd"]["temperature"] == {"low": 1, "high": 20, "log": True}
    assert config_file.read(finished / "config.yaml").budget.trials == 5


def test_a_finished_run_is_not_done_again_but_can_be_extended(copy: Path) -> None:
    before = len(study(copy).trials)
    result = command("resume", copy, "--quiet")
    assert result.returncode == 0, result.stderr
    assert len(study(copy).trials) == before
    assert study(copy, "search.finals").user_attrs["test_seen"] == 1
    more = command("resume", copy, "--trials", "7", "--quiet")
    assert more.returncode == 0, more.stderr
    assert len([t for t in study(copy).trials if not t.user_attrs.get("free")]) == 7


def test_retraining_the_best_recipe_lands_on_its_number(copy: Path, tmp_path: Path) -> None:
    result = command("train", copy / "best.yaml", "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    reported = yaml.safe_load((copy / "best.yaml").read_text())["provenance"]["validation"]["seeds"][0]
    assert f"reported for this seed: validation accuracy {reported:.4f}" in result.stdout
    assert result.stdout.startswith(f"validation accuracy {reported:.4f} ")
    assert kdsearch.load_student(tmp_path / "out")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_export_status_report_as_commands(copy: Path, tmp_path: Path) -> None:
    assert command("export", copy, "--format", "kdsearch", "-o", tmp_path / "best.yaml").returncode == 0
    assert kdsearch.load_recipe(tmp_path / "best.yaml") == Run(copy).best
    state = json.loads(command("status", copy, "--json").stdout)
    assert state["budget"] == 5
    assert state["trials"]["complete"] >= 2
    result = command("report", copy, "-o", tmp_path / "r.html")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "r.html").exists()


def test_onnx_export_agrees_with_the_student(copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the onnx extra is not installed")
    reference = pytest.importorskip("onnx.reference", reason="the onnx extra is not installed")
    assert command("export", copy, "--format", "onnx", "-o", tmp_path / "s.onnx").returncode == 0
    card = json.loads((copy / "student.json").read_text())
    images = torch.rand(3, *card["input_shape"])
    mean, std = (torch.tensor(card[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    expected = kdsearch.load_student(copy)((images - mean) / std).detach().numpy()
    (found,) = reference.ReferenceEvaluator(str(tmp_path / "s.onnx")).run(None, {"images": images.numpy()})
    assert abs(found - expected).max() < 1e-4


def test_a_duplicate_takes_the_known_result_and_costs_no_budget(tmp_path: Path) -> None:
    """A space of three recipes is exhausted long before thirty trials."""
    space = {
        **TINY["space"],
        "features": ["none"],
        "logits": {"none": {}, "kd": {"weight": 0.9, "temperature": {"values": [2.0, 4.0]}}},
    }
    space |= {"student": {"cnn": {"channels": 3, "stages": 2}}, "ce": {"weight": 0.1}}
    config = {**TINY, "space": space, "budget": {"trials": 30}, "fidelity": {"epochs": 1, "rungs": [{"name": "full"}]}}
    config["searcher"] = {"name": "random"}
    run = kdsearch.search(config, run_dir=tmp_path / "run")
    trials = run.study.trials
    charged = [t for t in trials if not t.user_attrs.get("free")]
    repeats = [t for t in trials if "duplicate_of" in t.user_attrs]
    assert len(charged) == 3
    assert len(repeats) >= 20
    for trial in repeats:
        assert trial.value == trials[trial.user_attrs["duplicate_of"]].value


def test_own_teacher_module_and_other_metric(tmp_path: Path) -> None:
    """The Python API takes a user's own module; nll is minimised."""
    from kdsearch.search_space.students.family import create

    torch.manual_seed(0)
    own = create("cnn", channels=8).build((1, 8, 8), 10)
    config = {**TINY, "metric": "nll", "budget": {"trials": 2}}
    with pytest.raises(UserError, match="near chance"):
        kdsearch.search(config, run_dir=tmp_path / "untrained", teacher=own)
    student = kdsearch.distill(
        {"student": {"family": "cnn", "channels": 8}}, config=config_file.check(TINY, "tiny"), cache=tmp_path
    )
    run = kdsearch.search(config, run_dir=tmp_path / "run", teacher=student.module)
    assert run.study.direction == optuna.study.StudyDirection.MINIMIZE
    assert run.study.user_attrs["teacher_nll"] > 0


def test_two_objectives_prune_on_the_first_and_give_a_front(tmp_path: Path) -> None:
    config = {**TINY, "minimise": ["parameters"], "budget": {"trials": 6}, "searcher": {"name": "nsga2"}}
    run = kdsearch.search(config, run_dir=tmp_path / "run")
    complete = [t for t in run.study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert all(len(t.values) == 2 for t in complete)
    assert not [t for t in run.study.trials if t.user_attrs.get("failure", {}).get("reason") == "raised"]
    assert [t for t in run.study.trials if t.user_attrs.get("pruned_at") == "sparse"]
    assert run.study.best_trials
    assert run.best is not None
    assert (run.path / "best.yaml").exists()


def test_kill_minus_nine_loses_nothing_finished(tmp_path: Path) -> None:
    path = write_config(tmp_path, budget={"trials": 8})
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "kdsearch", "run", str(path), "--run-dir", str(folder), "--json"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "search" and event["complete"] >= 2:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdout.close()
    before = {t.number: t for t in study(folder).trials if t.state.is_finished()}
    assert before
    result = command("resume", folder, "--quiet")
    assert result.returncode == 0, result.stderr
    after = study(folder).trials
    for number, trial in before.items():
        assert after[number].state == trial.state
        assert after[number].values == trial.values
    assert not [t for t in after if t.state == optuna.trial.TrialState.RUNNING]
    retried = {t.user_attrs.get("retry_of") for t in after}
    interrupted = [t for t in after if t.user_attrs.get("failure", {}).get("reason") == "interrupted"]
    assert all(t.number in retried for t in interrupted)
    assert len([t for t in after if t.state.name in ("COMPLETE", "PRUNED") and not t.user_attrs.get("free")]) == 8
    assert (folder / "best.yaml").exists()


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = write_config(tmp_path, budget={"trials": 50})
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "kdsearch", "run", str(path), "--run-dir", str(folder), "--json"]
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell that starts the tests in the background has its children ignore Ctrl-C, and they hand that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "search":
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"kdsearch resume {folder}" in errors
    assert "Traceback" not in errors


def test_a_worker_that_dies_takes_down_its_job_alone(tmp_path: Path) -> None:
    """Two warm workers; one is killed from outside while it works; its job is tried again and the run ends well."""
    config = config_file.check({**TINY, "engine": {"workers": 2, "device": "cpu"}, "budget": {"trials": 6}}, "tiny")
    run = Run(tmp_path / "run", config).claim(new=True)
    from kdsearch.runs.engines.pool import PoolEngine

    killed: list[int] = []
    record = PoolEngine._handle

    def handle(self: PoolEngine, worker: object, message: object, desk: object) -> None:
        record(self, worker, message, desk)  # type: ignore[arg-type]
        victim = self.workers[0]
        if not killed and victim.job is not None and victim.process.pid is not None:
            killed.append(victim.process.pid)
            victim.process.kill()

    PoolEngine._handle = handle  # type: ignore[method-assign]
    try:
        run.execute()
    finally:
        PoolEngine._handle = record  # type: ignore[method-assign]
        run.place.release()
    lost = [t for t in run.study.trials if t.user_attrs.get("failure", {}).get("reason") == "worker lost"]
    assert killed
    assert len(lost) == 1
    assert lost[0].state == optuna.trial.TrialState.FAIL
    assert [t for t in run.study.trials if t.user_attrs.get("retry_of") == lost[0].number]
    assert run.best is not None


def test_time_budget_ends_the_search(tmp_path: Path) -> None:
    path = write_config(tmp_path, budget={"trials": 5000}, finals={"recipes": 1, "seeds": 1})
    began = time.monotonic()
    result = command("run", path, "--run-dir", tmp_path / "run", "--budget", "4s", "--quiet")
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - began < 60
    assert "best recipe" in result.stdout


def test_the_dashboard_answers_on_loopback(copy: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="the dashboard extra is not installed")
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-m", "kdsearch", "dashboard", str(copy), "--port", str(port)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    try:
        for _ in range(150):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    names = {s["study_name"] for s in json.load(answer)["study_summaries"]}
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.2)
        assert {"search", "search.finals"} <= names
    finally:
        process.terminate()
        process.wait(20)
