"""The table: what it says, what it costs to read, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest

from kdsearch import searchers
from kdsearch.parameters import Choices
from kdsearch.searchers import SEARCHERS, MissingPackage


def test_names() -> None:
    expected = ["autokd", "cmaes", "evolution", "gp", "kdzero", "mcts", "nni", "nsga2", "qmc", "random", "tpe"]
    assert searchers.names() == expected


@pytest.mark.parametrize("cls", list(SEARCHERS), ids=lambda cls: cls.name)
def test_an_entry_says_what_it_is(cls: Any) -> None:
    assert cls.__doc__
    for text in (cls.title, cls.source, cls.models):
        assert text.strip() == text != ""
        assert "\n" not in text
    for parameter in cls.parameters.values():
        assert parameter.doc
        assert parameter.check(parameter.default) == parameter.default


@pytest.mark.parametrize(
    ("name", "option"), [(cls.name, key) for cls in SEARCHERS for key in cls.parameters], ids=lambda x: str(x)
)
def test_every_declared_option_reaches_the_sampler(name: str, option: str) -> None:
    parameter = SEARCHERS[name].parameters[option]
    values = parameter.options if isinstance(parameter, Choices) else (parameter.low, parameter.high)
    together = {"group": False} if (name, option) == ("tpe", "multivariate") else {}
    states = []
    for value in values:
        with suppress(MissingPackage):  # of a single value: that of one of NNI's tuners
            states.append(_plain_state(searchers.create(name, seed=0, **{option: value, **together})))
    assert states[0] != states[1]


def _plain_state(value: Any, depth: int = 3) -> Any:
    """Numbers, switches and texts that an object holds, and those its parts hold."""
    if isinstance(value, bool | int | float | str):
        return value
    held = vars(value) if depth and hasattr(value, "__dict__") else {}
    return {key: _plain_state(part, depth - 1) for key, part in held.items()}


def test_listing_needs_neither_optuna_nor_torch() -> None:
    code = (
        "import sys; from kdsearch import searchers;"
        "rows = [(c.name, c.title, c.models, c.parameters) for c in searchers.SEARCHERS];"
        "assert len(rows) >= 7; print([m for m in ('optuna', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown searcher 'mtcs'; did you mean 'mcts'"):
        searchers.create("mtcs", seed=0)
    with pytest.raises(ValueError, match="'mcts' has no option 'explore'; did you mean 'exploration'"):
        searchers.create("mcts", seed=0, explore=1.0)
    with pytest.raises(ValueError, match="'random' has no option 'seeds'; it has none"):
        searchers.create("random", seed=0, seeds=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mcts", {"exploration": -1.0}, r"mcts.exploration must lie in \[0, inf\], not -1.0"),
        ("mcts", {"growth": "fast"}, "mcts.growth must be a finite number"),
        ("mcts", {"defaults": 3}, "defaults must be a mapping, not 3"),
        ("mcts", {"priors": {"a": {"x": -1}}}, "a weight must be a finite number from 0, not -1"),
        ("tpe", {"multivariate": False}, "group=True needs multivariate=True"),
        ("cmaes", {"use_separable_cma": True, "with_margin": True}, "exclude each other"),
        ("qmc", {"qmc_type": "sobl"}, "did you mean 'sobol'"),
    ],
)
def test_bad_values_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        searchers.create(name, seed=0, **options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(MissingPackage, match=r"pip install kdsearch\[cmaes\]") as caught:
        searchers.create("cmaes", seed=0)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_no_seed_draws_one() -> None:
    first, second = (searchers.create("mcts", seed=None) for _ in range(2))
    assert first.seed != second.seed  # type: ignore[attr-defined]
