"""Every command and every line of Python in the README runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from .runs.tiny import TINY, invoke

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.startswith("kdsearch ")
]
CONFIG = next(block for kind, block in BLOCKS if kind == "yaml")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's mine.yaml is a config small enough for a test."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "mine.yaml").write_text(yaml.safe_dump(TINY))
    grown = {**TINY["space"], "logits": [*TINY["space"]["logits"], "dist"]}
    (folder / "grown.yaml").write_text(yaml.safe_dump({**TINY, "space": grown}))
    scored = folder / "benchmarks" / "s1"
    scored.mkdir(parents=True)
    (scored / "kd.txt").write_text("\n".join((ROOT / "benchmarks" / "s1" / "kd.txt").read_text().split("\n")[:6]))
    (folder / "benchmarks" / "kdbench").symlink_to(ROOT / "benchmarks" / "kdbench")
    return folder


def test_the_readmes_commands_run_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    local = [command for command in COMMANDS if "ray" not in command]
    assert len(local) >= 9
    for _, *arguments in local:
        small = [{"80": "6", "100": "8", "10": "2"}.get(argument, argument) for argument in arguments]
        result = invoke(*small)
        assert result.exit_code == 0, f"{arguments}: {result.output}"


def test_the_readmes_config_is_valid() -> None:
    from kdsearch.runs import config_file

    assert config_file.check(yaml.safe_load(CONFIG), "README").limits.parameters == 12_000_000


def test_the_readmes_python_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (code,) = [block for kind, block in BLOCKS if kind == "python"]
    exec(compile(code, "README", "exec"), {})
    assert "CE" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cifar100", "image_folder"])
def test_examples_are_valid(name: str) -> None:
    from kdsearch.runs import config_file

    config_file.read(Path(__file__).parent.parent / "examples" / f"{name}.yaml")


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(block for kind, block in BLOCKS if kind == "bash"), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M)
