"""The comparison with the authors' code, on a stand-in for a checkout of theirs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

THEIRS = """
import a_package_that_nobody_has

@a_package_that_nobody_has.register
class Similarity(nn.Module):
    def forward(self, student, teacher):
        zero = torch.zeros(1).cuda()
        return [zero + {factor} * (self.gram(s) - self.gram(t)).pow(2).mean() for s, t in zip(student, teacher)]

    def gram(self, x):
        x = x.reshape(len(x), -1)
        return F.normalize(x @ x.t())
"""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    threads = torch.get_num_threads()
    yield importlib.import_module("authors")
    torch.set_num_threads(threads)
    for name in ("authors", "published", "cost"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1.001, False)])
def test_a_line_says_whether_both_compute_the_same(command: Any, tmp_path: Path, factor: float, agrees: bool) -> None:
    (tmp_path / "distiller_zoo").mkdir()
    (tmp_path / "distiller_zoo" / "SP.py").write_text(THEIRS.format(factor=factor))
    arguments = ["--repdistiller", str(tmp_path), "--method", "sp", "--method", "tat", "--batch", "4", "--turns", "1"]
    shown = CliRunner().invoke(command.main, arguments)
    assert shown.exit_code == 0, shown.output
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.output.splitlines() if "|" in line]
    measured = next(line for line in lines if line[0] == "sp")
    assert all(float(cell) > 0 for cell in measured[3:7])
    apart = [float(part) for part in measured[7].split("/")]
    assert (max(apart) < 1e-10) == agrees
    assert "no --tat" in next(line for line in lines if line[0] == "tat")[1]


def test_connectors_have_to_be_the_same(command: Any) -> None:
    published = importlib.import_module("published")
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    published.alike([ours, None], [theirs])
    assert torch.equal(ours.weight, theirs.weight)
    with pytest.raises(ValueError, match="not the same"):
        published.alike([ours], [nn.Linear(2, 3)])
