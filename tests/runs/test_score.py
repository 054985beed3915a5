"""`kdsearch score`: students by themselves, and proxies against a ground truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor

from kdsearch.errors import UserError
from kdsearch.runs.config import RunConfig
from kdsearch.runs.ranking import _stage
from kdsearch.runs.truth import Truth, read
from kdsearch.search_space.students.family import create

from .tiny import invoke, kdsearch

S1 = Path(__file__).parents[2] / "benchmarks" / "s1" / "kd.txt"
SIX = ("111", "113", "131", "311", "133", "331")


@pytest.fixture
def six(tmp_path: Path) -> Path:
    """Six of the 64 networks, the smallest."""
    lines = [line for line in S1.read_text().splitlines() if line.split()[0] in SIX]
    path = tmp_path / "six.txt"
    path.write_text("\n".join(lines))
    return path


def test_six_networks_as_a_process(six: Path) -> None:
    few = ("--proxy", "synflow", "--proxy", "l2_norm:init=gaussian", "--batch", "4", "--json")
    result = kdsearch("score", "--truth", six, *few)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["proxy"] for row in found["rows"]] == ["params", "macs", "synflow", "l2_norm:init=gaussian", "combined"]
    assert found["students"] == 6
    assert found["images"] == "N(0, 1), random labels"
    assert found["scores"]["111"]["params"] == 83892  # as the authors' own network
    assert found["scores"]["111"]["macs"] == 12507392
    truth = {line.split()[0]: float(line.split()[1]) for line in six.read_text().splitlines()}
    counts = {code: found["scores"][code]["params"] for code in truth}
    pairs = [(a, b) for a in truth for b in truth if a < b]
    agree = sum((truth[a] - truth[b]) * (counts[a] - counts[b]) > 0 for a, b in pairs)
    assert found["rows"][0]["tau"] == pytest.approx(2 * agree / len(pairs) - 1)
    assert all(row["seconds"] >= 0 for row in found["rows"])


def test_the_table_begins_with_the_bar(six: Path) -> None:
    result = invoke("score", "--truth", six, "--proxy", "autodas", "--batch", "2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["proxy", "params", "macs", "autodas", "combined"]
    assert lines[0].split() == ["proxy", "tau", "rho", "iso", "seconds"]
    assert "6 students, batch 2, N(0, 1), random labels" in result.stdout
    assert "not in it: autodas, which was selected on these very students" in result.stdout


def test_students_of_any_family_on_the_data_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text('student,accuracy\n"cnn:channels=4,stages=2",0.8\ncnn:channels=6,0.9\ncnn:channels=8,0.95\n')
    result = invoke("score", "--truth", path, "--proxy", "snip", "--batch", "8", "--seeds", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["images"] == "digits"
    assert found["seeds"] == 2
    assert found["rows"][0]["tau"] == 1
    assert found["rows"][-1]["tau"] is None  # three students teach a combiner nothing
    one = json.loads(invoke("score", "--truth", path, "--proxy", "snip", "--batch", "8", "--json").stdout)
    other = json.loads(
        invoke("score", "--truth", path, "--proxy", "snip", "--batch", "8", "--set", "seed=1", "--json").stdout
    )
    name = "cnn:channels=6"
    assert found["scores"][name]["snip"] == pytest.approx(
        (one["scores"][name]["snip"] + other["scores"][name]["snip"]) / 2
    )


def test_what_a_proxy_cannot_score_is_its_worst_and_said(tmp_path: Path) -> None:
    path = tmp_path / "truth.csv"
    path.write_text("\ufeffstudent,accuracy\nrnn:hidden=8,0.8\ncnn:channels=6,0.9\ncnn:channels=8,0.95\n")
    few = ("--proxy", "autodas", "--batch", "4")
    result = invoke("score", "--truth", path, *few)
    assert result.exit_code == 0, result.output
    assert "autodas has no score of 1 students, which is its worst, such as rnn:hidden=8: autodas" in result.stdout
    found = json.loads(invoke("score", "--truth", path, *few, "--json").stdout)
    assert found["scores"]["rnn:hidden=8"]["autodas"] is None
    assert found["rows"][2]["tau"] == 1
    path.write_text("student,accuracy\nrnn:hidden=8,0.8\nrnn:hidden=9,0.9\n")
    result = invoke("score", "--truth", path, *few)
    assert result.exit_code == 2
    assert "proxy autodas: autodas counts convolutions" in result.stderr


def test_a_batch_follows_its_seed_and_has_labels_first() -> None:
    truth = Truth((("cnn", create("cnn")),), (1.0,))

    def drawn(batch: int, seed: int, **data: float) -> tuple[Tensor, Tensor]:
        return _stage(truth, RunConfig.model_validate({"data": data}), True, batch).batch(seed)

    (one, _), (again, _), (other, _) = (drawn(16, seed) for seed in (0, 0, 1))
    assert one.equal(again)
    assert not one.equal(other)
    assert len(drawn(5000, 0)[0]) == 900
    labels = drawn(120, 0, labelled=0.1)[1]
    assert labels[:80].min() >= 0
    assert labels[100:].max() < 0


def test_json_may_say_what_its_students_see(tmp_path: Path) -> None:
    students = [{"student": f"cnn:channels={c}", "accuracy": c} for c in (4, 5)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"input": [3, 12, 12], "classes": 7, "students": students}))
    truth = read(path)
    assert (truth.input_shape, truth.classes, truth.accuracy) == ((3, 12, 12), 7, (4.0, 5.0))
    assert truth.selected == ()
    cnn = ("--set", "teacher.model={family: cnn, channels: 8}")
    result = invoke("score", "--truth", path, "--proxy", "diswot", "--batch", "4", "--json", *cnn)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == "N(0, 1), random labels"
    result = invoke("score", "--truth", path, "--proxy", "synflow", "--set", "data.name=digits")
    assert result.exit_code == 2
    assert "digits has images [1, 8, 8] of 10 classes; the students of the ground truth are of" in result.stderr


def test_the_benchmarks_files_hold_64_networks() -> None:
    for name in ("kd", "cls"):
        truth = read(S1.with_name(f"{name}.txt"))
        assert len({code for code, _ in truth.students}) == 64
        assert truth.selected == ("autodas",)
    assert dict(zip((code for code, _ in truth.students), truth.accuracy, strict=True))["777"] == max(truth.accuracy)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "713 71.01\n7x3 70\n", "line 2: resnet_s1 takes three digits"),
        ("a.txt", "713 71.01\n333\n", "line 2: expected a network of S1 and its accuracy"),
        ("a.txt", "713 seventy\n333 70\n", "line 1: the accuracy must be a number, not 'seventy'"),
        ("a.txt", "713 71.01\n", "holds 1 students"),
        ("a.txt", "713 71.01\n333 70\n713 71.02\n", "'713' is the student of '713' again"),
        ("a.csv", "student,accuracy\ncnn,1\ncnn:channels=16,2\n", "'cnn:channels=16' is the student of 'cnn' again"),
        ("a.csv", "student,accuracy\nresnt:depth=20,1\n", "line 2: .*did you mean 'resnet'"),
        ("a.csv", "model,accuracy\nresnet,1\n", "line 2: needs a student"),
        ("a.json", '[{"student": "cnn:channels", "accuracy": 1}]', r"students.0 'cnn:channels': write FAMILY:KEY"),
        ("a.json", '{"input": [3, 8, 8], "students": []}', "give input and classes, or neither"),
        ("a.json", "{", "not readable as JSON"),
    ],
)
def test_mistakes_in_a_truth_are_one_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--truth", "nowhere.txt"), "--truth: cannot read 'nowhere.txt'"),
        (("--truth", S1, "--proxy", "synflo"), "--proxy: .*did you mean 'synflow'"),
        (("--truth", S1, "--proxy", "synflow:init=kaiming"), "--proxy: "),
        (("--truth", S1, "--student", "cnn"), "--student: the students are those of --truth"),
    ],
)
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], says: str) -> None:
    import re

    result = invoke("score", *arguments)
    assert result.exit_code == 2
    assert re.search(says, result.stderr), result.stderr
