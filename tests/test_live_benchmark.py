"""benchmarks/live.py: what it keeps between calls. Nothing is searched here: all rows are there, or are refused."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from kdsearch.runs import config_file

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("live")
    torch.set_num_threads(threads)
    sys.modules.pop("live")


@pytest.fixture
def out(live: Any, tmp_path: Path) -> Path:
    """Two searches of 60 s by random search, as a call without options makes them."""
    settings = live.in_common(config_file.read(None, ()), 60.0)
    found = {"winner": {"validation": 0.9, "test": 0.9}, "trials": {"complete": 3}}
    path = tmp_path / "live.jsonl"
    rows = [{"searcher": "random", "seed": seed, "settings": settings, **found} for seed in (0, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(live: Any, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(live.main, ["--searcher", "random", "--seeds", "2", "--out", str(out), *arguments])


def test_what_is_there_is_not_run_again(live: Any, out: Path) -> None:
    before = out.read_text()
    result = call(live, out)
    assert result.exit_code == 0, result.output
    assert "| random | 3 | 0.9000" in result.output
    assert out.read_text() == before


def test_a_line_that_a_kill_cut_short_is_taken_off(live: Any, out: Path) -> None:
    first, second = out.read_text().splitlines(keepends=True)
    out.write_text(first + second[:-20])
    assert live.known(out, json.loads(first)["settings"]) == [json.loads(first)]
    assert out.read_text() == first


@pytest.mark.parametrize("other", [("--seconds", "90"), ("--set", "metric=nll"), ("--set", "seed=4")])
def test_rows_of_other_settings_are_refused(live: Any, out: Path, other: tuple[str, str]) -> None:
    refused = call(live, out, *other)
    assert refused.exit_code == 1
    assert refused.output.splitlines() == [
        f"Error: --out: {out} holds searches of another config or time; name another file"
    ]


def test_rows_that_do_not_say_their_settings_are_refused(live: Any, tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_text(json.dumps({"searcher": "random", "seed": 0}) + "\n")
    assert "holds searches of another config or time" in call(live, path).output
