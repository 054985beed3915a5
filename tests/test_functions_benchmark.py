"""benchmarks/functions.py: its functions are the known ones, and its table is of real searches."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from optuna.trial import FixedTrial

PATH = Path(__file__).parents[1] / "benchmarks" / "functions.py"
BEST: dict[str, dict[str, Any]] = {
    "losses": {"loss": "dkd", "dkd.beta": 8.0, "deep": True, "depth": 14},
    "methods": {
        "method": "b",
        "b.weight": 10**0.5,
        "b.temperature": 4.0,
        "lr": 10**-1.3,
        "augmented": True,
        "magnitude": 0.0,
    },
    "branin": {"x": math.pi, "y": 2.275},
    "hartmann": dict(
        zip((f"x{k}" for k in range(6)), (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573), strict=True)
    ),
}


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("functions_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["functions_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", BEST)
def test_the_optimum_is_where_it_is_known_to_be(benchmark: Any, name: str) -> None:
    known = benchmark.FUNCTIONS[name]
    assert known.function(FixedTrial(BEST[name])) == pytest.approx(known.optimum, abs=1e-4)


def test_it_prints_a_row_for_each_searcher(benchmark: Any) -> None:
    asked = ["--function", "branin", "--searcher", "random", "--searcher", "mcts:ahead=0", "--seeds", "2"]
    result = CliRunner().invoke(benchmark.main, asked)
    assert result.exit_code == 0
    rows = [line for line in result.output.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["random", "mcts:ahead=0"]
    assert "branin: 50 trials" in result.output
