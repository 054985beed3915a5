"""The model of decisions: it finds effects, tells pairs and branches apart, and is the textbook's posterior."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch.searchers.mcts import MCTS
from kdsearch.searchers.mcts import fitting as fitting_module
from kdsearch.searchers.mcts.ahead import promises
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.mcts.features import features
from kdsearch.searchers.mcts.fitting import fit
from kdsearch.searchers.mcts.history import History, Tree
from kdsearch.searchers.mcts.local import variation
from kdsearch.searchers.mcts.model import Column, Model

ABC, X = CategoricalDistribution(("a", "b", "c")), FloatDistribution(0.0, 1.0)
Row = tuple[dict[str, object], float]


def history(rows: list[Row], running: tuple[dict[str, object], ...] = (), **options: object) -> History:
    tree = Tree()
    known = {"p": ABC, "q": ABC, "r": ABC, "x": X}
    for number, (params, value) in enumerate(rows):
        trial = create_trial(params=params, distributions={k: known[k] for k in params}, value=value)
        trial.number = number
        tree.add(trial, [StudyDirection.MAXIMIZE])
    under_way: list[FrozenTrial] = []
    for params in running:
        trial = create_trial(params=params, distributions={k: known[k] for k in params}, value=0.0)
        trial.number, trial.state = 1000 + len(under_way), TrialState.RUNNING
        under_way.append(trial)
    return History(tree, under_way, MCTS(**{"reward": "minmax", **options}))  # type: ignore[arg-type]


def judged(found: History, prefix: list[tuple[str, float]], name: str, values: list[float]) -> tuple[list[float], ...]:
    model = fit(found)
    assert model is not None
    domain = Domain(ABC if name != "x" else X)
    means, deviations = model.posterior(
        prefix, found.way(prefix), found.known(prefix, name), name, domain, np.array(values)
    )
    return means.tolist(), deviations.tolist()


@pytest.mark.parametrize(
    "distribution", [ABC, IntDistribution(2, 3), X, FloatDistribution(0.01, 100, log=True)], ids=str
)
def test_features_average_to_zero_and_have_unit_length(distribution: optuna.distributions.BaseDistribution) -> None:
    domain, rng = Domain(distribution), Random(0)
    values = np.array(domain.values() if domain.size < 9 else [domain.at((k + 0.5) / 400) for k in range(400)])
    found = features(domain, values, 0.15)
    assert found.mean(axis=0) == pytest.approx(0.0, abs=1e-3)
    assert np.mean((found**2).sum(axis=1)) == pytest.approx(1.0, abs=1e-2)
    assert features(domain, np.array([domain.draw(rng)]), 0.15).shape == (1, found.shape[1])


def test_posterior_is_the_textbook_one() -> None:
    """Against mean = k K⁻¹ y and variance = k(v, v) - k K⁻¹ kᵀ, written out."""
    rng = np.random.default_rng(0)
    values, y = rng.integers(0, 3, 12).astype(float), rng.normal(size=12)
    points = features(Domain(ABC), values, 0.15)
    column = Column(Domain(ABC), np.arange(12), points, np.zeros(3))
    nodes = values.astype(np.int64)[None] + 1
    model = Model({"p": column}, nodes, range(12), y, 0, interactions=0.0, length=0.15, noise=0.3, pessimism=0.0)
    known = {value: int(value) + 1 for value in set(values.tolist())}
    means, deviations = model.posterior([], [0], known, "p", Domain(ABC), np.array([0.0, 1.0, 2.0]))
    kernel = 1.0 + 0.15 * points @ points.T + 0.01 * (values[:, None] == values[None])
    inverse = np.linalg.inv(kernel + 0.3 * np.eye(12))
    asked = features(Domain(ABC), np.array([0.0, 1.0, 2.0]), 0.15)
    k = 1.0 + 0.15 * asked @ points.T + 0.01 * (np.arange(3.0)[:, None] == values[None])
    z = (y - y.mean()) / y.std()
    assert means == pytest.approx(k @ inverse @ z)
    assert np.square(deviations) == pytest.approx(np.diag(1.01 + 0.15 * asked @ asked.T - k @ inverse @ k.T))


def test_what_only_a_branch_knows_counts_in_it() -> None:
    """Worth is whether three decisions differ in number: neither they nor pairs of them have an effect."""
    names, rows = ("p", "q", "r"), []
    for path in itertools.product("ab", repeat=3):
        rows += [(dict(zip(names, path, strict=True)), float(path.count("a") % 2))] * 10
    found = history(rows)
    for p, q in itertools.product((0.0, 1.0), repeat=2):
        means, _ = judged(found, [("p", p), ("q", q)], "r", [0.0, 1.0])
        odd = 0 if p == q else 1
        assert means[odd] > means[1 - odd] + 0.1


def test_effects_are_told_apart_from_what_they_were_mixed_with() -> None:
    """p=a was only seen beside the bad q, p=b beside the good one; yet a is the better one."""
    worth = {("a", "c"): 0.3, ("b", "c"): 0.1, ("c", "c"): 0.2, ("a", "b"): 0.3, ("b", "a"): 0.7, ("c", "a"): 0.8}
    rows: list[Row] = [({"p": p, "q": q}, v) for (p, q), v in worth.items() for _ in range(2) if (p, q) != ("a", "b")]
    means, _ = judged(history(rows), [], "p", [0.0, 1.0, 2.0])
    assert means[0] > means[1]


def test_pairs_are_learnt() -> None:
    """q is good where it equals p: no decision has an effect of its own."""
    rows: list[Row] = [({"p": p, "q": q}, float(p == q)) for p, q in itertools.product("abc", "abc") for _ in range(2)]
    for k in range(3):
        means, _ = judged(history(rows, interactions=0.5), [("p", float(k))], "q", [0.0, 1.0, 2.0])
        assert int(np.argmax(means)) == k


@pytest.mark.parametrize("length", [0.1, 0.15, 0.5])
def test_numbers_tell_of_their_neighbours_by_a_gaussian(length: float) -> None:
    """But for the mean over the line, which is taken away, and a factor."""
    places = np.linspace(0.0, 1.0, 41)
    found = features(Domain(X), places, length)
    fine = np.exp(-0.5 * np.square((places[:, None] - np.linspace(0, 1, 2001)) / length)).mean(axis=1)
    exact = np.exp(-0.5 * np.square((places[:, None] - places) / length))
    exact = exact - fine[:, None] - fine[None] + np.trapezoid(fine, places)
    exact /= np.trapezoid(exact.diagonal(), places)
    assert found @ found.T == pytest.approx(exact, abs=0.02)


def test_a_narrow_optimum_is_found_between_bad_neighbours() -> None:
    rows: list[Row] = [({"x": x}, 1.0 if 0.5 < x < 0.7 else 0.1 * x) for x in (0.05, 0.25, 0.4, 0.55, 0.65, 0.8, 0.95)]
    means, _ = judged(history(rows), [], "x", [0.0, 0.3, 0.6, 1.0])
    assert int(np.argmax(means)) == 2
    few = history(rows[:3])
    _, wide = judged(few, [], "x", [0.1, 0.9])
    assert wide[1] > wide[0]


def test_only_what_a_value_alone_leads_to_is_looked_at() -> None:
    rng = Random(3)
    rows: list[Row] = []
    for _ in range(30):
        p = rng.choice("abc")
        own: dict[str, object] = {"x": rng.random()} if p == "a" else {}
        rows.append(({"p": p, **own, "q": rng.choice("abc")}, rng.random()))
    found = history(rows)
    assert found.tree.own("p", 0.0) == ["x"]
    assert found.tree.own("p", 1.0) == found.tree.own("q", 0.0) == found.tree.own("r", 0.0) == []
    model = fit(found)
    assert model is not None
    bounds = promises(found, model, [], "p", np.array([0.0, 1.0]), 1.0, Random(0))
    assert np.isfinite(bounds).tolist() == [True, False]
    mean, deviation = model.posterior([], [0], found.known([], "p"), "p", Domain(ABC), np.array([0.0]))
    assert bounds[0] > mean[0] + deviation[0]


def test_running_trials_take_away_doubt_and_a_little_hope() -> None:
    rows: list[Row] = [({"p": "a"}, 0.5), ({"p": "b"}, 0.4)]
    _, doubt = judged(history(rows), [], "p", [2.0])
    same, less = judged(history(rows, running=({"p": "c"},), virtual_loss=0.0), [], "p", [2.0])
    lower, _ = judged(history(rows, running=({"p": "c"},), virtual_loss=1.0), [], "p", [2.0])
    assert less[0] < doubt[0]
    assert lower[0] < same[0]


def test_many_trials_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting_module, "MEMORY", 10)
    rows: list[Row] = [({"x": k / 40}, float(k == 3)) for k in range(40)]
    model = fit(history(rows))
    assert model is not None
    assert len(model.numbers) == 10
    assert 3 in model.numbers
    assert 39 in model.numbers
    assert model.numbers == sorted(model.numbers)


def test_no_model_before_there_is_anything_to_learn() -> None:
    assert fit(history([])) is None
    assert fit(history([({"p": "a"}, 1.0)] * 3, startup=4)) is None
    assert fit(history([({}, 1.0)] * 3)) is None


def test_a_variation_keeps_a_good_path_but_for_one_decision() -> None:
    rows: list[Row] = [
        ({"p": p, "q": q, "x": 0.5}, float(p == "a") + float(q == "b")) for p, q in itertools.product("abc", "abc")
    ]
    found = history(rows)
    model = fit(found)
    varied = [variation(found, model, 1.0, Random(seed)) for seed in range(60)]
    for one in varied:
        assert one is not None
        assert {*one.repeated, one.name} == {"p", "q", "x"}
    known_best = [one for one in varied if one is not None and one.name == "x"]
    assert len(known_best) > 15  # p and q are settled, x has never varied
    assert variation(history([]), None, 1.0, Random(0)) is None
    assert variation(history([({}, 1.0)]), None, 1.0, Random(0)) is None
    assert variation(found, None, 1.0, Random(0)) is not None
