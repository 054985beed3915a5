"""The command line as a process: it answers at once, lists what is registered, and says what is wrong in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from .runs.tiny import TINY, environment, invoke, write_config
from .runs.tiny import kdsearch as command


def quickest(*arguments: str, tries: int = 4) -> float:
    """Seconds of the fastest of a few runs: the machine's neighbours are not under test."""
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "kdsearch", *arguments], capture_output=True, check=True, env=environment()
        )
        times.append(time.perf_counter() - began)
    return min(times)


def test_help_and_listings_are_instant() -> None:
    assert quickest("--help") < 0.6  # 0.3 s on a quiet machine; CI shares its cores
    assert quickest("methods") < 1.5


@pytest.mark.parametrize("module", ["kdsearch", "kdsearch.kd_methods", "kdsearch.listing", "kdsearch.cli"])
def test_imports_stay_light(module: str) -> None:
    heavy = ("torch", "timm", "optuna", "ray", "nni", "plotly")
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("table", ["methods", "students", "proxies", "searchers"])
def test_listings_are_json_with_names(table: str) -> None:
    rows = json.loads(command(table, "--json").stdout)
    assert len(rows) >= 4
    assert all(row["name"] for row in rows)
    text = command(table).stdout
    assert all(row["name"] in text for row in rows)


def test_space_prints_the_tree_and_yaml_that_reads_back() -> None:
    text = command("space").stdout
    assert "logits.kd.temperature" in text
    assert "discrete structures" in text
    from kdsearch.search_space.space import SearchSpace

    SearchSpace.from_dict(yaml.safe_load(command("space", "--yaml").stdout))
    assert len(command("space", "--sample", "3").stdout.splitlines()) == 3


def test_score_ranks_given_students() -> None:
    result = command("score", "--student", "cnn:channels=4", "--student", "resnet:depth=8,width=0.5", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["student"].split(":")[0] for row in rows] == ["cnn", "resnet"]
    assert all(row["parameters"] > 0 and row["macs"] > 0 for row in rows)
    assert set(rows[0]) > {"diswot", "synflow"}


def test_score_without_students_takes_those_of_the_space() -> None:
    space = "space.student={cnn: {channels: 4, stages: 2}}"
    result = invoke("score", "--set", space, "--set", "proxies.names=[synflow]", "--json")
    assert result.exit_code == 0, result.output
    assert [row["student"] for row in json.loads(result.stdout)] == ["cnn:channels=4,stages=2"]


@pytest.mark.parametrize("option", [("--proxy", "synflow"), ("--seeds", "1"), ("--batch", "7")])
def test_score_does_not_drop_what_is_for_a_truth(option: tuple[str, str]) -> None:
    result = invoke("score", "--student", "cnn", *option)
    assert result.exit_code == 2
    assert result.stderr == f"kdsearch: {option[0]}: only with --truth\n"


def test_dry_run_says_what_it_would_cost_and_keeps_nothing(tmp_path: Path) -> None:
    result = command("run", write_config(tmp_path), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("space", "students", "offline teacher", "MiB", "full training", "whole run"):
        assert word in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]


BAD_CONFIGS = [
    ({"sercher": {"name": "mcts"}}, "unknown key 'sercher'; did you mean 'searcher'"),
    ({"searcher": {"name": "mtcs"}}, "searcher.name = 'mtcs': did you mean 'mcts'?"),
    ({"budget": {"trails": 3}}, "unknown key 'budget.trails'; did you mean 'trials'?"),
    ({"budget": {"seconds": "soon"}}, "must be a duration such as 30m"),
    ({"budget": {"trials": None}}, "a search without a budget has no end"),
    ({"metric": "acuracy"}, "did you mean 'accuracy'"),
    ({"fidelity": {"rungs": [{"name": "half", "epochs": 0.5}]}}, "the last one must be a full training"),
    ({"space": {"logits": ["kdd"]}}, "did you mean 'kd'"),
    (
        {"space": {"features": {"at": {"weight": [5, 1]}}}},
        "config.yaml: space.features.at.weight has low 5.0 above high 1.0",
    ),
    ({"searcher": {"name": "mcts", "options": {"explore": 1}}}, "no option 'explore'; did you mean 'exploration'"),
    ({"proxies": {"names": ["diswott"]}}, "did you mean 'diswot'"),
    ({"space": []}, "config.yaml: space: Input should be a valid dictionary"),
    ({"space": {"logits": [["kd"]]}}, "space.logits must list names or map them to ranges, not [['kd']]"),
    (
        {"space": {"logits": {"kd": {"temperature": {"values": 4}}}}},
        "space.logits.kd.temperature takes values as a list with at least one of them, not 4",
    ),
    (
        {"space": {"logits": {"kd": {"temperature": {"values": []}}}}},
        "space.logits.kd.temperature takes values as a list with at least one of them, not []",
    ),
    ({"teachers": [{"epoch": 2}]}, "unknown key 'teachers.0.epoch'; did you mean 'epochs'?"),
    ({"budget": {"trials": True}}, "budget.trials = True: cannot be true or false"),
    ({"seed": -1}, "seed = -1: Input should be greater than or equal to 0"),
    ({"data": {"name": "digit"}}, "did you mean 'digits'"),
    ({"data": {"name": "cifar10"}}, "data.root: cifar10 needs the folder"),
    ({"data": {"name": "cifar10", "root": "/nowhere"}}, "there is no folder '/nowhere'"),
    ({"teacher": {"model": "resnett"}}, "teacher.model: unknown student family 'resnett'; did you mean 'resnet'"),
    ({"teacher": {"model": {"family": "timm", "model": "resnet1888"}}}, "timm has no model 'resnet1888'"),
    ({"teacher": {"checkpoint": "/no/such.pt"}}, "checkpoint: there is no file '/no/such.pt'"),
    ({"teacher": {"mean": [0.5, 0.5, 0.5], "epochs": 1}}, "teacher.mean: needs 1 numbers, one per channel, not 3"),
    ({"plugins": ["no_such_module_here"]}, "plugins: cannot import 'no_such_module_here'"),
    (
        {"study": {"storage": "mysql+nodriver://me:secret@127.0.0.1/x"}},
        "study.storage: mysql+nodriver://me:***@127.0.0.1/x",
    ),
    ({"engine": {"device": "cuda:99"}}, "engine.device: 'cuda:99' is not available"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS, ids=[str(c)[:40] for c, _ in BAD_CONFIGS])
def test_a_mistake_is_one_clear_line_and_exit_two(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, **change}))
    result = invoke("run", path, "--run-dir", tmp_path / "run", "--quiet")
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output


def test_all_problems_of_a_config_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("sercher: {}\nbudget: {trails: 1}\nmetric: acc\n")
    result = command("run", path)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"kdsearch: {path}: ") for line in lines)


def test_unreadable_files_say_where(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("data: {name: digits\nseed: 1\n")
    assert "not readable as YAML" in invoke("run", path).output
    assert "line 2" in invoke("run", path).output
    assert "cannot read" in invoke("run", tmp_path / "missing.yaml").output
    assert "write key.path=value" in invoke("run", "--set", "seed", "--dry-run").output
    for arguments in (
        ("status", tmp_path),
        ("report", tmp_path),
        ("resume", tmp_path),
        ("export", tmp_path, "-o", "x"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "there is no run in" in result.output
    assert "cannot read" in invoke("train", tmp_path / "none.yaml").output
    path.write_text("recipe: {student: cnn, logits: dkdd}\n")
    assert "did you mean 'dkd'" in invoke("train", path).output


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    from kdsearch.search_space.students.family import create

    torch.save(create("cnn", channels=5).build((1, 8, 8), 10).state_dict(), tmp_path / "t.pt")
    result = invoke(
        "run", write_config(tmp_path, teacher={"checkpoint": str(tmp_path / "t.pt")}), "--run-dir", tmp_path / "r"
    )
    assert result.exit_code == 2
    assert "is of another architecture" in result.output
    assert "(5, 1, 3, 3) there and (12, 1, 3, 3) in the model" in result.output


def test_a_pickle_that_is_more_than_tensors_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    import pickle

    (tmp_path / "t.pt").write_bytes(pickle.dumps(Evil()))
    result = invoke(
        "run", write_config(tmp_path, teacher={"checkpoint": str(tmp_path / "t.pt")}), "--run-dir", tmp_path / "r"
    )
    assert result.exit_code == 2
    assert "cannot be read" in result.output
    assert not (tmp_path / "owned").exists()


def test_a_folder_in_use_and_a_folder_of_another_run(tmp_path: Path) -> None:
    from kdsearch.runs import config_file
    from kdsearch.runs.folder import RunFolder

    holder = RunFolder(tmp_path / "run")
    holder.create(config_file.check(TINY, "tiny"))
    path = write_config(tmp_path)
    busy = invoke("resume", tmp_path / "run")
    assert busy.exit_code == 2
    assert f"is in use by another process (pid {os.getpid()})" in busy.output
    holder.release()
    taken = invoke("run", path, "--run-dir", tmp_path / "run")
    assert taken.exit_code == 2
    assert "holds a run already" in taken.output
    assert "kdsearch resume" in taken.output


def test_a_damaged_study_is_one_clear_line(tmp_path: Path) -> None:
    from kdsearch.runs import config_file
    from kdsearch.runs.folder import RunFolder

    holder = RunFolder(tmp_path / "run")
    holder.create(config_file.check(TINY, "tiny"))
    holder.release()
    (tmp_path / "run" / "study.db").write_bytes(b"this is no database" * 100)
    result = invoke("status", tmp_path / "run")
    assert result.exit_code == 2
    assert "is damaged: it is not an SQLite file" in result.output


def test_empty_and_corrupt_image_folders(tmp_path: Path) -> None:
    images = {"name": "image_folder", "root": str(tmp_path / "images"), "image_size": 16}
    (tmp_path / "images").mkdir()
    empty = invoke("run", write_config(tmp_path, data=images), "--run-dir", tmp_path / "r")
    assert empty.exit_code == 2
    assert "Couldn't find any class folder" in empty.output
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir()
        for k in range(8):
            (tmp_path / "images" / name / f"{k}.jpg").write_bytes(b"not an image")
    corrupt = invoke("run", write_config(tmp_path, data=images), "--run-dir", tmp_path / "r")
    assert corrupt.exit_code == 2
    assert "is not a readable image" in corrupt.output


def test_a_full_disk_stops_with_one_line(tmp_path: Path) -> None:
    """/dev/full refuses every write with the error of a full disk."""
    (tmp_path / "run").mkdir()
    os.symlink("/dev/full", tmp_path / "run" / "environment.json")
    result = invoke("run", write_config(tmp_path), "--run-dir", tmp_path / "run", "--quiet")
    assert result.exit_code == 2
    assert "No space left on device" in result.output
    assert "Traceback" not in result.output


def test_a_disk_that_fills_up_in_the_search_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite is held to the size it has when the search begins, which gives its own error of a full disk."""
    import sqlite3

    from kdsearch.runs import ledger

    connect = ledger._connect

    def bounded(path: str) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count=56")
        return connection

    monkeypatch.setattr(ledger, "_connect", bounded)
    config = write_config(tmp_path, budget={"trials": 200})
    result = invoke("run", config, "--run-dir", tmp_path / "run", "--quiet")
    assert result.exit_code == 2, result.output
    assert "study: cannot be written" in result.output
    assert f"kdsearch resume {tmp_path / 'run'}" in result.output
    monkeypatch.undo()
    assert json.loads(invoke("status", tmp_path / "run", "--json").output)["trials"]
